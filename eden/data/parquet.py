"""Parquet files and data sets of the hub, streamed through `datasets`: images in the rows, or named by them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from ..errors import DataError, first_line

HUB = "hf://datasets/"
ROWS_AT_ONCE = 256
"""Images may be in them."""
_SETTINGS = {"name", "split", "data_dir"}

Row = tuple[dict[str, Any], tuple[bytes, ...]]


def open_parquet(path: str, columns: Sequence[str]) -> tuple[Path, Callable[[], Iterator[Row]], str]:
    """A file, a folder of files, or `hf://datasets/owner/name[@revision][?name=...&split=...]`.

    Args:
        path: of it.
        columns: to read beside `image` and `images`; others are left where they are.

    Returns:
        The folder that image names are relative to; what streams the rows, each as a record with the images that are
        in it; and what changes when the content does.

    Raises:
        DataError: it is missing, no Parquet, or the hub does not answer.
    """
    if path.startswith(HUB):
        source, identity = _on_hub(path)
        return Path(), partial(_stream, path, source, [], columns), identity
    place = Path(path)
    files = sorted(place.rglob("*.parquet")) if place.is_dir() else [place]
    sizes = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    folder = place if place.is_dir() else place.parent
    source = {"path": "parquet", "data_files": [*map(str, files)], "split": "train", "batch_size": ROWS_AT_ONCE}
    return folder, partial(_stream, path, source, files, columns), repr(sizes)


def _on_hub(path: str) -> tuple[dict[str, Any], str]:
    import huggingface_hub

    name, _, query = path.removeprefix(HUB).partition("?")
    name, _, revision = name.partition("@")
    settings = dict(parse_qsl(query))
    if unknown := settings.keys() - _SETTINGS:
        hint = f"Use {', '.join(sorted(_SETTINGS))}."
        raise DataError(f"unknown setting {sorted(unknown)[0]}", where=path, hint=hint)
    try:
        commit = huggingface_hub.HfApi().dataset_info(name, revision=revision or None).sha
    except Exception as error:  # the client has its own, the network's and the operating system's
        raise _unreadable(path, error) from error
    settings = {"split": "train"} | settings
    return {"path": name, "revision": commit, **settings}, f"{name} {commit} {sorted(settings.items())}"


def _stream(where: str, source: dict[str, Any], files: list[Path], columns: Sequence[str]) -> Iterator[Row]:
    import datasets

    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it would log the error that it raises
    try:
        rows = datasets.load_dataset(**source, streaming=True).decode(False)
        for row in rows:
            yield _record(row, columns)
    except Exception as error:  # of pyarrow, datasets, the network: all say that it cannot be read
        raise _odd_one(files) or _unreadable(where, error) from error


def _odd_one(files: list[Path]) -> DataError | None:
    """What is wrong with one of several files: it is damaged, or its columns are not those of the first."""
    import pyarrow as pa
    import pyarrow.parquet

    first: set[tuple[str, str]] = set()
    for file in files:
        try:
            columns = {(field.name, str(field.type)) for field in pa.parquet.read_schema(file)}
        except (OSError, pa.ArrowException) as error:
            return _unreadable(str(file), error)
        if odd := sorted((first or columns) ^ columns):
            what = f"its column `{odd[0][0]}` is not as in {files[0]}"
            return DataError(what, where=str(file), hint="Give files of the same columns, or each as a data set.")
        first = columns
    return None


def _record(row: dict[str, Any], columns: Sequence[str]) -> Row:
    """A row as a record; images in it become `{"embedded": k}`."""
    record = {name: row[name] for name in columns if row.get(name) is not None}
    embedded: list[bytes] = []
    for column in ("image", "images"):
        if (images := row.get(column)) is not None:
            record[column] = [_image(image, embedded) for image in (images if isinstance(images, list) else [images])]
    return record, tuple(embedded)


def _image(image: Any, embedded: list[bytes]) -> Any:
    data = image.get("bytes") if isinstance(image, dict) else image
    if isinstance(data, bytes):
        embedded.append(data)
        return {"embedded": len(embedded) - 1}
    return image.get("path") if isinstance(image, dict) else image


def _unreadable(where: str, error: Exception) -> DataError:
    return DataError(f"cannot be read ({first_line(error)})", where=where, hint="Check the path and the files.")
