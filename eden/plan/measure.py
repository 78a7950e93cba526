"""A few real steps: of the whole model where its weights are here and small, else of one layer of the real shape."""

from __future__ import annotations

import copy
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from transformers import TrainerCallback, set_seed

from ..checkpoint import Checkpoint, add_adapters, load_for_training
from ..checkpoint.backbones import LoadOptions
from ..core.private_api import keep_unpacked, mark_four_bits, scales_of
from ..model import MultimodalPhiForConditionalGeneration
from ..model.attention import PACKED_SDPA
from ..model.loss import IGNORE_INDEX
from ..recipe import QuantizationSection, Recipe
from ..training.trainer import EdenTrainer
from .memory import checkpoints, is_mixed, layer_activations, lora_copies
from .shapes import Shapes
from .workload import Workload

LARGE = 10**9
"""Parameters from which the whole model is not loaded to plan: that alone takes minutes."""
WARM_UP = 2
"""Steps before those that count: the first ones of a process are many times slower."""
LAYER_TOKENS = {"cuda": 1024, "cpu": 256}
"""The longest row that one layer is measured with; a CPU takes as long for each token of a longer one."""


@dataclass(frozen=True)
class Measured:
    """What was run and what it took.

    Attributes:
        what: `model` or `layer`.
        device: where.
        tokens: positions of the batch.
        seconds: an optimizer step of the longest batches; of a layer, one way forth and back, times the layers.
        peak: of the model: bytes of all tensors at most. Memory that an allocator keeps is not in it.
        held: of the model: bytes of its tensors once it is loaded.
        kept: of a layer: bytes that autograd keeps of it.
        kept_estimate: the same by formula, on the device that was measured.
    """

    what: str
    device: str
    tokens: int
    seconds: float
    peak: int | None = None
    held: int | None = None
    kept: int | None = None
    kept_estimate: int | None = None


def measure_model(recipe: Recipe, workload: Workload, steps: int, console: Console) -> Measured:
    """Loads the model and trains it for `steps` steps on random batches as large as the longest.

    Raises:
        CheckpointError: the model cannot be loaded.
    """
    state = torch.get_rng_state()
    checkpoint = load_for_training(recipe)
    held = held_bytes(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        batch = min(int(recipe.training.get("per_device_train_batch_size", 8)), workload.rows)
        arguments = recipe.training_arguments(
            output_dir=folder,
            per_device_train_batch_size=batch,
            max_steps=WARM_UP + steps,
            save_strategy="no",
            eval_strategy="no",
            logging_strategy="no",
            report_to="none",
            train_sampling_strategy="random",
        )
        set_seed(arguments.seed)
        number = arguments.gradient_accumulation_steps * (WARM_UP + steps)
        rows: Any = [_example(checkpoint, length) for length in workload.longest] * number
        if recipe.data.row_length is not None:  # a row is the list of its samples' examples
            longest = [_example(checkpoint, size) for size in workload.longest]
            rows = [longest[start::batch] for start in range(batch)] * number
        clock = _Clock()
        trainer = EdenTrainer(checkpoint, arguments, rows, None, Console(quiet=True))
        trainer.add_callback(clock)
        trainer.train()
    if torch.cuda.is_available():
        peak = int(torch.cuda.max_memory_allocated())
    else:
        peak = held + clock.most
    torch.set_rng_state(state)
    return Measured(
        "model",
        checkpoint.core.device.type,
        workload.longest_positions,
        statistics.median(clock.seconds[WARM_UP:]),
        peak,
        held,
    )


def measure_layer(recipe: Recipe, shapes: Shapes, workload: Workload, steps: int) -> Measured:
    """Runs one decoder layer of the model's shape with random weights, forth and back, and counts it for all of them.

    The layer is measured with one row as long as the longest sample, or `LAYER_TOKENS`, and counted for the
    positions of the batch; the head adds its share of the products.
    """
    text, options = copy.deepcopy(shapes.config.text_config), LoadOptions()
    layers, vocabulary = text.num_hidden_layers, text.vocab_size
    text.num_hidden_layers, text.vocab_size, text.pad_token_id = 1, 16, 0  # its tables are not run
    core = _one_layer(recipe, shapes, text)
    device = options.torch_device.type
    tokens = min(max(workload.longest), LAYER_TOKENS[device])
    half = torch.float16 if recipe.training.get("fp16") else torch.bfloat16
    states = torch.randn(1, tokens, text.hidden_size, device=options.torch_device, dtype=core.dtype).requires_grad_()

    def run() -> torch.Tensor:
        with torch.autocast(options.torch_device.type, half, enabled=is_mixed(recipe)):
            packed = core.model.pack([tokens], states)
            output: torch.Tensor = core.model.language_model(inputs_embeds=states, **packed).last_hidden_state
        return output

    kept = kept_bytes(core, run)
    if checkpoints(recipe):
        core.gradient_checkpointing_enable({"use_reentrant": False})
    times = []
    for _ in range(steps):
        _wait()
        started = time.monotonic()
        run().float().mean().backward()
        _wait()
        times.append(time.monotonic() - started)
    positions = workload.longest_positions
    passes = 3 if checkpoints(recipe) else 2  # gradients of frozen weights are not made
    answered = workload.supervised / workload.tokens
    head = 2 * text.hidden_size * vocabulary * answered / (passes * shapes.layer_weights)
    accumulation = int(recipe.training.get("gradient_accumulation_steps", 1))
    seconds = min(times) * positions / tokens * (layers + head) * accumulation
    formula = layer_activations(recipe, shapes, [tokens], flat=True, gpu=device == "cuda")
    formula += lora_copies(recipe, shapes) // layers + 4 * text.hidden_size * tokens  # and the norm behind it
    return Measured("layer", device, tokens, seconds, kept=kept, kept_estimate=formula)


def held_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of a loaded model's tensors, the scales of its 4-bit weights included."""
    tensors = [*checkpoint.model.parameters(), *checkpoint.model.buffers()]
    for parameter in checkpoint.model.parameters():
        tensors += scales_of(parameter)
    return sum({tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in tensors}.values())


def kept_bytes(model: torch.nn.Module, run: Callable[[], object]) -> int:
    """Bytes that autograd keeps of what `run` computes, the model's own weights left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        graph = run()  # held, so that no storage is given away and counted as another
    total = sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in own)
    del graph
    return total


def _one_layer(recipe: Recipe, shapes: Shapes, text: Any) -> MultimodalPhiForConditionalGeneration:
    config = copy.deepcopy(shapes.config)
    config.text_config, config.vision_config.num_hidden_layers, config.image_token_id = text, 1, 15
    config.vision_config.image_size = config.vision_config.patch_size
    core = MultimodalPhiForConditionalGeneration(config).to(getattr(torch, recipe.model.dtype))
    layer = core.model.language_model.layers[0]
    if recipe.quantization is not None:
        mark_four_bits(core)
        to_four_bits(layer, recipe.quantization)
    core.to(LoadOptions().torch_device)
    attention = recipe.model.attn_implementation or PACKED_SDPA
    core.model.language_model.set_attn_implementation(attention)
    adapted = add_adapters(core, recipe.lora)
    adapted.train()
    return core


def to_four_bits(layer: torch.nn.Module, quantization: QuantizationSection) -> None:
    """Puts a layer's matrices into 4 bits, in place."""
    for name, module in [pair for pair in layer.named_modules() if type(pair[1]) is torch.nn.Linear]:
        layer.set_submodule(name, _in_four_bits(module, quantization))


def _in_four_bits(module: torch.nn.Linear, quantization: QuantizationSection) -> torch.nn.Module:
    import bitsandbytes

    new = bitsandbytes.nn.Linear4bit(
        module.in_features,
        module.out_features,
        bias=False,
        compute_dtype=getattr(torch, quantization.bnb_4bit_compute_dtype),
        compress_statistics=quantization.bnb_4bit_use_double_quant,
        quant_type=quantization.bnb_4bit_quant_type,
        device="meta",
    )
    new.weight = bitsandbytes.nn.Params4bit(
        module.weight.data,
        requires_grad=False,
        compress_statistics=quantization.bnb_4bit_use_double_quant,
        quant_type=quantization.bnb_4bit_quant_type,
        module=new,
    )
    new = new.to(LoadOptions().torch_device)
    keep_unpacked(new)  # as in training
    return new


def _example(checkpoint: Checkpoint, length: int) -> dict[str, Any]:
    """One picture and random words, all of them answers but the picture's."""
    config = checkpoint.config
    images, size = 1 + config.tiles, config.vision_config.image_size
    number = images * config.num_image_tokens
    if length <= number:
        ids = torch.full((length,), config.text_config.vocab_size // 2)
        return {"input_ids": ids.numpy(), "labels": ids.numpy()}
    ids = torch.cat([torch.full((number,), config.image_token_id), torch.randint(3, 99, (length - number,))])
    labels = torch.where(ids == config.image_token_id, IGNORE_INDEX, ids)
    pixels = torch.zeros(images, 3, size, size)
    return {"input_ids": ids.numpy(), "labels": labels.numpy(), "pixel_values": pixels}


class _Clock(TrainerCallback):
    """Seconds of each optimizer step; on a CPU also the bytes that one of them had in tensors at most."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.most = 0
        self.profile: Any = None

    def on_step_begin(self, *args: Any, optimizer: Any = None, **kwargs: Any) -> None:
        if len(self.seconds) == WARM_UP - 1 and not torch.cuda.is_available():
            # The optimizer has its state since the end of the first step, and keeps it.
            states = [tensor for state in optimizer.state.values() for tensor in state.values()]
            self.state = sum(t.numel() * t.element_size() for t in states if isinstance(t, torch.Tensor))
            activities = [torch.profiler.ProfilerActivity.CPU]
            self.profile = torch.profiler.profile(activities=activities, profile_memory=True)
            with _without_stderr():
                self.profile.start()
        _wait()
        self.started = time.monotonic()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        _wait()
        self.seconds.append(time.monotonic() - self.started)
        if self.profile is not None:
            with _without_stderr():
                self.profile.stop()
            events = [event for event in self.profile.profiler.kineto_results.events() if event.name() == "[memory]"]
            changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
            self.most, self.profile = self.state + max(itertools.accumulate(changes, initial=0)), None


@contextmanager
def _without_stderr() -> Iterator[None]:
    """What torch's profiler reports of its start and end, from below Python, is for nobody."""
    was, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(was, 2)
        os.close(was)
        os.close(nowhere)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
