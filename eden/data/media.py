"""The images and recordings of a data set, checked as closely as one asks; one that many samples name, only once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from ..core.files import check_the_path
from ..core.processes import cores, processes
from ..errors import AudioError, Fault, ImageError
from ..media.audio import audio_seconds
from ..media.images import open_image, sniff_image
from ..messages import Audio, Image
from .store import Progress, RecordStore, media_of

if TYPE_CHECKING:
    import pyarrow as pa

Look: TypeAlias = Literal["listed", "opened", "decoded"]
"""How close to look at images: whether their folder lists them, at their first bytes too, or at every pixel."""
DECODED_IN_PROCESSES = 256
"""Fewer images are decoded before other processes have begun."""
_AT_ONCE = 64


def media_faults(store: RecordStore, look: Look, on_progress: Progress | None = None) -> list[tuple[int, Fault]]:
    """Every image and recording that cannot be used, each with the row of its record, in file order.

    Args:
        store: the records.
        look: how close to look at images. Recordings are always decoded: their headers tell too little.
        on_progress: called as files are checked.
    """
    faults = [
        *_of_names(store, "image_names", lambda names: _image_errors(store, names, look, on_progress)),
        *_of_names(store, "audio_names", lambda names: _audio_errors(store, names, on_progress)),
        *_of_embedded(store, look, on_progress),
    ]
    return sorted(faults, key=itemgetter(0))  # stable: those of a record stay in reading order


def _of_names(
    store: RecordStore, column: str, check: Callable[[list[str]], dict[str, Fault]]
) -> Iterator[tuple[int, Fault]]:
    """The rows that name a file with an error; `check` sees each name once."""
    import pyarrow.compute as pc

    lists: pa.ListArray = store.table[column].combine_chunks()
    names = lists.flatten()
    errors = check(names.unique().to_pylist())
    if not errors:
        return
    import pyarrow as pa

    found = np.flatnonzero(pc.is_in(names, pa.array(list(errors), pa.string())).to_numpy(zero_copy_only=False))
    rows = pc.list_parent_indices(lists).take(found).to_pylist()
    for row, name in zip(rows, names.take(found).to_pylist(), strict=True):
        yield row, errors[name]


def image_errors(
    sources: Sequence[Path | str | bytes], look: Look, on_progress: Progress | None = None
) -> dict[int, Fault]:
    """What is wrong with images, by their place among those given.

    Args:
        sources: paths or encoded images, each once.
        look: `opened` or `decoded`.
        on_progress: called as they are checked.
    """
    return _attempted(sources, _decode if look == "decoded" else _sniff, look == "decoded", on_progress)


def _image_errors(
    store: RecordStore, names: Sequence[str], look: Look, on_progress: Progress | None
) -> dict[str, Fault]:
    folder = store.media.images
    assert folder is not None
    if look == "listed":
        return {name: _missing(folder.root / name) for name in names if folder.find(name) is None}
    errors = image_errors([folder.image(name) for name in names], look, on_progress)
    return {names[index]: error for index, error in errors.items()}


def _missing(path: Path) -> Fault:
    return Fault("missing_image", "no such image file", str(path), check_the_path(path))


def _audio_errors(store: RecordStore, names: Sequence[str], on_progress: Progress | None) -> dict[str, Fault]:
    errors = _attempted([store.media.recording(name) for name in names], _decode_audio, False, on_progress)
    return {names[index]: error for index, error in errors.items()}


def _attempted(
    sources: Sequence[Path | str | bytes],
    attempt: Callable[[Path | str | bytes], Fault | None],
    decoded: bool,
    on_progress: Progress | None,
) -> dict[int, Fault]:
    errors: dict[int, Fault] = {}
    starts = range(0, len(sources), _AT_ONCE)
    with _pool(len(sources) if decoded else 0) as pool:
        chunks = pool.map(partial(_attempt_each, attempt), (sources[start : start + _AT_ONCE] for start in starts))
        for start, found in zip(starts, chunks, strict=True):
            errors |= {start + index: error for index, error in found.items()}
            if on_progress is not None:
                on_progress(min(start + _AT_ONCE, len(sources)), len(sources))
    return errors


def _attempt_each(
    attempt: Callable[[Path | str | bytes], Fault | None], sources: Sequence[Path | str | bytes]
) -> dict[int, Fault]:
    return {index: error for index, source in enumerate(sources) if (error := attempt(source)) is not None}


def _pool(decoded: int) -> AbstractContextManager[Executor]:
    """Threads, or processes for many images: Pillow decodes beside other threads, but much around it does not."""
    if decoded < DECODED_IN_PROCESSES:
        return ThreadPoolExecutor(cores())
    return processes()


def _of_embedded(store: RecordStore, look: Look, on_progress: Progress | None) -> Iterator[tuple[int, Fault]]:
    """Faults of the images and recordings that stand in the records themselves."""
    named = [store.table[f"{kind}_names"].combine_chunks().value_lengths() for kind in ("image", "audio")]
    embedded = store.numbers("images") + store.numbers("recordings") - sum(lengths.to_numpy() for lengths in named)
    rows = np.flatnonzero(embedded).tolist()
    if not rows:
        return
    chunks = [rows[start : start + _AT_ONCE] for start in range(0, len(rows), _AT_ONCE)]
    with _pool(len(rows) if look == "decoded" else 0) as pool:
        for done, faults in enumerate(pool.map(partial(_check_rows, store, look), chunks), 1):
            yield from faults
            if on_progress is not None:
                on_progress(min(done * _AT_ONCE, len(rows)), len(rows))


def _check_rows(store: RecordStore, look: Look, rows: Sequence[int]) -> list[tuple[int, Fault]]:
    faults = []
    for row in rows:
        for part in media_of(store.sample(row)):
            if not isinstance(part.source, bytes):
                continue
            error = _decode_audio(part.source) if isinstance(part, Audio) else _look_at(part, look)
            if error is not None:
                faults.append((row, error))
    return faults


def _look_at(part: Image, look: Look) -> Fault | None:
    assert isinstance(part.source, bytes)
    return None if look == "listed" else _decode(part.source) if look == "decoded" else _sniff(part.source)


def _decode(source: Path | str | bytes) -> Fault | None:
    return _error_of(open_image, source)


def _sniff(source: Path | str | bytes) -> Fault | None:
    return _error_of(sniff_image, source)


def _decode_audio(source: Path | str | bytes) -> Fault | None:
    return _error_of(audio_seconds, source)


def _error_of(check: Callable[..., object], source: Path | str | bytes) -> Fault | None:
    try:
        check(source)
    except (ImageError, AudioError) as error:
        return error.fault
    return None
