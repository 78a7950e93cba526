"""A new model out of two: CLIP's vision tower and a Phi-3 language model, with a fresh projector between them."""

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
    AutoTokenizer,
    BitsAndBytesConfig,
    CLIPVisionModelWithProjection,
    GenerationConfig,
    Phi3ForCausalLM,
    PreTrainedConfig,
)

from ..core.location import refuse_missing_folder, refuse_without_weights
from ..core.numeric_format import Machine, Name, NumericFormat, numeric_format
from ..core.private_api import commit_of, inherit_quantization, is_in_four_bits
from ..errors import CheckpointError, RecipeError, first_line
from ..model import MultimodalPhiConfig, MultimodalPhiForConditionalGeneration, MultimodalPhiProcessor, ProjectionBlock
from ..recipe import ModelSection, QuantizationSection
from .four_bits import dequantize

# Where a repository has no safetensors, as CLIP's, transformers would ask a service to convert them, or download the
# weights once more from a pull request. Nobody asked for either.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "true")

KEPT_IN_FULL_PRECISION = ["model.vision_tower", "model.projector", "lm_head"]
"""Never quantized: NF4 is for the language model's linear layers only."""

SMALL_MODEL_PARAMETERS = 10**9
"""On a CPU, models below this many parameters run in fp32 unless told otherwise: faster and exact, and they fit."""


@dataclass(frozen=True)
class LoadOptions:
    """How weights come into memory.

    Attributes:
        quantization: hold the language model's linear layers in 4 bits; None keeps `dtype`.
        dtype: `bfloat16`, `float16` or `float32`, whatever it costs here; None is float32 for small models on a CPU
            and what `core.numeric_format` says for all others.
        attn_implementation: transformers' name of an attention implementation; None lets it choose.
        device: None is the GPU if there is one, else the CPU.
    """

    quantization: QuantizationSection | None = None
    dtype: Name | None = None
    attn_implementation: str | None = None
    device: str | torch.device | None = None

    @property
    def torch_device(self) -> torch.device:
        if self.device is not None or not torch.cuda.is_available():
            return torch.device(self.device or "cpu")
        return torch.device("cuda", torch.cuda.current_device())  # of several processes, each has a GPU of its own

    def numeric_format(self, text_config: PreTrainedConfig) -> NumericFormat:
        """What a model is held and computed in, and why."""
        if self.dtype is not None:
            return NumericFormat(self.dtype, "it was asked for")
        parameters = text_config.num_hidden_layers * 12 * text_config.hidden_size**2  # the usual estimate
        if parameters < SMALL_MODEL_PARAMETERS and self.torch_device.type == "cpu":
            return NumericFormat("float32", "a small model on a CPU is fast and exact in it")
        return numeric_format(Machine.here(str(self.torch_device)))

    def torch_dtype(self, text_config: PreTrainedConfig) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.numeric_format(text_config).name)
        return dtype

    def for_language_model(self) -> dict[str, Any]:
        """The arguments of `from_pretrained` for a model that may be held in 4 bits."""
        options: dict[str, Any] = {"attn_implementation": self.attn_implementation}
        if self.quantization is not None:
            section = self.quantization.model_dump()
            if self.dtype != "bfloat16":  # which is kept where it was asked for, whatever it costs
                here = numeric_format(Machine.here(str(self.torch_device)))
                section["bnb_4bit_compute_dtype"] = here.instead_of(section["bnb_4bit_compute_dtype"])
            options["quantization_config"] = BitsAndBytesConfig(**section, llm_int8_skip_modules=KEPT_IN_FULL_PRECISION)
            options["device_map"] = {"": self.torch_device}
        return options


def assemble(
    section: ModelSection, options: LoadOptions
) -> tuple[MultimodalPhiForConditionalGeneration, MultimodalPhiProcessor]:
    """Joins the CLIP checkpoint `section.vision` and the Phi-3 checkpoint `section.language`.

    Raises:
        CheckpointError: a backbone is missing, of another architecture, or lacks a token or a spare embedding row.
    """
    vision, language = str(section.vision), str(section.language)
    text_config = check_backbones(section)
    dtype = options.torch_dtype(text_config)
    with readable(vision):
        tower = CLIPVisionModelWithProjection.from_pretrained(vision, revision=section.vision_revision, dtype=dtype)
        image_processor = open_image_processor(section)
    with readable(language):
        tokenizer = AutoTokenizer.from_pretrained(language, revision=section.language_revision)
        language_model = Phi3ForCausalLM.from_pretrained(
            language, revision=section.language_revision, dtype=dtype, **options.for_language_model()
        )
    if options.quantization is not None:
        dequantize(language_model)
    for part in (tower.config, language_model.config):
        # Names code of the backbone's repository, which is never run, and would be if whoever loads what Eden saves
        # trusts Eden's own.
        part.__dict__.pop("auto_map", None)
    config = MultimodalPhiConfig(
        vision_config=tower.config,
        text_config=language_model.config,
        vision_feature=section.vision_feature,
        vision_feature_layer=section.vision_feature_layer,
        image_aspect=section.image_aspect or "crop",
        tiles=section.tiles or 0,
        tie_word_embeddings=text_config.tie_word_embeddings,
        dtype=dtype,
        backbones={
            "vision": {"id": vision, "revision": section.vision_revision or commit_of(vision)},
            "language": {"id": language, "revision": section.language_revision or commit_of(language)},
        },
    )
    processor = MultimodalPhiProcessor(
        image_processor, tokenizer, num_image_tokens=config.num_image_tokens, tiles=config.tiles
    )
    config.image_token_id = _check_tokens(processor, config, language)
    return _join(config, tower, language_model, processor, options.torch_device), processor


def open_image_processor(section: ModelSection, **options: Any) -> Any:
    """The image processor of the CLIP checkpoint `section.vision`, for pictures of `section.image_aspect`.

    Args:
        section: of the recipe.
        options: of `AutoImageProcessor.from_pretrained`.
    """
    clip = AutoImageProcessor.from_pretrained(section.vision, revision=section.vision_revision, **options)
    if section.image_aspect == "squash":
        return type(clip).from_dict(clip.to_dict() | {"size": dict(clip.crop_size), "do_center_crop": False})
    if section.image_aspect == "pad":
        if clip.backend == "pil":
            from transformers import LlavaImageProcessorPil as LlavaImageProcessor
        else:  # without torchvision, importing it warns
            from transformers import LlavaImageProcessor
        # CLIP's behind LLaVA-1.5's bars. They are int(255 * mean), as llama.cpp's are.
        return LlavaImageProcessor.from_dict(clip.to_dict() | {"do_pad": True})
    return clip


def check_backbones(section: ModelSection) -> PreTrainedConfig:
    """Sees that two backbones can be joined, before a weight is loaded; returns the language model's configuration.

    Raises:
        CheckpointError: a backbone is missing or of another architecture.
        RecipeError: the tower has no such layer, or a picture's tiles do not fit into the context.
    """
    vision = str(section.vision)
    config = _backbone_config(vision, section.vision_revision, ("clip", "clip_vision_model"), "CLIP")
    layers, layer = getattr(config, "vision_config", config).num_hidden_layers, section.vision_feature_layer
    if section.vision_feature == "patches" and not -layers - 1 <= layer <= layers:
        what = f"model.vision_feature_layer is {layer}, and {vision} has {layers} layers"
        raise RecipeError(what, hint=f"Write a number from {-layers - 1} to {layers}; -2 is usual.")
    text = _backbone_config(str(section.language), section.language_revision, ("phi3",), "Phi-3")
    _check_tiles(section, config, text)
    return text


def _check_tiles(section: ModelSection, vision: PreTrainedConfig, text: PreTrainedConfig) -> None:
    config = MultimodalPhiConfig(
        vision_config=getattr(vision, "vision_config", vision), vision_feature=section.vision_feature
    )
    tiles, context = section.tiles or 0, min(text.max_position_embeddings, text.original_max_position_embeddings)
    if tiles and (needed := (1 + tiles) * config.num_image_tokens) > context:
        reads = f"{section.language} reads {context:,}"
        what = f"model.tiles is {tiles}: a picture takes up to {needed:,} tokens, and {reads}"
        raise RecipeError(what, hint=f"Write at most {max(0, context // config.num_image_tokens - 2)}.")


def _join(
    config: MultimodalPhiConfig,
    tower: CLIPVisionModelWithProjection,
    language_model: Phi3ForCausalLM,
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
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.convert_tokens_to_ids("<|end|>"), tokenizer.eos_token_id],
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    return model.eval()


def _backbone_config(name: str, revision: str | None, model_types: tuple[str, ...], kind: str) -> PreTrainedConfig:
    refuse_missing_folder(name)
    refuse_without_weights(Path(name))
    with readable(name):
        config = AutoConfig.from_pretrained(name, revision=revision)
    if config.model_type not in model_types:
        raise CheckpointError(
            f"a model of type {config.model_type!r} where a {kind} model is needed",
            where=name,
            hint=f"Give a checkpoint of the {kind} architecture.",
        )
    return config


def _check_tokens(processor: MultimodalPhiProcessor, config: MultimodalPhiConfig, where: str) -> int:
    """The id of `<|image|>`, which must have a spare row; the chat's control tokens must exist already."""
    vocabulary = processor.tokenizer.get_vocab()
    for token in ("<|user|>", "<|assistant|>", "<|end|>"):
        if token not in vocabulary:
            raise CheckpointError(
                f"the tokenizer lacks {token}", where=where, hint="Use an instruct model of the Phi-3 family."
            )
    rows = config.text_config.vocab_size
    if processor.image_token_id >= rows:
        raise CheckpointError(
            f"the embedding has {rows} rows and no spare one for <|image|> (id {processor.image_token_id})",
            where=where,
            hint="Use a checkpoint whose embedding is padded past its tokenizer, as Phi-3.5's is.",
        )
    return processor.image_token_id


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
