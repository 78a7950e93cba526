"""Tasks: where questions come from, and what counts as a right answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import PIL.Image

from ..data.validate import load_samples
from ..errors import InputError
from ..messages import Message
from ..tiny import questions as world_questions
from ..tiny.dataset import evaluation_set
from ..tiny.world import Scene

WORLD_SEED = 2026
WORLD_QUESTIONS = {"accuracy": 2000, "accuracy_unseen_pairs": 500, "accuracy_blind": 500}


@dataclass(frozen=True)
class Question:
    """One question of a task.

    Attributes:
        messages: the conversation up to the question.
        expected: the reference answer, for people to read.
        kind: what is asked about; results are also given by kind.
        is_correct: judges an answer.
    """

    messages: tuple[Message, ...]
    expected: str
    kind: str
    is_correct: Callable[[str], bool]


@dataclass(frozen=True)
class Task:
    """Named groups of questions; each group's accuracy is reported under its name, the first is the task's own."""

    name: str
    groups: dict[str, Sequence[Question]]


def open_task(
    name: str, *, images: str | Path | None = None, audio: str | Path | None = None, limit: int | None = None
) -> Task:
    """`world` (the coloured shapes eden-tiny knows) or a data file in any format that `eden check` reads.

    Args:
        name: the task's name or the file's path.
        images: the folder of the file's images; None is the file's own folder.
        audio: the same of its recordings.
        limit: at most this many questions a group.

    Raises:
        DataError: the file is missing or faulty.
        InputError: there is no such task.
    """
    if name == "world":
        return _world(limit)
    if not Path(name).exists():
        raise InputError(f"no task and no file named {name!r}", cure="Give `world` or the path of a data file.")
    samples, _ = load_samples(name, images, audio)
    questions = [
        Question(
            messages=sample.messages[:-1],
            expected=sample.messages[-1].text,
            kind="all",
            is_correct=partial(exact_match, sample.messages[-1].text),
        )
        for sample in samples[:limit]
    ]
    return Task(Path(name).stem, {"accuracy": questions})


def _world(limit: int | None) -> Task:
    """Unseen scenes, never-seen shape-colour pairs, and unseen scenes whose images were shuffled between questions.

    The last group tells what a model that does not look would reach.
    """
    sizes = {group: min(size, limit or size) for group, size in WORLD_QUESTIONS.items()}
    test = evaluation_set(max(sizes["accuracy"], sizes["accuracy_blind"]), seed=WORLD_SEED, split="test")
    unseen = evaluation_set(sizes["accuracy_unseen_pairs"], seed=WORLD_SEED, split="unseen_pairs")
    blind = test[: sizes["accuracy_blind"]]
    shuffled = [image for _, image, _ in blind[1:] + blind[:1]]
    return Task(
        "world",
        {
            "accuracy": [_world_question(*item) for item in test[: sizes["accuracy"]]],
            "accuracy_unseen_pairs": [_world_question(*item) for item in unseen],
            "accuracy_blind": [
                _world_question(scene, image, question)
                for (scene, _, question), image in zip(blind, shuffled, strict=True)
            ],
        },
    )


def _world_question(scene: Scene, image: PIL.Image.Image, question: world_questions.Question) -> Question:
    return Question(
        messages=(Message.user(question.text, [image]),),
        expected=question.answer,
        kind=question.kind,
        is_correct=partial(world_questions.is_correct, question, scene),
    )


def exact_match(expected: str, answer: str) -> bool:
    """Equal but for case, outer punctuation and spacing."""
    return _normalise(expected) == _normalise(answer)


def _normalise(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip(" .!?\"'").casefold()
