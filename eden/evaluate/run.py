"""Running a task: questions in batches, answers scored, measures by group and by kind, with their intervals."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from ..core.console import progress
from ..errors import ContextError, Interrupted
from ..inference.assistant import Assistant
from ..media.images import image_size
from ..messages import to_chat
from .blind import looks
from .metrics import Scores, intervals, value
from .predictions import Predictions, row
from .spoken import Transcription
from .task import Question, Task

WORD_ERRORS = "word_error_rate"
BATCHES_KEPT = 8
"""Batches between two times that answers are written down; at most as many are asked again after a crash."""
TURN_TOKENS = 16
"""More than a turn's own control tokens, the line breaks at its ends and the prompt for an answer."""


@dataclass(frozen=True)
class Answer:
    """What the model said to one question, and what that earned.

    Attributes:
        group: of the question.
        question: what was asked.
        text: what the model said.
        scores: what it earned, by name, as the task's measures need it.
    """

    group: str
    question: Question
    text: str
    scores: Scores

    @property
    def score(self) -> float:
        """The first score: 0 for a wrong answer, 1 for a right one, in some tasks what is between; CIDEr goes to 10."""
        return float(next(iter(self.scores.values())))


@dataclass(frozen=True)
class EvaluationResult:
    """What a model said to a task.

    Attributes:
        task: what was asked.
        model: its name.
        answers: in the task's order.
        seconds: that this run took; of a run that was stopped, since it went on.
        transcription: what was transcribed, if the task was spoken.
    """

    task: Task
    model: str
    answers: list[Answer]
    seconds: float
    transcription: Transcription | None = None

    def scores(self, group: str, kind: str | None = None) -> list[Scores]:
        """What the answers of a group earned, or of one kind of question in it, or of one context."""
        return [
            answer.scores
            for answer in self.answers
            if answer.group == group and kind in (None, answer.question.kind, answer.question.context)
        ]

    def accuracy(self, group: str = "accuracy", kind: str | None = None) -> float:
        """The first measure (accuracy, but for captions) of a group, or of one kind of question in it, or context."""
        return value(next(iter(self.task.measures.values())), self.scores(group, kind))

    def to_dict(self) -> dict[str, Any]:
        """Measures by group, then by kind of question and context, with 95 % intervals; word error rates if spoken;
        what the pictures are worth, if that was asked.
        """
        overall: dict[str, float] = {}
        ranges: dict[str, list[float]] = {}
        kinds: dict[str, dict[str, None]] = defaultdict(dict)
        own = [answer for answer in self.answers if answer.group not in self.task.blind.values()]
        for answer in own:
            kinds[answer.group][answer.question.kind] = None
            if answer.question.context is not None:
                kinds[answer.group][answer.question.context] = None
        for group in kinds:
            measures, scores = self.task.keys(group), self.scores(group)
            overall |= {name: round(value(measure, scores), 4) for name, measure in measures.items()}
            ranges |= {name: [round(end, 4) for end in found] for name, found in intervals(measures, scores).items()}
        by_kind = {
            group: {kind: round(self.accuracy(group, kind), 4) for kind in sorted(names)}
            for group, names in kinds.items()
        }
        if self.transcription is not None:
            overall[WORD_ERRORS] = round(self.transcription.word_error_rate(), 4)
            by_kind[WORD_ERRORS] = {
                kind: round(self.transcription.word_error_rate(kind), 4)
                for kind in sorted(set(self.transcription.kinds))
            }
        found = {"task": self.task.name, "model": self.model, **overall, "intervals": ranges, "by_kind": by_kind}
        found |= {"n": len(own)}
        return found | ({"looks": looking} if (looking := self.looks()) else {})

    def looks(self) -> dict[str, Any] | None:
        """What the pictures of the first group are worth; None if it was not asked without them."""
        if not self.task.blind:
            return None
        first = next(iter(self.task.groups))
        seen = [answer for answer in self.answers if answer.group == first and answer.question.pictures]
        without = {name: self.scores(group) for name, group in self.task.blind.items()}
        scores, expected = [answer.scores for answer in seen], [answer.question.expected for answer in seen]
        return looks(next(iter(self.task.measures.values())), scores, without, expected)

    def rows(self) -> list[dict[str, Any]]:
        """The lines of the predictions file, in the task's order."""
        positions: dict[str, int] = defaultdict(int)
        found = []
        for answer in self.answers:
            found.append(
                row(answer.group, positions[answer.group], answer.question, answer.text, round(answer.score, 6))
            )
            positions[answer.group] += 1
        return found


def evaluate(
    assistant: Assistant,
    task: Task,
    *,
    batch_size: int = 64,
    max_new_tokens: int = 96,
    transcription: Transcription | None = None,
    predictions: Predictions | None = None,
    console: Console | None = None,
) -> EvaluationResult:
    """Asks every question of the task, greedily; the same model and task give the same result, whatever the batches.

    (In bfloat16 two likeliest tokens that nearly tie may swap with what else is in the batch.)

    Args:
        assistant: the model.
        task: the questions.
        batch_size: questions asked at once.
        max_new_tokens: the longest answer, in tokens.
        transcription: what was transcribed, if the task is spoken (`speak_task`).
        predictions: where answers are kept, and taken from if they are there already.
        console: where progress is shown; None shows it on stderr.

    Raises:
        ContextError: a question and its answer may be longer than the model reads; nothing was asked yet.
        InputError: a question cannot be asked, for what is wrong with its image or recording.
        Interrupted: stopped by the user; with `predictions` the next run goes on from there.
        StorageError: the disk is full.
    """
    started = time.monotonic()
    console = console or Console(stderr=True)
    _check_lengths(assistant, task, max_new_tokens)
    answers: list[Answer] = []
    for group, questions in task.groups.items():
        said = predictions.of(group) if predictions else {}
        # By kind, so that short answers do not wait for long ones.
        left = sorted((place for place in range(len(questions)) if place not in said), key=lambda i: questions[i].kind)
        part_size = batch_size * BATCHES_KEPT if predictions else len(left) or 1
        with progress(console) as bar, _going_on_later(predictions):
            shown = bar.add_task(f"{task.name}: {group}", total=len(questions), completed=len(said))
            for start in range(0, len(left), part_size):
                part = left[start : start + part_size]
                texts = assistant.answer_all(
                    [questions[place].messages for place in part],
                    max_new_tokens=max_new_tokens,
                    batch_size=batch_size,
                    names=[questions[place].where for place in part],
                    on_progress=lambda *_: bar.advance(shown),  # noqa: B023
                )
                said |= zip(part, texts, strict=True)
                if predictions is not None:
                    predictions.add(row(group, place, questions[place], said[place]) for place in part)
        texts = [said[place] for place in range(len(questions))]
        earned = task.score([question.reference for question in questions], texts)
        answers += [Answer(group, *item) for item in zip(questions, texts, earned, strict=True)]
    result = EvaluationResult(task, assistant.checkpoint.name, answers, time.monotonic() - started, transcription)
    if predictions is not None:
        predictions.finish(result.rows())
    return result


@contextmanager
def _going_on_later(predictions: Predictions | None) -> Iterator[None]:
    """Who stops a run whose answers are kept is told how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        if predictions is None:
            raise
        where, hint = str(predictions.folder), "Run the same command again to go on."
        raise Interrupted("stopped", where=where, hint=hint) from None


def _check_lengths(assistant: Assistant, task: Task, max_new_tokens: int) -> None:
    """Finds questions that are too long before the first is asked.

    Only those with many characters are encoded for it: no token is less than a byte, and a turn's own tokens are few.
    A recording's words are not known yet; what is too long for them is found when it is asked.
    """
    room = assistant.context_length - max_new_tokens
    per_image = assistant.processor.most_image_tokens
    long: list[tuple[Question, int]] = []
    for question in (question for questions in task.groups.values() for question in questions):
        if any(message.audio for message in question.messages):
            continue
        at_most = sum(
            len(message.text.encode()) + per_image * len(message.images) + TURN_TOKENS for message in question.messages
        )
        if at_most > room:
            chat = to_chat(question.messages, image_size=image_size)
            tokens = len(assistant.processor.encode(chat, add_generation_prompt=True)["input_ids"])
            if tokens > room:
                long.append((question, tokens))
    if long:
        (question, tokens), more = long[0], len(long) - 1
        raise ContextError(
            f"the question has {tokens:,} tokens and its answer may take {max_new_tokens:,}; the model reads "
            f"{assistant.context_length:,}" + (f" ({more:,} more questions are too long)" if more else ""),
            where=question.where,
            hint="Shorten it, leave it out, or lower --max-new-tokens.",
        )
