"""Adapters that go on learning, PiSSA as plain LoRA, and what can be known of all before a model is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import private_api
from ..core.location import read_json
from ..errors import CheckpointError, first_line
from ..recipe import LoraSection, QuantizationSection, Recipe
from .artifact import Artifact
from .backbones import LoadOptions

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

SAME = ("r", "lora_alpha", "use_rslora", "use_dora", "target_modules")
"""What of an adapter has to stay as it is where its training goes on."""


def check_adapters(recipe: Recipe) -> None:
    """Sees that the recipe's adapters can be made, on its base, with the libraries that are here.

    Raises:
        CheckpointError: the base is an adapter of another shape, or has begun already where the recipe says how to
            begin; or these libraries have no DoRA for such layers.
    """
    if recipe.model.base is not None:
        artifact = Artifact.open(recipe.model.base, revision=recipe.model.base_revision, files=["*.json"])
        if artifact.is_adapter:
            _check_same_vision_layers(artifact, recipe.model.vision_trainable_layers)
        if recipe.lora is not None and is_lora(artifact):
            _check_same(artifact, recipe.lora)
    if recipe.lora is not None and recipe.lora.use_dora:
        _try_dora(recipe.quantization)


def is_lora(artifact: Artifact) -> bool:
    """Whether a folder holds LoRA adapters, and not the projector alone as the align stage leaves it."""
    return artifact.is_adapter and _config(artifact)["target_modules"] != private_api.NO_TARGETS


def to_go_on(artifact: Artifact, lora: LoraSection) -> tuple[LoraSection, dict[str, torch.Tensor]]:
    """The section with the layers of a LoRA adapter whose training goes on, and its weights by PEFT's names.

    Raises:
        CheckpointError: the recipe would make adapters of another shape.
    """
    from peft.utils import load_peft_weights

    _check_same(artifact, lora)
    targets = sorted(_config(artifact)["target_modules"])
    return lora.model_copy(update={"target_modules": targets}), load_peft_weights(str(artifact.folder), device="cpu")


def lora_weights(model: PeftModel) -> dict[str, torch.Tensor]:
    """The adapters' weights as they are now, copied to the CPU, by PEFT's names."""
    from peft.utils import get_peft_model_state_dict

    weights = get_peft_model_state_dict(model)
    return {name: weight.to("cpu", copy=True) for name, weight in weights.items() if "lora_" in name}


def from_pissa(
    recipe: Recipe, begun: Mapping[str, torch.Tensor], ended: Mapping[str, torch.Tensor]
) -> tuple[Recipe, dict[str, torch.Tensor]]:
    """What PiSSA has learned as plain LoRA beside the base as it was, of twice the rank: BA - B0 A0.

    PiSSA (https://arxiv.org/abs/2404.02948) trains BA beside W - B0 A0, which no other loader would have.

    Args:
        recipe: of the run.
        begun: `lora_weights` before the first step.
        ended: the trained weights after the last, by PEFT's names.

    Returns:
        The recipe with such adapters, and their weights, on the CPU.
    """
    import torch

    assert recipe.lora is not None
    scale = 2**0.5 if recipe.lora.use_rslora else 2.0  # what twice the rank divides the update by
    weights = {name: weight.cpu() for name, weight in ended.items()}
    for name, weight in weights.items():
        if "lora_A" in name:
            weights[name] = torch.cat([weight, begun[name]], dim=0)  # [2R,in]
        elif "lora_B" in name:
            weights[name] = torch.cat([weight, -begun[name]], dim=1) * scale  # [out,2R]
    lora = recipe.lora.model_copy(update={"r": 2 * recipe.lora.r, "init_lora_weights": True})
    return recipe.model_copy(update={"lora": lora}), weights


def merge_first(adapter: str | Path) -> str:
    """What one does with an adapter that cannot be gone on with as it is, as the end of a hint."""
    return f"merge it first: eden export {adapter} --to hf DIR, then model.base=DIR."


def _config(artifact: Artifact) -> dict[str, Any]:
    return read_json(artifact.folder / "adapter_config.json")


def _check_same(artifact: Artifact, lora: LoraSection) -> None:
    was, wanted = _config(artifact), lora.model_dump()
    for name in SAME:
        before, now = was.get(name, False), wanted[name]
        if now is None:  # which layers: those it is on
            continue
        if isinstance(now, list):
            before, now = sorted(before), sorted(now)
        if before != now:
            raise CheckpointError(
                f"the base is a LoRA adapter with {name} {_plain(before)}, and lora.{name} is {_plain(now)}",
                where=str(artifact.folder),
                hint=f"Set lora.{name}={_plain(before)} to go on with it, or {merge_first(artifact.folder)}",
            )
    if lora.init_lora_weights is not True:
        what = f"the base is a LoRA adapter, which has begun, and lora.init_lora_weights is {lora.init_lora_weights}"
        hint = f"Set lora.init_lora_weights=true to go on with it, or {merge_first(artifact.folder)}"
        raise CheckpointError(what, where=str(artifact.folder), hint=hint)


def _check_same_vision_layers(artifact: Artifact, wanted: int) -> None:
    """An adapter's layers of the tower are kept with it alone: the next one has to keep them too."""
    there = sum("vision_tower" in name for name in _config(artifact)["modules_to_save"] or [])
    if there not in (0, wanted):
        key = "model.vision_trainable_layers"
        raise CheckpointError(
            f"the base is an adapter with {there} layers of its tower, and {key} is {wanted}",
            where=str(artifact.folder),
            hint=f"Set {key}={there} to go on with them, or {merge_first(artifact.folder)}",
        )


def _plain(value: Any) -> str:
    return f"[{', '.join(value)}]" if isinstance(value, list) else json.dumps(value)


def _try_dora(quantization: QuantizationSection | None) -> None:
    """Makes DoRA for one small layer of the kind that the run will have, and sends something through it."""
    import torch
    from peft import LoraConfig, get_peft_model

    try:
        layer: torch.nn.Module = torch.nn.Linear(64, 64, bias=False)
        if quantization is not None:
            import bitsandbytes

            layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, quant_type=quantization.bnb_4bit_quant_type)
        device = LoadOptions().torch_device
        with torch.random.fork_rng(devices=[]):
            model = torch.nn.Sequential(layer).to(device)
            adapted = get_peft_model(model, LoraConfig(use_dora=True, target_modules=["0"]))
            adapted(torch.zeros(1, 64, device=device))
    except Exception as error:
        kind = "in 4 bits " if quantization is not None else ""
        raise CheckpointError(
            f"the libraries here have no DoRA {kind}({first_line(error)})",
            where="lora.use_dora",
            hint="Write lora.use_dora=false" + (", or quantization=null." if quantization is not None else "."),
        ) from error
