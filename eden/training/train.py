"""Training: one loop for every stage, on transformers' Trainer. What a stage trains is the recipe's to say.

recipe -> samples, checked -> model with adapters -> Trainer -> artifact, training.jsonl, report.html, README.md
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import set_seed

from .. import checkpoint as checkpoints
from ..checkpoint import Checkpoint
from ..checkpoint.artifact import RECIPE
from ..checkpoint.calibration import Calibration
from ..checkpoint.four_bits import DEQUANTIZED, is_dequantized
from ..checkpoint.vision_encoder import VisionEncoder
from ..core import distributed
from ..core.console import AS_IT_IS, progress
from ..core.files import write_file
from ..core.html_report import training_page, write_page
from ..core.numeric_format import NumericFormat
from ..data.dataset import ConversationDataset
from ..data.feature_policy import open_features
from ..data.formats import Sample
from ..data.packing import PackedDataset
from ..data.prepare import read_data, with_rehearsal
from ..data.store import Samples
from ..errors import InputError, RunError, first_line
from ..inference.knowledge import Change, Knowledge
from ..recipe import Recipe, load_recipe
from .before_after import answers_to, knowledge_of, pick_samples, predictions
from .decisions import calibrate_run
from .model_card import model_card
from .rehearsal import own_answers, prompts_of
from .resume import CARD, REPORT, Start, begin, find_start
from .trainer import LOG, EdenTrainer, Schedule

FACTS = "facts.json"
"""What a report says beside what the run's other files say: facts, what was before training, plots of decisions."""


@dataclass(frozen=True)
class TrainingResult:
    """What a finished run leaves behind.

    Attributes:
        artifact: the folder; `eden.load` takes it.
        report: its HTML report.
        log: Trainer's log rows (`step`, `loss`, `eval_loss`, ...).
        skipped: samples left out, one line each (`data.on_error: skip`).
        knows: what the run has changed of what the model knows without a picture; None if it was not measured.
    """

    artifact: Path
    report: Path
    log: list[dict[str, Any]]
    skipped: list[str]
    knows: Change | None = None


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
    distributed.check_launch()
    run = Run(recipe, console or Console(stderr=True))
    start = find_start(recipe, run.arguments, resume, run.console)
    if start.finished:
        return _earlier_result(run.folder)
    run.load()
    run.encode(start)
    run.fit(start)
    distributed.from_main(run.write)
    run.calibrate()
    run.try_report()
    return TrainingResult(run.folder, run.folder / REPORT, run.log, run.skipped, run.knows)


def _earlier_result(folder: Path) -> TrainingResult:
    """What a finished run has left; which samples it skipped, its report says."""
    rows = (folder / LOG).read_text(encoding="utf-8").splitlines() if (folder / LOG).exists() else []
    return TrainingResult(folder, folder / REPORT, [json.loads(row) for row in rows], [])


def report(folder: str | Path, console: Console | None = None) -> Path:
    """Makes the report of a finished run again; its held-out samples are answered anew.

    Args:
        folder: of the run.
        console: where progress is shown; None shows it on stderr.

    Raises:
        InputError: the folder holds no finished run.
        DataError, CheckpointError: what its recipe names is missing or wrong by now.
        StorageError: the disk is full.
    """
    folder = Path(folder)
    if not (folder / FACTS).exists():
        raise InputError("no finished run", where=str(folder), hint="Give a folder that eden train has written.")
    kept = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    run = Run(load_recipe(folder / RECIPE), console or Console(stderr=True))
    run.folder, run.log, run.facts, run.before = folder, _earlier_result(folder).log, kept["facts"], kept["before"]
    run.knew = Knowledge(**kept["knew"]) if kept.get("knew") else None  # an earlier Eden has not measured it
    run.decisions = kept.get("decisions", {})
    _, eval_samples, run.skipped = read_data(run.recipe, run.console)
    run.checkpoint = checkpoints.load(str(folder))
    run.eval_set = run._encoded("held-out", eval_samples)
    run.shown = pick_samples(run.eval_set)
    run.report()
    return folder / REPORT


class Run:
    """A recipe on its way to an artifact: `load`, `encode`, `fit`, `write`, `calibrate`, `try_report`, in order.

    Attributes:
        recipe: what to train, on what, and how.
        arguments: what Trainer takes.
        folder: of the artifact.
        console: where progress is shown.
        skipped: samples left out so far, one line each.
        checkpoint: the model with its adapters, once it is loaded.
        train_set: samples to learn from, once they are encoded.
        eval_set: held-out ones.
        parameters: how many there are and train, by part of the model, once the samples are encoded.
        features: `cached` or `live`: how it gets at its images, once they are encoded.
        log: Trainer's log rows, once the model is trained.
        shown: held-out samples that the report shows, with the answers from before training in `before`.
        knew: what the model knew without a picture before training; None if it could not be measured.
        knows: that, and what it knows after.
        facts: what model card and report say of the run.
        decisions: what the report draws of them, once they are calibrated.
    """

    checkpoint: Checkpoint
    train_set: ConversationDataset
    eval_set: ConversationDataset
    parameters: dict[str, dict[str, int]]
    features: str
    log: list[dict[str, Any]]
    shown: list[Sample]
    before: list[str]
    knew: Knowledge | None
    knows: Change | None = None
    facts: dict[str, str | int | float]

    def __init__(self, recipe: Recipe, console: Console):
        self.started = time.monotonic()
        self.recipe, self.console = recipe, console
        self.arguments = recipe.training_arguments()
        self.folder = Path(self.arguments.output_dir)
        self.skipped: list[str] = []
        self.decisions: dict[str, Any] = {}

    @cached_property
    def numeric_format(self) -> NumericFormat:
        """What the run computes in, and why; the main process decides it by its machine.

        Raises:
            RunError: another process's machine would compute in another format.
        """
        chosen = distributed.from_main(self.recipe.numeric_format)
        distributed.together(lambda: _refuse_another(chosen, self.recipe.numeric_format()))
        return chosen

    def load(self) -> None:
        """Reads the samples and loads the model."""
        set_seed(self.arguments.seed)
        distributed.main_first(lambda: checkpoints.check_model(self.recipe.model))  # reading data may take minutes
        checkpoints.check_adapters(self.recipe)
        # What is heard and counted is kept, and found by the others.
        prompts = self._prompts()
        *self._samples, skipped = distributed.main_first(lambda: read_data(self.recipe, self.console))
        self.console.print(str(self.numeric_format), **AS_IT_IS)
        with self.console.status("loading the model"):
            self.checkpoint = distributed.together(lambda: checkpoints.load_for_training(self.recipe))
        if prompts:
            path, samples = str(own_answers(self.checkpoint, prompts, self.console)), self._samples[0]
            self._samples[0] = distributed.main_first(
                lambda: with_rehearsal(samples, path, self.recipe, skipped, self.console)
            )
        self._skip("skipped", skipped)

    def _prompts(self) -> list[str]:
        """What the base answers before training, to rehearse it."""
        rehearsal = self.recipe.data.rehearsal
        return prompts_of(rehearsal.prompts) if rehearsal is not None and rehearsal.prompts is not None else []

    def encode(self, start: Start) -> None:
        """Makes the samples data sets, and their images features where that is the recipe's way or the run's."""
        train_samples, eval_samples = self._samples
        row_length, augment = self.recipe.data.row_length, self.recipe.data.augment
        self.train_set = self._encoded("training", train_samples, row_length=row_length, augment=augment)
        self.eval_set = self._encoded("held-out", eval_samples)
        self._check_not_empty()
        self.parameters = checkpoints.count_parameters(self.checkpoint)
        self._print_parameters()
        self._use_features(start.features or self.recipe.data.features)

    def fit(self, start: Start) -> None:
        """Trains to the end, and has held-out questions answered before."""
        self.shown = pick_samples(self.eval_set) if distributed.is_main() else []
        self.before = distributed.from_main(lambda: answers_to(self.checkpoint, self.shown))
        self.knew = distributed.from_main(lambda: knowledge_of(self.checkpoint, self.console))
        begun = checkpoints.lora_weights(self.checkpoint.model) if self.recipe.is_pissa else None
        rows, recipe = self._packed(), self.recipe
        ways = {"computed_in": self.numeric_format.name, "features": self.features}
        distributed.from_main(lambda: begin(self.recipe, self.arguments, self.train_set, ways, start, self.console))
        trainer = EdenTrainer(
            self.checkpoint,
            self.arguments,
            rows,
            self.eval_set if len(self.eval_set) else None,
            self.console,
            projector_learning_rate=self.recipe.model.projector_learning_rate,
            answered=pick_samples(self.eval_set, number) if (number := self.recipe.data.eval_generate) else [],
        )
        self.log = distributed.together(partial(trainer.run, start.checkpoint))
        self.steps = trainer.state.global_step
        weights = trainer.gathered() if trainer.is_sharded or begun is not None else None
        trainer.accelerator.free_memory()  # the optimizer is not needed any more, and answering is
        del trainer
        if weights is not None and distributed.is_main():
            if begun is not None:
                recipe, weights = checkpoints.from_pissa(recipe, begun, weights)
            del self.checkpoint  # there may not be memory for two
            self.checkpoint = checkpoints.load_for_training(recipe, weights)

    def write(self) -> None:
        """Writes the artifact."""
        self.facts, recipe, folder = self._facts(), self.recipe.to_yaml(), self.folder
        with self.console.status("saving the artifact"):
            checkpoints.save(self.checkpoint, folder)
            write_file(folder / RECIPE, recipe)
            self._keep_facts()
            write_file(folder / CARD, model_card(folder.name, self.facts, recipe))

    def calibrate(self) -> None:
        """Fits what the decisions in the data need, on held-out samples alone; the main process does."""
        if distributed.is_main():
            samples = self.train_set.samples, self.eval_set.samples
            self.decisions = calibrate_run(self.checkpoint, *samples, self.folder, self.console)
            self._keep_facts()

    def _keep_facts(self) -> None:
        knew = self.knew and asdict(self.knew)
        kept = {"facts": self.facts, "before": self.before, "knew": knew, "decisions": self.decisions}
        write_file(self.folder / FACTS, json.dumps(kept, indent=1))

    def try_report(self) -> None:
        """Writes the report; nothing that goes wrong in it may end a run whose artifact is whole."""
        for dataset in (self.train_set, self.eval_set):
            self._skip("left out of the loss:", dataset.damaged(distributed.summed(dataset.damage.int())))
        distributed.from_main(self._try_report)

    def _try_report(self) -> None:
        try:
            self.report()
        except Exception as error:
            self.console.print(
                f"warning: the report was not written ({first_line(error)}); the artifact is whole. "
                f"`eden report {self.folder}` makes it again",
                **AS_IT_IS,
            )

    def report(self) -> None:
        """Writes the report, with held-out questions answered."""
        if self.knew is not None:
            after = knowledge_of(self.checkpoint, self.console, ask=self.knew.is_english)
            self.knows = None if after is None else Change(self.knew, after)
        calibration = Calibration.read(self.folder)
        page = training_page(
            title=f"Training of {self.folder.name}",
            facts=self.facts | (calibration.facts() if calibration else {}),
            log=self.log,
            decisions=self.decisions,
            predictions=predictions(self.shown, self.before, answers_to(self.checkpoint, self.shown)),
            knows=None if self.knows is None else self.knows.to_dict(),
            recipe=self.recipe.to_yaml(),
            skipped=self.skipped,
        )
        write_page(self.folder / REPORT, page)

    def _skip(self, how: str, why: Iterable[object]) -> None:
        for line in map(str, why):
            self.console.print(f"{how} {line}", **AS_IT_IS)
            self.skipped.append(line)

    def _encoded(self, name: str, samples: Samples, **options: Any) -> ConversationDataset:
        with progress(self.console) as bar:
            task = bar.add_task(f"encoding {name} samples", total=len(samples))
            dataset = ConversationDataset(
                samples,
                self.checkpoint.processor,
                max_length=self.recipe.data.max_length,
                on_error=self.recipe.data.on_error,
                **options,
                on_progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        self._skip("skipped", dataset.skipped)
        return dataset

    def _check_not_empty(self) -> None:
        self.train_set.check_not_empty("to train on")
        if self.recipe.training.get("eval_strategy", "no") != "no":
            self.eval_set.check_not_empty("to evaluate on")

    def _print_parameters(self) -> None:
        for part, counts in self.parameters.items():
            trained, frozen = counts["trained"], counts["frozen"]
            self.console.print(f"{part:<15} {trained:>13,} trained  {frozen:>13,} frozen", highlight=False)
        if is_dequantized(self.checkpoint.core):
            self.console.print(DEQUANTIZED, highlight=False)

    def _use_features(self, choice: str) -> None:
        """Samples whose images gave none are left out."""
        train_set, row_length = self.train_set, self.recipe.data.row_length
        images = train_set.samples.images() | self.eval_set.samples.images()
        rows = len(train_set)
        if row_length is not None:
            rows = math.ceil(train_set.lengths.sum() / row_length)  # best fit leaves little of them empty
        reads = Schedule.of(self.arguments, rows).epochs * train_set.samples.number_of_images
        encoder = VisionEncoder.of(self.checkpoint)
        batch = self.arguments.per_device_train_batch_size
        features = open_features(choice, encoder, list(images.values()), reads, batch, self.console)
        self.features = "live" if features is None else "cached"
        if features is not None:
            self._skip("skipped", [*train_set.use_features(features), *self.eval_set.use_features(features)])
            self._check_not_empty()

    def _packed(self) -> ConversationDataset | PackedDataset:
        length = self.recipe.data.row_length
        if length is None:
            return self.train_set
        packed = PackedDataset(self.train_set, length, seed=self.recipe.data.split_seed)
        self.console.print(
            f"{len(self.train_set):,} samples in {len(packed):,} rows of {length:,} tokens, "
            f"{packed.efficiency:.1%} full",
            highlight=False,
        )
        return packed

    def _facts(self) -> dict[str, str | int | float]:
        recipe, config = self.recipe, self.checkpoint.config
        four_bit = str(recipe.quantization.bnb_4bit_quant_type) if recipe.quantization else "no"
        if is_dequantized(self.checkpoint.core):
            four_bit += ", held as the fp32 numbers it stands for"
        counts = self.parameters.values()
        facts: dict[str, str | int | float] = {
            "base": recipe.model.base or f"{recipe.model.vision} + {recipe.model.language}",
            "image features": f"{config.vision_feature}, {config.image_aspect}, {config.tiles} tiles",
            "speech": config.speech_model,
            "computed in": str(self.numeric_format).removeprefix("computing in "),
            "4-bit": four_bit,
            "trained parameters": sum(part["trained"] for part in counts),
            "frozen parameters": sum(part["frozen"] for part in counts),
            "training samples": len(self.train_set),
            "held-out samples": len(self.eval_set),
            "supervised tokens per epoch": self.train_set.supervised_tokens,
            "optimizer steps": self.steps,
            "minutes, all in all": round((time.monotonic() - self.started) / 60, 1),
            "device": str(self.checkpoint.core.device),
        }
        if distributed.is_distributed():
            facts["processes"] = distributed.count()
        if losses := [row["eval_loss"] for row in self.log if "eval_loss" in row]:
            facts["evaluation loss"] = round(float(losses[-1]), 4)
        if matches := [row["eval_exact_match"] for row in self.log if "eval_exact_match" in row]:
            facts["held-out answers as expected"] = round(float(matches[-1]), 4)
        return facts


def _refuse_another(chosen: NumericFormat, here: NumericFormat) -> None:
    if here.name != chosen.name:
        raise RunError(
            f"this machine computes in {here.name}, and that of the main process in {chosen.name}",
            hint="Give the run machines of one kind, or a format all have: model.dtype=float32, training.bf16=false.",
        )
