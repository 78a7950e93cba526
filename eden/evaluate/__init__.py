"""Asking a model every question of a task and counting what it got right."""

from .report import write_report
from .run import Answer, EvaluationResult, evaluate
from .spoken import Hearing, speak_task
from .tasks import Question, Task, open_task

__all__ = [
    "Answer",
    "EvaluationResult",
    "Hearing",
    "Question",
    "Task",
    "evaluate",
    "open_task",
    "speak_task",
    "write_report",
]
