"""transformers' Trainer, exact in any number of processes: the same batches, the same updates, the same losses.

    data set, in one seeded order     a a b b | c c d d | ...       two processes, two rows each
    process 0, 1                      a a   b b,  then  c c   d d   one step is one row of the picture

Every loss is a sum over supervised tokens, divided by their number in all processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalLoopOutput

from ..core import distributed
from ..core.private_api import layer_classes, shard_on_cpus
from ..model.loss import IGNORE_INDEX


class ParallelTrainer(Trainer):
    """Trainer for a `PeftModel` around `MultimodalPhiForConditionalGeneration`, in one process or several."""

    def __init__(self, *, model: PeftModel, args: TrainingArguments, **kwargs: Any):
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False  # `_prepare_inputs` sees to it that every one is used
        super().__init__(model=model, args=args, **kwargs)
        self.core = model.get_base_model()
        if distributed.is_distributed():
            self.add_callback(_Apart())

    @property
    def is_sharded(self) -> bool:
        """True if every process holds a part of the weights (FSDP), false if all hold copies."""
        return bool(self.is_fsdp_enabled)

    def create_accelerator_and_postprocess(self) -> None:
        if wants_shards(self.args):
            shard_on_cpus(self.args.distributed_state)
        super().create_accelerator_and_postprocess()
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is not None and plugin.transformer_cls_names_to_wrap is None:
            # The tower's layers are not among them: a process whose batch has no image would not come to gather them.
            language_model = self.model.get_base_model().model.language_model
            plugin.transformer_cls_names_to_wrap = layer_classes(language_model)

    def gathered(self) -> dict[str, torch.Tensor]:
        """The trained weights, whole, by PEFT's names; every process has to ask, the main one gets them."""
        state = self.accelerator.get_state_dict(self.model)
        return get_peft_model_state_dict(self.accelerator.unwrap_model(self.model), state_dict=state) if state else {}

    def _get_train_sampler(self, train_dataset: torch.utils.data.Dataset[Any] | None = None) -> Any:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return _ByLength(rows_a_step(self.args), self.train_dataset.lengths, seed)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_eval_sampler(eval_dataset)
        return _ByLength(self.args.eval_batch_size * self.args.world_size, eval_dataset.lengths, seed=0)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The batch on this process's device; one without images takes part with none, in the shape of none.

        With several processes the projector must be in every backward pass, or those that have images would wait for
        this one's share of its gradient.
        """
        inputs = super()._prepare_inputs(inputs)
        if distributed.is_distributed() and inputs.get("pixel_values") is None and inputs.get("image_features") is None:
            config = self.core.config
            shape = (0, config.num_image_tokens, config.image_feature_size)  # [I=0,N,Dv]
            inputs["image_features"] = torch.zeros(shape, device=inputs["input_ids"].device)
        return inputs

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(model, {**inputs, "return_logits": False}, *args, **kwargs)

    def evaluation_loop(
        self,
        dataloader: torch.utils.data.DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The mean loss of all supervised tokens held out; where there is none, as all images are damaged, no loss.

        Trainer's own is a mean of batches, in which the last one, filled up with samples for the second time when it
        cannot be shared out evenly, counts for more: it would change with the batch size and the number of processes.
        """
        self.model.eval()
        sums = torch.zeros(2, dtype=torch.float64)  # loss, tokens
        for batch in dataloader:
            inputs = self._prepare_inputs(batch)
            self._without_repeated(**inputs)
            tokens = (inputs["labels"][:, 1:] != IGNORE_INDEX).sum()
            with torch.no_grad():
                loss = self.model(
                    **inputs, num_items_in_batch=torch.ones_like(tokens), return_logits=False
                ).loss  # the sum
            sums += torch.stack((loss.double(), tokens.double())).cpu()
        loss, tokens = distributed.summed(sums)
        metrics = {f"{metric_key_prefix}_loss": float(loss / tokens)} if tokens else {}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(self.eval_dataset))

    def _without_repeated(
        self, labels: torch.Tensor, sample_lengths: Sequence[int] | None = None, **_: torch.Tensor
    ) -> None:
        """Takes the labels [B,T] of samples that only fill up the last batch of an evaluation."""
        state = self.accelerator.gradient_state
        if state.end_of_dataloader and state.remainder > 0:
            own = max(state.remainder - self.args.process_index * self.args.eval_batch_size, 0)
            if sample_lengths is None:
                labels[own:] = IGNORE_INDEX
            else:
                labels[:, sum(sample_lengths[:own]) :] = IGNORE_INDEX

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        distributed.wait()  # the file that makes a checkpoint whole is written next, and must be the last of all


def rows_a_step(arguments: TrainingArguments) -> int:
    """Rows that one optimizer step reads, in all processes."""
    return int(arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size)


def wants_shards(arguments: TrainingArguments) -> bool:
    """True if the recipe or the launcher asks for FSDP."""
    from accelerate.utils import parse_flag_from_env

    return bool(arguments.fsdp) or bool(parse_flag_from_env("ACCELERATE_USE_FSDP"))


class _ByLength(LengthGroupedSampler):
    """Rows of like length together, in an order that depends on seed and epoch alone: so in every process the same.

    The lengths are what the data set knows; Trainer would read every example, and so decode every image, to learn them.
    """

    def __init__(self, rows: int, lengths: Sequence[int], seed: int):
        super().__init__(rows, lengths=list(lengths))
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return super().__iter__()


class _Apart(TrainerCallback):
    """What must differ between the processes, and what must not come of their being several."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Each process drops out other values; one mask for all would be a coarser dropout."""
        torch.manual_seed(args.seed + args.process_index)

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """A resumed run goes on in its own epoch's order: the loader that skips what is done keeps to the first's."""
        train_dataloader.set_epoch(int(state.epoch or 0))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """After a step without any image the projector stays as it is, as in one process: no gradient, not one of 0."""
        parameters = [p for name, p in model.named_parameters() if "projector" in name and p.grad is not None]
        if not any(bool(_own(parameter.grad).any()) for parameter in parameters):
            for parameter in parameters:
                parameter.grad = None


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
