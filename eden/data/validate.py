"""Checking a data set without a model: every fault with its place and its cure. Training uses this very code."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..audio import audio_seconds
from ..errors import AudioError, DataError, ImageError, MessageError
from ..messages import Audio, Image, check_conversation
from ..vision import check_image, open_image
from .formats import RecordError, Sample, read_samples

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


@dataclass(frozen=True)
class Fault:
    """What is wrong with one record.

    Attributes:
        where: file and record or line.
        sample_id: the record's id, if it could be read.
        kind: a short, stable name of the fault, for counting.
        message: what is wrong.
        cure: what to do about it.
    """

    where: str
    sample_id: str | None
    kind: str
    message: str
    cure: str


@dataclass
class Report:
    """What a check found, faults in file order; `samples` counts all records, the faulty ones among them."""

    path: str
    samples: int = 0
    faults: list[Fault] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def faulty(self) -> int:
        """Records with at least one fault."""
        return len({fault.where for fault in self.faults})

    @property
    def ok(self) -> bool:
        return not self.faults

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "samples": self.samples,
            "faulty": self.faulty,
            "counts": self.counts,
            "faults_by_kind": dict(Counter(fault.kind for fault in self.faults)),
            "faults": [vars(fault) for fault in self.faults],
        }


def check(
    path: str | Path,
    images: str | Path | None = None,
    audio: str | Path | None = None,
    *,
    decode: bool = True,
    on_progress: Progress | None = None,
) -> tuple[Report, list[Sample]]:
    """Checks every record, every image and every recording of a data file.

    Args:
        path: the data file.
        images: the folder of its images; None is the file's own.
        audio: the folder of its recordings; None is the file's own.
        decode: decode every image in full; otherwise only its header is read. Recordings are always decoded: their
            headers tell too little.
        on_progress: called as images and recordings are checked.

    Returns:
        The report, and the good samples in file order.

    Raises:
        DataError: the file is missing, empty, or no JSON at all.
    """
    found: list[Sample | Fault] = []
    for item in read_samples(path, images, audio):
        if isinstance(item, RecordError):
            found.append(Fault(str(item.where), item.sample_id, item.kind, item.what, str(item.cure)))
            continue
        try:
            check_conversation(item.messages, answered=True)
        except MessageError as error:
            what = f"{error.where}: {error.what}" if error.where else error.what
            found.append(Fault(item.where, item.id, error.kind, what, str(error.cure)))
            continue
        found.append(item)
    read = [item for item in found if isinstance(item, Sample)]
    broken = _check_media(read, decode, on_progress)
    faults: list[Fault] = []
    good: list[Sample] = []
    for record in found:
        if isinstance(record, Fault):
            faults.append(record)
        elif errors := [broken[key] for part in _media(record) if (key := _key(part)) in broken]:
            faults += [
                Fault(record.where, record.id, error.kind, f"{error.where}: {error.what}", str(error.cure))
                for error in errors
            ]
        else:
            good.append(record)
    return Report(str(path), len(found), faults, _count(read, len(found))), good


def load_samples(
    path: str | Path,
    images: str | Path | None = None,
    audio: str | Path | None = None,
    *,
    on_error: Literal["fail", "skip"] = "fail",
    on_progress: Progress | None = None,
) -> tuple[list[Sample], Report]:
    """The good samples of a data file, for training and evaluation.

    Args:
        path: the data file.
        images: the folder of its images; None is the file's own.
        audio: the folder of its recordings; None is the file's own.
        on_error: `fail` if any record is faulty, or `skip` those that are.
        on_progress: called as images and recordings are checked.

    Raises:
        DataError: a record is faulty and `on_error` is `fail`, no record is good, or the file cannot be read.
    """
    report, samples = check(path, images, audio, on_progress=on_progress)
    if report.faults and (on_error == "fail" or not samples):
        first = report.faults[0]
        more = f" ({len(report.faults) - 1} more faults)" if len(report.faults) > 1 else ""
        raise DataError(
            first.message + more,
            where=first.where,
            cure=f"{first.cure} `eden check` lists every fault; data.on_error=skip leaves faulty samples out.",
        )
    return samples, report


_Key = tuple[str, str | bytes]


def _check_media(
    samples: Sequence[Sample], decode: bool, on_progress: Progress | None
) -> dict[_Key, ImageError | AudioError]:
    """The images and recordings that cannot be used, by key; one that many samples name is checked once."""
    unique = {_key(part): part for sample in samples for part in _media(sample)}

    def attempt(part: Image | Audio) -> ImageError | AudioError | None:
        try:
            if isinstance(part, Audio):
                audio_seconds(part.source)
            elif decode:
                open_image(part.source)
            else:
                check_image(part.source)
        except (ImageError, AudioError) as error:
            return error
        return None

    broken: dict[_Key, ImageError | AudioError] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow and ffmpeg let other threads run while they decode
        for done, (key, error) in enumerate(zip(unique, pool.map(attempt, unique.values()), strict=True), 1):
            if error is not None:
                broken[key] = error
            if on_progress is not None:
                on_progress(done, len(unique))
    return broken


def _media(sample: Sample) -> list[Image | Audio]:
    return [part for message in sample.messages for part in message.content if isinstance(part, Image | Audio)]


def _key(part: Image | Audio) -> _Key:
    return type(part).__name__, part.source if isinstance(part.source, bytes) else str(part.source)


def _count(samples: Sequence[Sample], records: int) -> dict[str, int]:
    images = [sum(len(message.images) for message in sample.messages) for sample in samples]
    audio = [sum(len(message.audio) for message in sample.messages) for sample in samples]
    ids = Counter(sample.id for sample in samples)
    return {
        "turns": sum(len(sample.messages) for sample in samples),
        "answers": sum(message.role == "assistant" for sample in samples for message in sample.messages),
        "images": sum(images),
        "recordings": sum(audio),
        "text_only_samples": sum(not pictures and not spoken for pictures, spoken in zip(images, audio, strict=True)),
        "samples_with_several_images": sum(number > 1 for number in images),
        "repeated_ids": sum(number - 1 for number in ids.values()),
    }
