"""What a run has to read: samples and their tokens, rows, padding, optimizer steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from ..data.dataset import ConversationDataset
from ..data.packing import pack
from ..data.prepare import read_data
from ..data.store import Samples
from ..errors import DataError, RecipeError
from ..model.attention import takes_flat_rows
from ..model.processing import MultimodalPhiProcessor
from ..recipe import Recipe
from ..training.trainer import Schedule

if TYPE_CHECKING:
    from transformers import TrainingArguments

Array = np.ndarray[Any, np.dtype[Any]]

LLAVA = {"conversation": (57_829, 240, 70), "detail": (23_240, 155, 25), "reasoning": (76_643, 215, 35)}
"""LLaVA-Instruct-150K by kind: samples, and tokens of one in mean and spread. The numbers of samples are published, the
tokens are assumed: the real file was not measured."""
LLAVA_LONGEST = 1024
LLAVA_SUPERVISED = 0.75
"""Share of a sample's tokens that are answers, assumed."""
LLAVA_IMAGES = 81_479
CHARACTERS = 4
"""Of a token, where no tokenizer is at hand to count them."""


@dataclass(frozen=True)
class Workload:
    """What training reads.

    Attributes:
        source: `encoded` (counted), `characters` (tokens estimated by the letters), or `assumed` (no data here).
        lengths: tokens of each training sample.
        supervised: tokens that are learned from, in all samples.
        images: distinct images.
        rows: samples of each row; one a row if nothing is packed.
        tokens: of an epoch, without padding.
        positions: of an epoch, padding included.
        longest: lengths of the samples in the batch that takes most.
        schedule: steps and epochs.
        skipped: samples that the run would leave out.
        flat: samples of a batch stand in one row, without padding.
    """

    source: str
    lengths: Array
    supervised: int
    images: int
    rows: int
    tokens: int
    positions: int
    longest: list[int]
    schedule: Schedule
    skipped: int
    flat: bool

    @property
    def padding(self) -> float:
        """Share of the positions that hold no token."""
        return 1 - self.tokens / self.positions

    @property
    def longest_positions(self) -> int:
        """Positions of the batch that takes most."""
        return sum(self.longest) if self.flat else len(self.longest) * max(self.longest)


@dataclass(frozen=True)
class Lengths:
    """What a data set measures, before a recipe makes rows of it; see `Workload`.

    Attributes:
        longest: where the longest sample is.
    """

    source: str
    tokens: Array
    supervised: int
    images: int
    longest: str = "data"


def read_lengths(recipe: Recipe, processor: MultimodalPhiProcessor | None, image_tokens: int, out: Console) -> Lengths:
    """Measures the training samples, or assumes LLaVA-Instruct's where the data is not on this machine.

    Raises:
        DataError: as in training.
    """
    if not all(Path(source.path).exists() for source in recipe.data.all_sources):
        held_out = 0.0 if recipe.data.eval_path is not None else recipe.data.eval_fraction
        return _assumed(image_tokens, 1 - held_out)
    samples, _, _ = read_data(recipe, out)
    images = len(samples.images())
    if processor is None:
        return _by_characters(samples, images, image_tokens)
    longest_allowed = np.iinfo(np.int32).max  # which are too long, the recipe decides later
    dataset = ConversationDataset(samples, processor, max_length=int(longest_allowed), on_error=recipe.data.on_error)
    dataset.check_not_empty("to train on")
    longest = dataset.samples[int(dataset.lengths.argmax())].where
    return Lengths("encoded", dataset.lengths, dataset.supervised_tokens, images, longest)


def workload_of(recipe: Recipe, lengths: Lengths, arguments: TrainingArguments) -> Workload:
    """Rows, batches and steps that the recipe makes of its samples.

    Raises:
        DataError: a sample is longer than the recipe allows, and it does not skip such samples, or none is left.
    """
    data, batch = recipe.data, int(arguments.train_batch_size)
    limit, name = data.max_length, "data.max_length"
    if data.row_length is not None and data.row_length < limit:
        limit, name = data.row_length, "data.row_length"
    fits = lengths.tokens <= limit
    if not fits.any() or (not fits.all() and data.on_error == "fail"):
        most, skip = int(lengths.tokens.max()), ", or set data.on_error=skip" if fits.any() else ""
        what = "the longest sample has" if fits.any() else "every sample is too long: the longest has"
        hint = f"Raise {name}{skip}."
        raise DataError(f"{what} {most:,} tokens, {name} is {limit:,}", where=lengths.longest, hint=hint)
    sizes = np.asarray(lengths.tokens[fits], dtype=np.int64)
    rows = None if data.row_length is None else pack(sizes, data.row_length, data.split_seed)
    flat = takes_flat_rows(recipe.model.attn_implementation)
    totals, longest, members = _of_rows(sizes, rows)
    number = len(totals)
    takes = totals if flat else longest * members
    order = np.random.default_rng(int(arguments.seed)).permutation(number)
    if arguments.train_sampling_strategy == "group_by_length":
        order = np.argsort(-takes, kind="stable")
    positions = int(sizes.sum())
    if not flat:
        starts = np.arange(0, number, batch)
        in_batch = np.add.reduceat(members[order], starts)
        positions = int((np.maximum.reduceat(longest[order], starts) * in_batch).sum())
    worst = np.argsort(-takes, kind="stable")[:batch].tolist()
    return Workload(
        lengths.source,
        sizes,
        round(lengths.supervised * float(fits.mean())),
        lengths.images,
        number,
        int(sizes.sum()),
        positions,
        [int(sizes[sample]) for row in worst for sample in ([row] if rows is None else rows[row])],
        Schedule.of(arguments, number),
        int((~fits).sum()),
        flat,
    )


def _of_rows(sizes: Array, rows: list[list[int]] | None) -> tuple[Array, Array, Array]:
    """Of each row: its tokens, its longest sample's, and how many samples it holds; None is a row a sample."""
    if rows is None:
        return sizes, sizes, np.ones_like(sizes)
    members = np.array([len(row) for row in rows])
    ordered, starts = sizes[np.concatenate([np.array(row) for row in rows])], np.cumsum(members) - members
    return np.add.reduceat(ordered, starts), np.maximum.reduceat(ordered, starts), members


def _assumed(image_tokens: int, share: float) -> Lengths:
    rng = np.random.default_rng(0)
    drawn = []
    for number, mean, spread in LLAVA.values():
        sigma = math.sqrt(math.log(1 + (spread / mean) ** 2))  # a log-normal has few long samples and none below zero
        drawn.append(rng.lognormal(math.log(mean) - sigma**2 / 2, sigma, round(number * share)))
    text = np.clip(np.concatenate(drawn), 16, LLAVA_LONGEST).astype(np.int64)
    return Lengths("assumed", text + image_tokens, round(float(text.sum()) * LLAVA_SUPERVISED), LLAVA_IMAGES)


def _by_characters(samples: Samples, images: int, image_tokens: int) -> Lengths:
    if not len(samples):
        raise RecipeError("no sample to plan with", where="data.path")
    lengths, supervised = [], 0
    for sample in samples:
        answers = sum(len(message.text) for message in sample.messages if message.role == "assistant")
        letters = sum(len(message.text) for message in sample.messages)
        marks = 3 * len(sample.messages)  # a turn's control tokens
        pictures = sum(len(message.images) for message in sample.messages)
        lengths.append(letters // CHARACTERS + marks + pictures * image_tokens)
        supervised += answers // CHARACTERS
    return Lengths("characters", np.array(lengths), supervised, images, samples[int(np.argmax(lengths))].where)
