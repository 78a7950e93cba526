"""What a run reads, made ready before its model is loaded: samples checked, speech as text, a part held out."""

from __future__ import annotations

import os
import random

from rich.console import Console

from .checkpoint import speech_model_of_run
from .console import progress
from .data.formats import Sample
from .data.transcripts import TranscriptStore, transcribe_samples
from .data.validate import load_samples
from .errors import RecipeError
from .recipe import Recipe
from .speech import Transcriber


def read_data(recipe: Recipe, console: Console) -> tuple[list[Sample], list[Sample], list[str]]:
    """Training and held-out samples in text and images, and what was skipped, one line each.

    They are checked by `eden check`'s own code; transcripts come from the cache where they are in it.

    Raises:
        DataError: a file or a sample is faulty (`data.on_error: fail`), or none is good.
        CheckpointError: there is speech, and the Whisper to hear it with is missing.
        RecipeError: so much is held out that nothing is left to train on.
    """
    section = recipe.data
    skipped: list[str] = []

    def read(path: str) -> list[Sample]:
        with progress(console) as bar:
            task = bar.add_task(f"checking {path}", total=None)
            samples, report = load_samples(
                path,
                section.images,
                section.audio,
                on_error=section.on_error,
                on_progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        skipped.extend(f"{fault.where}: {fault.message}" for fault in report.faults)
        return _in_words(samples, recipe, skipped, console)

    samples = read(section.path)
    if section.eval_path is not None:
        return samples, read(section.eval_path), skipped
    order = list(range(len(samples)))
    random.Random(section.split_seed).shuffle(order)
    held_out = round(len(samples) * section.eval_fraction)
    if section.eval_fraction > 0:
        held_out = max(1, held_out)
    if held_out >= len(samples):
        raise RecipeError(
            f"{len(samples)} samples leave none to train on when {held_out} are held out",
            where="data.eval_fraction",
            cure="Give more samples, or data.eval_path.",
        )
    chosen = set(order[:held_out])
    return (
        [sample for index, sample in enumerate(samples) if index not in chosen],
        [sample for index, sample in enumerate(samples) if index in chosen],
        skipped,
    )


def _in_words(samples: list[Sample], recipe: Recipe, skipped: list[str], console: Console) -> list[Sample]:
    """The samples with their recordings as text; what is in the cache is not heard again."""
    if not any(message.audio for sample in samples for message in sample.messages):
        return samples
    store = TranscriptStore(Transcriber(speech_model_of_run(recipe.model), workers=os.cpu_count() or 1))
    with progress(console) as bar:
        task = bar.add_task("transcribing", total=None)
        heard, faults = transcribe_samples(
            samples,
            store,
            on_error=recipe.data.on_error,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    skipped.extend(str(fault) for fault in faults)
    return heard
