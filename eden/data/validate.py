"""Checking a data set without a model: every fault with its place and a hint. Training uses this very code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import DataError, Fault
from .media import Look, media_faults
from .store import KINDS, Progress, RecordStore, Samples, open_store

NAMED_FAULTS = 1000
"""Faults that a report names one by one, if nobody asks for more; all are counted."""
SHOWN_REPEATS = 20
"""Repeated samples that are named; all are counted."""
BARS = 24
"""At most, of a histogram."""

Histogram = list[dict[str, int]]
"""Bars in order: `from` and `to`, both counted in, and `samples`."""


@dataclass
class Report:
    """What a check found.

    Attributes:
        path: the data file.
        samples: all records, the faulty ones among them.
        faulty: records with at least one fault.
        faults: the first of them, in file order.
        faults_by_kind: all of them, counted.
        counts, formats, kinds, histograms, repeated, control_words: of `describe`.
        decisions: questions with a closed set of answers, and how often each was given.
        twins: of `eden.data.twins.Twins.to_dict`; None if nobody asked.
    """

    path: str
    samples: int = 0
    faulty: int = 0
    faults: list[Fault] = field(default_factory=list)
    faults_by_kind: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    formats: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    histograms: dict[str, list[dict[str, int]]] = field(default_factory=dict)
    repeated: list[dict[str, str]] = field(default_factory=list)
    control_words: dict[str, int] = field(default_factory=dict)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    twins: dict[str, Any] | None = None

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
    kinds.update(fault.kind for _, fault in of_media)
    faults = [fault for fault, _ in zip(_in_order(store, faulty, of_media), range(named), strict=False)]
    faulty[[row for row, _ in of_media]] = True
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
            first.what + more,
            where=first.where,
            hint=f"{first.hint} `eden check` lists every fault; data.on_error=skip leaves faulty samples out.",
        )
    return samples, report


def _in_order(
    store: RecordStore, faulty: np.ndarray[Any, np.dtype[np.bool_]], of_media: list[tuple[int, Fault]]
) -> Iterator[Fault]:
    """Faults in file order; made one by one, for there may be as many as records."""
    rows = sorted(
        [(int(row), -1) for row in np.flatnonzero(faulty)] + [(row, i) for i, (row, _) in enumerate(of_media)]
    )
    for row, index in rows:
        if index < 0:
            yield store.fault(row)
        else:
            yield of_media[index][1].at(store.where(row), store.table["id"][row].as_py())


def describe(store: RecordStore) -> dict[str, Any]:
    """Of the records that can be read, whatever their images are like.

    Returns:
        `counts`, `formats` (samples by the names their parts were known by), `kinds` (samples by kind), `histograms`
        of `turns` and of `characters` a sample, `repeated`: samples with the images and the text of an earlier one,
        each with the place of both, and `control_words`: samples by words that are control tokens to some models.
    """
    import pyarrow.compute as compute

    good = np.flatnonzero(~store.faulty())
    column = {
        name: store.numbers(name)[good]
        for name in ("turns", "answers", "characters", "images", "recordings", "kind", "digest")
    }
    ids = store.table["id"].combine_chunks().take(good).drop_null()
    _, first, inverse = np.unique(column["digest"], return_index=True, return_inverse=True)
    repeats = np.flatnonzero(first[inverse] != np.arange(len(good)))
    kinds = np.bincount(column["kind"], minlength=len(KINDS))
    return {
        "counts": {
            "turns": int(column["turns"].sum()),
            "answers": int(column["answers"].sum()),
            "images": int(column["images"].sum()),
            "recordings": int(column["recordings"].sum()),
            "text_only_samples": int(((column["images"] == 0) & (column["recordings"] == 0)).sum()),
            "samples_with_several_images": int((column["images"] > 1).sum()),
            "repeated_ids": len(ids) - len(ids.unique()),
            "repeated_samples": len(repeats),
        },
        "formats": {
            pair["values"]: pair["counts"] for pair in store.table["format"].drop_null().value_counts().to_pylist()
        },
        "kinds": {name: int(number) for name, number in zip(KINDS, kinds, strict=True)},
        "histograms": {name: histogram(column[name]) for name in ("turns", "characters")},
        "repeated": [
            {"where": store.where(int(good[index])), "same_as": store.where(int(good[first[inverse[index]]]))}
            for index in repeats[:SHOWN_REPEATS]
        ],
        "control_words": {
            pair["values"]: pair["counts"]
            for pair in compute.list_flatten(store.table["control_words"]).value_counts().to_pylist()
        },
    }


def histogram(numbers: np.ndarray[Any, Any]) -> Histogram:
    """Bars of one round width; the last takes all that lies far out, so that one giant leaves the others readable."""
    if len(numbers) == 0:
        return []
    usual = max(1, int(np.quantile(numbers, 0.999, method="higher")))
    width = next(w for power in range(19) for w in (10**power, 2 * 10**power, 5 * 10**power) if usual // w < BARS)
    bars = np.minimum(numbers // width, usual // width)
    counts = np.bincount(bars)
    first = int(np.flatnonzero(counts)[0])
    return [
        {"from": index * width, "to": (index + 1) * width - 1, "samples": int(counts[index])}
        for index in range(first, len(counts) - 1)
    ] + [{"from": (len(counts) - 1) * width, "to": int(numbers.max()), "samples": int(counts[-1])}]
