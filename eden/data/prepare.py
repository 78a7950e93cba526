"""What a run reads, made ready before its model is loaded: samples checked, speech as text, a part held out, a mix."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console

from ..checkpoint import speech_model_of_run
from ..core.console import AS_IT_IS, progress
from ..core.processes import cores
from ..errors import DataError, RecipeError
from ..media.speech import Transcriber
from ..recipe import DataSection, Recipe, SourceSection
from .cache import shrink, size_limit
from .store import Indices, RecordStore, Samples
from .transcripts import HeardStore, TranscriptStore, heard_words, words_or_faults
from .validate import load_samples


def read_data(recipe: Recipe, console: Console, *, hear: bool = True) -> tuple[Samples, Samples, list[str]]:
    """Training and held-out samples in text and images, and what was skipped, one line each.

    They are checked by `eden check`'s own code, but images only for being there: what is damaged is found when it is
    needed. Records and transcripts come from the cache where they are in it. With `hear=False` recordings stay as they
    are, and samples in whose recordings nothing is said stay in.

    Raises:
        DataError: a file or a sample is faulty (`data.on_error: fail`), or none is good.
        CheckpointError: there is speech, and the Whisper to hear it with is missing.
        RecipeError: so much is held out that nothing is left to train on, or a source's weight gives it no sample.
        StorageError: the cache is not writable.
    """
    section = recipe.data
    skipped: list[str] = []

    def read(source: SourceSection) -> Samples:
        return _read(source, recipe, skipped, console, hear)

    for entry in shrink(size_limit()):
        console.print(f"removed from the cache, which was above EDEN_CACHE_GB: {entry.path}", **AS_IT_IS)
    samples = Samples.joined([read(source) for source in section.all_sources])
    if section.eval_path is not None:
        held_out = read(SourceSection(path=section.eval_path, images=section.images, audio=section.audio))
    else:
        samples, held_out = _split(samples, section)
    if section.sources is not None:
        samples = _mix(samples, section.sources, section.split_seed)
    if section.rehearsal is not None and section.rehearsal.path is not None:
        samples = with_rehearsal(samples, section.rehearsal.path, recipe, skipped, console)
    return samples, held_out, skipped


def with_rehearsal(samples: Samples, path: str, recipe: Recipe, skipped: list[str], console: Console) -> Samples:
    """The samples of an epoch, and beside them conversations without pictures in proportion to their weight.

    They are drawn as a source of a mix is.

    Args:
        samples: to train on.
        path: of the conversations.
        recipe: has their weight, and those of the data.
        skipped: faulty ones are added to it, one line each.
        console: where progress is shown.

    Raises:
        DataError: one is faulty (`data.on_error: fail`) or has a picture, or none is good.
        RecipeError: the weight gives none of them.
    """
    section = recipe.data
    assert section.rehearsal is not None
    found = _read(SourceSection(path=path), recipe, skipped, console, hear=True)
    if images := found.number_of_images:
        hint = "Rehearsal is text alone; a data set with pictures is one of data.sources."
        raise DataError(f"what is to be rehearsed has {images:,} pictures", where=path, hint=hint)
    weight = sum(source.weight for source in section.all_sources)
    number = round(len(samples) * section.rehearsal.weight / weight)
    if not number:
        hint = "Raise data.rehearsal.weight, or leave it out."
        raise RecipeError(f"{path} gives no sample to rehearse", where="data.rehearsal", hint=hint)
    drawn = len(samples) + _draw(np.arange(len(found)), number, f"{section.split_seed} rehearsal")
    return Samples.joined([samples, found]).take(np.concatenate([np.arange(len(samples)), drawn]))


def _read(source: SourceSection, recipe: Recipe, skipped: list[str], console: Console, hear: bool) -> Samples:
    with progress(console) as bar:
        task = bar.add_task(f"checking {source.path}", total=None)
        samples, report = load_samples(
            source.path,
            source.images,
            source.audio,
            on_error=recipe.data.on_error,
            look="listed",
            on_progress=lambda done, total: bar.update(task, completed=done, total=total or None),
        )
    skipped.extend(f"{fault.where}: {fault.what}" for fault in report.faults)
    if report.unnamed:
        skipped.append(f"{source.path}: {report.unnamed:,} more faults")
    return _in_words(samples, recipe, skipped, console) if hear else samples


def _split(samples: Samples, section: DataSection) -> tuple[Samples, Samples]:
    """The samples without those held out, and these; samples of a group are on the same side."""
    order = list(range(len(samples)))
    random.Random(section.split_seed).shuffle(order)
    groups = _groups(samples) if section.split_by == "media" else np.arange(len(samples))
    sizes = np.bincount(groups)
    left = max(1, round(len(samples) * section.eval_fraction)) if section.eval_fraction > 0 else 0
    if left and not (sizes[groups] <= left).any():  # no group is small enough: the smallest
        left = int(sizes[groups].min())
    if left >= len(samples):
        by = " with the pictures and recordings they share" if section.split_by == "media" else ""
        raise RecipeError(
            f"{len(samples)} samples leave none to train on when {left} are held out{by}",
            where="data.eval_fraction",
            hint="Give more samples, or data.eval_path" + (", or set data.split_by=sample." if by else "."),
        )
    chosen = np.zeros(len(sizes), dtype=bool)
    for group in groups[order]:
        if not chosen[group] and sizes[group] <= left:
            chosen[group] = True
            left -= sizes[group]
    return samples.take(np.flatnonzero(~chosen[groups])), samples.take(np.flatnonzero(chosen[groups]))


def _groups(samples: Samples) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Of each sample a number that it shares with those of the same pictures or recordings, and with theirs."""
    groups = np.arange(len(samples))
    first: dict[str, int] = {}

    def group(index: int) -> int:
        while groups[index] != index:
            groups[index] = index = groups[groups[index]]
        return index

    for source, store in enumerate(samples.stores):
        assert isinstance(store, RecordStore)
        found = np.flatnonzero(samples.source == source)
        for index, names in zip(found.tolist(), store.media_names(samples.row[found]), strict=True):
            for name in names:
                groups[group(index)] = group(first.setdefault(name, index))
    return np.array([group(index) for index in range(len(samples))], dtype=np.int64)


def _mix(samples: Samples, sources: Sequence[SourceSection], seed: int) -> Samples:
    """As many samples as there are, drawn from each source in proportion to its weight."""
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
        drawn.append(_draw(found, number, f"{seed} {index}"))
    return samples.take(np.concatenate(drawn))


def _draw(found: Indices, number: int, seed: str) -> Indices:
    """So many of a source's samples, the same in every epoch.

    Of fewer than it has, a seeded choice; of more than it has, all of them, as often as that takes, and a choice for
    the rest.
    """
    rest = random.Random(seed).sample(found.tolist(), number % len(found))
    return np.concatenate([*[found] * (number // len(found)), np.array(rest, dtype=np.int64)])


def _in_words(samples: Samples, recipe: Recipe, skipped: list[str], console: Console) -> Samples:
    """The samples with their recordings as text; what is in the cache is not heard again."""
    (store,) = samples.stores
    assert isinstance(store, RecordStore)
    if not store.numbers("recordings")[samples.row].any():
        return samples
    transcripts = TranscriptStore(Transcriber(speech_model_of_run(recipe.model), workers=cores()))
    spoken = samples.row[store.numbers("recordings")[samples.row] > 0].tolist()
    with progress(console) as bar:
        task = bar.add_task("transcribing", total=None)
        heard = heard_words(
            map(store.sample, spoken),
            transcripts,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    unheard = []
    for row, found in zip(spoken, words_or_faults(map(store.sample, spoken), heard, recipe.data.on_error), strict=True):
        if isinstance(found, DataError):
            skipped.append(str(found))
            unheard.append(row)
    return Samples.of(HeardStore(store, heard, unheard), samples.row[~np.isin(samples.row, unheard)])
