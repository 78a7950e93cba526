"""The records of a data file, read once and kept as a memory-mapped Arrow file: opened at once, whatever their number.

data file -> records.arrow in Eden's cache, one row a record: what it says, what is wrong with it, what to count
          -> Samples, made one at a time when they are asked for
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from ..errors import Fault, MessageError
from ..messages import Audio, Image, Message, Text, check_conversation
from .cache import InUse, cached_table, data_folder, forget_earlier, open_table
from .control_tokens import CONTROL_WORD
from .formats import Media, Sample, answers_of, empty_error, id_of, open_with_media, parse
from .image_index import Source, source_name
from .parquet import HUB
from .records import DataFile, Record, RecordError

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = "6"
"""Part of every identity: change it when records are read or counted differently."""
BATCH, BATCH_BYTES = 4096, 16 * 2**20
"""Rows written at once, and what they may hold: a row may have images in it."""
KINDS = ("conversation", "detail", "reasoning", "short answer")
"""What samples are like, after LLaVA-Instruct's three kinds; `kind_of` says which is which."""
SHORT_ANSWER = 200
"""Characters; a single answer below is short."""
_NAMED = re.compile(r"(conv|detail|complex|reason)", re.IGNORECASE)
_DESCRIBE = re.compile(
    r"\b(describe|description|what do you see|explain the visual|narrate|portray|characterize)\b",
    re.IGNORECASE,
)

Indices = np.ndarray[Any, np.dtype[np.int64]]
Progress = Callable[[int, int], None]
"""Called with (done, total); a total of 0 is not known yet."""


class RecordStore:
    """All records of a data file, the faulty ones among them.

    Args:
        data: the file.
        media: the folders its names are relative to.
        on_progress: called as records are read, if they are not in the cache.

    Raises:
        DataError: the file is empty or not valid.
        StorageError: the cache is not writable.
    """

    variant = ""
    """Part of the names of what is made of the samples: another where these are not what the records say."""

    def __init__(self, data: DataFile, media: Media, on_progress: Progress | None = None):
        self.data, self.media = data, media
        path = data.path if data.path.startswith(HUB) else str(Path(data.path).absolute())
        self.folder = data_folder(path, f"{FORMAT} {data.identity}")
        self._path = self.folder / "records.arrow"
        self._held = InUse(self.folder)

        def build(beside: Path) -> None:
            _write(data, beside, on_progress)
            forget_earlier(self.folder)

        self.table = cached_table(self._path, build)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("table", "_held")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.table = open_table(self._path)  # the file is mapped, not sent

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def numbers(self, column: str) -> np.ndarray[Any, np.dtype[Any]]:
        """A column of numbers."""
        return np.asarray(self.table[column].to_numpy())

    def faulty(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which records cannot be read, whatever their images are like."""
        return np.array(self.table["fault_kind"].is_valid())

    def where(self, row: int) -> str:
        """A record's place, for people."""
        sample_id = self.table["id"][row].as_py()
        return self.data.where(self.table["number"][row].as_py(), sample_id)

    def fault(self, row: int) -> Fault:
        """What is wrong with a faulty record."""
        kind, what, hint = (self.table[f"fault_{name}"][row].as_py() for name in ("kind", "what", "hint"))
        return Fault(kind, what, self.where(row), hint, self.table["id"][row].as_py())

    def number_of_images(self, rows: Indices) -> int:
        """Images in some rows, repetitions counted."""
        return int(self.numbers("images")[rows].sum())

    def images(self, rows: Indices) -> Iterator[Source]:
        """The images of some rows, each name once."""
        import pyarrow.compute as compute

        names = self.table["image_names"].take(rows)
        yield from map(self.media.image, compute.list_flatten(names).unique().to_pylist())
        for row in rows[compute.list_value_length(self.table["inline"].take(rows)).to_numpy() > 0].tolist():
            yield from (
                part.source
                for part in media_of(self.sample(row))
                if isinstance(part, Image) and isinstance(part.source, bytes)
            )

    def media_names(self, rows: Indices) -> Iterator[list[str]]:
        """The pictures and recordings of each row: where they are, or the SHA-256 of those in the record itself."""
        columns = [self.table[name].take(rows).to_pylist() for name in ("image_names", "audio_names", "inline")]
        images = {name: os.path.normpath(self.media.image(name)) for name in itertools.chain(*columns[0])}
        for shown, heard, inline in zip(*columns, strict=True):
            recordings = [os.path.normpath(self.media.recording(name)) for name in heard]
            yield [*(images[name] for name in shown), *recordings, *inline]

    def sample(self, row: int) -> Sample:
        """A record that is not faulty, as a sample."""
        text, number = self.table["record"][row].as_py(), self.table["number"][row].as_py()
        record = Record(number, json.loads(text), text, tuple(self.table["embedded"][row].as_py()))
        own_id = id_of(record)
        messages, where = parse(record, self.media)[1], self.data.where(number, own_id)
        return Sample(own_id or str(number), messages, where, answers_of(record.value))


class SampleList:
    """Samples in memory in the place of a store: what is made of a store's, as the words of recordings."""

    def __init__(self, samples: Sequence[Sample]):
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def number_of_images(self, rows: Indices) -> int:
        """Images in some rows."""
        return sum(1 for _ in self.images(rows))

    def images(self, rows: Indices) -> Iterator[Source]:
        """The images of some rows."""
        for row in rows.tolist():
            yield from (part.source for part in media_of(self.sample(row)) if isinstance(part, Image))  # type: ignore[misc]

    def sample(self, row: int) -> Sample:
        return self._samples[row]


class Samples(Sequence[Sample]):
    """Samples of one or more stores in any order, made when they are asked for.

    Args:
        stores: where they are.
        source: of each sample, the index of its store.
        row: of each sample, its row there.
    """

    def __init__(
        self, stores: Sequence[RecordStore | SampleList], source: np.ndarray[Any, Any], row: np.ndarray[Any, Any]
    ):
        self.stores = tuple(stores)
        self.source = np.asarray(source, dtype=np.int16)
        self.row = np.asarray(row, dtype=np.int64)

    @classmethod
    def of(cls, store: RecordStore | SampleList, rows: np.ndarray[Any, Any] | None = None) -> Samples:
        """Those of one store at these rows, or all."""
        rows = np.arange(len(store)) if rows is None else rows
        return cls([store], np.zeros(len(rows)), rows)

    @classmethod
    def joined(cls, parts: Sequence[Samples]) -> Samples:
        """One after the other."""
        shifts = np.cumsum([0] + [len(part.stores) for part in parts])
        sources = [part.source + shift for part, shift in zip(parts, shifts, strict=False)]
        stores = [store for part in parts for store in part.stores]
        return cls(stores, np.concatenate(sources), np.concatenate([part.row for part in parts]))

    @property
    def number_of_images(self) -> int:
        """Images that all of them show, repetitions counted."""
        return sum(store.number_of_images(self.row[self.source == index]) for index, store in enumerate(self.stores))

    def images(self) -> dict[str, Source]:
        """Every image once, by name, in the samples' order."""
        found: dict[str, Source] = {}
        for index, store in enumerate(self.stores):
            for image in store.images(self.row[self.source == index]):
                found.setdefault(source_name(image), image)
        return found

    def take(self, indices: np.ndarray[Any, Any] | slice) -> Samples:
        """The samples at these indices, in this order."""
        return Samples(self.stores, self.source[indices], self.row[indices])

    def __len__(self) -> int:
        return len(self.row)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Samples: ...
    def __getitem__(self, index: int | slice) -> Sample | Samples:
        if isinstance(index, slice):
            return self.take(index)
        return self.stores[self.source[index]].sample(int(self.row[index]))


def open_store(
    path: str | Path,
    images: str | Path | None = None,
    audio: str | Path | None = None,
    on_progress: Progress | None = None,
) -> RecordStore:
    """The records of a data file, read now if they were never read before.

    Raises:
        DataError: the file is missing, empty or not valid.
        StorageError: the cache is not writable.
    """
    return RecordStore(*open_with_media(path, images, audio), on_progress)


def kind_of(sample_id: str, messages: Sequence[Message]) -> int:
    """Which of `KINDS` a sample is: by its id where that says so, else by its shape.

    Several questions make a conversation. A single answer is short, or a description if asked for, or reasoning.
    """
    if named := _NAMED.match(sample_id):
        return {"conv": 0, "deta": 1, "comp": 2, "reas": 2}[named.group()[:4].lower()]
    if sum(message.role == "assistant" for message in messages) > 1:
        return 0
    if len(messages[-1].text) < SHORT_ANSWER:
        return 3
    return 1 if _DESCRIBE.search(messages[-2].text) else 2


def _write(data: DataFile, path: Path, on_progress: Progress | None) -> None:
    import pyarrow as pa

    schema = _schema()
    rows = 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in _batches(map(_row, data.read())):
            rows += len(batch)
            columns = zip(*batch, strict=True)
            writer.write(pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema))
            if on_progress is not None:
                on_progress(rows, 0)
    if rows == 0:
        raise empty_error(data)


def _batches(rows: Iterable[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    batch, size = [], 0
    for row in rows:
        batch.append(row)
        size += len(row[_RECORD] or "") + sum(map(len, row[_EMBEDDED]))
        if len(batch) == BATCH or size > BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _schema() -> pa.Schema:
    import pyarrow as pa

    names = pa.list_(pa.string())
    return pa.schema(
        {
            "number": pa.int64(),
            "id": pa.string(),
            "record": pa.string(),
            "embedded": pa.list_(pa.large_binary()),
            "fault_kind": pa.string(),
            "fault_what": pa.string(),
            "fault_hint": pa.string(),
            "turns": pa.int32(),
            "answers": pa.int32(),
            "characters": pa.int64(),
            "image_names": names,
            "audio_names": names,
            "images": pa.int32(),
            "recordings": pa.int32(),
            "kind": pa.int8(),
            "digest": pa.int64(),  # of images and text
            "format": pa.string(),
            "inline": pa.list_(pa.string()),  # SHA-256 of images and recordings in the record itself
            "control_words": names,
        }
    )


_RECORD, _EMBEDDED = 2, 3
"""Where a row holds the text of its record, and the images in it."""
_NO_FAULT, _NO_COUNTS = (None, None, None), (0, 0, 0, (), (), 0, 0, -1, 0, None, (), ())
_NAMES_ONLY = Media()


def _row(record: Record | RecordError) -> tuple[Any, ...]:
    """A record as a row of the file; what is wrong with it is part of the row."""
    if isinstance(record, RecordError):
        number = int(str(record.fault.where).rsplit(" ", 1)[1])
        return number, None, None, (), record.fault.kind, record.fault.what, record.fault.hint, *_NO_COUNTS
    own_id = id_of(record)
    try:
        form, messages = parse(record, _NAMES_ONLY)
        check_conversation(messages, answered=True)
    except (RecordError, MessageError) as error:
        fault = error.fault.at("")
    else:
        return (record.number, own_id, record.text, record.embedded, *_NO_FAULT, *_counts(own_id or "", messages, form))
    what = fault.what.encode("utf-8", "replace").decode()
    return record.number, own_id, None, (), fault.kind, what, fault.hint, *_NO_COUNTS


def _counts(sample_id: str, messages: Sequence[Message], form: str) -> tuple[Any, ...]:
    parts = [part for message in messages for part in message.content]
    texts = [part.text for part in parts if isinstance(part, Text)]
    images = [part.source for part in parts if isinstance(part, Image)]
    audio = [part.source for part in parts if isinstance(part, Audio)]
    names = [[name for name in sources if isinstance(name, str)] for sources in (images, audio)]
    content = hashlib.blake2b("\0".join([*texts, *names[0], *names[1]]).encode("utf-8", "replace"), digest_size=8)
    for source in images:
        if isinstance(source, bytes):
            content.update(source)
    return (
        len(messages),
        [message.role for message in messages].count("assistant"),
        sum(map(len, texts)),
        *names,
        len(images),
        len(audio),
        kind_of(sample_id, messages),
        int.from_bytes(content.digest(), signed=True),
        form,
        [hashlib.sha256(source).hexdigest() for source in (*images, *audio) if isinstance(source, bytes)],
        sorted({word for text in texts for word in CONTROL_WORD.findall(text)}),
    )


def media_of(sample: Sample) -> list[Image | Audio]:
    """The images and recordings of a sample, in reading order."""
    return [part for message in sample.messages for part in message.content if isinstance(part, Image | Audio)]
