"""Atomic writing, which never leaves half a file or folder: write beside, then rename."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

from ..errors import InputError, StorageError


def cache_folder() -> Path:
    """Where what can be computed again is kept: `$EDEN_CACHE`, else the user's cache folder."""
    if place := os.environ.get("EDEN_CACHE"):
        return Path(place)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eden"


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal; read in pieces, however large it is."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_the_path(path: str | Path) -> str:
    """The hint of a path that leads nowhere: a file that is there under nearly that name.

    It may differ by case, Unicode form, slashes, ending, or by folders that are not there.
    """
    *folders, name = Path(unquote(str(path)).replace("\\", "/")).parts or (".",)
    place = Path()
    for folder in folders:
        if (place / folder).is_dir():
            place /= folder
        elif (found := _names(place).get(_plain(folder))) and (place / found).is_dir():
            place /= found
    names = _names(place)
    found = names.get(_plain(name)) or names.get(_plain(Path(name).stem))
    return f"Did you mean {place / found}?" if found and (place / found).is_file() else "Check the path."


@lru_cache(maxsize=64)
def _names(folder: Path) -> dict[str, str]:
    """The names in a folder, by how they are spelt in the main and by that without their ending."""
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208
    except OSError:
        return {}
    return {_plain(Path(name).stem): name for name in names} | {_plain(name): name for name in names}


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold().strip()


def write_file(path: str | Path, data: str | bytes) -> Path:
    """Writes a whole file or nothing; the folder is made if needed.

    Raises:
        StorageError: the disk is full or the place is not writable; what stood at `path` is untouched.
    """
    payload = data.encode("utf-8") if isinstance(data, str) else data
    with new_file(path) as beside:
        beside.write_bytes(payload)
    return Path(path)


@contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """A temporary file beside `path` to be filled; it takes the place of `path` when the block ends well.

    Raises:
        StorageError: the disk is full or the place is not writable; what stood at `path` is untouched.
    """
    path = Path(path)
    with _storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        beside = Path(name)
        try:
            yield beside
            beside.chmod(0o644)  # mkstemp's 0600 would keep a server's user from reading it
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Fills a temporary folder and moves its files to `path` when the block ends well: all of them, or none.

    Files of the same names are replaced, others stay: a training folder keeps its checkpoints beside its artifact.

    Raises:
        StorageError: the disk is full or the place is not writable; nothing at `path` has changed.
    """
    path = Path(path)
    with _storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        finish_folder(path)
        exists = path.exists()  # then within it, for it may be a disk of its own
        beside = Path(tempfile.mkdtemp(dir=path if exists else path.parent, prefix=f".{path.name}."))
        try:
            yield beside
            beside.chmod(0o755)
            for item in beside.iterdir():
                if item.is_file():
                    item.chmod(0o644)
            beside.rename(path / _WRITTEN if exists else path)
            finish_folder(path)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


_WRITTEN = ".written"
"""Of a folder, what `new_folder` has written to its end and not yet moved to its place."""


def finish_folder(path: Path) -> None:
    """Goes on where `new_folder` was killed while it moved files to their place; whoever reads the folder asks first.

    Raises:
        StorageError: the folder is not writable.
    """
    written = path / _WRITTEN
    if not written.is_dir():
        return
    with _storage_errors(path):
        for item in sorted(written.iterdir()):
            if item.is_dir():
                shutil.rmtree(path / item.name, ignore_errors=True)
            item.replace(path / item.name)
        written.rmdir()


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """A folder to be filled, which takes the place of all that is at `path` when the block ends well.

    Raises:
        StorageError: the disk is full or the place is not writable; nothing at `path` has changed.
    """
    with _storage_errors(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as beside:
        new, old = Path(beside) / "new", Path(beside) / "old"
        yield new
        path.rename(old)
        new.rename(path)


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    """What the system says of `path` is a StorageError; of another file, which is read to write it, an InputError."""
    try:
        yield
    except OSError as error:
        name = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else path
        ours = name in (path, *path.parents) or path in name.parents or name.name.startswith(f".{path.name}.")
        if not ours and not any(parent.name.startswith(f".{path.name}.") for parent in name.parents):
            what = f"cannot be read ({error.strerror or error})"
            raise InputError(what, where=str(name), hint="Check the path and rights.") from error
        raise storage_error(error, path) from error
    except Exception as error:
        # safetensors wraps the operating system's error in its own kind
        if "No space left on device" in str(error):
            raise storage_error(OSError(errno.ENOSPC, "No space left on device"), path) from error
        raise


def storage_error(error: OSError, path: str | Path) -> StorageError:
    """The disk's refusal as one line; use it where a library writes for us."""
    if error.errno == errno.ENOSPC:
        return StorageError("the disk is full", where=str(path), hint="Free some space and run the same command again.")
    return StorageError(f"cannot write ({error.strerror or error})", where=str(path), hint="Check the path and rights.")
