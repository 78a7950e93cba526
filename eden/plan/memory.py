"""Bytes of a training step by part, by formula.

Written with n positions of a batch (padding included), D, V as everywhere, F the inner width of the MLP, H heads, Q and
K the width of all queries and of all keys.
Half-precision numbers (autocast) take 2 bytes, fp32 takes 4. What autograd keeps of one decoder layer:

    two RMSNorms           8 D n + 8 n          their inputs in fp32, and one over the root mean square
    attention              2 (2 Q + 2 K) n      rotated query and key, value, output
                           2 (Q + K) n          if one layer makes query, key and value: what it makes stays whole
                           4 (Q + K) n + 4 H n  if query and key have norms: their inputs in fp32; and one over the root
                           4 H n                sdpa: the log-sum-exp of each query
                           6 H T^2 a sample     eager: the probabilities in fp32, and half precision, if any
                           2 T^2 a sample       sdpa over padded samples: the mask, added to the scores
    MLP                    6 F n                gate and up, and the activated gate
    adapters               (2 in + 2 r) n each  the input in half precision, and what the rank holds
                           mask in n            dropout's mask: 1 byte on a GPU, 4 on a CPU

Weights that are frozen keep nothing of their inputs. With activation checkpointing each layer keeps its input alone,
2 D n, and one layer at a time is computed again, whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..model.loss import PIECE
from ..model.towers import tower_of
from ..recipe import Recipe
from .shapes import Shapes
from .workload import Workload

if TYPE_CHECKING:
    from transformers import TrainingArguments

GIB = 2**30
STATE_BYTES = {"8bit": 2, "sgd": 0, "adafactor": 0, "lion": 4, "adamw": 8, "adam": 8}
"""Bytes an optimizer keeps of one trained weight, by what its name in TrainingArguments contains; the first counts."""
CUDA_RESERVE = 3 * GIB // 4
"""What a CUDA context, its kernels and gaps between tensors take. Assumed, not measured."""


@dataclass(frozen=True)
class Memory:
    """Estimated bytes of the step that takes most.

    Attributes:
        parts: by part, in the order in which a run fills them.
    """

    parts: dict[str, int]

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(self.parts.values())

    @property
    def held(self) -> int:
        """What the loaded model holds before its first step: all weights, those in training included."""
        return sum(size for part, size in self.parts.items() if part in WEIGHTS)


WEIGHTS = ("vision tower", "language model", "head", "projector as it was", "LoRA", "projector", "vision layers")


def estimate(recipe: Recipe, shapes: Shapes, workload: Workload, arguments: TrainingArguments, *, gpu: bool) -> Memory:
    """Estimates the memory of a recipe.

    Args:
        recipe: of the run.
        shapes: of its model.
        workload: its data in rows.
        arguments: of the recipe, as Trainer takes them.
        gpu: count what CUDA itself takes, and dropout's mask as a GPU keeps it.
    """
    text: Any = shapes.config.text_config
    n, width, layers = workload.longest_positions, text.hidden_size, text.num_hidden_layers
    residual = 4 if recipe.model.dtype == "float32" else 2
    layer = layer_activations(recipe, shapes, workload.longest, flat=workload.flat, gpu=gpu)
    again = layer if checkpoints(recipe) else 0
    kept = layers * width * n * residual if checkpoints(recipe) else layers * layer
    answers = max(1, round(n * workload.supervised / workload.tokens))  # supervised positions of the batch
    logits = 6 * min(PIECE, answers) * text.vocab_size + 2 * answers * width * 2
    # The gradients that pass through a layer, and the largest weight out of its 4 bits.
    half = _half(recipe)
    passing = half * n * (3 * text.intermediate_size + 4 * width)
    if recipe.model.attn_implementation == "eager":  # of the probabilities, in fp32
        passing += 4 * text.num_attention_heads * max(workload.longest) * n
    unpacked = 2 * 2 * text.intermediate_size * width if recipe.quantization else 0
    trained = {part: counts["trained"] for part, counts in shapes.counts.items()}
    parts = dict(shapes.frozen_bytes)
    parts["LoRA"], parts["projector"] = 4 * trained.get("lora", 0), 4 * trained["projector"]
    parts["vision layers"] = 4 * trained["vision_tower"]
    parts["gradients"] = 4 * shapes.trained
    parts["optimizer"] = state_bytes(str(arguments.optim.value)) * shapes.trained
    parts["autocast copies"] = _copies(recipe, shapes, layers)
    parts["activations"] = kept + 4 * width * n  # and the last norm's
    parts["activations"] += vision_activations(recipe, shapes, len(workload.longest) * (1 + shapes.config.tiles))
    parts["working space"] = max(again + passing + unpacked, logits)
    if gpu:
        parts["CUDA, assumed"] = CUDA_RESERVE
    return Memory(parts)


def layer_activations(recipe: Recipe, shapes: Shapes, lengths: Sequence[int], *, flat: bool, gpu: bool) -> int:
    """Bytes that autograd keeps of one decoder layer; see the head of this file.

    Args:
        recipe: of the run.
        shapes: of its model.
        lengths: of the samples in the batch.
        flat: they stand in one row; else each is padded to the longest.
        gpu: keep dropout's mask as a GPU does.
    """
    text: Any = shapes.config.text_config
    padded = not flat and min(lengths) < max(lengths)
    lengths = [max(lengths)] * len(lengths) if padded else lengths
    n, width, heads = sum(lengths), text.hidden_size, text.num_attention_heads
    head = getattr(text, "head_dim", None) or width // heads
    queries, keys = head * heads, head * text.num_key_value_heads
    half = _half(recipe)
    norms = 8 * width + 8
    attention = half * (2 * queries + 2 * keys)
    if "qkv_proj" in shapes.layer_parts:
        attention += half * (queries + keys)
    if "q_norm" in shapes.layer_parts:
        attention += 4 * (queries + keys) + 4 * (heads + text.num_key_value_heads)
    squares = 0
    if recipe.model.attn_implementation == "eager":
        attention -= half * queries  # its output needs no keeping
        squares = (6 if half == 2 else 4) * heads * sum(length**2 for length in lengths)
    else:
        attention += 4 * heads
        squares = half * sum(length**2 for length in lengths) if padded else 0
    adapters = 0
    if recipe.lora is not None:
        mask = 0 if not recipe.lora.lora_dropout else 1 if gpu else 4
        number = 2 if is_mixed(recipe) else 4
        adapters = sum((number + mask) * width_in + number * recipe.lora.r for width_in, _ in shapes.lora_widths)
    return int(n * (norms + attention + 3 * half * text.intermediate_size + adapters) + squares)


def vision_activations(recipe: Recipe, shapes: Shapes, images: int) -> int:
    """Bytes that autograd keeps of the tower's layers that train, as without activation checkpointing.

    Args:
        recipe: of the run.
        shapes: of its model.
        images: of the batch, their tiles counted.
    """
    vision: Any = shapes.config.vision_config
    tokens = images * (tower_of(vision).class_tokens + (vision.image_size // vision.patch_size) ** 2)
    norms, weights = 8 * vision.hidden_size + 8, 6 * vision.hidden_size + 2 * vision.intermediate_size
    of_token = norms + _half(recipe) * weights + 4 * vision.num_attention_heads
    return recipe.model.vision_trainable_layers * tokens * of_token


def checkpoints(recipe: Recipe) -> bool:
    """Whether layers are computed again on the way back (activation checkpointing, by either of its names)."""
    return any(recipe.training.get(f"{name}_checkpointing") for name in ("activation", "gradient"))


def state_bytes(optimizer: str) -> int:
    """Bytes of state an optimizer keeps of a trained weight; one that is not known counts as Adam."""
    return next((size for name, size in STATE_BYTES.items() if name in optimizer), 8)


def _half(recipe: Recipe) -> int:
    """Bytes of a number that is not kept in fp32 on purpose."""
    return 4 if recipe.model.dtype == "float32" and not is_mixed(recipe) else 2


def is_mixed(recipe: Recipe) -> bool:
    """Whether autocast computes in half precision."""
    return bool(recipe.training.get("bf16") or recipe.training.get("fp16"))


def _copies(recipe: Recipe, shapes: Shapes, layers: int) -> int:
    """Half-precision copies that autocast makes of fp32 weights and autograd keeps until the layer's way back."""
    if not is_mixed(recipe):
        return 0
    copies = lora_copies(recipe, shapes) + 2 * shapes.counts["projector"]["trained"]
    if recipe.model.dtype == "float32" and recipe.quantization is None:
        copies += 2 * shapes.layer_weights * (1 if checkpoints(recipe) else layers)
    return copies


def lora_copies(recipe: Recipe, shapes: Shapes) -> int:
    """Bytes of the half-precision copies of all adapters."""
    return 2 * shapes.counts.get("lora", {"trained": 0})["trained"] if is_mixed(recipe) else 0
