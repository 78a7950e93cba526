"""Recipes: what to train, on what, and how; read from YAML, checked, changed by `section.key=value`, written back.

A refusal is one line with the file, the line, the key and the nearest valid name. YAML is read by the 1.2 rules:
`1e-4` is a number, and `no` a word. Only `Recipe.training_arguments` imports torch, when a run is about to begin.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import PrivateAttr, ValidationError

from ..core.files import write_file
from ..core.location import find_model, read_json
from ..core.numeric_format import Machine, NumericFormat, emulation_factor, estimated_parameters, numeric_format
from ..errors import CheckpointError, RecipeError
from .rules import Faults, argument_faults, did_you_mean, faults, ineffective, optimizer_faults
from .sections import (
    DataSection,
    LoraSection,
    ModelSection,
    QuantizationSection,
    RehearsalSection,
    Sections,
    SourceSection,
)
from .yaml import Locations, dump, parse, plain

if TYPE_CHECKING:
    from transformers import TrainingArguments

SHIPPED = Path(__file__).parent / "shipped"
FIXED: dict[str, Any] = {"remove_unused_columns": False, "label_names": ["labels"], "disable_tqdm": False}
"""Arguments that every run of Eden has."""


class Recipe(Sections):
    """A training run in five sections.

    Without `lora` the projector alone is trained (the align stage); without `quantization` the language model is held
    in `model.dtype`. `training` is passed to `transformers.TrainingArguments`: its names are theirs.
    """

    _locations: Locations = PrivateAttr(default_factory=Locations)

    @property
    def is_pissa(self) -> bool:
        """Whether adapters begin as the largest singular values of the base's weights, which are taken out of these."""
        return self.lora is not None and str(self.lora.init_lora_weights).startswith("pissa")

    def override(self, overrides: Sequence[str]) -> Recipe:
        """The recipe with overrides in it, as `load_recipe` takes them.

        Raises:
            RecipeError: one cannot be read, or the recipe would be none that can be run.
        """
        return _validated(self.model_dump(exclude_unset=True), Locations(self._locations), overrides)

    def on_this_machine(self) -> Recipe:
        """The recipe as this machine computes it: each `bfloat16` as what `core.numeric_format` has in its place for a
        model of this size.

        Raises:
            RecipeError: it asks for fp16 where there is no GPU.
        """
        machine = Machine.here()
        if machine.device == "cpu" and self.training.get("fp16") is True:
            hint = "Write training.bf16: true, which is bf16 where the machine has it and fp32 elsewhere."
            raise self._locations.error("training.fp16", "a CPU does not compute in fp16", hint)
        here = self._chosen(machine)
        if self.model.force_format or here.name == "bfloat16":
            return self
        changes: dict[str, Any] = {"model": self.model.model_copy(update={"dtype": here.instead_of(self.model.dtype)})}
        if self.quantization is not None:
            compute = here.instead_of(self.quantization.bnb_4bit_compute_dtype)
            changes["quantization"] = self.quantization.model_copy(update={"bnb_4bit_compute_dtype": compute})
        if self.training.get("bf16") is True:
            changes["training"] = self.training | {"bf16": False, "fp16": here.name == "float16"}
        return self.model_copy(update=changes)

    def numeric_format(self) -> NumericFormat:
        """What a run computes in on this machine, and why."""
        machine = Machine.here()
        here = self._chosen(machine)
        asked_for = (
            "bfloat16" if self.training.get("bf16") else "float16" if self.training.get("fp16") else self.model.dtype
        )
        if asked_for != "bfloat16":
            return NumericFormat(asked_for, "the recipe says so")
        if self.model.force_format and here.name != "bfloat16":
            why = f"forced, in place of {here.name}"
            if not machine.bf16_units:
                why = f"forced; {here.reason}, {emulation_factor():.0f} times slower than in {here.name}"
            return NumericFormat("bfloat16", why)
        return here

    def _chosen(self, machine: Machine) -> NumericFormat:
        """The format in place of bfloat16; the size of the model is looked up only where it matters."""
        parameters = self._parameters() if machine.device == "cpu" and machine.bf16_units else None
        return numeric_format(machine, parameters, training=True)

    def _parameters(self) -> int | None:
        """Of the language model, estimated by its config.json; None if that is not to be had, which is found later."""
        model = self.model
        name, revision = (model.base, model.base_revision) if model.base else (model.language, model.language_revision)
        try:
            config = read_json(find_model(str(name), revision=revision, files=["config.json"]) / "config.json")
        except CheckpointError:
            return None
        text = config.get("text_config", config)
        try:
            return estimated_parameters(int(text["num_hidden_layers"]), int(text["hidden_size"]))
        except (KeyError, TypeError, ValueError):  # of another kind of model, which is refused when it is opened
            return None

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
        self._refuse(faults(self.model_copy(update={"training": training})))
        self._refuse(argument_faults(training))
        training.setdefault("use_cpu", not torch.cuda.is_available())
        # Trainer would show a loss that is NaN as one that is not; fp16 alone has steps that overflow and are skipped.
        training.setdefault("logging_nan_inf_filter", bool(training.get("fp16")))
        try:
            arguments = TrainingArguments(**(training | FIXED))
        except (ValueError, TypeError) as error:
            named = next((name for name in training if re.search(rf"\b{name}\b", str(error))), "")
            raise self._locations.error(f"training.{named}", "transformers refuses it", str(error)) from error
        self._refuse(optimizer_faults(arguments))
        return arguments

    def _refuse(self, faults: Faults) -> None:
        for fault in faults:
            raise self._locations.error(*fault)

    def to_yaml(self) -> str:
        """The recipe with its defaults filled in; `load_recipe` reads it back as an equal recipe."""
        sections, ignored = self.model_dump(), ineffective(self)
        for section in ("model", "data"):
            for name in [
                name for name, value in sections[section].items() if value is None or (section, name) in ignored
            ]:
                del sections[section][name]
        return dump(sections)

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
    return _validated(tree, locations, overrides)


def _validated(tree: dict[str, Any], locations: Locations, overrides: Sequence[str]) -> Recipe:
    for override in overrides:
        _override(tree, locations, override)
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise _refusal(error, locations) from None
    recipe._locations = locations
    recipe._refuse(faults(recipe))
    return recipe


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
    value = plain(written) if is_plain else parse(written, where, Locations())
    if value is None and key[-1] in branch:
        del branch[key[-1]]
    else:
        branch[key[-1]] = value


def _refusal(error: ValidationError, locations: Locations) -> RecipeError:
    """The first fault in one line; a misspelt key comes before the missing one it explains."""
    fault = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    kind, key, value, message = fault["type"], fault["loc"], fault["input"], fault["msg"]
    name = ".".join(map(str, key))
    if kind == "extra_forbidden":
        sections = {"quantization": QuantizationSection, "lora": LoraSection, "data": DataSection}
        section: Any = Recipe if len(key) == 1 else sections.get(str(key[0]), ModelSection)
        if key[:2] == ("data", "sources"):
            section = SourceSection
        if key[:2] == ("data", "rehearsal") and len(key) > 2:
            section = RehearsalSection
        return locations.error(key, f"unknown key {name}", did_you_mean(str(key[-1]), section.model_fields))
    if kind == "missing":
        return locations.error(key, f"{name} is missing", f"Add {name}.")
    hints = {"string_type": f'Write it in quotes: "{value}".', "bool_type": "Write true or false."}
    hint = hints.get(kind, f"Change {name}.")
    return locations.error(key, f"{name} is {value!r:.60}: {message[:1].lower()}{message[1:]}", hint)
