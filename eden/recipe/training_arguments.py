"""What a recipe may not say to transformers.TrainingArguments, which passes on much that does harm only later."""

from __future__ import annotations

import ast
import copy
import difflib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ..errors import first_line

if TYPE_CHECKING:
    from transformers import TrainingArguments

STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
RESERVED = {
    "remove_unused_columns": "Eden's batches hold exactly what the model takes",
    "label_names": "Eden's batches name their labels",
    "disable_tqdm": "Eden shows its own progress bar",
    "use_cache": "with a cache, samples packed into one row would see each other",
    "label_smoothing_factor": "Trainer would smooth this model's labels one position off",
    "ignore_data_skip": "a resumed run must go on with the samples it had left",
    "save_only_model": "a run could not be resumed from such a checkpoint",
    "resume_from_checkpoint": "eden train --resume does it",
    "do_train": "eden train always trains",
    "do_eval": "eval_strategy says it",
    "do_predict": "the report always shows predictions",
    "push_to_hub": "publishing is a step of its own, after training",
}
"""Arguments of TrainingArguments that no recipe may set, and why."""

AT_LEAST = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "learning_rate": 0,
    "adam_epsilon": 0,
    "seed": 0,
    "data_seed": 0,
    "dataloader_num_workers": 0,
}
"""Numbers that are too small below this; transformers, torch or numpy end a run with them in a traceback."""


def invalid_values(training: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Arguments that cannot be what they are, each as its key, what is wrong, and the hint."""
    numbers = {name: value for name, value in training.items() if isinstance(value, int | float)}
    for name, least in AT_LEAST.items():
        if numbers.get(name, least) < least:
            yield f"training.{name}", f"training.{name} is {numbers[name]}", f"Write {least} or more."
    for name in ("adam_beta1", "adam_beta2"):
        if not 0 <= numbers.get(name, 0) < 1:
            yield f"training.{name}", f"training.{name} is {numbers[name]}", "Write a number from 0 to below 1."
    steps, epochs = numbers.get("max_steps", -1), numbers.get("num_train_epochs", 1)
    if steps <= 0 and steps != -1:  # -1 is transformers' own word for none
        hint = "Write 1 or more; leave it out to train for training.num_train_epochs."
        yield "training.max_steps", f"training.max_steps is {steps}", hint
    if steps == -1 and epochs <= 0:
        yield "training.num_train_epochs", f"training.num_train_epochs is {epochs}", "Write a number above 0."
    metric = training.get("metric_for_best_model")
    if metric not in (None, "loss", "eval_loss"):
        what = f"training.metric_for_best_model is {metric}, and a run measures its loss alone"
        yield "training.metric_for_best_model", what, "Write loss."


def dry_run(arguments: TrainingArguments) -> tuple[str, str] | None:
    """Makes the optimizer and its schedule for a single weight: the key they cannot be made from, and why.

    Trainer makes them only before its first step, when the model has been loaded and the data read.
    """
    import torch
    from transformers import Trainer, get_scheduler

    weight = torch.nn.Linear(1, 1)
    if arguments.optim_target_modules is None:  # else it looks for modules by name, in the model itself
        try:
            made = Trainer.get_optimizer_cls_and_kwargs(arguments, weight)
            without = copy.copy(arguments)
            without.optim_args = None
            if arguments.optim_args and made == Trainer.get_optimizer_cls_and_kwargs(without, weight):
                return "training.optim_args", f"It changes nothing of {arguments.optim.value}"
        except (ImportError, ValueError, TypeError, NotImplementedError) as error:
            return f"training.{'optim_args' if arguments.optim_args else 'optim'}", first_line(error)
    try:
        get_scheduler(
            arguments.lr_scheduler_type,
            optimizer=torch.optim.SGD(weight.parameters(), lr=arguments.learning_rate),
            num_warmup_steps=0,  # the schedule itself is computed at once
            num_training_steps=10,
            scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
        )
    except (ValueError, TypeError) as error:
        key = "lr_scheduler_kwargs" if arguments.lr_scheduler_kwargs else "lr_scheduler_type"
        return f"training.{key}", first_line(error)
    return None


@cache
def argument_names() -> list[str]:
    """TrainingArguments' fields, read from its source: importing it would cost seconds of torch."""
    spec = importlib.util.find_spec("transformers")
    assert spec is not None and spec.origin is not None
    tree = ast.parse(Path(spec.origin).with_name("training_args.py").read_text(encoding="utf-8"))
    found = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments")
    return [ast.unparse(node.target) for node in found.body if isinstance(node, ast.AnnAssign)]


def argument_fault(value: Any, hint: Any, choices: Sequence[str] | None) -> str | None:
    """What is wrong with a value for TrainingArguments, which checks few of them before they do harm."""
    enums = [kind for kind in get_args(hint) if isinstance(kind, type) and issubclass(kind, Enum)]
    choices = [member.value for kind in enums for member in kind] or choices
    if choices is None:
        try:
            TypeAdapter(hint, config=STRICT).validate_python(value)
        except ValidationError as error:
            needed = " or ".join(fault["msg"].removeprefix("Input should be ") for fault in error.errors())
            return f"It is {value!r:.60} and must be {needed}."
    elif value not in choices:
        close = difflib.get_close_matches(str(value), choices, n=1)
        return f"It cannot be {value!r:.60}; " + (
            f"did you mean {close[0]}?" if close else f"valid: {', '.join(choices)}."
        )
    return None
