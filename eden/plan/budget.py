"""What to change in a recipe that does not fit, in the order of what it costs: first time, last what is learned."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import InputError
from ..recipe import Recipe
from .memory import checkpoints, state_bytes

CARDS = (6, 8, 12, 24)
"""GiB of memory that are asked for without a budget."""
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
SHORTEST, SMALLEST_RANK = 256, 8
"""Tokens of a row, and the rank of an adapter, below which no plan goes."""


@dataclass(frozen=True)
class Change:
    """Overrides of a recipe, and what comes of them and all before them.

    Attributes:
        overrides: as `eden train` takes them.
        total: estimated bytes.
        skipped: samples that the run would leave out for being too long.
    """

    overrides: list[str]
    total: int
    skipped: int


def parse_size(text: str) -> int:
    """Bytes of a size such as `8GiB` or `500MB`.

    Raises:
        InputError: it is none.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]i?)?b?\s*", text.lower())
    size = round(float(match[1]) * UNITS[match[2] or ""]) if match else 0
    if not size:
        raise InputError(f"no size: {text!r}", where="--budget", hint="Write it as 8GiB or 500MB.")
    return size


def changes(recipe: Recipe, longest: int) -> Iterator[list[str]]:
    """Overrides to try one after the other, each on top of those before it.

    Args:
        recipe: to be changed.
        longest: tokens of the longest sample.
    """
    training = recipe.training
    if not checkpoints(recipe):  # a third more time, the same losses
        name = "gradient" if "gradient_checkpointing" in training else "activation"
        yield [f"training.{name}_checkpointing=true"]
    if state_bytes(str(training.get("optim", "adamw"))) > state_bytes("8bit"):  # the losses hardly differ
        yield ["training.optim=paged_adamw_8bit"]
    batch = int(training.get("per_device_train_batch_size", 8))
    accumulation = int(training.get("gradient_accumulation_steps", 1))
    while batch > 1 and batch % 2 == 0:  # the same losses, in more and smaller pieces
        batch, accumulation = batch // 2, accumulation * 2
        yield [f"training.per_device_train_batch_size={batch}", f"training.gradient_accumulation_steps={accumulation}"]
    if recipe.quantization is None:
        begin = ["lora.init_lora_weights=true"] if recipe.is_pissa else []
        yield ["quantization.bnb_4bit_quant_type=nf4", *begin]
    if recipe.quantization is None or not recipe.quantization.bnb_4bit_use_double_quant:
        yield ["quantization.bnb_4bit_use_double_quant=true"]
    row = recipe.data.row_length
    while row is not None and row // 2 >= max(longest, SHORTEST):  # more padding, the same samples
        row //= 2
        yield [f"data.row_length={row}"]
    rank = recipe.lora.r if recipe.lora is not None else 0
    while rank > SMALLEST_RANK:  # less can be learned, if mostly little: https://arxiv.org/abs/2305.14314
        rank = max(SMALLEST_RANK, rank // 2)
        yield [f"lora.r={rank}"]
    allowed = min(recipe.data.max_length, longest)
    while allowed > SHORTEST:  # long samples are left out
        allowed = max(SHORTEST, allowed // 2)
        shorter = [f"data.max_length={allowed}", "data.on_error=skip"]
        yield shorter if row is None else [*shorter, f"data.row_length={max(allowed, SHORTEST)}"]
