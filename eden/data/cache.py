"""What was computed from a data set once and is opened again: files in Eden's cache, whole or not there."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import time
import uuid
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from filelock import FileLock

from ..core.files import cache_folder, new_file, storage_error
from ..errors import InputError, StorageError

if TYPE_CHECKING:
    import pyarrow as pa


def data_folder(path: str, identity: str) -> Path:
    """Where everything made of one version of a data file is kept; earlier versions of it stand beside.

    Args:
        path: of the data file.
        identity: changes when the content does, or when Eden would read it differently.
    """
    return cache_folder() / "data" / f"{Path(path).stem or 'data'}-{digest(path)}" / digest(identity)


def digest(text: str) -> str:
    """A short name for a text; different texts have different ones."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:20]


def cached_table(path: Path, build: Callable[[Path], None]) -> pa.Table:
    """The table of an Arrow file of the cache, mapped; if it is missing or damaged, one process of several builds it.

    Args:
        path: the file.
        build: writes it to the path it is given.

    Raises:
        StorageError: the disk is full or the cache is not writable. No half file is ever found at `path`.
    """
    table = _whole(path)
    if table is None:
        _build(path, build)
        table = open_table(path)
    return table


def open_table(source: Path | pa.Buffer) -> pa.Table:
    """The table of an Arrow file, mapped, not read."""
    import pyarrow as pa

    return pa.ipc.open_file(pa.memory_map(str(source)) if isinstance(source, Path) else source).read_all()


def _whole(path: Path) -> pa.Table | None:
    """The table, if it is there as it was written: a machine that went down, or a copy, may have left a part of it."""
    import pyarrow as pa

    try:
        return open_table(path)
    except (OSError, pa.ArrowException):
        return None


def _build(path: Path, build: Callable[[Path], None]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f"{path.name}.lock")):
            if _whole(path) is None:  # nobody built it while we waited
                for half in path.parent.glob(f".{path.name}.*"):  # of a run that was killed: nobody else has the lock
                    half.unlink(missing_ok=True)
                with new_file(path) as beside:
                    build(beside)
    except OSError as error:
        raise storage_error(error, path) from error
    except StorageError as error:
        raise _elsewhere(error) from error


def _elsewhere(error: StorageError) -> StorageError:
    hint = "Free some space, or name another cache folder in EDEN_CACHE."
    return StorageError(replace(error.fault, hint=hint))


class InUse:
    """Holds a folder of the cache, which nothing here then removes, until this process lets go of it or is gone.

    A run's workers open its files again by their paths.

    Raises:
        StorageError: the cache is not writable.
    """

    def __init__(self, folder: Path):
        holder = f"{os.getpid()}-{psutil.Process().create_time()}-{uuid.uuid4().hex}-{platform.node()}"
        mark = folder / f"{_HELD}{holder}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            mark.touch(exist_ok=False)
        except OSError as error:
            raise _elsewhere(storage_error(error, mark)) from error
        weakref.finalize(self, _let_go, mark, os.getpid())


def _let_go(mark: Path, process: int) -> None:
    if os.getpid() == process:  # a fork's copy is not what holds it
        with suppress(OSError):
            mark.unlink()


_HELD, _FORGOTTEN = "in-use-", 7 * 24 * 3600
"""What marks a folder held; and the seconds for which the mark of another machine, which cannot be asked, counts."""


def _is_held(folder: Path) -> bool:
    return any(map(_holds, folder.glob(f"{_HELD}*")))


def _holds(mark: Path) -> bool:
    try:
        process, began, _, machine = mark.name.removeprefix(_HELD).split("-", 3)
        if machine != platform.node():
            return time.time() - mark.stat().st_mtime < _FORGOTTEN
        return abs(psutil.Process(int(process)).create_time() - float(began)) < 1  # else another got its number
    except (OSError, ValueError, psutil.Error):
        return False


def forget_earlier(folder: Path) -> None:
    """Removes what was made of earlier versions of a data file, but for what somebody holds (`InUse`)."""
    for other in folder.parent.iterdir():
        if other != folder and not _is_held(other):
            shutil.rmtree(other, ignore_errors=True)


@dataclass(frozen=True)
class Entry:
    """One thing in the cache that can be removed by itself: of a data file's version, a tower, a Whisper.

    Attributes:
        path: of its folder or file.
        size: in bytes.
        used: when it was last written or opened, in seconds since 1970.
        held: whether a process is using it.
    """

    path: Path
    size: int
    used: float
    held: bool


def entries() -> list[Entry]:
    """What is in Eden's cache, the longest unused first."""
    root, found = cache_folder(), []
    kinds = ("data/*/*", "features/*", "transcripts/*", "whisper/*", "rehearsal/*")
    for path in [path for kind in kinds for path in root.glob(kind)]:
        with suppress(OSError):  # somebody removes it at this moment
            files = [file.stat() for file in path.rglob("*") if file.is_file()] or [path.stat()]
            used = max(path.stat().st_mtime, *(file.st_mtime for file in files))  # a folder's changes when it is held
            found.append(Entry(path, sum(file.st_size for file in files), used, _is_held(path)))
    return sorted(found, key=lambda entry: entry.used)


def shrink(limit: float) -> list[Entry]:
    """Removes what was unused for longest until the cache has no more than `limit` bytes; what is held stays.

    Transcripts and answers to rehearse, which are small and dear, go only where all is to go (a limit of 0).
    """
    found = entries()
    total, removed = sum(entry.size for entry in found), []
    for entry in found:
        if total <= limit:
            break
        if entry.held or (limit and entry.path.is_file()):
            continue
        shutil.rmtree(entry.path, ignore_errors=True) if entry.path.is_dir() else entry.path.unlink(missing_ok=True)
        total -= entry.size
        removed.append(entry)
    return removed


def size_limit() -> float:
    """Bytes that the cache may have when a run begins: `$EDEN_CACHE_GB` times a billion.

    Raises:
        InputError: it is no number from 0 on.
    """
    written = os.environ.get("EDEN_CACHE_GB", str(LIMIT_GB))
    try:
        limit = float(written)
    except ValueError:
        limit = -1
    if not limit >= 0:  # nor is `nan`, which is a number to Python
        raise InputError(f"EDEN_CACHE_GB is {written!r}", hint="Write a number from 0 on, as 50.")
    return limit * 1e9


LIMIT_GB = 50
"""Some tens of data sets like LLaVA-Instruct, with patch features of a few of them."""
