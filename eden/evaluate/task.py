"""What a task is: questions in groups, what scores an answer earns, and the measures made of the scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from ..core.answers import AnswerSet
from ..data.media import image_errors
from ..data.store import Progress
from ..errors import DataError
from ..messages import MediaSource, Message
from .metrics import Measure, Scores

Scoring: TypeAlias = Callable[[Sequence[Any], Sequence[str]], list[Scores]]
"""From the references and the answers of the same questions to what each answer earned."""


@dataclass(frozen=True)
class Question:
    """One question of a task.

    Attributes:
        id: the question's own in its file; two runs are compared by it.
        messages: the conversation up to the question.
        text: the question in writing, without the words that say how to answer.
        expected: the reference answer, for people to read.
        kind: what is asked about; results are also given by kind.
        reference: what the task's scoring needs to know about the right answer.
        where: file and record, for messages to people.
        context: what was said before; results are given by it as by kind. None of a question without one.
        answers: all that it may have, if it is a decision of a data file.
    """

    id: str
    messages: tuple[Message, ...]
    text: str
    expected: str
    kind: str
    reference: Any
    where: str
    context: str | None = None
    answers: AnswerSet | None = None

    @property
    def pictures(self) -> list[MediaSource]:
        """All that its messages show, in reading order."""
        return [image.source for message in self.messages for image in message.images]


@dataclass(frozen=True)
class Task:
    """Named groups of questions and how their answers are scored.

    Attributes:
        name: of the task.
        groups: questions by group. The first measure of each is reported under the group's name; the first group is
            the task's own.
        score: scores answers; the first of an answer's scores is its own, 1 where it is wholly right.
        measures: what is made of the scores, by name.
        blind: the groups that are the first one with other pictures, by what is shown; they are no result of their own.
    """

    name: str
    groups: Mapping[str, Sequence[Question]]
    score: Scoring
    measures: Mapping[str, Measure]
    blind: Mapping[str, str] = field(default_factory=dict)

    def keys(self, group: str) -> dict[str, Measure]:
        """The measures of a group by the names they are reported under: `f1` of `accuracy_spoken` is `f1_spoken`."""
        first, *others = self.measures
        ending = group.removeprefix(first) if group.startswith(first) else f"_{group}"
        return {group: self.measures[first]} | {f"{name}{ending}": self.measures[name] for name in others}


def one_by_one(score_one: Callable[[Any, str], Scores]) -> Scoring:
    """The scoring of a task that scores each answer by itself, by (reference, answer)."""

    def score(references: Sequence[Any], answers: Sequence[str]) -> list[Scores]:
        return [score_one(reference, answer) for reference, answer in zip(references, answers, strict=True)]

    return score


def votes(answers: Sequence[str]) -> str:
    """What several people answered, for people to read: `red ×8, dark red ×2`."""
    return ", ".join(f"{answer} ×{number}" for answer, number in Counter(answers).most_common())


def check_images(questions: Sequence[Question], on_progress: Progress | None = None) -> None:
    """Decodes every image once: one that cannot be used is one error before the model is loaded, not after an hour.

    Args:
        questions: those that will be asked.
        on_progress: called as images are checked.

    Raises:
        DataError: what is wrong with the first such image, and how many there are.
    """
    named: dict[Path | str | bytes, Question] = {}
    for question in questions:
        for source in question.pictures:
            if isinstance(source, Path | str | bytes):
                named.setdefault(source, question)
    sources = list(named)
    errors = image_errors(sources, "decoded", on_progress)
    if not errors:
        return
    first = min(errors)
    fault = errors[first].at(named[sources[first]].where)
    what = f"{fault.what} ({len(errors):,} of {len(sources):,} images cannot be used)"
    hint = "Give the folder they are in with --images." if fault.kind == "missing_image" else fault.hint
    raise DataError(replace(fault, what=what, hint=hint))
