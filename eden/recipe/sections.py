"""What a recipe may say: its five sections, each value with its type, its default and its bounds."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


class _Section(BaseModel):
    model_config = STRICT | ConfigDict(extra="forbid", frozen=True)


class ModelSection(_Section):
    """Where the model comes from: one complete multimodal model, or two backbones to be joined."""

    base: str | None = Field(None, description="a complete model: `eden-tiny`, an artifact's folder, or a hub id")
    base_revision: str | None = Field(None, description="of `base` on the hub: a branch, tag or commit")
    vision: str | None = Field(None, description="a CLIP or SigLIP checkpoint: hub id or folder")
    vision_revision: str | None = Field(None, description="of `vision` on the hub: a branch, tag or commit")
    language: str | None = Field(None, description="a Phi, SmolLM or Qwen3 checkpoint: hub id or folder")
    language_revision: str | None = Field(None, description="of `language` on the hub: a branch, tag or commit")
    speech: str | None = Field(None, description="a Whisper: size, hub id or folder; null is the base's own, or small")
    vision_feature: Literal["pooled", "patches"] = Field("pooled", description="one token an image, or one a patch")
    vision_feature_layer: int = Field(-2, description="hidden layer of the patches, negative from the end")
    image_aspect: Literal["crop", "pad", "squash"] | None = Field(
        None, description="a picture's middle, or all of it, with bars or stretched; null is the base's own, or crop"
    )
    tiles: int | None = Field(
        None, ge=0, description="of a picture, seen beside the whole of it, at most; null is the base's own, or none"
    )
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="number format of the frozen weights")
    projector_learning_rate: float | None = Field(
        None, gt=0, description="the projector's own, beside what else trains; null is training.learning_rate"
    )
    vision_trainable_layers: int = Field(
        0, ge=0, description="of the tower, the last that make the features, trained as well; they need live features"
    )
    force_format: bool = Field(False, description="compute in bfloat16 even where fp32 or fp16 would be chosen")
    attn_implementation: str | None = Field(None, description="transformers' name of one; null lets it choose")


class QuantizationSection(_Section):
    """How the language model's linear layers are held in memory; names are BitsAndBytesConfig's."""

    load_in_4bit: bool = Field(True, description="always true: `quantization: null` is the way not to quantize")
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = Field("nf4", description="the 4-bit number format")
    bnb_4bit_compute_dtype: Literal["bfloat16", "float32", "float16"] = Field("bfloat16", description="of the products")
    bnb_4bit_use_double_quant: bool = Field(False, description="quantize the scales too: 0.4 bits a weight less")


class LoraSection(_Section):
    """The adapters on the language model; names are peft.LoraConfig's."""

    r: int = Field(64, gt=0, description="rank of the update")
    lora_alpha: int = Field(16, gt=0, description="the update is scaled by lora_alpha / r")
    use_rslora: bool = Field(False, description="it is scaled by lora_alpha / sqrt(r): rank-stabilized LoRA")
    use_dora: bool = Field(False, description="size and direction of a weight are learned apart: DoRA")
    init_lora_weights: bool | str = Field(True, description="how they begin: true, gaussian, or pissa")
    lora_dropout: float = Field(0.1, ge=0, lt=1, description="share of an adapter's inputs set to zero")
    target_modules: list[str] | None = Field(
        None, min_length=1, description="linear layers; null is those of the language model's family"
    )


class SourceSection(_Section):
    """One data set of a mix."""

    path: str = Field(description="a data set, as `eden check` takes it")
    images: str | None = Field(None, description="folder of the images; null is the data file's own")
    audio: str | None = Field(None, description="folder of the recordings; null is the data file's own")
    weight: float = Field(1.0, gt=0, description="samples drawn from it in an epoch, relative to the other weights")


class RehearsalSection(_Section):
    """Text without pictures, learned beside the data so that the language model keeps what it knows."""

    path: str | None = Field(None, description="conversations without pictures, as `eden check` takes them")
    prompts: str | None = Field(
        None, description="in place of `path`: what the base answers itself before training; `shipped`, or a text file"
    )
    weight: float = Field(
        gt=0, description="samples of it in an epoch, relative to 1, or to the sum of all sources' weights"
    )


class DataSection(_Section):
    """What to learn from. Relative paths are relative to the working directory, not to the recipe."""

    path: str | None = Field(None, description="a data set, as `eden check` takes it")
    images: str | None = Field(None, description="folder of the images; null is the data file's own")
    audio: str | None = Field(None, description="folder of the recordings; null is the data file's own")
    sources: list[SourceSection] | None = Field(None, min_length=1, description="several data sets in place of `path`")
    rehearsal: RehearsalSection | None = Field(None, description="text that is learned beside it, held out never")
    eval_path: str | None = Field(None, description="a file of held-out samples")
    eval_fraction: float = Field(0.02, ge=0, lt=1, description="share of the samples held out without an eval_path")
    eval_generate: int | None = Field(
        None, gt=0, description="held-out samples answered at each evaluation; the share that match is exact_match"
    )
    split_seed: int = Field(0, description="chooses which samples are held out without an eval_path")
    split_by: Literal["media", "sample"] = Field(
        "media", description="samples of the same picture or recording are held out together, or each by itself"
    )
    max_length: int = Field(4096, gt=0, description="tokens of the longest sample allowed; nothing is cut off")
    features: Literal["live", "cached", "auto"] = Field(
        "live", description="images go through the tower in each step, or once into a cache, or whichever is faster"
    )
    augment: float | None = Field(
        None, gt=0, le=0.5, description="how far images are turned, scaled and moved at random to learn from; as 0.1"
    )
    row_length: int | None = Field(
        None, gt=0, description="tokens of a row that samples are packed into; null packs none"
    )
    on_error: Literal["fail", "skip"] = Field("fail", description="at a bad sample: stop, or leave it out and list it")

    @property
    def all_sources(self) -> list[SourceSection]:
        """What there is to train on, `path` as a single source."""
        if self.sources is not None:
            return self.sources
        assert self.path is not None
        return [SourceSection(path=self.path, images=self.images, audio=self.audio)]


class Sections(_Section):
    """All five."""

    model: ModelSection
    quantization: QuantizationSection | None = None
    lora: LoraSection | None = None
    data: DataSection
    training: dict[str, Any]
