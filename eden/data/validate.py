"""Checking a data set without a model: every fault with its place and its cure. Training uses this very code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import DataError
from .media import Look, MediaFault, media_faults
from .statistics import describe
from .store import Progress, RecordStore, Samples, open_store

NAMED_FAULTS = 1000
"""Faults that a report names one by one, if nobody asks for more; all are counted."""


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
    """What a check found.

    Attributes:
        path: the data file.
        samples: all records, the faulty ones among them.
        faulty: records with at least one fault.
        faults: the first of them, in file order.
        faults_by_kind: all of them, counted.
        counts, kinds, histograms, repeated: of `eden.data.statistics.describe`.
    """

    path: str
    samples: int = 0
    faulty: int = 0
    faults: list[Fault] = field(default_factory=list)
    faults_by_kind: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    histograms: dict[str, list[dict[str, int]]] = field(default_factory=dict)
    repeated: list[dict[str, str]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.faulty

    @property
    def unnamed(self) -> int:
        """Faults that are counted but not named."""
        return sum(self.faults_by_kind.values()) - len(self.faults)

    def to_dict(self) -> dict[str, Any]:
        return vars(self) | {"faults": [vars(fault) for fault in self.faults], "unnamed_faults": self.unnamed}


def check(
    path: str | Path,
    images: str | Path | None = None,
    audio: str | Path | None = None,
    *,
    look: Look = "opened",
    named: int = NAMED_FAULTS,
    on_progress: Progress | None = None,
) -> tuple[Report, Samples]:
    """Checks every record, every image and every recording of a data file.

    Args:
        path: the data file, a folder of images with metadata, Parquet, or a data set of the hub (`open_data`).
        images: the folder of its images; None is the file's own.
        audio: the folder of its recordings; None is the file's own.
        look: `listed` finds images that are missing, `opened` those that are none too, `decoded` damaged ones too.
            Recordings are always decoded: their headers tell too little.
        named: how many faults to name.
        on_progress: called as records are read (out of 0), and as images and recordings are checked.

    Returns:
        The report, and the good samples in file order.

    Raises:
        DataError: the file is missing, empty, or not valid.
        StorageError: the cache, where the records are kept, is not writable.
    """
    store = open_store(path, images, audio, on_progress)
    faulty = store.faulty()
    of_media = media_faults(store, look, on_progress)
    kinds = Counter(store.table["fault_kind"].combine_chunks().drop_null().to_pylist())
    kinds.update(fault.kind for fault in of_media)
    faults = [fault for fault, _ in zip(_in_order(store, faulty, of_media), range(named), strict=False)]
    faulty[[fault.row for fault in of_media]] = True
    report = Report(str(path), len(store), int(faulty.sum()), faults, dict(kinds.most_common()), **describe(store))
    return report, Samples.of(store, np.flatnonzero(~faulty))


def load_samples(
    path: str | Path,
    images: str | Path | None = None,
    audio: str | Path | None = None,
    *,
    on_error: Literal["fail", "skip"] = "fail",
    look: Look = "decoded",
    on_progress: Progress | None = None,
) -> tuple[Samples, Report]:
    """The good samples of a data file, for training and evaluation.

    Args:
        path: the data file, or what else `check` takes.
        images: the folder of its images; None is the file's own.
        audio: the folder of its recordings; None is the file's own.
        on_error: `fail` if any record is faulty, or `skip` those that are.
        look: how close to look at images, as `check` says.
        on_progress: called as records are read, and as images and recordings are checked.

    Raises:
        DataError: a record is faulty and `on_error` is `fail`, no record is good, or the file cannot be read.
        StorageError: the cache, where the records are kept, is not writable.
    """
    report, samples = check(path, images, audio, look=look, on_progress=on_progress)
    if report.faulty and (on_error == "fail" or not samples):
        first, number = report.faults[0], sum(report.faults_by_kind.values())
        more = f" ({number - 1:,} more faults)" if number > 1 else ""
        raise DataError(
            first.message + more,
            where=first.where,
            cure=f"{first.cure} `eden check` lists every fault; data.on_error=skip leaves faulty samples out.",
        )
    return samples, report


def _in_order(
    store: RecordStore, faulty: np.ndarray[Any, np.dtype[np.bool_]], of_media: list[MediaFault]
) -> Iterator[Fault]:
    """Faults in file order; made one by one, for there may be as many as records."""
    rows = sorted([(int(row), -1) for row in np.flatnonzero(faulty)] + [(f.row, i) for i, f in enumerate(of_media)])
    for row, index in rows:
        if index < 0:
            error = store.fault(row)
            yield Fault(str(error.where), error.sample_id, error.kind, error.what, str(error.cure))
        else:
            fault = of_media[index]
            sample_id = store.table["id"][row].as_py()
            yield Fault(store.where(row), sample_id, fault.kind, f"{fault.where}: {fault.what}", fault.cure)
