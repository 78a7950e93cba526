"""The folder of an evaluation: what was answered so far, so that a run that was killed can go on.

settings.json       what decides the answers: task, questions, weights, options
predictions.jsonl   one line a question; added to while the run goes on, in the task's order and with scores at its end
result.json, report.html
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ..core.files import storage_error, write_file
from ..data.transcripts import content_digest
from ..errors import InputError
from ..messages import Text
from .task import Question, Task

SETTINGS, PREDICTIONS, RESULT, REPORT = "settings.json", "predictions.jsonl", "result.json", "report.html"


class Predictions:
    """Answers kept in a folder.

    Args:
        folder: the folder; it is made if needed.
        settings: what decides the answers. A folder with answers made otherwise is refused.

    Raises:
        InputError: the folder holds the answers of another run, or something else under these names.
        StorageError: the disk is full or the folder is not writable.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]):
        self.folder = Path(folder)
        self.path = self.folder / PREDICTIONS
        self._kept: list[dict[str, Any]] = []
        found = self.folder / SETTINGS
        if self.path.exists() or found.exists():
            self._refuse_another(settings)
        else:
            write_file(found, json.dumps(dict(settings), indent=2) + "\n")
        if self.path.exists():
            self._kept = read_predictions(self.path)
            # Without what was cut off, or the next line would be added to it.
            write_file(self.path, "".join(map(_line, self._kept)))

    def _refuse_another(self, settings: Mapping[str, Any]) -> None:
        hint = "Give another --out, or delete this folder."
        try:
            before = json.loads((self.folder / SETTINGS).read_text(encoding="utf-8"))
            different = [key for key in {**settings, **before} if before.get(key) != settings.get(key)]
        except (OSError, ValueError, AttributeError):
            raise InputError(f"it has no readable {SETTINGS}", where=str(self.folder), hint=hint) from None
        if different:
            key = different[0]
            what = NAMES.get(key, f"{key.replace('_', ' ')} {before.get(key)}, now {settings.get(key)}")
            raise InputError(f"it holds the answers of another run: {what}", where=str(self.folder), hint=hint)

    def of(self, group: str) -> dict[int, str]:
        """The answers of a group that were there already, by the question's place in it."""
        return {line["index"]: line["answer"] for line in self._kept if line["group"] == group}

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keeps answers on the disk before the next are asked for.

        Raises:
            StorageError: the disk is full.
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(map(_line, rows)))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise storage_error(error, self.path) from error

    def finish(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes the file anew, whole.

        Raises:
            StorageError: the disk is full.
        """
        write_file(self.path, "".join(map(_line, rows)))


NAMES = {"weights": "another model", "questions": "other questions, or another --limit"}


def row(group: str, index: int, question: Question, answer: str, score: float | None = None) -> dict[str, Any]:
    """One line of the file; the score is not known before all is answered."""
    return {
        "group": group,
        "index": index,
        "id": question.id,
        "kind": question.kind,
        "question": question.text,
        "expected": question.expected,
        "answer": answer,
        "score": score,
    }


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """The lines of a predictions file; the last is left out if it was cut off.

    Raises:
        InputError: it is missing or no such file.
    """
    hint = "Give the folder of a finished `eden evaluate ... --out FOLDER`."
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        raise InputError("no predictions here", where=str(path), hint=hint) from None
    rows = []
    for number, line in enumerate(lines[:-1], 1):  # what follows the last line break is nothing, or a line cut off
        try:
            found = json.loads(line)
            rows.append({key: found[key] for key in ROW})
        except (ValueError, KeyError, TypeError):
            raise InputError("not a line of predictions", where=f"{path} line {number}", hint=hint) from None
    return rows


ROW = ("group", "index", "id", "kind", "question", "expected", "answer", "score")


def task_fingerprint(task: Task) -> str:
    """All that is asked in a task and what is expected, as one number; pictures and recordings by their content.

    Raises:
        InputError: one cannot be read.
    """
    digest, of_file = hashlib.sha256(), cache(content_digest)
    for group, questions in task.groups.items():
        for question in questions:
            said = [(message.role, message.text) for message in question.messages]
            sources = [part.source for m in question.messages for part in m.content if not isinstance(part, Text)]
            media = [of_file(of) if isinstance(of, str | Path) else content_digest(of) for of in sources]
            digest.update(json.dumps([group, *_identity(question), said, media]).encode())
    return digest.hexdigest()[:16]


def shared_with(questions: Sequence[Question], rows: Iterable[Mapping[str, Any]]) -> dict[int, str]:
    """The answers another run gave to these questions, by place; a question is the same if its id and its words are."""
    answers = {(line["id"], line["question"], line["expected"]): line["answer"] for line in rows}
    found = {index: answers.get(_identity(question)) for index, question in enumerate(questions)}
    return {index: answer for index, answer in found.items() if answer is not None}


def _identity(question: Question) -> tuple[str, str, str]:
    return question.id, question.text, question.expected


def _line(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, ensure_ascii=False) + "\n"
