"""Training: one loop for every stage, on transformers' Trainer. What a stage trains is the recipe's to say.

recipe -> samples, checked -> model with adapters -> Trainer -> artifact, training.jsonl, report.html, README.md
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import TrainingArguments, set_seed

from .. import checkpoint as checkpoints
from ..checkpoint import Checkpoint
from ..checkpoint.four_bits import DEQUANTIZED, is_dequantized
from ..checkpoint.vision_encoder import VisionEncoder
from ..core import distributed
from ..core.console import AS_IT_IS, progress
from ..core.files import write_file
from ..core.html_report import Prediction, training_page, write_page
from ..core.numeric_format import emulation_factor, numeric_format
from ..data.dataset import ConversationDataset
from ..data.feature_policy import open_features
from ..data.formats import Sample
from ..data.packing import PackedDataset
from ..data.prepare import read_data
from ..data.store import Samples
from ..inference.assistant import Assistant
from ..media.images import open_image
from ..messages import Message
from ..recipe import Recipe
from .model_card import model_card
from .resume import RECIPE, REPORT, begin, find_start
from .trainer import LOG, EdenTrainer, Schedule

PREDICTIONS = 8
"""Held-out samples that are answered before and after training, for the report."""


@dataclass(frozen=True)
class TrainingResult:
    """What a finished run leaves behind.

    Attributes:
        artifact: the folder; `eden.load` takes it.
        report: its HTML report.
        log: Trainer's log rows (`step`, `loss`, `eval_loss`, ...).
        skipped: samples left out, one line each (`data.on_error: skip`).
    """

    artifact: Path
    report: Path
    log: list[dict[str, Any]]
    skipped: list[str]


def train(recipe: Recipe, *, resume: bool = False, console: Console | None = None) -> TrainingResult:
    """Runs a recipe from data to artifact; in several processes, all of them call it and the main one writes.

    Args:
        recipe: what to train, on what, and how.
        resume: go on from the last whole checkpoint in `training.output_dir`; of a finished run nothing is trained, and
            its artifact is written if it is not whole.
        console: where progress is shown; None shows it on stderr.

    Raises:
        DataError, CheckpointError, RecipeError: what the recipe names is missing or wrong, or not what the run to be
            resumed began with; nothing was written.
        StorageError: the disk is full; the last whole checkpoint is kept.
        Interrupted: Ctrl-C; a checkpoint was written and the message says how to go on.
        RunError: the launcher has started fewer processes than it was asked for, the loss became NaN, or every image is
            damaged.
    """
    console = console or Console(stderr=True)
    started = time.monotonic()
    distributed.check_launch()
    arguments = recipe.training_arguments()
    folder = Path(arguments.output_dir)
    start = find_start(recipe, arguments, resume, console)
    if start.finished:
        return _earlier_result(folder)
    set_seed(arguments.seed)
    with distributed.main_first():  # what is heard and counted is kept, and found by the others
        train_samples, eval_samples, skipped = read_data(recipe, console)
    console.print(numeric_line(recipe), **AS_IT_IS)
    with console.status(f"loading {recipe.model.base or recipe.model.language}"):
        checkpoint = checkpoints.load_for_training(recipe)
    train_set, eval_set = _encode(recipe, checkpoint, train_samples, eval_samples, skipped, console)
    _print_parameters(checkpoint, console)
    _use_features(recipe, checkpoint, arguments, train_set, eval_set, skipped, console)
    shown = _pick_samples(eval_set)
    before = _answers(checkpoint, shown)
    rows = _pack(recipe, train_set, console)
    begin(recipe, arguments, train_set, start, console)
    trainer = EdenTrainer(checkpoint, arguments, rows, eval_set if len(eval_set) else None, console)
    log = trainer.run(start.checkpoint)
    steps, weights = trainer.state.global_step, trainer.gathered() if trainer.is_sharded else None
    _list_damaged([train_set, eval_set], skipped, console)
    if distributed.is_main():
        if weights is not None:
            del trainer  # its shards make room for the whole model
            checkpoint = checkpoints.load_for_training(recipe, weights)
        after = _answers(checkpoint, shown)
        facts = _facts(recipe, checkpoint, train_set, eval_set, log, steps, time.monotonic() - started)
        predictions = [_prediction(*row) for row in zip(shown, before, after, strict=True)]
        with console.status("saving the artifact"):
            _write_artifact(folder, recipe, checkpoint, log, facts, predictions, skipped)
    distributed.wait()
    return TrainingResult(folder, folder / REPORT, log, skipped)


def numeric_line(recipe: Recipe) -> str:
    """What a run computes in on this machine, and why."""
    if recipe.on_this_machine().model.dtype == recipe.model.dtype == "float32" and not recipe.training.get("bf16"):
        return "computing in float32: the recipe says so"
    here = numeric_format()
    if recipe.model.force_format and here.name != "bfloat16":
        return (
            f"computing in bfloat16 by force: {here.reason}, {emulation_factor():.0f} times slower than in {here.name}"
        )
    return str(here)


def _earlier_result(folder: Path) -> TrainingResult:
    """What a finished run has left; which samples it skipped, its report says."""
    rows = (folder / LOG).read_text(encoding="utf-8").splitlines() if (folder / LOG).exists() else []
    return TrainingResult(folder, folder / REPORT, [json.loads(row) for row in rows], [])


def _encode(
    recipe: Recipe,
    checkpoint: Checkpoint,
    train_samples: Samples,
    eval_samples: Samples,
    skipped: list[str],
    console: Console,
) -> tuple[ConversationDataset, ConversationDataset]:
    def encode(name: str, samples: Samples, row_length: int | None = None) -> ConversationDataset:
        with progress(console) as bar:
            task = bar.add_task(f"encoding {name} samples", total=len(samples))
            dataset = ConversationDataset(
                samples,
                checkpoint.processor,
                max_length=recipe.data.max_length,
                row_length=row_length,
                on_error=recipe.data.on_error,
                on_progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        skipped.extend(str(error) for error in dataset.skipped)
        return dataset

    train_set = encode("training", train_samples, recipe.data.row_length)
    eval_set = encode("held-out", eval_samples)
    for line in skipped:
        console.print(f"skipped {line}", **AS_IT_IS)
    _check_not_empty(recipe, train_set, eval_set)
    return train_set, eval_set


def _check_not_empty(recipe: Recipe, train_set: ConversationDataset, eval_set: ConversationDataset) -> None:
    train_set.check_not_empty("to train on")
    if recipe.training.get("eval_strategy", "no") != "no":
        eval_set.check_not_empty("to evaluate on")


def _pack(recipe: Recipe, train_set: ConversationDataset, console: Console) -> ConversationDataset | PackedDataset:
    if recipe.data.row_length is None:
        return train_set
    packed = PackedDataset(train_set, recipe.data.row_length, seed=recipe.data.split_seed)
    console.print(
        f"{len(train_set):,} samples in {len(packed):,} rows of {recipe.data.row_length:,} tokens, "
        f"{packed.efficiency:.1%} full",
        highlight=False,
    )
    return packed


def _use_features(
    recipe: Recipe,
    checkpoint: Checkpoint,
    arguments: TrainingArguments,
    train_set: ConversationDataset,
    eval_set: ConversationDataset,
    skipped: list[str],
    console: Console,
) -> None:
    """Images as features, where that is the recipe's way; samples whose images gave none are left out."""
    if recipe.data.features == "live":
        return
    images = train_set.samples.images() | eval_set.samples.images()
    rows = len(train_set)
    if recipe.data.row_length is not None:
        rows = math.ceil(train_set.lengths.sum() / recipe.data.row_length)  # best fit leaves little of them empty
    reads = Schedule.of(arguments, rows).epochs * train_set.samples.number_of_images
    features = open_features(recipe, VisionEncoder.of(checkpoint), list(images.values()), reads, console)
    if features is None:
        return
    for error in [*train_set.use_features(features), *eval_set.use_features(features)]:
        console.print(f"skipped {error}", **AS_IT_IS)
        skipped.append(str(error))
    _check_not_empty(recipe, train_set, eval_set)


def _list_damaged(datasets: Sequence[ConversationDataset], skipped: list[str], console: Console) -> None:
    for dataset in datasets:
        for error in dataset.damaged(distributed.summed(dataset.damage.int())):
            console.print(f"left out of the loss: {error}", **AS_IT_IS)
            skipped.append(str(error))


def _print_parameters(checkpoint: Checkpoint, console: Console) -> None:
    for part, counts in checkpoints.count_parameters(checkpoint).items():
        trained, frozen = counts["trained"], counts["frozen"]
        console.print(f"{part:<15} {trained:>13,} trained  {frozen:>13,} frozen", highlight=False)
    if is_dequantized(checkpoint.core):
        console.print(DEQUANTIZED, highlight=False)


def _pick_samples(eval_set: ConversationDataset) -> list[Sample]:
    """Evenly spread held-out samples, shown in the report with the model's answers before and after."""
    if not distributed.is_main():
        return []
    spread = range(0, len(eval_set), max(1, len(eval_set) // PREDICTIONS))
    return [eval_set.samples[index] for index in spread[:PREDICTIONS] if eval_set.is_whole(index)]


def _question(sample: Sample) -> list[Message]:
    """The conversation up to its last answer."""
    return list(sample.messages[:-1])


def _prediction(sample: Sample, before: str, after: str) -> Prediction:
    images = [image for message in sample.messages for image in message.images]
    return Prediction(
        image=open_image(images[0].source) if images else None,
        question=_question(sample)[-1].text,
        expected=sample.messages[-1].text,
        before=before,
        after=after,
    )


def _answers(checkpoint: Checkpoint, samples: Sequence[Sample]) -> list[str]:
    """Greedy answers; the model is left in the mode it was in, and the random state as it was."""
    if not samples:
        return []
    was_training, random_state = checkpoint.model.training, torch.get_rng_state()
    checkpoint.model.eval()
    answers = Assistant(checkpoint).answer_all(
        [_question(sample) for sample in samples], max_new_tokens=64, batch_size=PREDICTIONS
    )
    checkpoint.model.train(was_training)
    torch.set_rng_state(random_state)
    return answers


def _facts(
    recipe: Recipe,
    checkpoint: Checkpoint,
    train_set: ConversationDataset,
    eval_set: ConversationDataset,
    log: Sequence[dict[str, Any]],
    steps: int,
    seconds: float,
) -> dict[str, str | int | float]:
    counts = checkpoints.count_parameters(checkpoint)
    losses = [row["eval_loss"] for row in log if "eval_loss" in row]
    facts: dict[str, str | int | float] = {
        "base": recipe.model.base or f"{recipe.model.vision} + {recipe.model.language}",
        "image features": checkpoint.config.vision_feature,
        "speech": checkpoint.config.speech_model,
        "computed in": numeric_line(recipe).removeprefix("computing in "),
        "4-bit": recipe.quantization.bnb_4bit_quant_type if recipe.quantization else "no",
        "trained parameters": sum(part["trained"] for part in counts.values()),
        "frozen parameters": sum(part["frozen"] for part in counts.values()),
        "training samples": len(train_set),
        "held-out samples": len(eval_set),
        "supervised tokens per epoch": train_set.supervised_tokens,
        "optimizer steps": steps,
        "minutes, all in all": round(seconds / 60, 1),
        "device": str(checkpoint.core.device),
    }
    if distributed.is_distributed():
        facts["processes"] = distributed.count()
    if losses:
        facts["evaluation loss"] = round(float(losses[-1]), 4)
    return facts


def _write_artifact(
    folder: Path,
    recipe: Recipe,
    checkpoint: Checkpoint,
    log: list[dict[str, Any]],
    facts: dict[str, str | int | float],
    predictions: list[Prediction],
    skipped: list[str],
) -> None:
    checkpoints.save(checkpoint, folder)
    recipe.save(folder / RECIPE)
    write_file(folder / "README.md", model_card(folder.name, facts, recipe.to_yaml()))
    page = training_page(
        title=f"Training of {folder.name}",
        facts=facts,
        log=log,
        predictions=predictions,
        recipe=recipe.to_yaml(),
        skipped=skipped,
    )
    write_page(folder / REPORT, page)
