"""4-bit layers on a CPU that has no kernel for them.

bitsandbytes' CPU kernel computes in bf16. In fp32 a layer's numbers are made anew each time it is needed: with a matrix
of 3072 by 8192, a pass over 256 tokens takes about 1.6 times as long, and one over a single token about 20 times.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from ..core import distributed
from ..core.private_api import number_of_weights
from ..core.processes import free_memory
from ..recipe import Recipe

DEQUANTIZED = "4-bit weights are held as the fp32 numbers they stand for: this CPU has no kernel for 4 bits"
"""What is said where it is so."""
TRAINED_BESIDE = "it was trained beside 4-bit weights; --4bit takes them in place of the full ones"
"""What is said of an adapter beside the weights in full: a small model reads less so (docs/benchmarks.md)."""


class DequantizedLinear(torch.nn.Linear):
    """A linear layer that holds exactly the numbers that its 4-bit weights stand for."""


def is_dequantized(model: torch.nn.Module) -> bool:
    """Whether a model was loaded in 4 bits and is held as the numbers they stand for."""
    return any(isinstance(part, DequantizedLinear) for part in model.modules())


def will_be_dequantized(recipe: Recipe, weights: int) -> bool:
    """Whether `dequantize` will take place when the recipe's model, with so many 4-bit weights, is loaded here.

    Args:
        recipe: in the number formats of this machine.
        weights: that the layers in 4 bits have.
    """
    if recipe.quantization is None or torch.cuda.is_available():
        return False
    formats = (recipe.model.dtype, recipe.quantization.bnb_4bit_compute_dtype)
    return formats == ("float32", "float32") and _has_room(weights)


def dequantize(model: PreTrainedModel, *, always: bool = False) -> None:
    """Replaces 4-bit layers that compute in fp32 on a CPU by plain ones of the same numbers, if there is room.

    Args:
        model: loaded in 4 bits.
        always: whatever computes it; what comes of it is a plain model, which can be merged.
    """
    import bitsandbytes

    layers: list[tuple[str, Any]] = [
        (name, part) for name, part in model.named_modules() if isinstance(part, bitsandbytes.nn.Linear4bit)
    ]
    if not layers or not (always or _is_worth_it([layer for _, layer in layers])):
        return
    for name, layer in layers:
        kind = torch.nn.Linear if always else DequantizedLinear
        plain = kind(layer.in_features, layer.out_features, bias=False, device="meta")
        numbers = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        plain.weight = torch.nn.Parameter(numbers, requires_grad=False)
        model.set_submodule(name, plain.train(layer.training))
    model.hf_quantizer.remove_quantization_config(model)  # what follows is to take it for the plain model it is
    model.is_loaded_in_4bit = False


def _is_worth_it(layers: list[Any]) -> bool:
    """All compute in fp32 on a CPU, which has no kernel for them, and there is room."""
    for layer in layers:
        formats = (layer.compute_dtype, layer.weight.quant_state.dtype)
        if layer.weight.device.type != "cpu" or formats != (torch.float32, torch.float32):
            return False
    return _has_room(sum(number_of_weights(layer.weight) for layer in layers))


def _has_room(weights: int) -> bool:
    """Half of the free memory may go into it; of several processes, each holds its own."""
    return 4 * weights * distributed.count() <= free_memory() / 2
