"""Rows filled with whole samples: less of a batch is padding, and steps are of one size.

    row_length 12    |aaaaabbbbbb.|ccccccccdddd|eeeee.......|      best fit, the longest sample first

In a row every sample's positions begin at 0 and no sample sees another (`eden.model.attention`), so that a packed run
learns from each what it would learn from it alone.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch.utils.data

from ..errors import DataError
from .dataset import ConversationDataset

Lengths = Sequence[int] | np.ndarray[Any, Any]

WINDOW = 16_384
"""Samples packed together. Within it they are sorted by length; the smaller, the more a row depends on the seed."""


def pack(lengths: Lengths, row_length: int, seed: int = 0) -> list[list[int]]:
    """Fills rows by best fit: each sample, the longest first, goes into the row with the least room that is enough.

    Args:
        lengths: tokens of each sample.
        row_length: tokens of a row at most.
        seed: shuffles the samples before they are packed, window by window, and the rows after.

    Returns:
        The samples' numbers, row by row; each of them once.

    Raises:
        DataError: a sample is longer than a row.
    """
    sizes = np.asarray(lengths)
    if len(sizes) and sizes.max() > row_length:
        raise DataError(
            f"a sample has {sizes.max():,} tokens, and a row of data.row_length has {row_length:,}",
            where=f"sample {sizes.argmax() + 1}",
            hint="Raise data.row_length, or lower data.max_length with data.on_error=skip.",
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(sizes))
    rows: list[list[int]] = []
    for start in range(0, len(order), WINDOW):
        rows += _best_fit(order[start : start + WINDOW], sizes, row_length)
    return [rows[index] for index in rng.permutation(len(rows))]


def efficiency(rows: Sequence[Sequence[int]], lengths: Lengths, row_length: int) -> float:
    """The share of the rows' positions that hold a token."""
    return sum(int(lengths[index]) for row in rows for index in row) / (len(rows) * row_length) if rows else 1.0


def _best_fit(indices: np.ndarray[Any, Any], sizes: np.ndarray[Any, Any], row_length: int) -> list[list[int]]:
    rows: list[list[int]] = []
    by_room: dict[int, list[list[int]]] = defaultdict(list)
    rooms: list[int] = []  # those that some row has, ascending
    for index in indices[np.argsort(-sizes[indices], kind="stable")].tolist():
        size = int(sizes[index])
        place = bisect.bisect_left(rooms, size)
        if place == len(rooms):
            room = row_length
            rows.append(row := [])
        else:
            room = rooms[place]
            row = by_room[room].pop()
            if not by_room[room]:
                rooms.pop(place)
        row.append(index)
        room -= size
        if not by_room[room]:
            bisect.insort(rooms, room)
        by_room[room].append(row)
    return rows


class PackedDataset(torch.utils.data.Dataset[list[dict[str, Any]]]):
    """Rows of a data set; an item is the list of its samples' examples.

    Args:
        dataset: the samples.
        row_length: tokens of a row at most.
        seed: see `pack`.

    Raises:
        DataError: a sample is longer than a row.
    """

    def __init__(self, dataset: ConversationDataset, row_length: int, seed: int = 0):
        self.dataset = dataset
        self.rows = pack(dataset.lengths, row_length, seed)
        self.efficiency = efficiency(self.rows, dataset.lengths, row_length)

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch."""
        self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        return [self.dataset[sample] for sample in self.rows[index]]
