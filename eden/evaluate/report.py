"""An evaluation as a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..report import Prediction, evaluation_page, write_page
from ..vision import open_image
from .run import EvaluationResult

SHOWN = 24
"""Worst answers shown with their pictures."""


def write_report(path: str | Path, result: EvaluationResult, summary: Mapping[str, Any] | None = None) -> Path:
    """Measures with their intervals, by kind of question, and the worst answers of the task's own group with pictures.

    Args:
        path: of the page.
        result: of the run.
        summary: its `to_dict`, with `against` if it was compared; None makes it.

    Raises:
        StorageError: the disk is full or the place is not writable.
    """
    first = result.answers[0].group if result.answers else ""
    poor = [answer for answer in result.answers if answer.group == first and answer.score < 1]
    poor.sort(key=lambda answer: tuple(answer.marks.values()))
    shown = []
    for answer in poor[:SHOWN]:
        images = [image for message in answer.question.messages for image in message.images]
        picture = open_image(images[0].source) if images else None
        question = answer.question.text or "(asked by voice)"
        shown.append(Prediction(picture, question, answer.question.expected, None, answer.text, answer.score))
    return write_page(path, evaluation_page(summary or result.to_dict(), shown, len(poor)))
