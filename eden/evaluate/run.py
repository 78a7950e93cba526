"""Running a task: questions in batches, answers judged, measures by group and by kind, with their intervals."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID

from ..assistant import Assistant
from ..console import progress
from ..errors import Interrupted
from .measures import Marks, intervals, value
from .predictions import Predictions, row
from .questions import Question, Task
from .spoken import Hearing

WORD_ERRORS = "word_error_rate"
BATCHES_KEPT = 8
"""Batches between two times that answers are written down; at most as many are asked again after a crash."""


@dataclass(frozen=True)
class Answer:
    """What the model said to one question, and what that earned.

    Attributes:
        group: of the question.
        question: what was asked.
        text: what the model said.
        marks: what it earned, by name, as the task's measures need it.
    """

    group: str
    question: Question
    text: str
    marks: Marks

    @property
    def score(self) -> float:
        """The first mark: 0 for a wrong answer, 1 for a right one, in some tasks what is between; CIDEr goes to 10."""
        return float(next(iter(self.marks.values())))


@dataclass(frozen=True)
class EvaluationResult:
    task: Task
    model: str
    answers: list[Answer]
    seconds: float
    hearing: Hearing | None = None

    def marks(self, group: str, kind: str | None = None) -> list[Marks]:
        """What the answers of a group earned, or of one kind of question in it."""
        return [a.marks for a in self.answers if a.group == group and kind in (None, a.question.kind)]

    def accuracy(self, group: str = "accuracy", kind: str | None = None) -> float:
        """The first measure (accuracy, but for captions) of a group, or of one kind of question in it."""
        return value(next(iter(self.task.measures.values())), self.marks(group, kind))

    def to_dict(self) -> dict[str, Any]:
        """Measures by group, then by kind of question, with 95 % intervals; word error rates if it was spoken."""
        overall: dict[str, float] = {}
        ranges: dict[str, list[float]] = {}
        kinds: dict[str, dict[str, None]] = defaultdict(dict)
        for answer in self.answers:
            kinds[answer.group][answer.question.kind] = None
        for group in kinds:
            measures, marks = self.task.keys(group), self.marks(group)
            overall |= {name: round(value(measure, marks), 4) for name, measure in measures.items()}
            ranges |= {name: [round(end, 4) for end in found] for name, found in intervals(measures, marks).items()}
        by_kind = {
            group: {kind: round(self.accuracy(group, kind), 4) for kind in sorted(names)}
            for group, names in kinds.items()
        }
        if self.hearing is not None:
            overall[WORD_ERRORS] = round(self.hearing.word_error_rate(), 4)
            by_kind[WORD_ERRORS] = {
                kind: round(self.hearing.word_error_rate(kind), 4) for kind in sorted(set(self.hearing.kinds))
            }
        return {
            "task": self.task.name,
            "model": self.model,
            **overall,
            "intervals": ranges,
            "by_kind": by_kind,
            "n": len(self.answers),
            "seconds": round(self.seconds, 1),
        }

    def rows(self) -> list[dict[str, Any]]:
        """The lines of the predictions file, in the task's order."""
        places: dict[str, int] = defaultdict(int)
        found = []
        for answer in self.answers:
            found.append(row(answer.group, places[answer.group], answer.question, answer.text, round(answer.score, 6)))
            places[answer.group] += 1
        return found


def evaluate(
    assistant: Assistant,
    task: Task,
    *,
    batch_size: int = 64,
    max_new_tokens: int = 96,
    hearing: Hearing | None = None,
    predictions: Predictions | None = None,
    console: Console | None = None,
) -> EvaluationResult:
    """Asks every question of the task, greedily; the same model and task give the same result.

    Args:
        assistant: the model.
        task: the questions.
        batch_size: questions asked at once.
        max_new_tokens: the longest answer, in tokens.
        hearing: what was heard, if the task is spoken (`speak_task`).
        predictions: where answers are kept, and taken from if they are there already.
        console: where progress is shown; None shows it on stderr.

    Raises:
        Interrupted: stopped by the user; with `predictions` the next run goes on from there.
        StorageError: the disk is full.
    """
    started = time.monotonic()
    console = console or Console(stderr=True)
    answers: list[Answer] = []
    for group, questions in task.groups.items():
        said: dict[int, str] = {}
        part_size = batch_size * BATCHES_KEPT if predictions else len(questions)
        with progress(console) as bar:
            shown = bar.add_task(f"{task.name}: {group}", total=len(questions))
            for part in _parts(questions, part_size):
                said |= _ask(
                    assistant,
                    group,
                    {index: questions[index] for index in part},
                    predictions,
                    batch_size=batch_size,
                    max_new_tokens=max_new_tokens,
                    on_progress=partial(_show, bar, shown, len(said)),
                )
        texts = [said[index] for index in range(len(questions))]
        earned = task.mark([question.reference for question in questions], texts)
        answers += [Answer(group, *item) for item in zip(questions, texts, earned, strict=True)]
    result = EvaluationResult(task, assistant.checkpoint.name, answers, time.monotonic() - started, hearing)
    if predictions is not None:
        predictions.finish(result.rows())
    return result


def _show(bar: Progress, task: TaskID, before: int, done: int, total: int) -> None:
    bar.update(task, completed=before + done)


def _parts(questions: Sequence[Question], size: int) -> Iterable[list[int]]:
    """Places of questions to be asked together: by kind, so that short answers do not wait for long ones."""
    order = sorted(range(len(questions)), key=lambda index: questions[index].kind)
    for start in range(0, len(order), max(1, size)):
        yield order[start : start + size]


def _ask(
    assistant: Assistant, group: str, part: Mapping[int, Question], predictions: Predictions | None, **options: Any
) -> dict[int, str]:
    """Answers by place. A part that was answered only in part is asked again, whole: so the batches stay the same."""
    on_progress = options["on_progress"]
    if predictions is not None and all((group, index) in predictions.answers for index in part):
        on_progress(len(part), len(part))
        return {index: predictions.answers[group, index] for index in part}
    try:
        texts = assistant.answer_all([question.messages for question in part.values()], **options)
    except KeyboardInterrupt:
        if predictions is None:
            raise
        raise Interrupted(
            "stopped", where=str(predictions.folder), cure="Run the same command again to go on."
        ) from None
    answers = dict(zip(part, texts, strict=True))
    if predictions is not None:
        predictions.add(row(group, index, part[index], text) for index, text in answers.items())
    return answers
