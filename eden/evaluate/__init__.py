"""Asking a model every question of a task, judging what it says, and saying how sure the numbers are."""

from .blind import with_blind_groups
from .calibration import DecisionResult, decide_task
from .compare import Earlier, compare, read_earlier
from .predictions import PREDICTIONS, REPORT, RESULT, Predictions, task_fingerprint
from .registry import open_task
from .report import write_report
from .run import Answer, EvaluationResult, evaluate
from .spoken import Transcription, speak_task
from .task import Question, Task

__all__ = [
    "PREDICTIONS",
    "REPORT",
    "RESULT",
    "Answer",
    "DecisionResult",
    "Earlier",
    "EvaluationResult",
    "Predictions",
    "Question",
    "Task",
    "Transcription",
    "compare",
    "decide_task",
    "evaluate",
    "open_task",
    "read_earlier",
    "speak_task",
    "task_fingerprint",
    "with_blind_groups",
    "write_report",
]
