"""The page of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from ..core.html_report import evaluation_page, write_page
from ..core.report_blocks import Decided, Prediction
from ..media.images import open_image
from .calibration import DecisionResult
from .run import EvaluationResult
from .task import Question

SHOWN = 24
"""Worst answers shown with their pictures."""
DECISIONS_SHOWN = 12
"""Of the doubtful ones, and of those that are wrong."""


def write_report(
    path: str | Path,
    result: EvaluationResult,
    summary: Mapping[str, Any] | None = None,
    decided: DecisionResult | None = None,
) -> Path:
    """Measures with their intervals, by kind of question, and the worst answers of the task's own group with pictures.

    Args:
        path: of the page.
        result: of the run.
        summary: its `to_dict`, with `against` if it was compared and `decisions` if it decided; None makes it.
        decided: its decisions, of which the most doubtful and the most confidently wrong are shown.

    Raises:
        StorageError: the disk is full or the place is not writable.
    """
    first = result.answers[0].group if result.answers else ""
    poor = [answer for answer in result.answers if answer.group == first and answer.score < 1]
    poor.sort(key=lambda answer: tuple(answer.scores.values()))
    shown = []
    for answer in poor[:SHOWN]:
        question = answer.question.text or "(asked by voice)"
        picture = _picture(answer.question)
        shown.append(Prediction(picture, question, answer.question.expected, None, answer.text, answer.score))
    doubtful, misjudged = ([], []) if decided is None else _worth_a_look(decided)
    return write_page(path, evaluation_page(summary or result.to_dict(), shown, len(poor), doubtful, misjudged))


def _worth_a_look(decided: DecisionResult) -> tuple[list[Decided], list[Decided]]:
    """The least confident decisions, and the wrong ones that are the most probable."""
    found = decided.after
    by_confidence = np.argsort([decision.confidence for decision in found.decisions], kind="stable")
    wrong = np.flatnonzero(~found.right)
    wrong = wrong[np.argsort(-found.probabilities[wrong], kind="stable")]
    doubtful, misjudged = (_decided(decided, places[:DECISIONS_SHOWN].tolist()) for places in (by_confidence, wrong))
    return doubtful, misjudged


def _decided(decided: DecisionResult, places: Iterable[int]) -> list[Decided]:
    rows = []
    for place in places:
        question, probabilities = decided.questions[place], decided.after.decisions[place].probabilities
        likeliest = sorted(probabilities.items(), key=lambda item: -item[1])[:2]
        rows.append(Decided(_picture(question), question.text, decided.after.truth[place], likeliest))
    return rows


def _picture(question: Question) -> PIL.Image.Image | None:
    return open_image(question.pictures[0]) if question.pictures else None
