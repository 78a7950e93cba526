"""What samples are in tokens: encoded once in parallel processes, and kept as a memory-mapped Arrow file in the cache.

store + processor -> tokens-....arrow beside records.arrow, one row a record (a faulty one's is empty)
                  -> ids and labels of a row, lengths and supervised tokens of all of them at once
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.environment import versions
from ..core.processes import cores, processes
from ..errors import ImageError
from ..media.images import image_size
from ..messages import MediaSource, to_chat
from ..model.loss import IGNORE_INDEX
from ..model.processing import MultimodalPhiProcessor
from ..model.tiling import side_of
from .cache import cached_table, digest, open_table
from .image_index import source_name
from .store import Progress, RecordStore, SampleList

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = "1"
"""Part of every key: change it when the same processor would encode differently."""
AT_ONCE = 256
"""Samples a process encodes at a time."""
ENCODED_IN_PROCESSES = 2048
"""Fewer samples are encoded before other processes have begun."""

Array = np.ndarray[Any, np.dtype[Any]]
Encoded = tuple[list[Array], list[Array], list[str | None]]
"""Of each sample: ids, the runs of supervised tokens as (start, end, start, end, ...), and what is wrong with it."""


class TokenTable:
    """Tokens of all records of a store.

    Args:
        store: the records.
        processor: encodes them.
        on_progress: called as they are encoded, if they are not in the cache.

    Raises:
        StorageError: the cache is not writable.
    """

    def __init__(
        self, store: RecordStore | SampleList, processor: MultimodalPhiProcessor, on_progress: Progress | None = None
    ):
        import pyarrow as pa

        self._source: Path | pa.Buffer
        if isinstance(store, RecordStore):
            sizes = digest(_files(store)) if processor.tiles else ""
            self._source = store.folder / f"tokens-{fingerprint(processor)}{sizes}{store.variant}.arrow"
            table = cached_table(
                self._source, lambda beside: _write(store, processor, pa.OSFile(str(beside), "wb"), on_progress)
            )
        else:
            stream = pa.BufferOutputStream()
            _write(store, processor, stream, on_progress)
            self._source = stream.getvalue()
            table = open_table(self._source)
        self._take(table)

    def _take(self, table: pa.Table) -> None:
        self._ids, self._runs = _Lists(table["ids"]), _Lists(table["supervised"])
        self.lengths: Array = self._ids.lengths
        """T of each row."""
        self.supervised: Array = table["supervised_tokens"].to_numpy()
        """Supervised tokens of each row."""
        self.faults: dict[int, str] = {}
        """Why a row could not be encoded."""
        for row in np.flatnonzero(table["fault"].is_valid()):
            self.faults[int(row)] = table["fault"][int(row)].as_py()

    def __getstate__(self) -> dict[str, Any]:
        return {"_source": self._source}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._take(open_table(self._source))  # the file is mapped, not sent

    def __getitem__(self, row: int) -> tuple[Array, Array]:
        """Ids and labels of a row, int32 [T] each."""
        ids = self._ids[row].astype(np.int32)
        labels = np.full_like(ids, IGNORE_INDEX)
        for start, end in self._runs[row].reshape(-1, 2):
            labels[start:end] = ids[start:end]
        return ids, labels


class _Lists:
    """A column of lists of numbers as views of the mapped file."""

    def __init__(self, column: pa.ChunkedArray):
        self._values = [chunk.values.to_numpy() for chunk in column.chunks]
        self._offsets = [chunk.offsets.to_numpy() for chunk in column.chunks]
        self._starts = np.cumsum([0] + [len(chunk) for chunk in column.chunks])
        self.lengths = np.concatenate([np.diff(offsets) for offsets in self._offsets]).astype(np.int32)

    def __getitem__(self, row: int) -> Array:
        chunk = int(np.searchsorted(self._starts, row, side="right")) - 1
        inside = row - self._starts[chunk]
        start, end = self._offsets[chunk][inside : inside + 2]
        return np.asarray(self._values[chunk][start:end])


def fingerprint(processor: MultimodalPhiProcessor) -> str:
    """Changes with everything that ids and labels depend on beside the sample: tokenizer, template, image tokens."""
    tokenizer = processor.tokenizer
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for name in ("padding", "truncation"):  # left over from the last call
        state.pop(name, None)
    parts = [state, tokenizer.special_tokens_map, processor.chat_template, processor.num_image_tokens]
    parts += [processor.tiles, side_of(processor.image_processor)] if processor.tiles else []
    return digest(f"{FORMAT} {versions('transformers', 'tokenizers')} {json.dumps(parts, default=str)}")


def _files(store: RecordStore) -> str:
    """Changes with the image files: with tiles, how many tokens one takes depends on its size."""
    sources = {source_name(source): source for source in store.images(np.arange(len(store)))}
    return "\n".join(f"{name} {_state(source)}" for name, source in sources.items() if not isinstance(source, bytes))


def _state(path: str | Path) -> tuple[int, int] | None:
    try:
        state = Path(path).stat()
    except (OSError, ValueError):
        return None
    return state.st_size, state.st_mtime_ns


def _size(source: MediaSource) -> tuple[int, int]:
    try:
        return image_size(source)
    except ImageError:  # it is named when it is opened
        return 1, 1


def _write(
    store: RecordStore | SampleList, processor: MultimodalPhiProcessor, sink: Any, on_progress: Progress | None
) -> None:
    import pyarrow as pa

    narrow = len(processor.tokenizer) < 2**16  # Phi-3.5's 32,012 ids take two bytes each
    schema = pa.schema(
        {
            "ids": pa.list_(pa.uint16() if narrow else pa.int32()),
            "supervised": pa.list_(pa.int32()),
            "supervised_tokens": pa.int32(),
            "fault": pa.string(),
        }
    )
    done = 0
    with sink, pa.ipc.new_file(sink, schema) as writer:
        for ids, runs, faults in _encoded(store, processor):
            counts = [int((run[1::2] - run[::2]).sum()) for run in runs]
            columns = zip((ids, runs, counts, faults), schema, strict=True)
            writer.write(pa.record_batch([pa.array(column, field.type) for column, field in columns], schema))
            done += len(ids)
            if on_progress is not None:
                on_progress(done, len(store))


def _encoded(store: RecordStore | SampleList, processor: MultimodalPhiProcessor) -> Iterator[Encoded]:
    starts = range(0, len(store), AT_ONCE)
    if len(store) < ENCODED_IN_PROCESSES or cores() == 1:
        yield from (_encode(store, processor, start) for start in starts)
        return
    with processes(_begin, store, processor) as pool:
        yield from pool.map(_encode_here, starts)


_here: tuple[RecordStore | SampleList, MultimodalPhiProcessor]
"""In a process that encodes: what it encodes, and with what."""


def _begin(store: RecordStore | SampleList, processor: MultimodalPhiProcessor) -> None:
    global _here
    _here = store, processor


def _encode_here(start: int) -> Encoded:
    return _encode(*_here, start)


def _encode(store: RecordStore | SampleList, processor: MultimodalPhiProcessor, start: int) -> Encoded:
    rows = range(start, min(start + AT_ONCE, len(store)))
    faulty: Sequence[Any] | Array = (
        store.faulty()[rows.start : rows.stop] if isinstance(store, RecordStore) else [False] * len(rows)
    )
    ids, runs, faults = [], [], []
    for row, skip in zip(rows, faulty, strict=True):
        example: dict[str, Any] = {"input_ids": [], "labels": []}
        fault = None
        if not skip:
            try:
                example = processor.encode(to_chat(store.sample(row).messages, image_size=_size))
            except ValueError as error:  # a control token that only this tokenizer knows
                fault = str(error)
        ids.append(np.asarray(example["input_ids"], dtype=np.int32))
        runs.append(_runs(np.asarray(example["labels"], dtype=np.int32) != IGNORE_INDEX))
        faults.append(fault)
    return ids, runs, faults


def _runs(mask: Array) -> Array:
    """Where a mask is on, as (start, end, start, end, ...)."""
    edges = np.diff(mask.astype(np.int8), prepend=0, append=0)
    return np.flatnonzero(edges).astype(np.int32)
