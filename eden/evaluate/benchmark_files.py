"""Benchmarks from their official files: what a benchmark is, and how a file becomes a task or one clear line."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..data.folders import Folder
from ..data.records import RecordError, json_lines, unreadable
from ..data.store import Progress
from ..errors import DataError, first_line
from ..messages import Message
from .metrics import Measure
from .task import Question, Scoring, Task, check_images

PUBLISHED = "Take the file as it was published."


@dataclass(frozen=True)
class Files:
    """What the user gave.

    Attributes:
        questions: the official file.
        annotations: VQAv2's second file.
        images: the folder of the images.
        split: of ScienceQA; None is test.
        instruction: the words that say how to answer; None is the benchmark's usual.
    """

    questions: Path
    annotations: Path | None
    images: Folder
    split: str | None
    instruction: str | None

    def ask(
        self,
        question_id: str,
        words: str,
        usual: str,
        image: Path | str,
        *,
        expected: str,
        reference: Any,
        kind: str = "all",
        text: str | None = None,
    ) -> Question:
        """A question; the words that say how to answer stand on a line of their own. `text` is `words` unless given."""
        instruction = usual if self.instruction is None else self.instruction
        image = image if isinstance(image, Path) else self.images.image(image)
        messages = (Message.user("\n".join(filter(None, (words, instruction))), [image]),)
        shown = words if text is None else text
        return Question(question_id, messages, shown, expected, kind, reference, self.place(question_id))

    def place(self, question_id: str) -> str:
        """A question's place, for people."""
        return f"{self.questions} question {question_id}"


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        file: how its file looks, for people.
        fits: whether a parsed file looks so.
        records: what the file says of each question, by the question's id.
        question: of an id and its record.
        score: scores answers.
        measures: what is made of the scores; the first is the benchmark's own.
        takes: options it takes beside the questions and the images.
    """

    file: str
    fits: Callable[[Any], bool]
    records: Callable[[Any, Files], Iterable[tuple[str, Any]]]
    question: Callable[[str, Any, Files], Question]
    score: Scoring
    measures: Mapping[str, Measure]
    takes: frozenset[str] = frozenset()


def open_benchmark(
    name: str, benchmarks: Mapping[str, Benchmark], files: Files, limit: int | None, on_progress: Progress | None
) -> Task:
    """A benchmark's task.

    Args:
        name: of the benchmark.
        benchmarks: all of them, for a file of one may be given as that of another.
        files: the official files.
        limit: at most this many questions, the first ones.
        on_progress: called as images are checked.

    Raises:
        DataError: a file is missing, damaged or of another kind, or an image cannot be used.
    """
    benchmark = benchmarks[name]
    content = read_json(files.questions)
    if benchmark.fits([content]):
        content = [content]  # JSON lines of one line
    if not benchmark.fits(content):
        others = [other for other, its in benchmarks.items() if its.fits(content)]
        looks = f" This looks like a file of {others[0]}." if others else ""
        raise DataError(
            f"not a file of {name}: found {describe(content)}",
            where=str(files.questions),
            hint=f"Expected {benchmark.file}.{looks}",
        )
    questions: dict[str, Question] = {}
    for question_id, record in islice(benchmark.records(content, files), limit):
        if question_id in questions:
            raise DataError("two questions have this id", where=files.place(question_id), hint=PUBLISHED)
        questions[question_id] = _question(benchmark, question_id, record, files)
    if not questions:
        raise DataError("no question to ask", where=str(files.questions), hint=f"Expected {benchmark.file}.")
    asked = list(questions.values())
    check_images(asked, on_progress)
    return Task(name, {next(iter(benchmark.measures)): asked}, benchmark.score, benchmark.measures)


def _question(benchmark: Benchmark, question_id: str, record: Any, files: Files) -> Question:
    """A record as a question, or what is wrong with it in one line."""
    try:
        return benchmark.question(question_id, record, files)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        what = f"it lacks `{error.args[0]}`" if isinstance(error, KeyError) else f"it is faulty ({error})"
        raise DataError(what, where=files.place(question_id), hint=PUBLISHED) from None


def read_json(path: Path) -> Any:
    """A JSON file, or a list of the objects of a file of JSON lines.

    Raises:
        DataError: the file is missing or empty, or neither.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise unreadable(path, error) from None
    if not text.strip():
        raise DataError("the file is empty", where=str(path), hint="Copy it again.")
    try:
        return json.loads(text)
    except RecursionError:
        raise DataError("not valid JSON (nested too deep)", where=str(path), hint=PUBLISHED) from None
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # a whole value, and behind it more
            return list(_lines(path, text))
        raise DataError(
            f"not valid JSON ({error.msg})",
            where=f"{path} line {error.lineno} column {error.colno}",
            hint="The file may be cut off; copy it again.",
        ) from None
    except ValueError as error:  # Python reads no number of thousands of digits
        raise DataError(f"not valid JSON ({first_line(error)})", where=str(path), hint=PUBLISHED) from None


def _lines(path: Path, text: str) -> Iterator[Any]:
    for record in json_lines(path, io.StringIO(text)):
        if isinstance(record, RecordError):
            raise record
        yield record.value


def by_id(records: Iterable[Any], key: str, path: Path) -> Iterator[tuple[str, Any]]:
    """The records of a list by what each holds under `key`, as text.

    Raises:
        DataError: one has no such key.
    """
    for number, record in enumerate(records, 1):
        if not has(record, key):
            raise DataError(f"it lacks `{key}`", where=f"{path} record {number}", hint=PUBLISHED)
        yield str(record[key]), record


def describe(content: Any) -> str:
    """What a parsed file is, in a few words."""
    if isinstance(content, dict):
        if content and all(isinstance(value, dict) for value in content.values()):
            return f"an object of {len(content):,} entries, the first with {_keys(next(iter(content.values())))}"
        inner = [f"`{key}` of {_keys(value[0])}" for key, value in content.items() if isinstance(value, list) and value]
        return f"an object with {', '.join(inner or [*map(str, content)][:8]) or 'nothing'}"
    if isinstance(content, list):
        return f"a list of {_keys(content[0])}" if content else "an empty list"
    return f"a {type(content).__name__}"


def _keys(record: Any) -> str:
    return ", ".join(map(str, list(record)[:8])) if isinstance(record, dict) else f"{type(record).__name__}s"


def has(record: Any, *keys: str) -> bool:
    """Whether it is an object with these keys."""
    return isinstance(record, dict) and all(key in record for key in keys)


def is_list(content: Any, *keys: str) -> bool:
    """Whether it is a list of objects with these keys."""
    return isinstance(content, list) and bool(content) and has(content[0], *keys)


def has_list(content: Any, name: str, *keys: str) -> bool:
    """Whether it is an object with such a list under this name."""
    return isinstance(content, dict) and is_list(content.get(name), *keys)


def is_table(content: Any, *keys: str) -> bool:
    """Whether it is an object whose values are objects with these keys."""
    return isinstance(content, dict) and bool(content) and has(next(iter(content.values())), *keys)
