"""Running a task: questions in batches, answers judged, accuracies by group and by kind."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from ..assistant import Assistant
from ..console import progress
from .spoken import Hearing
from .tasks import Question, Task

WORD_ERRORS = "word_error_rate"


@dataclass(frozen=True)
class Answer:
    """What the model said to one question, and whether that was right."""

    group: str
    question: Question
    text: str
    correct: bool


@dataclass(frozen=True)
class EvaluationResult:
    task: str
    model: str
    answers: list[Answer]
    seconds: float
    hearing: Hearing | None = None

    def accuracy(self, group: str = "accuracy", kind: str | None = None) -> float:
        """The share of right answers of a group, or of one kind of question in it."""
        chosen = [a.correct for a in self.answers if a.group == group and kind in (None, a.question.kind)]
        return sum(chosen) / len(chosen) if chosen else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Accuracy by group, then by kind of question within each, with counts; word error rates if it was spoken."""
        kinds: dict[str, dict[str, None]] = defaultdict(dict)
        for answer in self.answers:
            kinds[answer.group][answer.question.kind] = None
        overall = {group: round(self.accuracy(group), 4) for group in kinds}
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
            "task": self.task,
            "model": self.model,
            **overall,
            "by_kind": by_kind,
            "n": len(self.answers),
            "seconds": round(self.seconds, 1),
        }


def evaluate(
    assistant: Assistant,
    task: Task,
    *,
    batch_size: int = 64,
    max_new_tokens: int = 96,
    hearing: Hearing | None = None,
    console: Console | None = None,
) -> EvaluationResult:
    """Asks every question of the task, greedily; the same model and task give the same result.

    Args:
        assistant: the model.
        task: the questions.
        batch_size: questions asked at once.
        max_new_tokens: the longest answer, in tokens.
        hearing: what was heard, if the task is spoken (`speak_task`).
        console: where progress is shown; None shows it on stderr.
    """
    started = time.monotonic()
    answers: list[Answer] = []
    for group, questions in task.groups.items():
        with progress(console or Console(stderr=True)) as bar:
            bar_task = bar.add_task(f"{task.name}: {group}", total=len(questions))
            texts = _ask(
                assistant,
                questions,
                batch_size=batch_size,
                max_new_tokens=max_new_tokens,
                on_progress=lambda done, total, bar=bar, task=bar_task: bar.update(task, completed=done),
            )
        answers += [
            Answer(group, question, text, question.is_correct(text))
            for question, text in zip(questions, texts, strict=True)
        ]
    return EvaluationResult(task.name, assistant.checkpoint.name, answers, time.monotonic() - started, hearing)


def _ask(assistant: Assistant, questions: Sequence[Question], **options: Any) -> list[str]:
    """Answers in the order of the questions; asked by kind, so that short answers do not wait for long ones."""
    order = sorted(range(len(questions)), key=lambda index: questions[index].kind)
    texts = assistant.answer_all([questions[index].messages for index in order], **options)
    answers = [""] * len(questions)
    for index, text in zip(order, texts, strict=True):
        answers[index] = text
    return answers
