"""What is known of image files by their path, size and time, so that none is read again to learn it."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..core.files import cache_folder
from ..errors import StorageError

Key = bytes
"""The SHA-256 of an image file."""
Source = str | Path | bytes
"""A path, or an encoded image."""


def source_name(source: Source) -> str:
    """What an image is called: its path, or for bytes their SHA-256."""
    return hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else str(source)


@dataclass(frozen=True)
class Known:
    """What was found when an image was read: its key, and why it cannot be used, if so."""

    key: Key
    fault: str | None


class ImageTable:
    """A table on disk; any number of processes may use it.

    Args:
        path: of the table; None is one in Eden's cache.

    Raises:
        StorageError: the place is not writable.
    """

    def __init__(self, path: Path | None = None):
        self._path = path or cache_folder() / "images.sqlite"
        with self._connected() as table:
            table.execute(
                "CREATE TABLE IF NOT EXISTS images "
                "(path TEXT PRIMARY KEY, size INTEGER, time INTEGER, key BLOB, fault TEXT)"
            )

    def look_up(self, sources: Sequence[Source]) -> list[Known | None]:
        """What is known of images whose files are as they were when they were read; None for others."""
        with self._connected() as table:
            return [self._look_up(table, source) for source in sources]

    def add(self, read: Sequence[tuple[Source, os.stat_result, Known]]) -> None:
        """Remembers files that were read."""
        rows = [(str(path), stat.st_size, stat.st_mtime_ns, known.key, known.fault) for path, stat, known in read]
        with self._connected() as table:
            table.executemany("INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?)", rows)

    def _look_up(self, table: sqlite3.Connection, source: Source) -> Known | None:
        if isinstance(source, bytes):
            return Known(hashlib.sha256(source).digest(), None)
        row = table.execute("SELECT size, time, key, fault FROM images WHERE path = ?", (str(source),)).fetchone()
        try:
            stat = Path(source).stat()
        except (OSError, ValueError):
            return None
        return Known(*row[2:]) if row is not None and row[:2] == (stat.st_size, stat.st_mtime_ns) else None

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            table = sqlite3.connect(self._path, timeout=60)
            try:
                with table:
                    yield table
            finally:
                table.close()
        except (OSError, sqlite3.Error) as error:
            raise StorageError(
                f"the table of image files cannot be used ({error})",
                where=str(self._path),
                hint="Free some space, or delete the file: it is made again.",
            ) from error
