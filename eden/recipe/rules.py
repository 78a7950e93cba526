"""Which recipes can be run: one ordered list of rules, each giving what is wrong; the first fault is the one refused.

What a single value may be, its section's type says. transformers.TrainingArguments passes on much that does harm only
later, so that most rules are about `training`.
"""

from __future__ import annotations

import ast
import copy
import difflib
import importlib.util
import itertools
import os
import re
from collections.abc import Callable, Collection, Iterator
from enum import Enum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from ..errors import first_line
from .sections import STRICT, Sections

if TYPE_CHECKING:
    from transformers import TrainingArguments

Faults = Iterator[tuple[str, str, str]]
"""The key to look at, what is wrong, and the hint."""

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

BATCHES = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
OTHERS = ("learning_rate", "adam_epsilon", "seed", "data_seed", "dataloader_num_workers")
AT_LEAST = dict.fromkeys(BATCHES, 1) | dict.fromkeys(OTHERS, 0)
"""Numbers that are too small below this; transformers, torch or numpy end a run with them in a traceback."""

# Names people bring from older transformers and other tools, spelt unlike those of today.
RENAMED = {"group_by_length": "train_sampling_strategy", "lr": "learning_rate", "warmup_ratio": "warmup_steps"}


CHANGES_THE_BASE = ("olora", "corda", "lora_ga", "loftq")
"""PEFT's ways to begin an adapter that change the weights below it; some have more after the name."""
PISSA = re.compile(r"pissa(_niter_[1-9]\d*)?")
"""The one that can be turned into plain LoRA after training; with a number, by an approximate decomposition."""


def ineffective(recipe: Sections) -> dict[tuple[str, str], str]:
    """Keys without a meaning beside the others, and why: refused when set, left out when written."""
    reasons: dict[tuple[str, str], str] = {}
    if recipe.lora is None and not recipe.model.vision_trainable_layers:
        reasons["model", "projector_learning_rate"] = "nothing else trains, and training.learning_rate is its rate"
    if recipe.model.base is not None:
        for name in ("vision", "vision_revision", "language", "language_revision"):
            reasons["model", name] = "model.base is a complete model"
        reasons["model", "vision_feature"] = reasons["model", "vision_feature_layer"] = "it belongs to the base"
    else:
        reasons["model", "base_revision"] = "it needs model.base"
        if recipe.model.vision_feature == "pooled":
            reasons["model", "vision_feature_layer"] = "it needs model.vision_feature: patches"
    if recipe.data.eval_path is not None:
        reasons["data", "eval_fraction"] = reasons["data", "split_by"] = "data.eval_path is all that is held out"
        if recipe.data.sources is None:
            reasons["data", "split_seed"] = "data.eval_path is all that is held out"
    elif recipe.data.sources is not None:
        reasons["data", "images"] = reasons["data", "audio"] = "each of data.sources names its own"
    return reasons


def did_you_mean(name: str, names: Collection[str]) -> str:
    """The hint for an unknown name."""
    close = [RENAMED[name]] if name in RENAMED else difflib.get_close_matches(name, names, n=1)
    if close and close[0] in names:
        return f"Did you mean {close[0]}?"
    return f"Valid here: {', '.join(names)}." if len(names) < 20 else "Its names are transformers.TrainingArguments'."


def _written_in_vain(recipe: Sections) -> list[tuple[str, str]]:
    written = recipe.model_dump(exclude_unset=True)
    return [
        (f"{at}.{name}", why) for (at, name), why in ineffective(recipe).items() if written[at].get(name) is not None
    ]


def _a_model_to_start_from(recipe: Sections) -> Faults:
    model, vain = recipe.model, [key for key, _ in _written_in_vain(recipe)]
    if backbones := [key for key in vain if key in ("model.vision", "model.language")]:
        hint = f"Remove either; as overrides: {' '.join(f'{key}=null' for key in vain)}, or model.base=null."
        yield "model.base", f"model.base excludes {' and '.join(backbones)}: it is a complete model", hint
    if not model.base and not (model.vision and model.language):
        yield "model", "nothing to start from", "Give model.base, or both model.vision and model.language."


def _data_to_learn_from(recipe: Sections) -> Faults:
    data = recipe.data
    if data.path is None and data.sources is None:
        yield "data.path", "data.path is missing", "Add data.path."
    if data.path is not None and data.sources is not None:
        hint = "Remove either; as an override: data.path=null or data.sources=null."
        yield "data.sources", "data.sources excludes data.path: it names all data sets", hint
    named: dict[str, str] = {}
    for source in data.sources or []:
        path = source.path if "://" in source.path else os.path.realpath(source.path)
        if path in named:
            too = "" if source.path == named[path] else f", also as {source.path}"
            hint = "Name it once, with a greater weight."
            yield "data.sources", f"data.sources names {named[path]} twice{too}", hint
        named[path] = source.path


def _text_to_rehearse(recipe: Sections) -> Faults:
    data, rehearsal = recipe.data, recipe.data.rehearsal
    if rehearsal is None:
        return
    if (rehearsal.path is None) == (rehearsal.prompts is None):
        what = "data.rehearsal names both path and prompts" if rehearsal.path else "data.rehearsal names nothing"
        yield "data.rehearsal", what, "Give data.rehearsal.path, or data.rehearsal.prompts=shipped."
    if recipe.lora is None:
        what = "data.rehearsal teaches nothing without a lora section: the language model stays as it is"
        yield "data.rehearsal", what, "Remove it; as an override: data.rehearsal=null."
    trained = [source.path for source in data.sources or []] + ([data.path] if data.path else [])
    if rehearsal.path is not None and os.path.realpath(rehearsal.path) in map(os.path.realpath, trained):
        hint = "Name it once; a source of data.sources has a weight of its own."
        yield "data.rehearsal.path", f"data.rehearsal names {rehearsal.path}, which is trained on already", hint


def _adapters_that_stay_apart(recipe: Sections) -> Faults:
    if recipe.lora is None or recipe.lora.init_lora_weights in (True, "gaussian"):
        return
    begin = str(recipe.lora.init_lora_weights)
    key, hint = "lora.init_lora_weights", "Write true, gaussian or pissa."
    if PISSA.fullmatch(begin):
        hint = f"Write {key}: true, or "
        if recipe.quantization is not None:
            what = f"{begin} takes a part out of the base's weights, which cannot be in 4 bits"
            yield key, what, f"{hint}quantization: null."
        if recipe.lora.use_dora:
            yield key, f"{begin} beside lora.use_dora cannot be turned into plain LoRA", f"{hint}lora.use_dora: false."
    elif begin.startswith(CHANGES_THE_BASE):
        yield key, f"{begin} changes the base's weights, and the adapter would be wrong on the base as it is", hint
    else:
        yield key, f"adapters do not begin with {key}={begin}", hint


def _nothing_in_vain(recipe: Sections) -> Faults:
    for key, why in _written_in_vain(recipe):
        yield key, f"{key} says nothing here: {why}", f"Remove it; as an override: {key}=null."
    if recipe.quantization is not None and not recipe.quantization.load_in_4bit:
        yield "quantization.load_in_4bit", "a quantization section without 4 bits", "Write quantization: null."
    for key, is_set, what, off in (
        ("data.augment", recipe.data.augment is not None, "varies images", "null"),
        ("model.vision_trainable_layers", recipe.model.vision_trainable_layers > 0, "changes the features", "0"),
    ):
        if is_set and recipe.data.features != "live":
            hint = f"Write data.features: live, or {key}: {off}."
            yield key, f"{key} {what}, and data.features={recipe.data.features} keeps them", hint
    if recipe.data.row_length is not None and recipe.training.get("train_sampling_strategy") == "group_by_length":
        hint = "Remove either; a batch then holds per_device_train_batch_size rows."
        yield "data.row_length", "packed rows are of one length, and train_sampling_strategy would group them", hint


def _arguments_by_name(recipe: Sections) -> Faults:
    names = argument_names()
    for name in recipe.training:
        if name not in names:
            yield f"training.{name}", f"unknown key training.{name}", did_you_mean(name, names)
        if reason := RESERVED.get("push_to_hub" if name.startswith("hub_") else name, ""):
            yield f"training.{name}", f"training.{name} cannot be set: {reason}", "Remove it."


def _numbers_in_bounds(recipe: Sections) -> Faults:
    numbers = {name: value for name, value in recipe.training.items() if isinstance(value, int | float)}
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


def _arguments_together(recipe: Sections) -> Faults:
    data, training = recipe.data, recipe.training
    metric, matches = training.get("metric_for_best_model"), ("exact_match", "eval_exact_match")
    if data.eval_generate is None and metric in matches:
        hint = "Add data.eval_generate: the number of held-out samples that are answered."
        yield "training.metric_for_best_model", f"training.metric_for_best_model is {metric}: nothing is answered", hint
    if metric not in (None, "loss", "eval_loss", *matches):
        what = f"training.metric_for_best_model is {metric}, which no run measures"
        yield "training.metric_for_best_model", what, "Write loss, or exact_match with data.eval_generate."
    if data.eval_generate is not None and training.get("eval_strategy", "no") == "no":
        what = "data.eval_generate needs evaluations, and training.eval_strategy has none"
        yield "data.eval_generate", what, "Add training.eval_strategy: steps, or remove data.eval_generate."
    if data.eval_generate is not None and training.get("fsdp"):
        what = "data.eval_generate needs the whole model in each process, and training.fsdp shares it out"
        yield "data.eval_generate", what, "Keep one."
    if not training.get("output_dir"):
        yield "training.output_dir", "training.output_dir is missing", "Name the folder to train into."
    for old in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
        new = old.replace("gradient", "activation")
        if old in training and new in training:  # TrainingArguments would drop the old one without a word
            yield f"training.{old}", f"training.{old} and training.{new} are the same", f"Set training.{new} only."
    if training.get("fp16") is True and training.get("bf16") is True:
        yield "training.fp16", "training.fp16 and training.bf16 exclude each other", "Keep one."
    if "eval_steps" in training and "eval_strategy" not in training:
        yield "training.eval_steps", "training.eval_steps alone never evaluates", "Add training.eval_strategy: steps."
    if training.get("eval_strategy", "no") != "no" and not data.eval_path and not data.eval_fraction:
        hint = "Give data.eval_path, a data.eval_fraction above 0, or training.eval_strategy=no."
        yield "training.eval_strategy", "training.eval_strategy needs held-out samples, and there are none", hint


RULES: tuple[Callable[[Sections], Faults], ...] = (
    _a_model_to_start_from,
    _data_to_learn_from,
    _text_to_rehearse,
    _adapters_that_stay_apart,
    _nothing_in_vain,
    _arguments_by_name,
    _numbers_in_bounds,
    _arguments_together,
)


def faults(recipe: Sections) -> Faults:
    """All that is wrong with a recipe, in the order of the rules; found without importing torch."""
    return itertools.chain.from_iterable(rule(recipe) for rule in RULES)


@cache
def argument_names() -> list[str]:
    """TrainingArguments' fields, read from its source: importing it would cost seconds of torch."""
    spec = importlib.util.find_spec("transformers")
    assert spec is not None and spec.origin is not None
    tree = ast.parse(Path(spec.origin).with_name("training_args.py").read_text(encoding="utf-8"))
    found = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments")
    return [ast.unparse(node.target) for node in found.body if isinstance(node, ast.AnnAssign)]


def argument_faults(training: dict[str, Any]) -> Faults:
    """Values that are none of an argument's type, by transformers' own annotations, which it checks few of."""
    from transformers import TrainingArguments

    hints, fields = get_type_hints(TrainingArguments), TrainingArguments.__dataclass_fields__
    hints["fsdp"] = bool | None  # as its documentation says; the annotation still is that of an older way
    for name, value in training.items():
        enums = [kind for kind in get_args(hints[name]) if isinstance(kind, type) and issubclass(kind, Enum)]
        choices = [member.value for kind in enums for member in kind] or fields[name].metadata.get("choices")
        hint = ""
        if choices is None:
            try:
                TypeAdapter(hints[name], config=STRICT).validate_python(value)
            except ValidationError as error:
                needed = " or ".join(fault["msg"].removeprefix("Input should be ") for fault in error.errors())
                hint = f"It is {value!r:.60} and must be {needed}."
        elif value not in choices:
            close = difflib.get_close_matches(str(value), choices, n=1)
            hint = f"did you mean {close[0]}?" if close else f"valid: {', '.join(choices)}."
            hint = f"It cannot be {value!r:.60}; {hint}"
        if hint:
            yield f"training.{name}", f"transformers refuses training.{name}", hint


def optimizer_faults(arguments: TrainingArguments) -> Faults:
    """Makes reporters, and the optimizer and its schedule for a single weight; gives what they cannot be made from.

    Trainer makes them only before its first step, when the model has been loaded and the data read.
    """
    import torch
    from transformers import Trainer, get_scheduler
    from transformers.integrations import get_reporting_integration_callbacks
    from transformers.utils import is_liger_kernel_available

    def refused(key: str, why: str) -> tuple[str, str, str]:
        return f"training.{key}", f"transformers refuses training.{key}", why

    for name in arguments.report_to:
        try:
            for callback in get_reporting_integration_callbacks([name]):
                callback()
        except (ImportError, RuntimeError, AssertionError, ValueError) as error:
            yield refused("report_to", first_line(error))
    if arguments.use_liger_kernel and not is_liger_kernel_available():
        yield refused("use_liger_kernel", "liger-kernel is not installed. Run `pip install liger-kernel`")
    weight = torch.nn.Linear(1, 1)
    if arguments.optim_target_modules is None:  # else it looks for modules by name, in the model itself
        try:
            made = Trainer.get_optimizer_cls_and_kwargs(arguments, weight)
            without = copy.copy(arguments)
            without.optim_args = None
            if arguments.optim_args and made == Trainer.get_optimizer_cls_and_kwargs(without, weight):
                yield refused("optim_args", f"It changes nothing of {arguments.optim.value}")
        except (ImportError, ValueError, TypeError, NotImplementedError) as error:
            yield refused("optim_args" if arguments.optim_args else "optim", first_line(error))
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
        yield refused(key, first_line(error))
