"""Asking a model every question of a task, judging what it says, and saying how sure the numbers are."""

from .compare import Earlier, compare, read_earlier
from .predictions import PREDICTIONS, REPORT, RESULT, Predictions, asked_in, known_by
from .registry import open_task
from .run import Answer, EvaluationResult, evaluate, write_report
from .spoken import Hearing, speak_task
from .task import Question, Task

__all__ = [
    "PREDICTIONS",
    "REPORT",
    "RESULT",
    "Answer",
    "Earlier",
    "EvaluationResult",
    "Hearing",
    "Predictions",
    "Question",
    "Task",
    "asked_in",
    "compare",
    "evaluate",
    "known_by",
    "open_task",
    "read_earlier",
    "speak_task",
    "write_report",
]
