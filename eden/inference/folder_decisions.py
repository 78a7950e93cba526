"""Decisions about a folder of pictures, in a table with the doubtful ones first; a run that was stopped goes on.

labels.csv.part   one line a picture as it is decided, the first line saying what is asked
labels.csv        all of them in order of doubt, once they are decided
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.answers import AnswerSet
from ..core.files import storage_error, write_file
from ..errors import ImageError, InputError
from ..media.images import open_image
from ..messages import Message
from .assistant import Assistant

AT_ONCE = 64
"""Pictures decided between two times that decisions are written down."""
Row = dict[str, Any]


class Labels:
    """The table of a folder's decisions.

    Args:
        path: of the table; None keeps it in memory.
        settings: what decides it. A part that was made otherwise is refused.

    Raises:
        InputError: the table is there already, or its part is of another run.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]):
        self.path, self.rows = path, list[Row]()
        if path is None:
            return
        if path.exists():
            raise InputError("the file is there already", where=str(path), hint="Choose another --out, or remove it.")
        self.part = path.with_name(f"{path.name}.part")
        if not self.part.exists():
            write_file(self.part, json.dumps(dict(settings), ensure_ascii=False) + "\n")
            return
        try:
            first, *lines = self.part.read_text(encoding="utf-8").split("\n")[:-1]  # one cut off is decided again
            before, self.rows = json.loads(first), [json.loads(line) for line in lines]
        except ValueError:
            before = None
        if before != settings:
            hint = "Give another --out, or remove this file."
            raise InputError("it holds the decisions of another run", where=str(self.part), hint=hint)
        write_file(self.part, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in (before, *self.rows)))

    def add(self, rows: Iterable[Row]) -> None:
        """Keeps decisions on the disk before the next are made.

        Raises:
            StorageError: the disk is full.
        """
        new = list(rows)
        self.rows += new
        if self.path is None:
            return
        try:
            with self.part.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in new))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise storage_error(error, self.part) from error

    def finish(self, answers: AnswerSet) -> list[Row]:
        """All rows in order of doubt, those that could not be decided first; the table is written.

        Raises:
            StorageError: the disk is full.
        """
        rows = sorted(self.rows, key=lambda row: (row.get("confidence", -1), row["file"]))
        if self.path is not None:
            write_file(self.path, to_csv(rows, answers))
            self.part.unlink()
        return rows


def to_csv(rows: Sequence[Row], answers: AnswerSet) -> str:
    """The rows as CSV, one column with the probability of each answer."""
    text = io.StringIO()
    named = ["file", "answer", "probability", "confidence", "refused"]
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*named, *(f"p({answer})" for answer in answers.answers), "error"])
    for row in rows:
        probabilities = row.get("probabilities", {})
        shares = [probabilities.get(answer, "") for answer in answers.answers]
        table.writerow([*(row.get(name, "") for name in named), *shares, row.get("error", "")])
    return text.getvalue()


def decide_folder(
    assistant: Assistant,
    folder: Path,
    pictures: Sequence[Path],
    question: str,
    answers: AnswerSet,
    labels: Labels,
    on_progress: Callable[[int], None],
) -> list[Row]:
    """Decides what is not in the table yet; a picture that cannot be opened is in it with its error.

    Args:
        assistant: the model.
        folder: names in the table are relative to it.
        pictures: in it.
        question: about each.
        answers: that it may have.
        labels: the table.
        on_progress: called with how many are in the table.

    Returns:
        The rows in order of doubt.

    Raises:
        StorageError: the disk is full.
    """
    done = {row["file"] for row in labels.rows}
    left = [path for path in pictures if str(path.relative_to(folder)) not in done]
    for start in range(0, len(left), AT_ONCE):
        rows: list[Row] = []
        opened: list[tuple[Row, Any]] = []
        for path in left[start : start + AT_ONCE]:
            rows.append({"file": str(path.relative_to(folder))})
            try:
                opened.append((rows[-1], open_image(path)))
            except ImageError as error:
                rows[-1]["error"] = error.fault.what
        conversations = [[Message.user(question, [picture])] for _, picture in opened]
        for (row, _), decision in zip(
            opened, assistant.decide_all(conversations, [answers] * len(opened)), strict=True
        ):
            row |= {key: value for key, value in decision.to_dict().items() if key not in ("name", "kind")}
        labels.add(rows)
        on_progress(len(labels.rows))
    return labels.finish(answers)
