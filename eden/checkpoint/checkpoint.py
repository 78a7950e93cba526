"""Models on disk: assembled from backbones, loaded in bf16 or 4-bit, adapted with LoRA, saved, merged.

An artifact is one folder. With `adapter_config.json` it holds LoRA and the projector and names its base; without, it
holds the whole model. Either loads here, and only here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..core import files, private_api
from ..core.location import EDEN_TINY, find_model, is_local, refuse_without_weights
from ..core.numeric_format import Name
from ..errors import CheckpointError
from ..model import MultimodalPhiConfig, MultimodalPhiForConditionalGeneration, MultimodalPhiProcessor
from ..model.attention import PACKED_SDPA
from ..model.families import families_of
from ..recipe import LoraSection, ModelSection, QuantizationSection, Recipe
from .adapters import is_lora, merge_first, to_go_on
from .artifact import Artifact
from .backbones import LoadOptions, aspect_of, assemble, check_backbones, check_vision_layers, context_of, readable
from .calibration import Calibration
from .four_bits import dequantize, is_dequantized

if TYPE_CHECKING:
    import torch
    from peft import PeftModel  # PEFT takes seconds to import; a model without adapters does not wait for it


@dataclass(frozen=True)
class Checkpoint:
    """A model with the processor that feeds it.

    Attributes:
        model: `MultimodalPhiForConditionalGeneration`, or a `PeftModel` around it.
        processor: its processor.
        name: what the user asked for.
        base: the model an adapter trained on this one must name; None for a model assembled from backbones,
            which `config.backbones` names instead.
        base_revision: the commit of `base` on the hub; None of a folder.
        calibration: of its decisions, if it was calibrated.
    """

    model: MultimodalPhiForConditionalGeneration | PeftModel
    processor: MultimodalPhiProcessor
    name: str
    base: str | None
    base_revision: str | None = None
    calibration: Calibration | None = None

    @property
    def is_adapter(self) -> bool:
        """True if the model is a `PeftModel`."""
        return not isinstance(self.model, MultimodalPhiForConditionalGeneration)

    @property
    def core(self) -> MultimodalPhiForConditionalGeneration:
        """The model without PEFT's wrapping (its layers still carry the adapters)."""
        return self.model.get_base_model() if self.is_adapter else self.model

    @property
    def config(self) -> MultimodalPhiConfig:
        return self.core.config

    @property
    def context_length(self) -> int:
        """Tokens the model reads and writes at most, prompt and answer together."""
        return context_of(self.config.text_config)


def load(name: str = EDEN_TINY, options: LoadOptions | None = None, *, revision: str | None = None) -> Checkpoint:
    """Loads an artifact, adapter or whole, ready to answer (evaluation mode).

    Args:
        name: `eden-tiny`, a folder, or a hub id.
        options: number format, quantization and device.
        revision: of the hub repository: a branch, tag or commit.

    Raises:
        CheckpointError: missing, incomplete, of another kind, or an adapter whose base model is gone.
    """
    options = options or LoadOptions()
    artifact = Artifact.open(name, revision=revision)
    if not artifact.is_adapter:
        return _load_whole(artifact, name, options)
    base = _load_base(artifact, options)
    _check_pictures(artifact, base.processor)
    from peft import PeftModel

    with readable(artifact.folder):
        model = PeftModel.from_pretrained(base.model, str(artifact.folder))
    if artifact.speech_model is not None:  # a run may have given its model another speech model than the base has
        base.config.speech_model = artifact.speech_model
    calibration = Calibration.read(artifact.folder)
    return Checkpoint(model.eval(), base.processor, name, base.base, base.base_revision, calibration)


def load_as_stored(name: str, quantization: QuantizationSection | None = None) -> Checkpoint:
    """Loads an artifact in the number format that its base's weights are stored in, whatever this machine prefers.

    Args:
        name: a folder or a hub id.
        quantization: hold the language model's linear layers as the numbers that 4-bit weights stand for.

    Raises:
        CheckpointError: as `load`.
    """
    return load(name, LoadOptions(quantization, _stored_format(name, None), dequantized=True))


def _stored_format(name: str, revision: str | None) -> Name:
    artifact = Artifact.open(name, revision=revision)
    if artifact.is_adapter:
        base, of_base = artifact.base, artifact.base_revision
        if not base:
            base, of_base = artifact.backbones.language, artifact.backbones.language_revision
        return _stored_format(str(base), of_base)
    stored = artifact.content.get("dtype") or artifact.content.get("torch_dtype")
    return stored if stored in ("bfloat16", "float16") else "float32"


def load_processor(name: str, *, revision: str | None = None) -> MultimodalPhiProcessor:
    """The processor alone, without the weights.

    Raises:
        CheckpointError: there is no such model, or it is incomplete.
    """
    folder = find_model(name, revision=revision)
    with readable(folder):
        return MultimodalPhiProcessor.from_pretrained(folder)


def speech_model(name: str, *, revision: str | None = None) -> str:
    """The Whisper that a model's configuration names, known without loading a weight.

    Raises:
        CheckpointError: there is no such model.
    """
    return Artifact.open(name, revision=revision).speech_model or MultimodalPhiConfig().speech_model


def speech_model_of_run(section: ModelSection) -> str:
    """The Whisper that a run hears its data with: the recipe's own, else its base's.

    Raises:
        CheckpointError: the base is missing.
    """
    if section.speech is not None:
        return section.speech
    if section.base is None:
        return MultimodalPhiConfig().speech_model
    return speech_model(section.base, revision=section.base_revision)


def check_model(section: ModelSection) -> None:
    """Sees that a recipe's model is there and of a kind that fits, without reading a weight.

    Raises:
        CheckpointError: a model is missing, not readable, without weights, or of another kind.
        RecipeError: the tower has no such layer, or the base was trained with another aspect of pictures.
    """
    if section.base is None:
        check_backbones(section)
        return
    artifact = Artifact.of_base(section, files=["*.json"])  # refuses another kind
    check_vision_layers(section, artifact.config.num_feature_layers, section.base)
    if is_local(section.base):
        refuse_without_weights(artifact.folder)
    if artifact.base is not None:
        check_model(ModelSection(base=artifact.base, base_revision=artifact.base_revision))
    elif artifact.is_adapter:
        check_backbones(artifact.backbones)


def load_for_training(recipe: Recipe, weights: Mapping[str, torch.Tensor] | None = None) -> Checkpoint:
    """The recipe's model with its adapters: the projector always trains, LoRA if the recipe has it, nothing else.

    Args:
        recipe: of the run.
        weights: of the adapters, by PEFT's names; None starts them afresh, or where a base with adapters has them. Of
            PiSSA they are what `from_pissa` gives, with its recipe.

    Raises:
        CheckpointError: a model of the recipe is missing or does not fit.
    """
    recipe = recipe.on_this_machine()
    section, lora = recipe.model, recipe.lora
    options = LoadOptions(recipe.quantization, section.dtype, section.attn_implementation)
    if section.base is None:
        model, processor = assemble(section, options)
        checkpoint = Checkpoint(model, processor, str(section.language), None)
    else:
        checkpoint, lora, kept = _load_to_train(section.base, section.base_revision, options, lora)
        weights = kept if weights is None else weights
    checkpoint.config.speech_model = speech_model_of_run(section)
    if section.attn_implementation is None and private_api.attention_of(checkpoint.config.text_config) == "sdpa":
        checkpoint.core.model.language_model.set_attn_implementation(PACKED_SDPA)
    private_api.keep_unpacked(checkpoint.core)
    adapted = add_adapters(checkpoint.core, lora, section.vision_trainable_layers)
    adapted.peft_config["default"].base_model_name_or_path = checkpoint.base
    adapted.peft_config["default"].revision = checkpoint.base_revision
    if weights is not None:
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(adapted, dict(weights))
    return Checkpoint(adapted, checkpoint.processor, checkpoint.name, checkpoint.base, checkpoint.base_revision)


def add_adapters(
    model: MultimodalPhiForConditionalGeneration, lora: LoraSection | None, vision_layers: int = 0
) -> PeftModel:
    """Freezes everything, then adds what trains: LoRA on the language model if given, and always the projector.

    What trains is kept in fp32 (an optimizer step in bf16 would round most updates away), and the whole tower with its
    last layers.

    Args:
        model: whose layers get them.
        lora: the adapters' shape.
        vision_layers: the tower's last that make the features, which train as well.

    Raises:
        CheckpointError: the language model has none of the target modules.
    """
    from peft import LoraConfig, get_peft_model

    targets = private_api.NO_TARGETS if lora is None else list(lora.target_modules or usual_targets(model))
    options = ({} if lora is None else lora.model_dump()) | {"target_modules": targets}
    if lora is not None:
        names = {name.rsplit(".", 1)[-1] for name, _ in model.model.language_model.named_modules()}
        if missing := [target for target in targets if target not in names]:
            raise CheckpointError(
                f"the language model has no module {missing[0]!r}",
                where="lora.target_modules",
                hint=f"Write null, for {', '.join(usual_targets(model))}.",
            )
    trained = ["projector", *_last_vision_layers(model, vision_layers)]
    config = LoraConfig(modules_to_save=trained, task_type="CAUSAL_LM", **options)
    if vision_layers:
        model.model.vision_tower.float()
    peft_model = get_peft_model(model, config)
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return peft_model


def _last_vision_layers(model: MultimodalPhiForConditionalGeneration, number: int) -> list[str]:
    """Names of the tower's last layers that make the features."""
    inside = "vision_model." if hasattr(model.model.vision_tower, "vision_model") else ""
    last = model.config.num_feature_layers
    return [f"vision_tower.{inside}encoder.layers.{index}" for index in range(last - number, last)]


def usual_targets(model: MultimodalPhiForConditionalGeneration) -> tuple[str, ...]:
    """The linear layers that adapters go on where a recipe does not say."""
    return families_of(model.config.text_config.model_type)[-1].lora_targets


def save(checkpoint: Checkpoint, folder: str | Path) -> Path:
    """Writes the artifact, adapter or whole, whichever the model is; a full disk leaves what was there.

    Raises:
        StorageError: the disk is full or the folder is not writable.
    """
    config = MultimodalPhiConfig.from_dict(checkpoint.config.to_dict())
    for owner in (config, config.text_config):
        if hasattr(owner, "quantization_config"):
            del owner.quantization_config  # how a run loaded its base is the loader's choice, not the artifact's
    with files.new_folder(folder) as new:
        checkpoint.model.save_pretrained(new)
        if checkpoint.is_adapter:
            (new / "README.md").unlink()  # PEFT's empty model card; Eden writes one from the facts
            config.architectures = [type(checkpoint.core).__name__]
            config.save_pretrained(new)
            checkpoint.core.generation_config.save_pretrained(new)
        checkpoint.processor.save_pretrained(new)
        if checkpoint.calibration is not None:
            checkpoint.calibration.write(new)
    return Path(folder)


def merge(checkpoint: Checkpoint) -> Checkpoint:
    """The same model with its adapters folded into its weights; it stands on its own.

    A weight is added to in fp32 and rounded once, to the number format that the model is loaded in.

    Raises:
        CheckpointError: the model is loaded in 4 bits, where folding would round the adapters away.
    """
    if not checkpoint.is_adapter:
        return checkpoint
    if private_api.is_in_four_bits(checkpoint.core) or is_dequantized(checkpoint.core):
        hint = "Load it without quantization, or with LoadOptions(dequantized=True)."
        raise CheckpointError("a model in 4 bits cannot be merged", where=checkpoint.name, hint=hint)
    from peft.tuners.tuners_utils import BaseTunerLayer

    model, dtype = checkpoint.model, checkpoint.core.model.language_model.embed_tokens.weight.dtype
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer) and hasattr(layer, "merge"):
            layer.float()
            layer.merge()
            layer.get_base_layer().to(dtype)
    merged = model.unload()
    for parameter in merged.parameters():
        parameter.data = parameter.data.to(dtype)
    return Checkpoint(merged, checkpoint.processor, checkpoint.name, checkpoint.name, None, checkpoint.calibration)


def count_parameters(checkpoint: Checkpoint) -> dict[str, dict[str, int]]:
    """Parameters by part of the model: `{"projector": {"trained": n, "frozen": n}, ...}`.

    A 4-bit weight counts as the number of weights it stands for, not as the bytes that hold it.
    """
    counts: dict[str, dict[str, int]] = {}
    for name, parameter in checkpoint.model.named_parameters():
        if private_api.KEPT_ORIGINAL in name:  # PEFT keeps the projector as it was beside the one in training
            continue
        parts = ("vision_tower", "projector", "language_model", "lm_head")
        part = next((part for part in parts if f"{part}." in name), "other")
        if "lora_" in name:
            part = "lora"
        row = counts.setdefault(part, {"trained": 0, "frozen": 0})
        row["trained" if parameter.requires_grad else "frozen"] += private_api.number_of_weights(parameter)
    return counts


def _load_whole(artifact: Artifact, name: str, options: LoadOptions) -> Checkpoint:
    folder, config = artifact.folder, artifact.config
    processor = load_processor(str(folder))
    _check_pictures(artifact, processor)
    with readable(folder):
        model = MultimodalPhiForConditionalGeneration.from_pretrained(
            folder,
            config=config,
            dtype=options.torch_dtype(config.text_config),
            **options.for_language_model(config.text_config),
        )
    if options.quantization is not None:
        dequantize(model, always=options.dequantized)
    # `attn_implementation` is the language model's; the tower's features are the same beside every one.
    model.model.vision_tower.set_attn_implementation("sdpa")
    if options.quantization is None:
        model = model.to(options.torch_device)
    is_here = name == EDEN_TINY or Path(name).is_dir()  # else a snapshot of the hub, whose folder is its commit
    base = str(Path(name).resolve()) if Path(name).is_dir() else name
    calibration = Calibration.read(folder)
    return Checkpoint(model.eval(), processor, name, base, None if is_here else folder.name, calibration)


def _check_pictures(artifact: Artifact, processor: MultimodalPhiProcessor) -> None:
    """Sees that a model's configuration says of pictures what its processor, or that of its base, does with them."""
    config = artifact.config
    for key, done in (("image_aspect", aspect_of(processor.image_processor)), ("tiles", processor.tiles)):
        if (said := getattr(config, key)) != done:
            what = f"{key} is {said} in config.json, and {done} in the files of the processor"
            raise CheckpointError(what, where=str(artifact.folder), hint="Restore the files that it was saved with.")


def _load_base(artifact: Artifact, options: LoadOptions) -> Checkpoint:
    try:
        if artifact.base:
            return load(artifact.base, options, revision=artifact.base_revision)
        model, processor = assemble(artifact.backbones, options)
    except CheckpointError as error:
        raise CheckpointError(
            f"its base model cannot be loaded: {error.fault.where}: {error.fault.what}",
            where=str(artifact.folder),
            hint=error.fault.hint or "Put the base model back where it was.",
        ) from error
    return Checkpoint(model, processor, str(artifact.folder), None)


def _load_to_train(
    name: str, revision: str | None, options: LoadOptions, lora: LoraSection | None
) -> tuple[Checkpoint, LoraSection | None, Mapping[str, torch.Tensor] | None]:
    """A recipe's base, its adapters, and the weights that they begin with, if the base is a LoRA adapter itself."""
    artifact = Artifact.open(name, revision=revision)
    if lora is not None and is_lora(artifact):
        return _load_base(artifact, options), *to_go_on(artifact, lora)
    checkpoint = load(name, options, revision=revision)
    return _fold_projector(checkpoint) if checkpoint.is_adapter else checkpoint, lora, None


def _fold_projector(checkpoint: Checkpoint) -> Checkpoint:
    """An align stage's artifact as the start of the next stage: its projector becomes the model's own."""
    if checkpoint.model.peft_config["default"].target_modules != private_api.NO_TARGETS:
        raise CheckpointError(
            "the base is a LoRA adapter, and the recipe has no lora section to go on with it",
            where=checkpoint.name,
            hint=f"Add one, or {merge_first(checkpoint.name)}",
        )
    model = checkpoint.model.merge_and_unload()
    return Checkpoint(model, checkpoint.processor, checkpoint.name, checkpoint.base, checkpoint.base_revision)
