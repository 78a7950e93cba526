"""A task asked by voice: every question is spoken, transcribed by the model's own Whisper, and asked in those words."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from rich.console import Console

from ..core.console import progress
from ..errors import InputError, RunError
from ..media.speech import Transcriber
from ..media.speech_synthesis import add_noise, random_voice, speak
from ..messages import Message, Text
from .task import Question, Task

SPELLINGS = {"colour": "color", "colours": "colors", "grey": "gray"}
"""Spellings that sound alike, for the count of wrong words."""
NO_WORDS = "..."


@dataclass(frozen=True)
class Transcription:
    """What was said and what was transcribed, question by question."""

    kinds: list[str]
    said: list[str]
    transcribed: list[str]

    def word_error_rate(self, kind: str | None = None) -> float:
        """Wrong, missing and added words as a share of the words said, after Whisper's own normalisation of English."""
        import jiwer
        from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

        normalise = EnglishTextNormalizer(SPELLINGS)
        rows = [
            (normalise(said), normalise(transcribed))
            for of, said, transcribed in zip(self.kinds, self.said, self.transcribed, strict=True)
            if kind in (None, of)
        ]
        return float(jiwer.wer([said for said, _ in rows], [transcribed for _, transcribed in rows]))


def speak_task(
    task: Task, transcriber: Transcriber, *, noise_db: float | None = None, seed: int = 0, console: Console
) -> tuple[Task, Transcription]:
    """The task with its first group once more, as `..._spoken`: the questions in the words that were transcribed.

    Args:
        task: the task in writing.
        transcriber: the speech model; `workers` recordings are transcribed at once.
        noise_db: white noise at this signal-to-noise ratio, in dB; None speaks in silence.
        seed: chooses the voices, all of them unknown to eden-tiny's Whisper, and the noise.
        console: where progress is shown.

    Raises:
        InputError: the questions are recordings already.
        RunError: espeak-ng or jiwer is not installed.
    """
    group, questions = next(iter(task.groups.items()))
    if any(question.messages[-1].audio for question in questions):
        raise InputError(f"the questions of {task.name} are spoken already", hint="Leave out --spoken.")
    try:
        import jiwer  # noqa: F401
    except ImportError as error:
        raise RunError("counting wrong words needs jiwer", hint="pip install 'eden-multimodal[spoken]'") from error
    said = [question.messages[-1].text for question in questions]
    transcribed = _speak_and_transcribe(said, transcriber, noise_db, seed, console)
    spoken = [_with_words(words, question) for words, question in zip(transcribed, questions, strict=True)]
    groups = {}
    for name, typed in task.groups.items():
        groups[name] = typed
        if name == group:
            groups[f"{group}_spoken"] = spoken
    return replace(task, groups=groups), Transcription([question.kind for question in questions], said, transcribed)


def _speak_and_transcribe(
    texts: Sequence[str], transcriber: Transcriber, noise_db: float | None, seed: int, console: Console
) -> list[str]:
    rng = random.Random(f"voices {seed}")
    recordings = []
    for index, text in enumerate(texts):
        waveform = speak(text, random_voice(rng, "test"))
        recordings.append(waveform if noise_db is None else add_noise(waveform, noise_db, seed=seed + index))
    with progress(console) as bar, ThreadPoolExecutor(transcriber.workers) as pool:
        transcribed = bar.track(pool.map(transcriber.transcribe, recordings), total=len(texts), description="listening")
        return [transcript.text for transcript in transcribed]


def _with_words(words: str, question: Question) -> Question:
    """The question with its last words replaced by these; its images stay."""
    last = question.messages[-1]
    parts = tuple(part for part in last.content if not isinstance(part, Text))
    message = Message(last.role, (*parts, Text(words or NO_WORDS)))
    return replace(question, messages=(*question.messages[:-1], message))
