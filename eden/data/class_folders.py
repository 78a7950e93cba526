"""Folders named after the class of their pictures: `photos/ok/1.jpg`, or `photos/train/ok/1.jpg` and `photos/test/`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ..core.answers import MOST_ANSWERS
from ..errors import DataError
from .records import METADATA, DataFile, Record, RecordError

CLASS_QUESTION = "Which class is this?"
"""What a picture in a folder of its class is asked."""
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".avif", ".heic", ".heif")
TRAIN, TEST = "train", "test"


def pictures_in(folder: Path) -> list[Path]:
    """All pictures in a folder and those in it, by their names' endings, hidden ones left out."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in names if name.lower().endswith(PICTURES) and not name.startswith(".")]
    return sorted(found)


def part_of(folder: Path, part: str) -> Path:
    """The folder of a data set's part if it has one (`test/`), else the folder itself."""
    return folder / part if (folder / part).is_dir() else folder


def open_class_folders(path: str | Path) -> DataFile | None:
    """A folder of class folders as a data set, its `train/` where it has one; None if it is none.

    Raises:
        DataError: it has one class, or more than can be told apart.
    """
    folder = Path(path)
    if not folder.is_dir() or any((folder / name).is_file() for name in METADATA) or any(folder.rglob("*.parquet")):
        return None
    root = part_of(folder, TRAIN)
    pictures = {
        path.name: found
        for path in sorted(root.iterdir())
        if path.is_dir() and not path.name.startswith(".") and (found := pictures_in(path))
    }
    if not pictures:
        return None
    if not 2 <= len(pictures) <= MOST_ANSWERS:
        what = f"one class only, {next(iter(pictures))}" if len(pictures) == 1 else f"{len(pictures)} classes"
        hint = f"Give 2 to {MOST_ANSWERS} folders, each named after the class of its pictures."
        raise DataError(what, where=str(root), hint=hint)
    names = [(name, str(path.relative_to(root))) for name, found in pictures.items() for path in found]
    listed = hashlib.sha256(json.dumps(names).encode("utf-8", "surrogateescape")).hexdigest()
    return DataFile(str(root), "picture", root, partial(_records, names), f"{root.resolve()} {listed}")


def _records(names: list[tuple[str, str]]) -> Iterator[Record | RecordError]:
    classes = sorted({name for name, _ in names})
    for number, (name, path) in enumerate(names, 1):
        # With a dot before it, or the class `details` would be taken for the kind of the conversation.
        value = {"id": f"./{path}", "file_name": path, "question": CLASS_QUESTION, "answer": name, "choices": classes}
        yield Record(number, value, json.dumps(value))
