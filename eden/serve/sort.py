"""What the page's Sort tab knows: pictures, what the model decides about them, and the labels that people give.

    Pool: pictures -> decide, a part at a time -> Desk: the least confident first -> a label -> labels.jsonl

A pool may be shared by many people, each with a desk of their own. A browser names no file: it says what is done with
the picture that its desk shows. Gradio is not needed here: the tab (`eden.serve.sort_page`) draws what this holds.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import PIL.Image
from cachetools import LRUCache

from ..core.files import write_file
from ..data.class_folders import pictures_in
from ..data.records import RecordError, json_lines
from ..errors import ImageError, InputError, OverloadError
from ..inference.decisions import Decision, DecisionQuestion
from ..media.images import open_image
from ..messages import Message
from .service import Service

LABELS = "labels.jsonl"
AT_ONCE = 16
"""Pictures decided between two times that a person sees how far it is."""
QUESTIONS_KEPT = 32
"""Questions whose decisions about a pool are remembered."""


class LabelFile:
    """Labels as JSON lines that training reads, in a file beside the pictures or in memory. Any thread may use it.

    The file is read before each change and replaced as a whole, so that what others write into it stays.

    Args:
        path: of the file; None keeps them in memory.

    Raises:
        DataError: the file is no JSON lines.
    """

    def __init__(self, path: Path | None = None):
        self.path = path
        self._lock = threading.Lock()
        self._lines: dict[tuple[str, str], tuple[str, str]] = {}  # file name and question: answer and line
        self.refresh()

    def refresh(self) -> None:
        """Looks what the file has now.

        Raises:
            DataError: it is no JSON lines.
        """
        with self._lock:
            self._lines = self._read()

    def answer(self, name: str, question: DecisionQuestion) -> str | None:
        """A picture's label, if it is one of the answers that there are now."""
        found = self._lines.get((name, question.text), ("", ""))[0]
        return found if found in question.answers.answers else None

    def add(self, name: str, question: DecisionQuestion, answer: str) -> str | None:
        """Labels a picture that has no label yet; else the label that it has, which stays, is given back.

        Raises:
            DataError: somebody has made the file another than JSON lines.
            StorageError: the disk is full or the folder is not writable.
        """
        with self._lock:
            self._lines = self._read()
            if (there := self.answer(name, question)) is not None:
                return there
            record = {"file_name": name, "question": question.text, "answer": answer, **question.answers.to_record()}
            line = json.dumps(record, ensure_ascii=False)
            self._write(self._lines | {(name, question.text): (answer, line)})
            return None

    def remove(self, name: str, question: DecisionQuestion) -> None:
        """Takes a label back. Errors are those of `add`."""
        with self._lock:
            lines = self._read()
            lines.pop((name, question.text), None)
            self._write(lines)

    def text(self) -> str:
        return "".join(f"{line}\n" for _, line in self._lines.values())

    def _read(self) -> dict[tuple[str, str], tuple[str, str]]:
        if self.path is None:
            return dict(self._lines)
        if not self.path.exists():
            return {}
        lines: dict[tuple[str, str], tuple[str, str]] = {}
        with self.path.open(encoding="utf-8", errors="surrogateescape") as file:
            for record in json_lines(self.path, file):
                if isinstance(record, RecordError):
                    raise record
                value = record.value if isinstance(record.value, dict) else {}
                name, question, answer = (value.get(key) for key in ("file_name", "question", "answer"))
                named = isinstance(name, str) and isinstance(question, str)
                key = (str(name), str(question)) if named else ("", str(record.number))
                lines[key] = (answer if isinstance(answer, str) else "", record.text.strip())
        return lines

    def _write(self, lines: dict[tuple[str, str], tuple[str, str]]) -> None:
        if self.path is not None:
            write_file(self.path, "".join(f"{line}\n" for _, line in lines.values()))
        self._lines = lines


class Pool:
    """Pictures by name, what the model decides about them, and their labels.

    Args:
        folder: whose pictures they are, its own folders included; None takes uploads.
        limits: of `open_image`.

    Raises:
        InputError: there is no such folder, or it cannot be written to.
        DataError: the labels in it cannot be read.
    """

    def __init__(self, folder: Path | None = None, **limits: Any):
        self.folder = folder
        self.pictures: dict[str, Path] = {}
        self._limits = limits
        self._decided: LRUCache[DecisionQuestion, dict[str, Decision | str]] = LRUCache(QUESTIONS_KEPT)
        self.lock = threading.RLock()
        """Held where a desk goes on to another picture, so that no two go to the same."""
        self._deciding = threading.Lock()
        self.shown: WeakKeyDictionary[Desk, str | None] = WeakKeyDictionary()
        if folder is not None:
            if not folder.is_dir():
                raise InputError("no such folder of pictures", where=str(folder), hint="Check the path.")
            if not os.access(folder, os.W_OK | os.X_OK):
                raise InputError("the labels cannot be written there", where=str(folder), hint="Check its rights.")
        self.labels = LabelFile(None if folder is None else folder / LABELS)
        self.refresh()

    def refresh(self) -> None:
        """Looks which pictures and labels the folder has now.

        Raises:
            InputError: it has no picture.
            DataError: the labels in it cannot be read.
        """
        self.labels.refresh()
        if self.folder is None:
            return
        found = {path.relative_to(self.folder).as_posix(): path for path in pictures_in(self.folder)}
        if not found:
            raise InputError(
                "no picture in the folder", where=str(self.folder), hint="Give one with JPEG or PNG files."
            )
        self.pictures = found

    def decided(self, question: DecisionQuestion) -> dict[str, Decision | str]:
        """By picture a decision, or why there is none."""
        with self.lock:
            return self._decided.setdefault(question, {})

    def decide(self, service: Service, question: DecisionQuestion) -> Iterator[int]:
        """Decides what is not decided yet, in turns with others who wait for the same; gives how many are.

        Raises:
            InputError, ContextError: it cannot be asked.
            OverloadError: too much is asked of the model.
        """
        rows = self.decided(question)
        while True:
            with self._deciding, service.admitted():  # who waits for the others takes no place from a chat
                left = [name for name in list(self.pictures) if name not in rows]
                if not left:
                    return
                rows |= self._decide(service, question, left)
            yield len(rows)

    def _decide(self, service: Service, question: DecisionQuestion, left: Sequence[str]) -> dict[str, Decision | str]:
        """Of some pictures, as many as are held at once."""
        rows: dict[str, Decision | str] = {}
        opened: dict[str, PIL.Image.Image] = {}
        for name in left[:AT_ONCE]:
            try:
                opened[name] = self.open(name)
            except ImageError as error:
                rows[name] = error.fault.what
            if sum(image.width * image.height for image in opened.values()) > service.settings.limits.all_pixels:
                break
        conversations = [[Message.user(question.text, [image])] for image in opened.values()]
        answers = [question.answers] * len(opened)
        decided = service.decide(conversations, answers, list(opened))
        for _, task in decided:
            if task.wait().finish_reason != "decided":
                raise OverloadError("the model has too much to do", hint="Try again in a moment.")
        return rows | dict(zip(opened, service.decisions(answers, decided), strict=True))

    def open(self, name: str) -> PIL.Image.Image:
        """A picture of the pool.

        Raises:
            ImageError: it cannot be opened, is gone, or is a link that leads out of the folder.
        """
        path = self.pictures.get(name)
        if path is None:
            raise ImageError("it is not in the folder any more", where=name)
        if self.folder is not None and not path.resolve().is_relative_to(self.folder.resolve()):
            raise ImageError("a link that leads out of the folder", where=name)
        if re.search("[\ud800-\udfff]", name):  # no record could name it
            raise ImageError("its name is not UTF-8", where=name, hint="Rename it.")
        return open_image(path, **self._limits)

    def queue(self, question: DecisionQuestion) -> list[str]:
        """Names of the decided pictures in order of doubt."""
        rows = [(name, row) for name, row in list(self.decided(question).items()) if name in self.pictures]
        confidences = {name: row.confidence for name, row in rows if isinstance(row, Decision)}
        return sorted(confidences, key=lambda name: (confidences[name], name))

    def faulty(self, question: DecisionQuestion) -> dict[str, str]:
        """Names of pictures that could not be opened, and why."""
        rows = list(self.decided(question).items())
        return {name: row for name, row in rows if isinstance(row, str) and name in self.pictures}


@dataclass(eq=False)
class Desk:
    """One person at a pool: what is asked, which picture is shown, what was done.

    Attributes:
        question: of each picture; None until it is chosen.
        current: the picture that is shown; None once all are labelled.
        note: what the person should know of what was done last.
    """

    pool: Pool
    question: DecisionQuestion | None = None
    current: str | None = None
    note: str = ""
    _done: list[tuple[str, bool]] = field(default_factory=list)
    """The pictures, and whether they were labelled or skipped."""
    _skipped: list[str] = field(default_factory=list)

    @property
    def progress(self) -> tuple[int, int]:
        """How many pictures are labelled, of how many that can be."""
        if self.question is None:
            return 0, len(self.pool.pictures)
        queue = self.pool.queue(self.question)
        return sum(self.pool.labels.answer(name, self.question) is not None for name in queue), len(queue)

    def ask(self, question: DecisionQuestion) -> None:
        """Begins with a question; `advance` shows a picture once some are decided."""
        with self.pool.lock:
            if question != self.question:
                self._done, self._skipped = [], []
            self.question, self.current, self.note = question, None, ""

    def advance(self) -> None:
        """Shows the most doubtful picture; first those that are not skipped and that nobody else has before them."""
        assert self.question is not None
        with self.pool.lock:
            elsewhere = {name for desk, name in list(self.pool.shown.items()) if desk is not self}
            left = [n for n in self.pool.queue(self.question) if self.pool.labels.answer(n, self.question) is None]
            skipped = {name: place for place, name in enumerate(self._skipped, 1)}
            self.current = min(left, key=lambda name: (name in elsewhere, skipped.get(name, 0)), default=None)
            self.pool.shown[self] = self.current

    def label(self, picture: str, answer: str) -> None:
        """Labels the picture; if it is not the one that is shown now, as after a key pressed twice, nothing is done.

        Raises:
            DataError, StorageError: the label could not be written; the picture stays.
        """
        with self.pool.lock:
            if self.question is None or picture != self.current or answer not in self.question.answers.answers:
                return
            there = self.pool.labels.add(picture, self.question, answer)
            self.note = "" if there is None else f"{picture} was labelled {there} by somebody else, and stays so."
            if there is None:
                self._done.append((picture, True))
            self.advance()

    def skip(self, picture: str) -> None:
        """Puts the picture behind all others."""
        with self.pool.lock:
            if picture == self.current:
                self._done.append((picture, False))
                self._skipped = [*(name for name in self._skipped if name != picture), picture]
                self.note = ""
                self.advance()

    def undo(self) -> None:
        """Takes the last label or skip back and shows its picture. Errors are those of `label`."""
        with self.pool.lock:
            if self.question is None or not self._done:
                self.note = "There is nothing to undo."
                return
            picture, was_labelled = self._done[-1]
            if was_labelled:
                self.pool.labels.remove(picture, self.question)
            self._done.pop()
            self._skipped = [name for name in self._skipped if name != picture]
            self.current = self.pool.shown[self] = picture
            self.note = ""

    def picture(self) -> tuple[str, PIL.Image.Image] | None:
        """The picture that is shown, with its name; one that cannot be opened any more is set aside."""
        while self.question is not None and (name := self.current) is not None:
            try:
                return name, self.pool.open(name)
            except ImageError as error:
                self.pool.decided(self.question)[name] = error.fault.what
                self.advance()
        return None

    def hear(self, words: str) -> str | None:
        """Which answer somebody has said; None if it is none of them."""
        answers = self.question.answers.answers if self.question is not None else ()
        found = [answer for answer in answers if _spoken(answer) == _spoken(words)]
        return found[0] if len(found) == 1 else None


def _spoken(text: str) -> str:
    """Words without what nobody hears."""
    return " ".join(re.findall(r"\w+", text.casefold()))
