"""Recipes: what to train, on what, and how; read from YAML, checked, changed by `section.key=value`, written back.

A refusal is one line with the file, the line, the key and the nearest valid name. YAML is read by the 1.2 rules:
`1e-4` is a number, and `no` a word. Only `Recipe.training_arguments` imports torch, when a run is about to begin.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from ..core.files import write_file
from ..core.numeric_format import Machine, numeric_format
from ..errors import RecipeError
from .training_arguments import RESERVED, STRICT, argument_fault, argument_names, dry_run, invalid_values
from .yaml import Dumper, Loader, Locations, parse

if TYPE_CHECKING:
    from transformers import TrainingArguments

SHIPPED = Path(__file__).parent / "shipped"
FIXED: dict[str, Any] = {"remove_unused_columns": False, "label_names": ["labels"], "disable_tqdm": False}
"""Arguments that every run of Eden has."""

# Names people bring from older transformers and other tools, spelt unlike those of today.
RENAMED = {"group_by_length": "train_sampling_strategy", "lr": "learning_rate", "warmup_ratio": "warmup_steps"}


class _Section(BaseModel):
    model_config = STRICT | ConfigDict(extra="forbid", frozen=True)


class ModelSection(_Section):
    """Where the model comes from: one complete multimodal model, or two backbones to be joined."""

    base: str | None = Field(None, description="a complete model: `eden-tiny`, an artifact's folder, or a hub id")
    base_revision: str | None = Field(None, description="of `base` on the hub: a branch, tag or commit")
    vision: str | None = Field(None, description="a CLIP checkpoint: hub id or folder")
    vision_revision: str | None = Field(None, description="of `vision` on the hub: a branch, tag or commit")
    language: str | None = Field(None, description="a Phi3-architecture checkpoint: hub id or folder")
    language_revision: str | None = Field(None, description="of `language` on the hub: a branch, tag or commit")
    speech: str | None = Field(None, description="a Whisper: size, hub id or folder; null is the base's own, or small")
    vision_feature: Literal["pooled", "patches"] = Field("pooled", description="one token an image, or one a patch")
    vision_feature_layer: int = Field(-2, description="hidden layer of the patches, negative from the end")
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="number format of the frozen weights")
    force_format: bool = Field(False, description="compute in bfloat16 even where this machine has to emulate it")
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
    lora_dropout: float = Field(0.1, ge=0, lt=1, description="share of an adapter's inputs set to zero")
    target_modules: list[str] = Field(["o_proj", "qkv_proj", "gate_up_proj"], min_length=1, description="linear layers")


class SourceSection(_Section):
    """One data set of a mix."""

    path: str = Field(description="a data set, as `eden check` takes it")
    images: str | None = Field(None, description="folder of the images; null is the data file's own")
    audio: str | None = Field(None, description="folder of the recordings; null is the data file's own")
    weight: float = Field(1.0, gt=0, description="samples drawn from it in an epoch, relative to the other weights")


class DataSection(_Section):
    """What to learn from. Relative paths are relative to the working directory, not to the recipe."""

    path: str | None = Field(None, description="a data set, as `eden check` takes it")
    images: str | None = Field(None, description="folder of the images; null is the data file's own")
    audio: str | None = Field(None, description="folder of the recordings; null is the data file's own")
    sources: list[SourceSection] | None = Field(None, min_length=1, description="several data sets in place of `path`")
    eval_path: str | None = Field(None, description="a file of held-out samples")
    eval_fraction: float = Field(0.02, ge=0, lt=1, description="share of the samples held out without an eval_path")
    split_seed: int = Field(0, description="chooses which samples are held out without an eval_path")
    split_by: Literal["media", "sample"] = Field(
        "media", description="samples of the same picture or recording are held out together, or each by itself"
    )
    max_length: int = Field(4096, gt=0, description="tokens of the longest sample allowed; nothing is cut off")
    features: Literal["live", "cached", "auto"] = Field(
        "live", description="images go through the tower in each step, or once into a cache, or whichever is faster"
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


class Recipe(_Section):
    """A training run in five sections.

    Without `lora` the projector alone is trained (the align stage); without `quantization` the language model is held
    in `model.dtype`. `training` is passed to `transformers.TrainingArguments`: its names are theirs.
    """

    model: ModelSection
    quantization: QuantizationSection | None = None
    lora: LoraSection | None = None
    data: DataSection
    training: dict[str, Any]

    _locations: Locations = PrivateAttr(default_factory=Locations)

    @model_validator(mode="after")
    def _is_possible(self) -> Recipe:
        for key, what, hint in _invalid(self):
            raise PydanticCustomError("invalid", "{what}. {hint}", {"key": key, "what": what, "hint": hint})
        return self

    def on_this_machine(self) -> Recipe:
        """The recipe as this machine computes it: each `bfloat16` as what `core.numeric_format` has in its place.

        Raises:
            RecipeError: it asks for fp16 where there is no GPU.
        """
        machine = Machine.here()
        if machine.device == "cpu" and self.training.get("fp16") is True:
            hint = "Write training.bf16: true, which is bf16 where the machine has it and fp32 elsewhere."
            raise self._locations.error("training.fp16", "a CPU does not compute in fp16", hint)
        here = numeric_format(machine)
        if self.model.force_format or here.name == "bfloat16":
            return self
        changes: dict[str, Any] = {"model": self.model.model_copy(update={"dtype": here.instead_of(self.model.dtype)})}
        if self.quantization is not None:
            compute = here.instead_of(self.quantization.bnb_4bit_compute_dtype)
            changes["quantization"] = self.quantization.model_copy(update={"bnb_4bit_compute_dtype": compute})
        if self.training.get("bf16") is True:
            changes["training"] = self.training | {"bf16": False, "fp16": here.name == "float16"}
        return self.model_copy(update=changes)

    def training_arguments(self, **overrides: Any) -> TrainingArguments:
        """What Trainer takes; on the CPU where there is no CUDA device, as Eden loads its models there.

        Args:
            overrides: arguments of TrainingArguments that replace the recipe's.

        Raises:
            RecipeError: an unknown name, a value of a wrong type, or what TrainingArguments itself refuses.

        """
        import torch
        from transformers import TrainingArguments

        training = {**self.on_this_machine().training, **overrides}
        for key, what, hint in _invalid(self.model_copy(update={"training": training})):
            raise self._locations.error(key, what, hint)
        hints, fields = get_type_hints(TrainingArguments), TrainingArguments.__dataclass_fields__
        hints["fsdp"] = bool | None  # as its documentation says; the annotation still is that of an older way
        for name, value in training.items():
            if fault := argument_fault(value, hints[name], fields[name].metadata.get("choices")):
                raise self._locations.error(f"training.{name}", f"transformers refuses training.{name}", fault)
        training.setdefault("use_cpu", not torch.cuda.is_available())
        # Trainer would show a loss that is NaN as one that is not; fp16 alone has steps that overflow and are skipped.
        training.setdefault("logging_nan_inf_filter", bool(training.get("fp16")))
        try:
            arguments = TrainingArguments(**(training | FIXED))
        except (ValueError, TypeError) as error:
            named = next((name for name in training if re.search(rf"\b{name}\b", str(error))), "")
            raise self._locations.error(f"training.{named}", "transformers refuses it", str(error)) from error
        if failed := dry_run(arguments):
            key, why = failed
            raise self._locations.error(key, f"transformers refuses {key}", why)
        return arguments

    def to_yaml(self) -> str:
        """The recipe with its defaults filled in; `load_recipe` reads it back as an equal recipe."""
        sections, ineffective = self.model_dump(), _ineffective(self)
        for section in ("model", "data"):
            for name in [
                name for name, value in sections[section].items() if value is None or (section, name) in ineffective
            ]:
                del sections[section][name]
        return yaml.dump(sections, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)

    def save(self, path: str | Path) -> Path:
        """Writes `to_yaml`.

        Raises:
            StorageError: the disk is full or the place is not writable.

        """
        return write_file(path, self.to_yaml())


def shipped_recipes() -> list[str]:
    """Names of the recipes inside the package; `load_recipe` takes them."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe.

    Args:
        source: a YAML file, or the name of a shipped recipe.
        overrides: `section.key=value`, the value in YAML (text needs no quotes). `null` takes a key out, so that its
            default holds; `lora=null` takes out the section.

    Raises:
        RecipeError: no such recipe, not YAML, an unknown key, a wrong type or an impossible mix.

    """
    file = Path(source)
    if not file.is_file() and str(source) in shipped_recipes():
        file = SHIPPED / f"{source}.yaml"
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = "no such recipe" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        hint = f"Give a YAML file, or the name of a shipped recipe: {', '.join(shipped_recipes())}."
        raise RecipeError(what, where=str(source), hint=hint) from error
    locations = Locations({(): str(file)})
    tree = parse(text, str(file), locations)
    if not isinstance(tree, dict):
        raise locations.error((), "not a recipe", f"A recipe has the sections {', '.join(Recipe.model_fields)}.")
    for override in overrides:
        _override(tree, locations, override)
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise _refusal(error, locations) from None
    recipe._locations = locations
    return recipe


def _ineffective(recipe: Recipe) -> dict[tuple[str, str], str]:
    """Keys without a meaning beside the others, and why: refused when set, left out when written."""
    reasons: dict[tuple[str, str], str] = {}
    if recipe.model.base is not None:
        for name in ("vision", "vision_revision", "language", "language_revision"):
            reasons["model", name] = "model.base is a complete model"
        reasons["model", "vision_feature"] = reasons["model", "vision_feature_layer"] = "it belongs to the base"
    else:
        reasons["model", "base_revision"] = "it needs model.base"
        if recipe.model.vision_feature == "pooled":
            reasons["model", "vision_feature_layer"] = "it needs model.vision_feature: patches"
    if recipe.data.eval_path is not None:
        reasons["data", "eval_fraction"] = reasons["data", "split_by"] = "data.eval_path is all that is held out"
        if recipe.data.sources is None:
            reasons["data", "split_seed"] = "data.eval_path is all that is held out"
    elif recipe.data.sources is not None:
        reasons["data", "images"] = reasons["data", "audio"] = "each of data.sources names its own"
    return reasons


def _invalid(recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """Every mix that cannot be, as the key to look at, what is wrong, and the hint."""
    model, data, training = recipe.model, recipe.data, recipe.training
    dumped = recipe.model_dump(exclude_unset=True)
    ineffective = [
        (f"{at}.{name}", why) for (at, name), why in _ineffective(recipe).items() if dumped[at].get(name) is not None
    ]
    backbones = [key for key, _ in ineffective if key in ("model.vision", "model.language")]
    if backbones:
        hint = f"Remove either; as overrides: {' '.join(f'{key}=null' for key, _ in ineffective)}, or model.base=null."
        yield "model.base", f"model.base excludes {' and '.join(backbones)}: it is a complete model", hint
    if not model.base and not (model.vision and model.language):
        yield "model", "nothing to start from", "Give model.base, or both model.vision and model.language."
    yield from _invalid_sources(data)
    for key, why in ineffective:
        yield key, f"{key} says nothing here: {why}", f"Remove it; as an override: {key}=null."
    if recipe.quantization is not None and not recipe.quantization.load_in_4bit:
        yield "quantization.load_in_4bit", "a quantization section without 4 bits", "Write quantization: null."
    if data.row_length is not None and training.get("train_sampling_strategy") == "group_by_length":
        hint = "Remove either; a batch then holds per_device_train_batch_size rows."
        yield "data.row_length", "packed rows are of one length, and train_sampling_strategy would group them", hint
    names = argument_names()
    for name in training:
        if name not in names:
            yield f"training.{name}", f"unknown key training.{name}", _did_you_mean(name, names)
        if reason := RESERVED.get("push_to_hub" if name.startswith("hub_") else name, ""):
            yield f"training.{name}", f"training.{name} cannot be set: {reason}", "Remove it."
    yield from invalid_values(training)
    if not training.get("output_dir"):
        yield "training.output_dir", "training.output_dir is missing", "Name the folder to train into."
    for old in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
        new = old.replace("gradient", "activation")
        if old in training and new in training:  # TrainingArguments would drop the old one without a word
            yield f"training.{old}", f"training.{old} and training.{new} are the same", f"Set training.{new} only."
    if training.get("fp16") is True and training.get("bf16") is True:
        yield "training.fp16", "training.fp16 and training.bf16 exclude each other", "Keep one."
    if "eval_steps" in training and "eval_strategy" not in training:
        yield "training.eval_steps", "training.eval_steps alone never evaluates", "Add training.eval_strategy: steps."
    if training.get("eval_strategy", "no") != "no" and not data.eval_path and not data.eval_fraction:
        hint = "Give data.eval_path, a data.eval_fraction above 0, or training.eval_strategy=no."
        yield "training.eval_strategy", "training.eval_strategy needs held-out samples, and there are none", hint


def _invalid_sources(data: DataSection) -> Iterator[tuple[str, str, str]]:
    if data.path is None and data.sources is None:
        yield "data.path", "data.path is missing", "Add data.path."
    if data.path is not None and data.sources is not None:
        hint = "Remove either; as an override: data.path=null or data.sources=null."
        yield "data.sources", "data.sources excludes data.path: it names all data sets", hint
    named: dict[str, str] = {}
    for source in data.sources or []:
        path = source.path if "://" in source.path else os.path.realpath(source.path)
        if path in named:
            too = "" if source.path == named[path] else f", also as {source.path}"
            hint = "Name it once, with a greater weight."
            yield "data.sources", f"data.sources names {named[path]} twice{too}", hint
        named[path] = source.path


def _override(tree: dict[str, Any], locations: Locations, text: str) -> None:
    name, equals, written = text.partition("=")
    key = tuple(name.strip().split("."))
    where = f"override {text}"
    if not equals or not all(key):
        raise RecipeError("not an override", where=text, hint="Write section.key=value, as training.max_steps=100.")
    for location in [location for location in locations if location[: len(key)] == key]:
        del locations[location]  # whatever stood there is replaced whole
    for length in range(1, len(key) + 1):
        locations.setdefault(key[:length], where)
    branch: Any = tree
    for depth, part in enumerate(key[:-1], 1):
        if branch.get(part) is None:
            branch[part] = {}
        branch = branch[part]
        if not isinstance(branch, dict):
            outer = ".".join(key[:depth])
            raise locations.error(key, f"{outer} is no section", f"Write {outer}=value.")
    written = written.strip()
    is_plain = written[:1] not in {"[", "{", '"', "'"}  # then it is one scalar to its end: a path may hold ` #`
    value = Loader("").plain(written) if is_plain else parse(written, where, Locations())
    if value is None and key[-1] in branch:
        del branch[key[-1]]
    else:
        branch[key[-1]] = value


def _refusal(error: ValidationError, locations: Locations) -> RecipeError:
    """The first fault in one line; a misspelt key comes before the missing one it explains."""
    fault = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    kind, key, value, message = fault["type"], fault["loc"], fault["input"], fault["msg"]
    name = ".".join(map(str, key))
    if kind == "invalid":
        return locations.error(fault["ctx"]["key"], fault["ctx"]["what"], fault["ctx"]["hint"])
    if kind == "extra_forbidden":
        sections = {"quantization": QuantizationSection, "lora": LoraSection, "data": DataSection}
        section: Any = Recipe if len(key) == 1 else sections.get(str(key[0]), ModelSection)
        if key[:2] == ("data", "sources"):
            section = SourceSection
        return locations.error(key, f"unknown key {name}", _did_you_mean(str(key[-1]), section.model_fields))
    if kind == "missing":
        return locations.error(key, f"{name} is missing", f"Add {name}.")
    hints = {"string_type": f'Write it in quotes: "{value}".', "bool_type": "Write true or false."}
    hint = hints.get(kind, f"Change {name}.")
    return locations.error(key, f"{name} is {value!r:.60}: {message[:1].lower()}{message[1:]}", hint)


def _did_you_mean(name: str, names: Collection[str]) -> str:
    close = [RENAMED[name]] if name in RENAMED else difflib.get_close_matches(name, names, n=1)
    if close and close[0] in names:
        return f"Did you mean {close[0]}?"
    return f"Valid here: {', '.join(names)}." if len(names) < 20 else "Its names are transformers.TrainingArguments'."
