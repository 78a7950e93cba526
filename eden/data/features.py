"""The vision tower's features of a data set's images, kept on disk: the frozen tower sees each image once.

    image files -> chunks of 512 -> threads, a core each: read, hash, decode, encode 16 at a time -> one shard a chunk

A feature is found by what it depends on: the folder's name is the tower's fingerprint (weights, layer, preprocessing,
number format), the key the SHA-256 of the image file. A changed tower or picture is therefore another entry, and never
taken for the old one. A chunk is one process's while it holds the chunk's lock, which the system lets go of when the
process dies; a shard is written beside and renamed. So any number of processes work together, and a killed one
leaves nothing but a chunk for the next to do.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..checkpoint.vision_encoder import VisionEncoder
from ..core.files import cache_folder, storage_error, write_file
from ..core.processes import cores, single_threaded_pool
from ..errors import DataError, ImageError, StorageError
from ..media.images import open_image, read_image_file
from ..messages import Image
from .cache import InUse
from .formats import Sample
from .image_index import ImageTable, Key, Known, Source, source_name
from .store import media_of

CHUNK, BATCH = 512, 16
"""Images of a shard, and of a pass through the tower."""
KEY_BYTES = 32
SUFFIX = ".safetensors"

Progress = Callable[[int, int], None]


class FeatureStore:
    """Features by image.

    Args:
        encoder: whose features these are.
        folder: where they are kept; None is Eden's cache.

    Raises:
        StorageError: the place cannot be read, or a shard is damaged.
    """

    def __init__(self, encoder: VisionEncoder, folder: Path | None = None):
        self._encoder: VisionEncoder | None = encoder
        self._shape, self._tiled = encoder.shape, bool(encoder.tiles)
        self.folder = (folder or cache_folder() / "features") / encoder.fingerprint[:32]
        self._table = ImageTable(folder and folder / "images.sqlite")
        self._index: dict[Key, tuple[str, slice]] = {}
        self._shards: dict[str, Any] = {}  # by name; None until it is mapped
        self._keys: dict[str, Key] = {}  # of the images that will be asked for
        self.faults: dict[str, str] = {}
        """What is wrong with images that `fill` could not use, by their names."""
        self._held = InUse(self.folder)
        self._refresh()

    def __len__(self) -> int:
        return len(self._index)

    def __getstate__(self) -> dict[str, Any]:
        # A worker process maps the files itself, and encodes nothing.
        return {**self.__dict__, "_encoder": None, "_held": None, "_shards": dict.fromkeys(self._shards)}

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the features of an image, or of one of its tiles: [N,Dv]."""
        return self._shape

    def missing(self, sources: Sequence[Source]) -> list[Source]:
        """The images that were not encoded yet, nor found to be faulty."""
        known = self._table.look_up(sources)
        return [source for source, of in zip(sources, known, strict=True) if not self._settled(of)]

    def features(self, source: Source) -> torch.Tensor:
        """The features [N,Dv] of an image that `fill` was given, and of its tiles behind them, [I*N,Dv] in all.

        It is a copy of what is mapped from the disk.

        Raises:
            ImageError: the image cannot be used.
        """
        if fault := self.faults.get(source_name(source)):
            raise ImageError(fault)
        name, rows = self._index[self.key(source)]
        features: torch.Tensor = self._open(name)[rows]
        return features.flatten(0, 1)

    def key(self, source: Source) -> Key:
        """The content's SHA-256, of an image that `fill` was given and could use."""
        return hashlib.sha256(source).digest() if isinstance(source, bytes) else self._keys[source_name(source)]

    def faulty(self, samples: Sequence[Sample]) -> dict[int, DataError]:
        """The samples with an image that `fill` could not use, by their place, and why."""
        found = {}
        for index, sample in enumerate(samples if self.faults else ()):
            names = (source_name(part.source) for part in media_of(sample) if isinstance(part, Image))  # type: ignore[arg-type]
            if fault := next((self.faults[name] for name in names if name in self.faults), None):
                found[index] = DataError(fault.removesuffix("."), where=sample.where)
        return found

    def _open(self, name: str) -> Any:
        if self._shards[name] is None:
            file: Any = safe_open(self.folder / name, framework="pt")
            self._shards[name] = file.get_slice("features")
        return self._shards[name]

    def fill(
        self, sources: Sequence[Source], *, threads: int | None = None, on_progress: Progress | None = None
    ) -> None:
        """Encodes what is missing; the same images in the same order give the same shards, however often it is stopped.

        Args:
            sources: the images, each once.
            threads: how many encode, each on a core of its own; None is one a core.
            on_progress: called with (images done, images in all).

        Raises:
            StorageError: the disk is full; what was written is whole.
        """
        chunks = deque(sources[start : start + CHUNK] for start in range(0, len(sources), CHUNK))
        done, passed = 0, 0
        with single_threaded_pool(threads or cores()) as pool:
            while chunks:
                chunk = chunks.popleft()
                if self._fill_chunk(chunk, pool):
                    done, passed = done + len(chunk), 0
                    if on_progress is not None:
                        on_progress(done, len(sources))
                    continue
                chunks.append(chunk)  # another process is at it; it is ours if that one dies
                passed += 1
                if passed >= len(chunks):
                    time.sleep(0.2)
        for source, known in zip(sources, self._table.look_up(sources), strict=True):
            if known is None or known.fault:
                self.faults[source_name(source)] = known.fault if known and known.fault else self._why_not(source)
            elif not isinstance(source, bytes):
                self._keys[source_name(source)] = known.key

    def _fill_chunk(self, chunk: Sequence[Source], pool: Executor) -> bool:
        """False if another process has the chunk."""
        if not self.missing(chunk):
            return True
        name = hashlib.sha256("\n".join(map(source_name, chunk)).encode()).hexdigest()[:16]
        with self._claimed(name) as claimed:
            if claimed:
                self._refresh()
            if not claimed or not self.missing(chunk):
                return claimed
            batches = [chunk[start : start + BATCH] for start in range(0, len(chunk), BATCH)]
            read = [image for batch in pool.map(self._encoded, batches) for image in batch]
            if done := {image.known.key: image.features for image in read if image.features is not None}:
                keys = b"".join(done)
                shard = f"{name}-{hashlib.sha256(keys).hexdigest()[:16]}{SUFFIX}"  # never another content by one name
                images = list(done.values())
                tensors = {"features": torch.cat(images)}
                if self._tiled:  # how many images each is
                    tensors["images"] = torch.tensor([len(features) for features in images])
                write_file(self.folder / shard, save(tensors, {"keys": keys.hex()}))
            self._table.add([(image.source, image.stat, image.known) for image in read if image.stat is not None])
            self._refresh()
            return True

    def _settled(self, known: Known | None) -> bool:
        return known is not None and (known.fault is not None or known.key in self._index)

    def _refresh(self) -> None:
        """Takes in the shards that are new, this process's or another's."""
        try:
            found = sorted(path.name for path in self.folder.glob(f"[!.]*{SUFFIX}"))
        except OSError as error:
            raise storage_error(error, self.folder) from error
        for name in found:
            if name not in self._shards:
                self._index |= {key: (name, rows) for key, rows in self._rows_of(name).items()}
                self._shards[name] = None

    def _rows_of(self, name: str) -> dict[Key, slice]:
        """Where the images of a shard are in it."""
        try:
            with safe_open(self.folder / name, framework="pt") as file:
                joined = bytes.fromhex(file.metadata()["keys"])
                numbers = file.get_tensor("images").tolist() if self._tiled else [1] * (len(joined) // KEY_BYTES)
            keys = [joined[start : start + KEY_BYTES] for start in range(0, len(joined), KEY_BYTES)]
            ends = itertools.accumulate(numbers)
            return {key: slice(end - n, end) for key, n, end in zip(keys, numbers, ends, strict=True)}
        except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
            raise StorageError(
                "a file of the feature cache is damaged", where=str(self.folder / name), hint="Delete it."
            ) from error

    @contextmanager
    def _claimed(self, name: str) -> Iterator[bool]:
        """True if no other process has the chunk; a lock goes with its process, however that ends."""
        path = self.folder / f"{name}.lock"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path).acquire(blocking=False)
        except Timeout:
            yield False
            return
        except OSError as error:
            raise storage_error(error, path) from error
        with lock:
            for beside in self.folder.glob(f".{name}*"):  # of a process that was killed while it wrote
                beside.unlink(missing_ok=True)
            yield True

    def _encoded(self, batch: Sequence[Source]) -> list[_Image]:
        """Images from their files to their features."""
        assert self._encoder is not None
        read = [self._read(source) for source in batch]
        if pixels := [image.pixels for image in read if image.pixels is not None]:
            passes = [self._encoder.features(part).cpu() for part in torch.cat(pixels).split(BATCH)]
            features = iter(torch.cat(passes).split([len(image) for image in pixels]))
            read = [replace(i, pixels=None, features=next(features)) if i.pixels is not None else i for i in read]
        return read

    def _read(self, source: Source) -> _Image:
        assert self._encoder is not None
        try:
            data, stat = (source, None) if isinstance(source, bytes) else read_image_file(source)
        except ImageError as error:
            return _Image(source, None, Known(b"", str(error)))
        key = hashlib.sha256(data).digest()
        if key in self._index:  # the same picture under another name, or in a folder that was moved
            return _Image(source, stat, Known(key, None))
        try:
            pixels = self._encoder.pixels([open_image(data, where=source_name(source))])
        except ImageError as error:
            return _Image(source, stat, Known(key, str(error)))
        return _Image(source, stat, Known(key, None), pixels)

    def _why_not(self, source: Source) -> str:
        try:
            open_image(source, where=source_name(source))
        except ImageError as error:
            return str(error)
        return f"{source_name(source)}: the image changed while it was read. Run the same command again."


@dataclass(frozen=True)
class _Image:
    source: Source
    stat: os.stat_result | None
    known: Known
    pixels: torch.Tensor | None = None
    features: torch.Tensor | None = None
