"""What was computed from a data set once and is opened again: files in Eden's cache, whole or not there."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

from filelock import FileLock

from ..core.files import cache_folder, new_file, storage_error
from ..errors import StorageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

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
        hint = "Free some space, or name another cache folder in EDEN_CACHE."
        raise StorageError(replace(error.fault, hint=hint)) from error


def in_use(folder: Path) -> IO[bytes] | None:
    """Holds a folder of the cache, which `forget_earlier` then leaves there, until what is returned is closed or gone.

    A run's workers open its files again by their paths. Where files cannot be locked, open ones cannot be removed.
    """
    if fcntl is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = (folder / _HELD).open("ab")
        fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        raise storage_error(error, folder) from error
    return held


_HELD = "in-use"


def forget_earlier(folder: Path) -> None:
    """Removes what was made of earlier versions of a data file, but for what somebody holds (`in_use`)."""
    for other in folder.parent.iterdir():
        if other != folder and not _is_held(other):
            shutil.rmtree(other, ignore_errors=True)


def _is_held(folder: Path) -> bool:
    if fcntl is None:
        return False
    try:
        with (folder / _HELD).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
