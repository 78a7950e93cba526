"""transformers' Trainer, made safe: no half-written checkpoint, a Ctrl-C that saves, a log that survives a resume."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError
from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput

from ..checkpoint import Checkpoint
from ..core import distributed
from ..core.answers import exact_match
from ..core.console import progress
from ..core.files import write_file
from ..core.private_api import attention_of
from ..data.collate import collate, collate_flat
from ..data.dataset import ConversationDataset
from ..data.formats import Sample
from ..data.packing import PackedDataset
from ..errors import Interrupted, RecipeError, RunError, StorageError
from ..model.attention import takes_flat_rows
from .before_after import answers_to
from .distributed_trainer import ParallelTrainer, rows_a_step

LOG = "training.jsonl"
LOSSES = {"loss": "loss", "eval_loss": "evaluation loss", "eval_exact_match": "answers as expected"}
"""Keys of the log, in words."""
HOW_TO_GO_ON = "Go on with the same command and --resume."
FULL_DISK_BYTES = 2**20
"""Libraries report a full disk in many ways; less free space than this after a failed write is the reason."""


@dataclass(frozen=True)
class Collator:
    """Examples, or packed rows of them, to a batch; a class, so that worker processes can receive it.

    Attributes:
        pad_token_id: of the tokenizer.
        flat: one row without padding, for attention that takes samples as they are; else right-padded rows.
    """

    pad_token_id: int
    flat: bool

    def __call__(self, items: Sequence[dict[str, Any] | list[dict[str, Any]]]) -> dict[str, Any]:
        examples = [example for item in items for example in (item if isinstance(item, list) else [item])]
        return collate_flat(examples) if self.flat else collate(examples, self.pad_token_id)


class EdenTrainer(ParallelTrainer):
    """Trainer over a `Checkpoint` and `ConversationDataset`s.

    Args:
        checkpoint: the model with its adapters.
        arguments: of the recipe.
        train_set: what to learn from.
        eval_set: what the evaluation loss is taken on, if any.
        console: where progress is shown.
        projector_learning_rate: the projector's own; None is that of all that trains.
        answered: held-out samples that are answered at each evaluation, and the share that match measured.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        arguments: TrainingArguments,
        train_set: ConversationDataset | PackedDataset,
        eval_set: ConversationDataset | None,
        console: Console,
        *,
        projector_learning_rate: float | None = None,
        answered: Sequence[Sample] = (),
    ):
        self._checkpoint, self._answered = checkpoint, answered
        self._projector_learning_rate = projector_learning_rate
        self.progress = _Progress(console)
        self.idle_steps, self.idle_limit = 0, Schedule.of(arguments, len(train_set)).idle_limit
        flat = takes_flat_rows(attention_of(checkpoint.config.text_config))
        super().__init__(
            model=checkpoint.model,
            args=arguments,
            train_dataset=train_set,
            eval_dataset=eval_set,
            data_collator=Collator(checkpoint.processor.tokenizer.pad_token_id, flat),
            processing_class=checkpoint.processor,
            callbacks=[_Log(), self.progress],
        )
        self.remove_callback(ProgressCallback)
        if answered and self.is_sharded:
            what = "data.eval_generate needs the whole model in each process, and FSDP shares it out"
            raise RecipeError(
                what, where="data.eval_generate", hint="Set data.eval_generate=null, or train without FSDP."
            )

    def run(self, resume_from: Path | None) -> list[dict[str, Any]]:
        """Trains to the end and returns the log rows.

        Raises:
            Interrupted: Ctrl-C; unless it came twice, a checkpoint was written.
            StorageError: a checkpoint could not be written; the ones before it are whole.
            RunError: the loss is not a number, or every image is damaged, so that there is nothing to learn from.
        """
        folder = self.args.output_dir
        with self.progress.shown():
            try:
                self.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
            except KeyboardInterrupt:
                raise Interrupted("training stopped at once", where=folder, hint=HOW_TO_GO_ON) from None
        distributed.wait()  # for the last checkpoint
        if self.state.global_step < self.state.max_steps:
            raise Interrupted(
                f"training stopped at step {self.state.global_step} of {self.state.max_steps}, checkpoint written",
                where=folder,
                hint=HOW_TO_GO_ON,
            )
        return list(self.state.log_history)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The batches of a step, and how many tokens are supervised in it: 1 if there are none, for it is divided by.

        Raises:
            RunError: in an epoch, or in the whole run, there were none.
        """
        batches, tokens = super().get_batch_samples(*args, **kwargs)
        if tokens is None:
            return batches, None
        self.idle_steps = 0 if distributed.any_rank(bool(tokens > 0)) else self.idle_steps + 1
        if self.idle_steps >= self.idle_limit:
            raise _unusable(f"nothing to learn from in {self.idle_steps} steps", self.train_dataset)
        return batches, tokens.clamp(min=1)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Trainer's optimizer, in which the projector has groups of its own, if it has a learning rate of its own."""
        is_new = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if self._projector_learning_rate is not None and is_new:
            named = (self.model if model is None else model).named_parameters()
            projector = {parameter for name, parameter in named if "projector" in name}
            for group in list(optimizer.param_groups):
                own = [parameter for parameter in group["params"] if parameter in projector]
                group["params"] = [parameter for parameter in group["params"] if parameter not in projector]
                if own:
                    optimizer.add_param_group({**group, "params": own, "lr": self._projector_learning_rate})
        return optimizer

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """The loss, and of the samples that are answered the share whose answer is the expected one."""
        output = super().evaluation_loop(*args, **kwargs)
        if self._answered:
            answers = distributed.from_main(lambda: answers_to(self._checkpoint, self._answered))
            matches = [
                exact_match(sample.messages[-1].text, answer)
                for sample, answer in zip(self._answered, answers, strict=True)
            ]
            output.metrics["eval_exact_match"] = sum(matches) / len(matches)
        return output

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Trainer's metrics, without a loss where no held-out sample can be used.

        Raises:
            RunError: then the run cannot choose by it.
        """
        metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        if "eval_loss" not in metrics and self.args.metric_for_best_model is not None:
            raise _unusable("no evaluation loss to choose by", self.eval_dataset)
        return metrics

    def _run_epoch(self, **kwargs: Any) -> None:
        """An epoch, unless the run was at its end when it was resumed: Trainer would take one more step."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(**kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs a row, unless the run was at its end when it was resumed: its log has all its rows."""
        if self._initial_global_step < self.state.max_steps:
            super().log(logs, start_time)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(folder, ignore_errors=True)  # half a checkpoint must never be taken for a whole one
            full = shutil.disk_usage(self.args.output_dir).free < FULL_DISK_BYTES or "No space left" in str(error)
            if full or isinstance(error, OSError):
                raise StorageError(
                    f"the checkpoint cannot be written ({'the disk is full' if full else error})",
                    where=str(folder),
                    hint=f"Free some space. {HOW_TO_GO_ON}",
                ) from error
            raise


@dataclass(frozen=True)
class Schedule:
    """How long a run is, as Trainer counts.

    Attributes:
        rows_a_step: rows that one optimizer step reads, in all processes.
        steps: optimizer steps of the run.
        epochs: how often it reads its data.
        idle_limit: steps without anything to learn from, one after the other, that end it: an epoch, or all it has.
    """

    rows_a_step: int
    steps: int
    epochs: float
    idle_limit: int

    @classmethod
    def of(cls, arguments: TrainingArguments, rows: int) -> Schedule:
        """That of a run over so many rows."""
        a_step = rows_a_step(arguments)
        an_epoch = math.ceil(rows / a_step)  # the last step of an epoch may read fewer
        steps = int(arguments.max_steps)
        if steps <= 0:
            steps = math.ceil(arguments.num_train_epochs * an_epoch)
        return cls(a_step, steps, steps / an_epoch, min(steps, an_epoch))


def _unusable(what: str, dataset: Any) -> RunError:
    """The end of a run whose samples all have damaged images; every process has to ask."""
    dataset = dataset.dataset if isinstance(dataset, PackedDataset) else dataset
    first = dataset.first_damaged(distributed.summed(dataset.damage.int()))
    if first is None:  # it can be opened again
        return RunError(what, hint="Run `eden check --decode` on the data.")
    hint = "`eden check --decode` lists every damaged image."
    return RunError(
        f"{what}: every image is damaged, the first: {first.fault.what}", where=first.fault.where, hint=hint
    )


class _Log(TrainerCallback):
    """Keeps `training.jsonl` equal to the run's log, also after a resume; a loss that is no number ends the run."""

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            rows = "".join(json.dumps(_numbers(row)) + "\n" for row in state.log_history)
            write_file(Path(str(args.output_dir)) / LOG, rows)
        for key, words in LOSSES.items():
            if not math.isfinite(state.log_history[-1].get(key, 0.0)):
                raise RunError(
                    f"the {words} became {state.log_history[-1][key]} at step {state.global_step}",
                    where=str(args.output_dir),
                    hint="Begin again with a lower training.learning_rate.",
                )


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    """A row with null for what is no number: JSON has no NaN."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}


class _Progress(TrainerCallback):
    """A bar with rate and time left; Ctrl-C asks for a checkpoint and an end after the current step."""

    def __init__(self, console: Console):
        self.bar = progress(console)
        self.task = self.bar.add_task("training", total=None)
        self.interrupted = False
        self.process = os.getpid()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Shows the bar, and takes Ctrl-C, for the length of the block."""
        try:
            previous = signal.signal(signal.SIGINT, self._interrupt)
        except ValueError:  # not the main thread: Ctrl-C is somebody else's
            previous = None
        try:
            with self.bar:
                yield
        finally:
            if previous is not None:
                signal.signal(signal.SIGINT, previous)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:  # a data loader's, forked while this handler stood: its parent ends it
            return
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        self.bar.console.print("stopping after this step, with a checkpoint (Ctrl-C again: stop at once)")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        self.bar.update(self.task, completed=state.global_step, total=state.max_steps)
        # Ctrl-C may reach one process after a step and another before it; they stop after the same.
        if distributed.any_rank(self.interrupted) and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
        return control

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        step = f"step {state.global_step:>6,} of {state.max_steps:,}   "
        for key, words in LOSSES.items():
            if logs and key in logs:
                self.bar.console.print(f"{step}{words} {float(logs[key]):.4f}", highlight=False)
        if logs and "eval_runtime" in logs and "eval_loss" not in logs:
            self.bar.console.print(f"{step}no evaluation loss: no held-out sample can be used", highlight=False)
