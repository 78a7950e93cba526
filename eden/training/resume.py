"""Where a run begins: in a new folder, or, with --resume, at the last whole checkpoint of the very same run.

A run's folder says which run it is from before the first step on: its recipe, and in run.json how many rows a step
reads, of how many samples and tokens, in which number format, and whether its images' features are cached.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..checkpoint.artifact import RECIPE
from ..core import distributed
from ..core.console import AS_IT_IS
from ..core.files import storage_error, write_file
from ..data.dataset import ConversationDataset
from ..errors import DataError, RecipeError
from ..recipe import Recipe, load_recipe
from .distributed_trainer import rows_a_step, wants_shards

RUN, REPORT = "run.json", "report.html"
CARD = "README.md"
ARTIFACT = ("adapter_config.json", "adapter_model.safetensors", CARD)
"""A finished run's files; the card is written last, but for the report, which can be made again."""

MAY_CHANGE = (
    "data.eval_generate",
    "data.features",  # `auto` stays what it became; what it may be named anew is looked at by itself
    "data.on_error",  # a run that has begun has no sample that `fail` would refuse
    "training.output_dir",
    "training.max_steps",
    "training.num_train_epochs",
    "training.per_device_",  # as long as a step reads as many rows, which is looked at by itself
    "training.gradient_accumulation_steps",
    *("training.logging_", "training.log_", "training.save_", "training.eval_", "training.include_"),
    *("training.dataloader_", "training.activation_checkpointing", "training.gradient_checkpointing"),
    *("training.fsdp", "training.ddp_", "training.torch_compile", "training.torch_empty_cache_steps"),
    *("training.report_to", "training.run_name", "training.project", "training.trackio_"),
    *("training.load_best_model_at_end", "training.metric_for_best_model", "training.greater_is_better"),
)
"""What a run that goes on may be told anew: keys that begin like this. All others would make it another run."""
MUST_STAY = "training.dataloader_drop_last"
"""The exception: it chooses samples."""


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
        checkpoint: to go on from; None at the beginning.
        finished: the run has come to its end, and its artifact is whole: nothing is left to do.
        features: how the run that goes on got at its images, `cached` or `live`.
    """

    checkpoint: Path | None
    finished: bool = False
    features: str | None = None


def find_start(recipe: Recipe, arguments: TrainingArguments, resume: bool, console: Console) -> Start:
    """Where the run begins; the main process looks for all of them.

    Raises:
        RecipeError: a new run would overwrite an old one; there is nothing to resume; the recipe is not the one the run
            began with; or the checkpoint was written with FSDP and the run is to go on without, or the other way round.
        StorageError: the folder cannot be written.
    """
    return distributed.from_main(lambda: _find_start(recipe, arguments, resume, console))


def begin(
    recipe: Recipe,
    arguments: TrainingArguments,
    train_set: ConversationDataset,
    ways: dict[str, str],
    start: Start,
    console: Console,
) -> None:
    """Writes into the run's folder which run it is, before its first step; the main process does.

    `ways` are the number format of its products, `computed_in`, and how it gets at its images, `features`. The card and
    the report of an earlier end are removed, for the run is at its end no more.

    Raises:
        DataError: the run goes on, and its samples are not as many or as long as those it began with: the ones it has
            left to read would be others.
        StorageError: the disk is full.
    """
    folder = Path(arguments.output_dir)
    run = {"rows_a_step": rows_a_step(arguments), "samples": len(train_set), "tokens": int(train_set.lengths.sum())}
    begun = _facts(folder) if start.checkpoint is not None else {}
    computed, now = str(begun.pop("computed_in", ways["computed_in"])), ways["computed_in"]
    begun.pop("features", None)
    if computed != now:
        console.print(
            f"the run began in {computed} and goes on in {now}, as it computes on this machine: its "
            "losses will not be those of the uninterrupted run to the last digit",
            **AS_IT_IS,
        )
    if begun and begun != run:  # that its rows a step are the same was seen before
        raise DataError(
            f"there are {run['samples']:,} samples of {run['tokens']:,} tokens to train on, and the run began with "
            f"{begun['samples']:,} of {begun['tokens']:,}",
            where=str(folder / RUN),
            hint="Bring the data back as it was, or begin another run in another training.output_dir.",
        )
    recipe.save(folder / RECIPE)
    write_file(folder / RUN, json.dumps(run | ways, indent=1))
    for name in (CARD, REPORT):
        (folder / name).unlink(missing_ok=True)


def _facts(folder: Path) -> dict[str, Any]:
    """What `begin` has written; empty if it has not."""
    facts: dict[str, Any] = json.loads((folder / RUN).read_text()) if (folder / RUN).exists() else {}
    return facts


def _find_start(recipe: Recipe, arguments: TrainingArguments, resume: bool, console: Console) -> Start:
    folder = Path(arguments.output_dir)
    _check_writable(folder)
    found = [path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if _step(path).isdecimal()]
    whole = sorted((path for path in found if _state(path)), key=lambda path: int(_step(path)))
    if resume:
        last = whole[-1] if whole else None
        start = _last_point(recipe, arguments, last)
    elif whole or (folder / ARTIFACT[0]).exists():
        hint = "Add --resume to go on with it, or choose another training.output_dir."
        if not whole:
            hint = "Choose another training.output_dir, or delete the folder."
        raise RecipeError("the folder already holds a run", where=str(folder), hint=hint)
    else:
        start = Start(None)
    for path in sorted(set(found) - set(whole)):
        console.print(f"removing {path}: it was cut off while being written", **AS_IT_IS)
        shutil.rmtree(path)
    if start.finished:
        console.print(f"the run in {folder} is finished: nothing is left to train", **AS_IT_IS)
        if not (folder / REPORT).exists():
            console.print(f"it has no report: `eden report {folder}` makes it", **AS_IT_IS)
    elif start.checkpoint is not None:
        console.print(f"resuming from {start.checkpoint}", **AS_IT_IS)
    return start


def _last_point(recipe: Recipe, arguments: TrainingArguments, last: Path | None) -> Start:
    folder = Path(arguments.output_dir)
    if last is not None and (sharded := any(last.glob("pytorch_model_fsdp*"))) != wants_shards(arguments):
        raise RecipeError(
            f"the checkpoint was written {'with' if sharded else 'without'} FSDP",
            where=str(last),
            hint=f"Resume it {'with' if sharded else 'without'} FSDP.",
        )
    complete = all((folder / name).exists() for name in ARTIFACT)
    begun = load_recipe(folder / RECIPE) if (folder / RECIPE).exists() else None
    if begun is not None and (last is not None or complete):
        _refuse_another_run(begun, recipe, arguments)
    if last is None:
        same_length = begun is not None and all(
            begun.training.get(name) == recipe.training.get(name) for name in ("max_steps", "num_train_epochs")
        )
        if complete and same_length:
            return Start(None, finished=True)
        hint = "Run without --resume."
        if (folder / ARTIFACT[0]).exists():  # of a run that kept no checkpoints
            hint = "Choose another training.output_dir, or delete the folder, and run without --resume."
        raise RecipeError("there is no checkpoint to resume from", where=str(folder), hint=hint)
    state, steps = _state(last), arguments.max_steps
    at_its_end = state["global_step"] >= steps if steps > 0 else state["epoch"] >= arguments.num_train_epochs
    return Start(last, at_its_end and complete, _facts(folder).get("features"))


def _refuse_another_run(begun: Recipe, recipe: Recipe, arguments: TrainingArguments) -> None:
    folder = Path(arguments.output_dir)
    for key, then, now in _differences(begun, recipe):
        raise RecipeError(
            f"{key} is {_written(now)}, and the run began with {_written(then)}",
            where=str(folder / RECIPE),
            hint=f"Set {key}={_written(then)} to go on with it, or begin another run in another training.output_dir.",
        )
    facts, features = _facts(folder), recipe.data.features
    if features not in ("auto", was := facts.get("features", features)):
        raise RecipeError(
            f"data.features is {features}, and the run began with {was}",
            where=str(folder / RUN),
            hint=f"Set data.features={was}, or auto, to go on with it.",
        )
    rows = rows_a_step(arguments)
    before = facts.get("rows_a_step", rows)
    if rows != before:
        raise RecipeError(
            f"a step reads {rows} rows, and the run began with {before}",
            where=str(folder / RUN),
            hint="Choose training.per_device_train_batch_size and training.gradient_accumulation_steps so that they "
            f"and the processes make {before}.",
        )


def _differences(begun: Recipe, recipe: Recipe) -> Iterator[tuple[str, Any, Any]]:
    """What makes the recipe another run's, in its order: the key, what it was, what it is."""
    then, now = begun.model_dump(), recipe.model_dump()
    defaults = {name: field.default for name, field in TrainingArguments.__dataclass_fields__.items()}
    for section in now:
        old, new = then[section], now[section]
        if old is None or new is None:
            if old != new:
                yield section, old, new
            continue
        for name in {**new, **old}:
            key, default = f"{section}.{name}", defaults.get(name) if section == "training" else None
            before, after = old.get(name, default), new.get(name, default)
            if before != after and (not key.startswith(MAY_CHANGE) or key == MUST_STAY):
                yield key, before, after


def _written(value: Any) -> str:
    """As an override writes it."""
    return str(value) if isinstance(value, str) else json.dumps(value, default=str)


def _check_writable(folder: Path) -> None:
    """Sees that the run will be able to write; a run that is refused later leaves no folder behind."""
    try:
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        for path in made:
            path.rmdir()
    except OSError as error:
        raise storage_error(error, folder) from error


def _step(checkpoint: Path) -> str:
    return checkpoint.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")


def _state(checkpoint: Path) -> dict[str, Any]:
    """Trainer's state, empty if the checkpoint is not whole: this file is written last."""
    try:
        state: dict[str, Any] = json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return {}
    return state
