"""An evaluation as a page."""

from __future__ import annotations

from pathlib import Path

from ..report import Prediction, evaluation_page, write_page
from ..vision import open_image
from .run import EvaluationResult

SHOWN = 24
"""Wrong answers shown with their pictures."""


def write_report(path: str | Path, result: EvaluationResult) -> Path:
    """Accuracies by kind of question, and wrong answers of the task's own group with their pictures.

    Raises:
        StorageError: the disk is full or the place is not writable.
    """
    first = result.answers[0].group if result.answers else ""
    wrong = [answer for answer in result.answers if answer.group == first and not answer.correct]
    shown = []
    for answer in wrong[:SHOWN]:
        images = [image for message in answer.question.messages for image in message.images]
        picture = open_image(images[0].source) if images else None
        question = answer.question.messages[-1].text or "(asked by voice)"
        shown.append(Prediction(picture, question, answer.question.expected, None, answer.text))
    return write_page(path, evaluation_page(result.to_dict(), shown))
