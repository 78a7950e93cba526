"""Data files become raw records one at a time, each with its place: JSON, JSON lines, COCO captions, CSV, Parquet.

What a file is, is known by its content; what a record means is `eden.data.formats`' to say.
"""

from __future__ import annotations

import csv
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from stat import S_ISREG
from typing import Any, TextIO

from ..errors import DataError
from .json_stream import JsonStream
from .parquet import HUB, open_parquet

CAPTION_REQUESTS = (
    "Describe the picture in one sentence.",
    "What is in this picture? Answer briefly.",
    "Say in a few words what you see.",
    "Give a short caption for this picture.",
    "Sum up the picture in a sentence.",
)
"""What a picture with a caption and no question of its own is asked."""
TURNS = ("conversations", "messages", "texts")
"""Keys of a list of turns."""
PAIRS = (("question", "answer"), ("query", "response"), ("instruction", "output"), ("prompt", "completion"))
"""Keys of a question and its answer in one record."""
COLUMNS = ("id", *TURNS, *(key for pair in PAIRS for key in pair))
COLUMNS += ("system", "history", "input", "file_name", "text", "audio", "choices", "levels")
"""Keys that `eden.data.formats` reads, beside `image` and `images`."""
METADATA = ("metadata.jsonl", "metadata.csv")
"""Either makes a folder of images a data set."""
_DELIMITERS = ",;\t"
"""Of CSV; where a comma stands in numbers, programs write semicolons."""
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
"""What a byte that is no UTF-8 is read as, so that the record it is in can be named."""
_COCO = re.compile(r'\s*\{\s*"(?:info|images|annotations|licenses|type|categories)"\s*:\s*[\[{"]')


class RecordError(DataError):
    """A fault of one record."""


@dataclass(slots=True)
class Record:
    """One record as it is written.

    Attributes:
        number: its place in the file, from 1: a line, a record or a row.
        value: what it says.
        text: `value` in JSON, as the file has it.
        embedded: images in the record itself; `{"embedded": k}` in an image part names the k-th.
    """

    number: int
    value: Any
    text: str
    embedded: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class DataFile:
    """What is known of a data file before it is read.

    Attributes:
        path: the file, or for Parquet a folder of files or the hub's name.
        unit: what its places count: record, line, row or annotation.
        folder: where the files stand that records name, if nobody says otherwise.
        read: yields its records; one that is no JSON comes as a RecordError with its place.
        identity: changes when the content does.
    """

    path: str
    unit: str
    folder: Path
    read: Callable[[], Iterator[Record | RecordError]]
    identity: str

    def where(self, number: int, sample_id: str | None = None) -> str:
        """A record's place, for people."""
        return f"{self.path} {self.unit} {number}" + (f" (id {sample_id})" if sample_id is not None else "")


def open_data(path: str | Path) -> DataFile:
    """Finds out what a data file is.

    Args:
        path: a file, a folder with `metadata.jsonl`, `metadata.csv` or Parquet files, or `hf://datasets/owner/name`.

    Raises:
        DataError: it is missing, or no data set.
    """
    if str(path).startswith(HUB):
        return _parquet(str(path))
    path = Path(path)
    try:
        if path.is_dir():
            found = next((path / name for name in METADATA if (path / name).is_file()), None)
            if found is None and not any(path.rglob("*.parquet")):
                hint = f"A folder of images needs {' or '.join(METADATA)}, or a folder for each class of them."
                raise DataError("the folder is no data set", where=str(path), hint=hint)
            if found is None:
                return _parquet(str(path))
            path = found
        status = path.stat()
        if not S_ISREG(status.st_mode):  # a pipe could be read only once
            raise DataError("not a file", where=str(path), hint="Write the data into a file and name it.")
        with path.open("rb") as raw:
            if raw.read(4) == b"PAR1":
                return _parquet(str(path))
        with _opened(path) as file:
            start = file.read(4096)
    except OSError as error:
        raise unreadable(path, error) from None
    unit, read = _kind(path, start)
    identity = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
    return DataFile(str(path), unit, path.parent, partial(_read_text, path, read), identity)


def _opened(path: Path, newline: str | None = None) -> TextIO:
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline=newline)


def _kind(path: Path, start: str) -> tuple[str, Callable[[Path, TextIO], Iterator[Record | RecordError]]]:
    """What a text file is by its first characters, and what reads it."""
    start = start.lstrip()
    if start.startswith("["):
        return "record", _json_list
    if _COCO.match(start) and not _is_one_record(start):
        return "annotation", _coco_captions
    if not start.startswith("{"):
        if path.suffix.lower() == ".csv" or _delimiter(start):
            return "line", _csv_lines
        if _NOT_UTF8.search(start):
            raise not_utf8(path)
    return "line", json_lines


def _is_one_record(start: str) -> bool:
    """Whether the first line is a record of JSON lines that merely begins as a COCO file does."""
    try:
        return not {"images", "annotations"} <= json.loads(start.partition("\n")[0]).keys()
    except (ValueError, RecursionError, AttributeError):
        return False


def _read_text(
    path: Path, read: Callable[[Path, TextIO], Iterator[Record | RecordError]]
) -> Iterator[Record | RecordError]:
    try:
        with _opened(path, "" if read is _csv_lines else None) as file:  # line breaks inside a cell are the cell's
            yield from read(path, file)
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: Exception) -> DataError:
    """Why a file cannot be read as text, as one line."""
    if isinstance(error, FileNotFoundError):
        return DataError("no such data file", where=str(path), hint="Check the path.")
    if isinstance(error, UnicodeDecodeError):
        return not_utf8(path)
    return DataError(f"cannot be read ({getattr(error, 'strerror', error)})", where=str(path), hint="Check the path.")


def not_utf8(path: Path) -> DataError:
    return DataError("not a text file in UTF-8", where=str(path), hint="Give a JSON, JSONL, CSV or Parquet file.")


def _faulty_bytes(text: str, path: Path, unit: str, number: int, kind: str = "bad_json") -> RecordError | None:
    """The fault of a record that is not UTF-8 throughout."""
    if text.isascii() or (found := _NOT_UTF8.search(text)) is None:
        return None
    what = f"not UTF-8 (the byte 0x{ord(found.group()) - 0xDC00:x})"
    return RecordError(what, kind=kind, where=f"{path} {unit} {number}", hint="Save the file as UTF-8.")


def _json_list(path: Path, file: TextIO) -> Iterator[Record | RecordError]:
    stream = JsonStream(file, str(path))
    for number, (value, text) in enumerate(stream.items(), 1):
        yield _faulty_bytes(text, path, "record", number) or Record(number, value, text)
    stream.end()


def json_lines(path: Path, file: TextIO) -> Iterator[Record | RecordError]:
    """The records of JSON lines; a line that is no JSON comes as an error with its number."""
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            yield _faulty_bytes(line, path, "line", number) or Record(number, json.loads(line), line)
        except (ValueError, RecursionError) as error:
            yield RecordError(
                f"not valid JSON ({error})",
                kind="bad_json",
                where=f"{path} line {number}",
                hint="Correct the line.",
            )


def _csv_lines(path: Path, file: TextIO) -> Iterator[Record | RecordError]:
    """`metadata.csv`: the columns are the keys of a record; an empty cell says nothing."""
    first = next((line for line in file if line.strip()), "")
    if (delimiter := _delimiter(first)) is None:
        hint = "Begin it with a line as `file_name,question,answer` or `file_name,text`."
        raise DataError("the header has no column `file_name`", where=f"{path} line 1", hint=hint)
    file.seek(0)
    rows = csv.reader(file, delimiter=delimiter, strict=True)
    header: list[str] = []
    before = 0
    try:
        for cells in rows:
            before = rows.line_num
            if header and cells:
                yield _csv_record(header, cells, path, rows.line_num)
            header = header or _csv_header(cells, path)
    except csv.Error as error:
        large = "field larger" in str(error)
        hint = "Shorten the cell, or close the quotes before it." if large else "Quote the cell, and close its quotes."
        # An open quote runs to the end of the file; the record began behind the one before it.
        raise DataError(f"not valid CSV ({error})", where=f"{path} line {before + 1}", hint=hint) from None


def _csv_header(cells: list[str], path: Path) -> list[str]:
    names = [name.strip() for name in cells]
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise DataError(f"two columns are named `{twice[0]}`", where=f"{path} line 1", hint="Rename or remove one.")
    return names


def _csv_record(header: list[str], cells: list[str], path: Path, line: int) -> Record | RecordError:
    if len(cells) > len(header):
        what = f"the line has {len(cells)} cells and the header {len(header)}"
        return RecordError(
            what, kind="bad_record", where=f"{path} line {line}", hint="Quote the cell that is cut in two."
        )
    value = {name: cell for name, cell in zip(header, cells, strict=False) if cell or name == "file_name"}
    faulty = _faulty_bytes("".join(cells), path, "line", line, "bad_record")
    return faulty or Record(line, value, json.dumps(value))


def _delimiter(text: str) -> str | None:
    """What separates the cells of CSV whose first line names the column `file_name`."""
    for delimiter in _DELIMITERS:
        try:
            header = next(csv.reader([text.partition("\n")[0]], delimiter=delimiter), [])
        except csv.Error:  # a line too long to be a header
            return None
        if "file_name" in map(str.strip, header):
            return delimiter
    return None


def _coco_captions(path: Path, file: TextIO) -> Iterator[Record | RecordError]:
    """One record an annotation. Two passes: the images' names may stand before or behind the captions."""
    names: dict[Any, Any] = {}
    for image, _ in _members(JsonStream(file, str(path)), "images"):
        if isinstance(image, dict):
            names[_hashable(image.get("id"))] = image.get("file_name")
    names.pop(None, None)  # an image without an id is nobody's
    file.seek(0)
    stream = JsonStream(file, str(path))
    for number, (annotation, text) in enumerate(_members(stream, "annotations"), 1):
        if not isinstance(annotation, dict):
            annotation = {}
        value = {"file_name": names.get(_hashable(annotation.get("image_id"))), "text": annotation.get("caption")}
        if "id" in annotation:
            value["id"] = annotation["id"]
        text += str(value["file_name"])
        yield _faulty_bytes(text, path, "annotation", number) or Record(number, value, json.dumps(value))
    stream.end()


def _members(stream: JsonStream, wanted: str) -> Iterator[tuple[Any, str]]:
    for key in stream.members():
        if key == wanted:
            yield from stream.items()
        else:
            stream.value()


def _hashable(value: Any) -> Any:
    return value if isinstance(value, int | str) else None


def _parquet(path: str) -> DataFile:
    folder, read, identity = open_parquet(path, COLUMNS)
    return DataFile(path, "row", folder, partial(_rows, read), identity)


def _rows(read: Callable[[], Iterator[tuple[dict[str, Any], tuple[bytes, ...]]]]) -> Iterator[Record | RecordError]:
    for number, (value, embedded) in enumerate(read(), 1):
        yield Record(number, value, json.dumps(value, default=str), embedded)  # ids of Parquet may be dates


def caption_request(key: str) -> str:
    """One of `CAPTION_REQUESTS`, always the same for the same picture and caption."""
    return CAPTION_REQUESTS[zlib.crc32(key.encode("utf-8", "replace")) % len(CAPTION_REQUESTS)]
