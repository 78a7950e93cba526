"""What a run reads, made ready before its model is loaded: samples checked, speech as text, a part held out, a mix."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence

import numpy as np
from rich.console import Console

from ..checkpoint import speech_model_of_run
from ..core.console import progress
from ..errors import RecipeError
from ..media.speech import Transcriber
from ..recipe import Recipe, SourceSection
from .store import RecordStore, SampleList, Samples
from .transcripts import TranscriptStore, transcribe_samples
from .validate import load_samples


def read_data(recipe: Recipe, console: Console) -> tuple[Samples, Samples, list[str]]:
    """Training and held-out samples in text and images, and what was skipped, one line each.

    They are checked by `eden check`'s own code, but images only for being there: what is damaged is found when it is
    needed. Records and transcripts come from the cache where they are in it.

    Raises:
        DataError: a file or a sample is faulty (`data.on_error: fail`), or none is good.
        CheckpointError: there is speech, and the Whisper to hear it with is missing.
        RecipeError: so much is held out that nothing is left to train on, or a source's weight gives it no sample.
        StorageError: the cache is not writable.
    """
    section = recipe.data
    skipped: list[str] = []

    def read(source: SourceSection) -> Samples:
        with progress(console) as bar:
            task = bar.add_task(f"checking {source.path}", total=None)
            samples, report = load_samples(
                source.path,
                source.images,
                source.audio,
                on_error=section.on_error,
                look="listed",
                on_progress=lambda done, total: bar.update(task, completed=done, total=total or None),
            )
        skipped.extend(f"{fault.where}: {fault.message}" for fault in report.faults)
        if report.unnamed:
            skipped.append(f"{source.path}: {report.unnamed:,} more faults")
        return _in_words(samples, recipe, skipped, console)

    samples = Samples.joined([read(source) for source in section.all_sources])
    if section.eval_path is not None:
        held_out = read(SourceSection(path=section.eval_path, images=section.images, audio=section.audio))
    else:
        samples, held_out = _split(samples, section.eval_fraction, section.split_seed)
    if section.sources is not None:
        samples = _mix(samples, section.sources, section.split_seed)
    return samples, held_out, skipped


def _split(samples: Samples, fraction: float, seed: int) -> tuple[Samples, Samples]:
    """The samples without those held out, and these."""
    order = list(range(len(samples)))
    random.Random(seed).shuffle(order)
    number = round(len(samples) * fraction)
    if fraction > 0:
        number = max(1, number)
    if number >= len(samples):
        raise RecipeError(
            f"{len(samples)} samples leave none to train on when {number} are held out",
            where="data.eval_fraction",
            hint="Give more samples, or data.eval_path.",
        )
    chosen = np.zeros(len(samples), dtype=bool)
    chosen[order[:number]] = True
    return samples.take(np.flatnonzero(~chosen)), samples.take(np.flatnonzero(chosen))


def _mix(samples: Samples, sources: Sequence[SourceSection], seed: int) -> Samples:
    """As many samples as there are, drawn from each source in proportion to its weight.

    A source that gives fewer than it has gives a seeded choice, the same in every epoch; one that gives more than it
    has gives all of them, as often as that takes, and a choice for the rest.
    """
    total = sum(source.weight for source in sources)
    drawn = []
    for index, source in enumerate(sources):
        found = np.flatnonzero(samples.source == index)
        number = round(len(samples) * source.weight / total)
        if not number or not len(found):
            raise RecipeError(
                f"{source.path} gives no sample to train on",
                where="data.sources",
                hint="Raise its weight, give it more samples, or leave it out.",
            )
        rest = random.Random(f"{seed} {index}").sample(found.tolist(), number % len(found))
        drawn += [*[found] * (number // len(found)), np.array(rest, dtype=np.int64)]
    return samples.take(np.concatenate(drawn))


def _in_words(samples: Samples, recipe: Recipe, skipped: list[str], console: Console) -> Samples:
    """The samples with their recordings as text; what is in the cache is not heard again."""
    (store,) = samples.stores
    assert isinstance(store, RecordStore)
    if not store.numbers("recordings")[samples.row].any():
        return samples
    transcripts = TranscriptStore(Transcriber(speech_model_of_run(recipe.model), workers=os.cpu_count() or 1))
    with progress(console) as bar:
        task = bar.add_task("transcribing", total=None)
        transcribed, faults = transcribe_samples(
            samples,
            transcripts,
            on_error=recipe.data.on_error,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    skipped.extend(str(fault) for fault in faults)
    return Samples.of(SampleList(transcribed))
