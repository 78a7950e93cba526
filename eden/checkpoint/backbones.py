"""A new model out of two: a vision tower and a language model, with a fresh projector between them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..core.location import refuse_missing_folder, refuse_without_weights
from ..core.numeric_format import Machine, Name, NumericFormat, estimated_parameters, numeric_format
from ..core.private_api import attention_of, commit_of, inherit_quantization, is_in_four_bits
from ..errors import CheckpointError, RecipeError, first_line
from ..model import MultimodalPhiConfig, MultimodalPhiForConditionalGeneration, MultimodalPhiProcessor, ProjectionBlock
from ..model.families import FAMILIES, Family, families_of, family_of
from ..model.towers import Tower, layers_of_features, tower_of
from ..recipe import ModelSection, QuantizationSection
from .four_bits import dequantize

# Where a repository has no safetensors, as CLIP's, transformers would ask a service to convert them, or download the
# weights once more from a pull request. Nobody asked for either.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "true")

KEPT_IN_FULL_PRECISION = ["model.vision_tower", "model.projector", "lm_head"]
"""Never quantized: NF4 is for the language model's linear layers only."""

ROW_BLOCK = 64
"""An embedding without a spare row for `<|image|>` grows to a multiple of so many rows."""


@dataclass(frozen=True)
class LoadOptions:
    """How weights come into memory.

    Attributes:
        quantization: hold the language model's linear layers in 4 bits; None keeps `dtype`.
        dtype: `bfloat16`, `float16` or `float32`, whatever it costs here; None is what `core.numeric_format` says
            for a model of its size.
        attn_implementation: transformers' name of an attention implementation; None lets it choose.
        device: None is the GPU if there is one, else the CPU.
        dequantized: hold 4-bit layers as the numbers they stand for, into which adapters can be merged.
    """

    quantization: QuantizationSection | None = None
    dtype: Name | None = None
    attn_implementation: str | None = None
    device: str | torch.device | None = None
    dequantized: bool = False

    @property
    def torch_device(self) -> torch.device:
        if self.device is not None or not torch.cuda.is_available():
            return torch.device(self.device or "cpu")
        return torch.device("cuda", torch.cuda.current_device())  # of several processes, each has a GPU of its own

    def numeric_format(self, text_config: PreTrainedConfig) -> NumericFormat:
        """What a model is held and computed in, and why."""
        if self.dtype is not None:
            return NumericFormat(self.dtype, "it was asked for")
        parameters = estimated_parameters(text_config.num_hidden_layers, text_config.hidden_size)
        return numeric_format(Machine.here(str(self.torch_device)), parameters)

    def torch_dtype(self, text_config: PreTrainedConfig) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.numeric_format(text_config).name)
        return dtype

    def for_language_model(self, text_config: PreTrainedConfig) -> dict[str, Any]:
        """The arguments of `from_pretrained` for a model that may be held in 4 bits."""
        options: dict[str, Any] = {"attn_implementation": self.attn_implementation}
        if self.quantization is not None:
            section = self.quantization.model_dump()
            if self.dtype != "bfloat16":  # which is kept where it was asked for, whatever it costs
                machine = Machine.here(str(self.torch_device))
                here = numeric_format(machine) if self.dtype else self.numeric_format(text_config)
                section["bnb_4bit_compute_dtype"] = here.instead_of(section["bnb_4bit_compute_dtype"])
            options["quantization_config"] = BitsAndBytesConfig(**section, llm_int8_skip_modules=KEPT_IN_FULL_PRECISION)
            options["device_map"] = {"": self.torch_device}
        return options


def assemble(
    section: ModelSection, options: LoadOptions
) -> tuple[MultimodalPhiForConditionalGeneration, MultimodalPhiProcessor]:
    """Joins the vision checkpoint `section.vision` and the language model's checkpoint `section.language`.

    Raises:
        CheckpointError: a backbone is missing, of another architecture, or its tokenizer lacks a control token.
    """
    vision, language = str(section.vision), str(section.language)
    backbones = check_backbones(section)
    text_config, tokenizer = backbones.text_config, backbones.tokenizer
    dtype = options.torch_dtype(text_config)
    with readable(vision):
        tower = backbones.tower.model_class.from_pretrained(vision, revision=section.vision_revision, dtype=dtype)
        image_processor = open_image_processor(section)
    with readable(language):
        language_model = AutoModelForCausalLM.from_pretrained(
            language, revision=section.language_revision, dtype=dtype, **options.for_language_model(text_config)
        )
        processor = MultimodalPhiProcessor(image_processor, tokenizer, family=backbones.family.name)
        _make_row(language_model, processor.image_token_id)
    if options.quantization is not None:
        dequantize(language_model, always=options.dequantized)
    for part in (tower.config, language_model.config):
        # Names code of the backbone's repository, which is never run, and would be if whoever loads what Eden saves
        # trusts Eden's own.
        part.__dict__.pop("auto_map", None)
    attention = attention_of(language_model.config)  # the whole's configuration gives its parts its own
    config = MultimodalPhiConfig(
        vision_config=tower.config,
        text_config=language_model.config,
        vision_feature=section.vision_feature,
        vision_feature_layer=section.vision_feature_layer,
        image_aspect=aspect_of(image_processor),
        tiles=section.tiles or 0,
        tie_word_embeddings=text_config.tie_word_embeddings,
        image_token_id=processor.image_token_id,
        dtype=dtype,
        backbones={
            "vision": {"id": vision, "revision": section.vision_revision or commit_of(vision)},
            "language": {"id": language, "revision": section.language_revision or commit_of(language)},
        },
    )
    processor.num_image_tokens, processor.tiles = config.num_image_tokens, config.tiles
    model = _join(config, tower, language_model, processor, options.torch_device)
    model.model.language_model.set_attn_implementation(attention)
    return model, processor


def open_image_processor(section: ModelSection, **options: Any) -> Any:
    """The image processor of the checkpoint `section.vision`, for pictures of `section.image_aspect`.

    Args:
        section: of the recipe.
        options: of `AutoImageProcessor.from_pretrained`.
    """
    own = AutoImageProcessor.from_pretrained(section.vision, revision=section.vision_revision, **options)
    if section.image_aspect in (None, aspect_of(own)):
        return own
    square = dict(own.crop_size if getattr(own, "do_center_crop", False) else own.size)
    whole = own.to_dict() | {"size": square, "do_center_crop": False}
    if section.image_aspect == "squash":
        return type(own).from_dict(whole)
    if section.image_aspect == "crop":
        shorter = {"size": {"shortest_edge": square["height"]}, "do_center_crop": True, "crop_size": square}
        return type(own).from_dict(own.to_dict() | shorter)
    if own.backend == "pil":
        from transformers import LlavaImageProcessorPil as LlavaImageProcessor
    else:  # without torchvision, importing it warns
        from transformers import LlavaImageProcessor
    # The tower's own behind LLaVA-1.5's bars. They are int(255 * mean), as llama.cpp's are.
    return LlavaImageProcessor.from_dict(whole | {"do_pad": True})


def aspect_of(image_processor: Any) -> str:
    """What an image processor does with a picture that is not square, as `MultimodalPhiConfig.image_aspect` says it."""
    if getattr(image_processor, "do_pad", False):
        return "pad"
    return "crop" if getattr(image_processor, "do_center_crop", False) else "squash"


@dataclass(frozen=True)
class Backbones:
    """What is known of two backbones before a weight is loaded."""

    text_config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    family: Family
    tower: Tower


def check_backbones(section: ModelSection) -> Backbones:
    """Sees that two backbones can be joined, before a weight is loaded.

    Raises:
        CheckpointError: a backbone is missing or of another architecture, or the tokenizer lacks a control token.
        RecipeError: the tower has no such layer, or a picture's tiles do not fit into the context.
    """
    vision = str(section.vision)
    config = _backbone_config(vision, section.vision_revision)
    try:
        kind = tower_of(config)
    except ValueError as error:
        raise CheckpointError(str(error), where=vision, hint="Change model.vision.") from error
    if section.vision_feature == "pooled" and not getattr(config, "vision_use_head", True):
        raise CheckpointError("the tower has no pooled output", where=vision, hint="Use model.vision_feature=patches.")
    layers, layer = getattr(config, "vision_config", config).num_hidden_layers, section.vision_feature_layer
    if section.vision_feature == "patches" and not -layers - 1 <= layer <= layers:
        what = f"model.vision_feature_layer is {layer}, and {vision} has {layers} layers"
        raise RecipeError(what, hint=f"Write a number from {-layers - 1} to {layers}; -2 is usual.")
    check_vision_layers(section, layers_of_features(layers, section.vision_feature, layer), vision)
    language, revision = str(section.language), section.language_revision
    text_config = _backbone_config(language, revision)
    check_language(text_config, language)
    check_tiles(section, config, text_config)
    with readable(language):
        tokenizer = AutoTokenizer.from_pretrained(language, revision=revision)
    return Backbones(text_config, tokenizer, check_language(text_config, language, tokenizer), kind)


def check_vision_layers(section: ModelSection, there: int, name: str) -> None:
    """Sees that a tower has as many layers as are to train.

    Args:
        section: of the recipe.
        there: layers of the tower that make the features.
        name: of the model they are of.

    Raises:
        RecipeError: it has fewer.
    """
    if section.vision_trainable_layers > there:
        what = f"model.vision_trainable_layers is {section.vision_trainable_layers}"
        raise RecipeError(f"{what}, and {there} layers of {name} make the features", hint=f"Write {there} or fewer.")


def check_tiles(section: ModelSection, vision: PreTrainedConfig, text: PreTrainedConfig) -> None:
    """Sees that a picture's tiles leave room in the context.

    Args:
        section: of the recipe.
        vision: the tower's configuration, or that of a whole checkpoint.
        text: the language model's.

    Raises:
        RecipeError: they do not.
    """
    config = MultimodalPhiConfig(
        vision_config=getattr(vision, "vision_config", vision), vision_feature=section.vision_feature
    )
    tiles, context = section.tiles or 0, context_of(text)
    if tiles and (needed := (1 + tiles) * config.num_image_tokens) > context:
        reads = f"{section.language} reads {context:,}"
        what = f"model.tiles is {tiles}: a picture takes up to {needed:,} tokens, and {reads}"
        raise RecipeError(what, hint=f"Write at most {max(0, context // config.num_image_tokens - 2)}.")


def context_of(text_config: PreTrainedConfig) -> int:
    """Tokens a language model reads and writes at most, prompt and answer together.

    Phi-3.5 degrades past its original window, where its rotary scaling switches; Eden stays within it.
    """
    longest = int(text_config.max_position_embeddings)
    return min(longest, int(getattr(text_config, "original_max_position_embeddings", None) or longest))


def check_language(config: PreTrainedConfig, where: str, tokenizer: PreTrainedTokenizerBase | None = None) -> Family:
    """The family of a language model, by its tokenizer too if that is given.

    Raises:
        CheckpointError: it is of another architecture, or its tokenizer lacks a control token.
    """
    try:
        families = families_of(config.model_type)
    except ValueError as error:
        raise CheckpointError(str(error), where=where, hint="Change model.language.") from error
    # The engine's cache and packed rows know one window, or none, for all layers.
    if len(set(getattr(config, "layer_types", None) or ())) > 1:
        what = "only some of its layers have a sliding window"
        raise CheckpointError(what, where=where, hint="Use a language model whose layers all attend alike.")
    if tokenizer is None:
        return families[-1]
    try:
        return family_of(config.model_type, tokenizer.get_vocab())
    except ValueError as error:
        hint = f"Use an instruct model: {', '.join(family.title for family in FAMILIES.values())}."
        raise CheckpointError(str(error), where=where, hint=hint) from error


def rows_with_image(rows: int, image_token_id: int) -> int:
    """Rows of an embedding of so many, once `<|image|>` has its own: a spare one, or else a block more."""
    return rows if image_token_id < rows else -(-(image_token_id + 1) // ROW_BLOCK) * ROW_BLOCK


def _make_row(language_model: PreTrainedModel, image_token_id: int) -> None:
    """Gives `<|image|>` its row.

    New rows are the mean of the old ones, in the head too: their logits are then the mean of all others, and never the
    highest (https://nlp.stanford.edu/~johnhew/vocab-expansion.html). It is always the same mean, so that an adapter
    finds its base as it was.
    """
    before = language_model.config.vocab_size
    if (rows := rows_with_image(before, image_token_id)) == before:
        return
    language_model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        for part in (language_model.get_input_embeddings(), language_model.get_output_embeddings()):
            part.weight[before:] = part.weight[:before].float().mean(0).to(part.weight.dtype)


def _join(
    config: MultimodalPhiConfig,
    tower: PreTrainedModel,
    language_model: PreTrainedModel,
    processor: MultimodalPhiProcessor,
    device: torch.device,
) -> MultimodalPhiForConditionalGeneration:
    with torch.device("meta"):  # an empty shell: its parts are replaced by the loaded ones
        model = MultimodalPhiForConditionalGeneration(config)
    projector = ProjectionBlock(config.image_feature_size, config.text_config.hidden_size)
    model.model.vision_tower = tower.to(device)
    model.model.projector = projector.to(device, config.dtype)
    # 4-bit layers were loaded onto their device and must not be cast.
    quantized = is_in_four_bits(language_model)
    language_model = language_model if quantized else language_model.to(device)
    model.model.language_model, model.lm_head = language_model.model, language_model.lm_head
    if quantized:
        inherit_quantization(model, language_model)
    tokenizer = processor.tokenizer
    ends = [token for token in FAMILIES[processor.family].ends if token in tokenizer.get_vocab()]
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.convert_tokens_to_ids(list(dict.fromkeys([*ends, tokenizer.eos_token]))),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    return model.eval()


def _backbone_config(name: str, revision: str | None) -> PreTrainedConfig:
    refuse_missing_folder(name)
    refuse_without_weights(Path(name))
    with readable(name):
        config: PreTrainedConfig = AutoConfig.from_pretrained(name, revision=revision)
    return config


@contextmanager
def readable(where: str | Path) -> Iterator[None]:
    """Turns the ways in which transformers, PEFT and safetensors fail to read a model into one line.

    Raises:
        CheckpointError: in place of whatever the library raised.
    """
    try:
        yield
    except CheckpointError:
        raise
    except SafetensorError as error:
        raise CheckpointError(
            f"a weight file is damaged ({first_line(error)})", where=str(where), hint="Copy or download it again."
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"cannot be loaded ({first_line(error)})",
            where=str(where),
            hint="Check the path or the hub id, the network, and that the folder is complete.",
        ) from error
