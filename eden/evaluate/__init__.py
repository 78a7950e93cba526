"""Asking a model every question of a task, judging what it says, and saying how sure the numbers are."""

from .compare import Earlier, compare, read_earlier
from .predictions import PREDICTIONS, REPORT, RESULT, Predictions, asked_in, known_by
from .questions import Question, Task
from .report import write_report
from .run import Answer, EvaluationResult, evaluate
from .spoken import Hearing, speak_task
from .tasks import open_task

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
