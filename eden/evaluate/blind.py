"""Does a model look? The same questions with another question's picture and with a blank one, and what that costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import PIL.Image

from ..data.transcripts import content_digest
from ..inference.assistant import Assistant
from ..messages import Image, MediaSource, Message
from .metrics import Measure, Scores, differences, value
from .task import Question, Task

ANOTHER, BLANK = "another", "blank"
BLANK_SIZE = (224, 224)
FEW_ANSWERS = 5
"""Resampling fewer clusters than these says nothing."""
WORDS = {ANOTHER: "another question's picture", BLANK: "a blank picture"}


def without_pictures(questions: Sequence[Question], assistant: Assistant) -> dict[str, list[Question]]:
    """Those of the questions that have pictures, with others in their place; empty if none has.

    Returns:
        `another`: each picture replaced by the next different one in the order of their SHA-256, which has nothing to
        do with what they show; left out if all pictures are the same. `blank`: each replaced by one of the mean colour
        that the processor subtracts: its pixels become 0, the middle of what the tower has seen, without an edge.
    """
    shown = [question for question in questions if question.pictures]
    digests = [[content_digest(source) for source in question.pictures] for question in shown]
    sources = {
        digest: source
        for question, of in zip(shown, digests, strict=True)
        for digest, source in zip(of, question.pictures, strict=True)
    }
    order = sorted(sources)
    following = dict(zip(order, order[1:] + order[:1], strict=True))
    found = {}
    if len(order) > 1:
        others = [[sources[following[digest]] for digest in of] for of in digests]
        found[ANOTHER] = [_showing(*item) for item in zip(shown, others, strict=True)]
    if shown:
        mean = assistant.processor.image_processor.image_mean
        blank = PIL.Image.new("RGB", BLANK_SIZE, tuple(round(255 * share) for share in mean))
        found[BLANK] = [_showing(question, [blank] * len(question.pictures)) for question in shown]
    return found


def with_blind_groups(task: Task, assistant: Assistant) -> Task:
    """The task with its first group once more for each way of `without_pictures`, as `..._another` and `..._blank`."""
    first, questions = next(iter(task.groups.items()))
    asked = without_pictures(questions, assistant)
    blind = {name: f"{first}_{name}" for name in asked}
    return replace(task, groups={**task.groups, **{blind[name]: of for name, of in asked.items()}}, blind=blind)


def looks(
    measure: Measure, scores: Sequence[Scores], without: Mapping[str, Sequence[Scores]], expected: Sequence[str]
) -> dict[str, Any]:
    """What the right pictures are worth: the measure with them less that without, with its paired 95 % interval.

    A model can have learned one wrong answer for all pictures of a kind, as from shuffled labels, and be right on a
    whole kind by chance. So with five different right answers or more, the interval is the wider of two: of resampled
    questions, and of resampled answers, each with all of its questions.

    Args:
        measure: the task's main one.
        scores: of the questions that have pictures.
        without: of the same, by the names that `without_pictures` gives.
        expected: the right answer of each.
    """
    gaps: dict[str, Any] = {}
    by_question = []
    answers = len(set(expected))
    for name, of in without.items():
        ((gap, (low, high)),) = differences({name: measure}, scores, of).values()
        by_question.append((low, high))
        if answers >= FEW_ANSWERS:
            ((_, ends),) = differences({name: measure}, scores, of, expected).values()
            low, high = min(low, ends[0]), max(high, ends[1])
        interval = [round(end, 4) for end in (low, high)]
        gaps[name] = {"score": round(value(measure, of), 4), "gap": round(gap, 4), "interval": interval}
    (name, found), (least, most) = next(iter(gaps.items())), by_question[0]
    low, high = found["interval"]
    if low > 0:
        said = f"It looks: with {WORDS[name]} it scores {found['gap']:.3f} less."
    elif high < 0:
        said = f"It looks, and is misled: with {WORDS[name]} it scores {-found['gap']:.3f} more."
    elif least <= 0 <= most:
        said = (
            f"It answers from the words alone, as far as {len(scores):,} questions can tell: "
            f"what it loses with {WORDS[name]} may be nothing."
        )
    else:
        said = (
            f"With {WORDS[name]} it may lose nothing: the difference comes from some of the {answers:,} right answers, "
            "and a model that was taught wrong ones is right on some by chance."
        )
    return {"n": len(scores), "score": round(value(measure, scores), 4), "gaps": gaps, "said": said}


def _showing(question: Question, pictures: Sequence[MediaSource]) -> Question:
    """The question with its pictures replaced, in their order."""
    left = iter(pictures)

    def shown(message: Message) -> Message:
        parts = (Image(next(left)) if isinstance(part, Image) else part for part in message.content)
        return replace(message, content=tuple(parts))

    return replace(question, messages=tuple(map(shown, question.messages)))
