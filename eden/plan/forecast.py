"""The plan of a recipe: what it reads, holds, takes and leaves, and whether a budget of memory is enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from ..checkpoint.four_bits import will_be_dequantized
from ..core.console import written_size
from ..errors import InputError
from ..recipe import Recipe
from .budget import CARDS, Change, changes
from .measure import LARGE, Measured, measure_layer, measure_model
from .memory import GIB, Memory, estimate, state_bytes
from .shapes import Shapes, from_the_beginning, is_here, processor_of, shapes_of
from .workload import Workload, read_lengths, workload_of

if TYPE_CHECKING:
    from transformers import TrainingArguments

ARTIFACT_FILES = 2**21
"""Tokenizer, report and model card of an artifact, about."""


@dataclass(frozen=True)
class Verdict:
    """Whether memory of a size is enough.

    Attributes:
        budget: bytes.
        fits: as the recipe is.
        changes: those to make, the cheapest first, up to the first with which it fits; empty if it does.
        possible: it fits, as it is or with all changes.
    """

    budget: int
    fits: bool
    changes: list[Change]
    possible: bool


@dataclass(frozen=True)
class Plan:
    """What a run will take. Estimates unless `measured`.

    Attributes:
        shapes: the model's.
        workload: the data's.
        memory: estimated bytes.
        measured: on this machine, if steps were taken.
        step_seconds: of a step of usual length, on this machine.
        disk: estimated bytes by part.
        verdicts: on the budgets asked for.
        gpu: the memory is a GPU's.
        stage: the shipped recipe that has yet to make the model's base, if there is no base yet.
    """

    shapes: Shapes
    workload: Workload
    memory: Memory
    measured: Measured | None
    step_seconds: float | None
    disk: dict[str, int]
    verdicts: list[Verdict]
    gpu: bool
    stage: str | None = None

    @property
    def total_seconds(self) -> float | None:
        """Of all optimizer steps; evaluations, checkpoints and loading are not in it."""
        return None if self.step_seconds is None else self.step_seconds * self.workload.schedule.steps

    def to_dict(self) -> dict[str, Any]:
        """For JSON; sizes are in bytes and times in seconds."""
        work, measured = self.workload, self.measured
        return {
            "base_to_be_made_by": self.stage,
            "data": {
                "source": work.source,
                "samples": len(work.lengths),
                "skipped": work.skipped,
                "tokens": work.tokens,
                "supervised_tokens": work.supervised,
                "rows": work.rows,
                "padding": round(work.padding, 4),
                "longest_batch": work.longest_positions,
                "images": work.images,
            },
            "steps": work.schedule.steps,
            "epochs": round(work.schedule.epochs, 3),
            "parameters": {
                "all": self.shapes.parameters,
                "trained": self.shapes.trained,
                "by_part": self.shapes.counts,
            },
            "memory_estimate": {"total": self.memory.total, "on_gpu": self.gpu, "by_part": self.memory.parts},
            "measured": None if measured is None else vars(measured),
            "step_seconds_estimate": self.step_seconds,
            "total_seconds_estimate": self.total_seconds,
            "disk_estimate": self.disk,
            "budgets": [
                {
                    "budget": verdict.budget,
                    "fits": verdict.fits,
                    "possible": verdict.possible,
                    "changes": [vars(change) for change in verdict.changes],
                }
                for verdict in self.verdicts
            ],
        }


def forecast(recipe: Recipe, console: Console, *, budget: int | None = None, steps: int = 2) -> Plan:
    """Plans a run without beginning it.

    Args:
        recipe: of the run.
        console: where progress is shown.
        budget: bytes of memory there are; None asks for each of `CARDS`.
        steps: real steps to take on this machine; 0 takes none.

    Raises:
        InputError: nothing that can be changed makes the run fit the budget.
        DataError, CheckpointError, RecipeError: as `eden train` would.
    """
    recipe, stage = from_the_beginning(recipe)
    here = recipe.on_this_machine()
    arguments = recipe.training_arguments()
    shapes = shapes_of(recipe)
    image_tokens = shapes.config.num_image_tokens * (1 + shapes.config.tiles)
    lengths = read_lengths(recipe, processor_of(recipe.model, shapes.config), image_tokens, console)
    workload = workload_of(recipe, lengths, arguments)
    gpu = torch.cuda.is_available() or shapes.parameters >= LARGE  # nobody trains a large model without one

    def as_held(loaded: Recipe) -> Recipe:
        weights = shapes.layer_weights * shapes.config.text_config.num_hidden_layers
        return loaded.model_copy(update={"quantization": None}) if will_be_dequantized(loaded, weights) else loaded

    if torch.cuda.is_available() or not gpu:  # a GPU that is not here is taken to have bf16
        recipe = as_held(here)
        shapes = shapes_of(recipe)

    def estimated(changed: Recipe) -> tuple[int, int]:
        changed = changed if gpu else as_held(changed)
        again = changed.training_arguments()
        same = (changed.quantization, changed.lora) == (recipe.quantization, recipe.lora)
        new, work = shapes if same else shapes_of(changed), workload_of(changed, lengths, again)
        return estimate(changed, new, work, again, gpu=gpu).total, work.skipped

    memory = estimate(recipe, shapes, workload, arguments, gpu=gpu)
    verdicts = [_verdict(recipe, memory, size, lengths.tokens.max(), estimated) for size in _budgets(budget)]
    if budget is not None and not verdicts[0].possible:
        raise _refusal(budget, memory, verdicts[0].changes)
    measured = None
    if steps:
        with console.status("measuring real steps"):
            if is_here(recipe.model) and shapes.parameters < LARGE:
                measured = measure_model(here, workload, steps, console)
            else:
                measured = measure_layer(as_held(here), shapes, workload, steps)
    return Plan(
        shapes,
        workload,
        memory,
        measured,
        None if measured is None else _step_seconds(measured, workload, arguments),
        _disk(recipe, shapes, workload, arguments),
        verdicts,
        gpu,
        stage,
    )


def _budgets(budget: int | None) -> Sequence[int]:
    return [budget] if budget is not None else [card * GIB for card in CARDS]


def _verdict(
    recipe: Recipe, memory: Memory, budget: int, longest: int, estimated: Callable[[Recipe], tuple[int, int]]
) -> Verdict:
    """What a budget needs; `estimated` gives a changed recipe's bytes, and how many samples it leaves out."""
    if memory.total <= budget:
        return Verdict(budget, True, [], True)
    made = []
    total = memory.total
    for change in changes(recipe, int(longest)):
        recipe, was = recipe.override(change), recipe
        new, skipped = estimated(recipe)
        if new >= total:  # it would cost something and save nothing
            recipe = was
            continue
        total = new
        made.append(Change(change, total, skipped))
        if total <= budget:
            return Verdict(budget, False, made, True)
    return Verdict(budget, False, made, False)


def _refusal(budget: int, memory: Memory, made: Sequence[Change]) -> InputError:
    needed = f"an estimated {written_size(memory.total)}"
    if made:
        last = dict(word.split("=") for change in made for word in change.overrides)  # the last of a key holds
        words = " ".join(f"{key}={value}" for key, value in last.items())
        needed += f", and {written_size(made[-1].total)} with all that can be changed: {words}"
    least = made[-1].total if made else memory.total
    return InputError(
        f"nothing fits {written_size(budget)}: the run needs {needed}",
        where="--budget",
        hint=f"Give at least {math.ceil(least / 2**20):,}MiB, or name a smaller model.",
    )


def _step_seconds(measured: Measured, workload: Workload, arguments: TrainingArguments) -> float:
    """Of a step of usual length: the longest batch's time, by its share of positions."""
    batches = math.ceil(workload.rows / int(arguments.train_batch_size))
    return measured.seconds * (workload.positions / batches) / workload.longest_positions


def _disk(recipe: Recipe, shapes: Shapes, workload: Workload, arguments: TrainingArguments) -> dict[str, int]:
    """Bytes that the run leaves: all checkpoints it keeps, the artifact, and features in the cache."""
    weights = 4 * shapes.trained
    checkpoint = weights + state_bytes(str(arguments.optim.value)) * shapes.trained
    steps, every = workload.schedule.steps, float(arguments.save_steps)
    number = 0
    if arguments.save_strategy == "steps":
        number = math.ceil(steps / (math.ceil(every * steps) if every < 1 else every))  # the last step writes one, too
    elif arguments.save_strategy == "epoch":
        number = math.ceil(workload.schedule.epochs)
    number = min(number, arguments.save_total_limit or number)
    more = 4 * shapes.counts["lora"]["trained"] if recipe.is_pissa else 0  # its artifact is LoRA of twice the rank
    config = shapes.config
    size = 4 if recipe.model.dtype == "float32" else 2
    features = workload.images * (1 + config.tiles) * config.num_image_tokens * config.image_feature_size * size
    return {
        "checkpoints": number * checkpoint,
        "artifact": weights + more + ARTIFACT_FILES,
        "features": features if recipe.data.features != "live" else 0,
    }
