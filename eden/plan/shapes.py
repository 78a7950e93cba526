"""The shape of a recipe's model, known without its weights: sizes, parameters by part, bytes of each."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from ..checkpoint import Checkpoint, add_adapters, count_parameters, load_processor
from ..checkpoint.artifact import Artifact
from ..checkpoint.backbones import check_language, check_tiles, open_image_processor, readable, rows_with_image
from ..core.location import EDEN_TINY
from ..errors import CheckpointError
from ..model import MultimodalPhiConfig, MultimodalPhiForConditionalGeneration, MultimodalPhiProcessor
from ..recipe import ModelSection, QuantizationSection, Recipe, load_recipe, shipped_recipes
from .published import PUBLISHED, TOKENS

BLOCK, NESTED_BLOCK = 64, 256
"""Weights that share a scale in bitsandbytes' 4-bit formats, and scales that share one when quantized twice."""


@dataclass(frozen=True)
class Shapes:
    """A model and what it weighs.

    Attributes:
        config: of the whole model.
        counts: `{"lora": {"trained": n, "frozen": n}, ...}`, as `checkpoint.count_parameters`.
        layer_weights: weights of the linear layers of one decoder layer.
        layer_parts: names of the modules of one decoder layer, as `qkv_proj`.
        lora_widths: (in, out) of each linear layer of one decoder layer that has an adapter.
        frozen_bytes: of the weights that do not train, by part.
    """

    config: MultimodalPhiConfig
    counts: dict[str, dict[str, int]]
    layer_weights: int
    layer_parts: frozenset[str]
    lora_widths: list[tuple[int, int]]
    frozen_bytes: dict[str, int]

    @property
    def trained(self) -> int:
        """Weights that train."""
        return sum(part["trained"] for part in self.counts.values())

    @property
    def parameters(self) -> int:
        """All weights, adapters included."""
        return sum(part["trained"] + part["frozen"] for part in self.counts.values())


def from_the_beginning(recipe: Recipe) -> tuple[Recipe, str | None]:
    """The recipe, with the model that a shipped recipe will leave at its base in place of a base that is not there yet.

    Returns:
        A recipe to plan with, and the name of the stage that has yet to run; None if nothing was replaced.
    """
    base = recipe.model.base
    if base is None or base == EDEN_TINY or Path(base).exists():
        return recipe, None
    for name in shipped_recipes():
        stage = load_recipe(name)
        if stage.model.base is None and stage.training["output_dir"] == base:
            own = recipe.model.model_dump(exclude_unset=True, exclude={"base", "base_revision"})
            return recipe.model_copy(update={"model": stage.model.model_copy(update=own)}), name
    return recipe, None


def shapes_of(recipe: Recipe) -> Shapes:
    """Builds the recipe's model with its adapters where tensors have a shape and no memory.

    Raises:
        CheckpointError: its configuration is neither here, nor published in `PUBLISHED`, nor on the hub.
    """
    config = config_of(recipe.model)
    with torch.device("meta"):
        model = MultimodalPhiForConditionalGeneration(config).to(getattr(torch, recipe.model.dtype))
        adapted = add_adapters(model, recipe.lora, recipe.model.vision_trainable_layers)
    checkpoint = Checkpoint(adapted, None, "", None)  # type: ignore[arg-type]  # it is counted, not fed
    layer = model.model.language_model.layers[0]
    linear = [module for _, module in layer.named_modules() if type(module) is torch.nn.Linear]
    adapters = [module for _, module in layer.named_modules() if hasattr(module, "lora_A")]
    inside = [module for module in linear if module.weight.requires_grad is False]
    return Shapes(
        config,
        count_parameters(checkpoint),
        sum(module.weight.numel() for module in inside),
        frozenset(name.rpartition(".")[2] for name, _ in layer.named_modules()),
        [(module.in_features, module.out_features) for module in adapters],
        _frozen_bytes(adapted, recipe.quantization),
    )


def config_of(section: ModelSection) -> MultimodalPhiConfig:
    """The configuration of the model that a run would load.

    Raises:
        CheckpointError: see `shapes_of`.
        RecipeError: a picture's tiles do not fit into the context, or are others than the base's, as is its aspect.
    """
    if section.base is not None:
        return Artifact.of_base(section, files=["config.json"]).config
    vision = _backbone(str(section.vision), section.vision_revision)
    text = _backbone(str(section.language), section.language_revision)
    vision = getattr(vision, "vision_config", vision)
    check_language(text, str(section.language))
    check_tiles(section, vision, text)
    if (tokenizer := _tokenizer(section)) is not None:
        tokens = len(tokenizer)
    else:
        tokens = TOKENS.get(str(section.language), text.vocab_size - 1)
    text.vocab_size = rows_with_image(text.vocab_size, tokens)
    return MultimodalPhiConfig(
        vision_config=vision,
        text_config=text,
        vision_feature=section.vision_feature,
        vision_feature_layer=section.vision_feature_layer,
        tiles=section.tiles or 0,
        tie_word_embeddings=text.tie_word_embeddings,
    )


def processor_of(section: ModelSection, config: MultimodalPhiConfig) -> MultimodalPhiProcessor | None:
    """The processor that a run would encode its samples with; None if it is not on this machine."""
    try:
        if section.base is not None:
            return load_processor(section.base, revision=section.base_revision)
        with readable(str(section.vision)):
            images = open_image_processor(section, local_files_only=True)
    except CheckpointError:
        return None
    if (tokenizer := _tokenizer(section)) is None:
        return None
    family = check_language(config.text_config, str(section.language), tokenizer)
    return MultimodalPhiProcessor(images, tokenizer, config.num_image_tokens, family.name, tiles=config.tiles)


def _tokenizer(section: ModelSection) -> PreTrainedTokenizerBase | None:
    """The language model's; None if it is not on this machine."""
    try:
        with readable(str(section.language)):
            return AutoTokenizer.from_pretrained(
                section.language, revision=section.language_revision, local_files_only=True
            )
    except CheckpointError:
        return None


def is_here(section: ModelSection) -> bool:
    """Whether the weights are in folders of this machine."""
    names = [section.base] if section.base is not None else [section.vision, section.language]
    return all(name == EDEN_TINY or Path(str(name)).is_dir() for name in names)


def _backbone(name: str, revision: str | None) -> PreTrainedConfig:
    if name in PUBLISHED and not Path(name).is_dir():
        return copy.deepcopy(PUBLISHED[name])
    with readable(name):
        config: Any = AutoConfig.from_pretrained(name, revision=revision)
    return config


def _frozen_bytes(model: torch.nn.Module, quantization: QuantizationSection | None) -> dict[str, int]:
    """Bytes of the frozen weights and buffers by part; in 4 bits are the language model's linear layers alone."""
    sizes: dict[str, int] = dict.fromkeys(("vision tower", "language model", "head", "projector as it was"), 0)
    parts = {"vision_tower.": "vision tower", "lm_head.": "head", "projector.": "projector as it was"}
    linear = {id(module.weight) for module in model.modules() if type(module) is torch.nn.Linear}
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in [(name, tensor) for name, tensor in tensors if not tensor.requires_grad]:
        part = next((part for key, part in parts.items() if key in name), "language model")
        if quantization is not None and part == "language model" and id(tensor) in linear:
            scales = 4 / BLOCK
            if quantization.bnb_4bit_use_double_quant:
                scales = 1 / BLOCK + 4 / (BLOCK * NESTED_BLOCK)
            sizes[part] += round(tensor.numel() * (0.5 + scales))
        else:
            sizes[part] += tensor.numel() * tensor.element_size()
    return sizes
