"""What a data set is made of: counts, kinds, histograms and repetitions, from the numbers kept beside each record."""

from __future__ import annotations

from typing import Any

import numpy as np

from .store import KINDS, RecordStore

SHOWN_REPEATS = 20
"""Repeated samples that are named; all are counted."""
BARS = 24
"""At most, of a histogram."""

Histogram = list[dict[str, int]]
"""Bars in order: `from` and `to`, both counted in, and `samples`."""


def describe(store: RecordStore) -> dict[str, Any]:
    """Of the records that can be read, whatever their images are like.

    Returns:
        `counts`, `kinds` (samples by kind), `histograms` of `turns` and of `characters` a sample, and
        `repeated`: samples with the images and the text of an earlier one, each with the place of both.
    """
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
        "kinds": {name: int(number) for name, number in zip(KINDS, kinds, strict=True)},
        "histograms": {name: histogram(column[name]) for name in ("turns", "characters")},
        "repeated": [
            {"where": store.where(int(good[index])), "same_as": store.where(int(good[first[inverse[index]]]))}
            for index in repeats[:SHOWN_REPEATS]
        ],
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
