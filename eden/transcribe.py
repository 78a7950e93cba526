"""Recordings of any length on the command line: progress while it lasts, and what it took."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID

from .audio import UNLIMITED, announced_seconds
from .console import progress
from .machine import peak_memory_mib
from .speech import Transcriber, Transcript


def transcribe_files(
    paths: Sequence[Path], model: str, language: str | None, console: Console
) -> Iterator[tuple[Path, Transcript]]:
    """Each recording with its transcript, in the order given.

    Raises:
        AudioError: a recording cannot be read.
        CheckpointError: the Whisper cannot be loaded.
        InputError: it does not know the language.
    """
    transcriber = Transcriber(model, language=language)
    for path in paths:
        started = time.monotonic()
        with progress(console) as bar:
            task = bar.add_task(f"transcribing {path.name}, seconds", total=announced_seconds(path) or None)
            transcript = transcriber.transcribe(
                path,
                max_bytes=UNLIMITED,
                max_seconds=UNLIMITED,
                on_progress=partial(_advance, bar, task),
            )
        seconds = time.monotonic() - started
        if not transcript.text:
            console.print(f"{path}: no speech was heard", highlight=False, soft_wrap=True)
        console.print(
            f"[dim]{path.name}: {transcript.duration:,.1f} s of sound in {seconds:,.1f} s, "
            f"peak memory {peak_memory_mib():,.0f} MiB[/]",
            highlight=False,
            soft_wrap=True,
        )
        yield path, transcript


def _advance(bar: Progress, task: TaskID, done: float) -> None:
    bar.update(task, completed=done)
