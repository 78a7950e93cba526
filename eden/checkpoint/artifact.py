"""What is in a model's folder, read once and without a weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..core.location import find_model, is_local, read_json
from ..errors import CheckpointError, RecipeError
from ..model import MultimodalPhiConfig, MultimodalPhiForConditionalGeneration
from ..recipe import ModelSection, load_recipe
from .backbones import readable

RECIPE = "recipe.yaml"
"""Of the run that made it."""


@dataclass(frozen=True)
class Artifact:
    """A model's folder. The model that an adapter was trained on is `base`, or is made of `backbones`.

    Attributes:
        folder: where it is.
        content: of config.json.
        is_adapter: true if it holds LoRA and the projector, false if it holds the whole model.
        base: the model's name; None for a whole model, and for an adapter on backbones.
        base_revision: of `base` on the hub.
    """

    folder: Path
    content: Mapping[str, Any]
    is_adapter: bool
    base: str | None
    base_revision: str | None

    @classmethod
    def open(cls, name: str, *, revision: str | None = None, files: list[str] | None = None) -> Artifact:
        """Reads the folder that `core.location.find_model` finds.

        Raises:
            CheckpointError: there is no such model, or a file of it is damaged.
        """
        folder = find_model(name, revision=revision, files=files)
        adapter = folder / "adapter_config.json"
        of_adapter = read_json(adapter) if adapter.exists() else {}
        base = of_adapter.get("base_model_name_or_path")
        return cls(folder, read_json(folder / "config.json"), adapter.exists(), base, of_adapter.get("revision"))

    @classmethod
    def of_base(cls, section: ModelSection, *, files: list[str] | None = None) -> Artifact:
        """The model that a recipe starts from.

        Raises:
            CheckpointError: there is no such model, a file of it is damaged, or it is of another kind.
            RecipeError: it was trained with another aspect of pictures or other tiles than the recipe asks for.
        """
        artifact = cls.open(str(section.base), revision=section.base_revision, files=files)
        for key in ("image_aspect", "tiles"):
            asked, trained = getattr(section, key), getattr(artifact.config, key)
            if asked not in (None, trained):
                what = f"model.{key} is {asked}, and {section.base} was trained with {trained}"
                raise RecipeError(what, hint="Leave it out, or start anew from model.vision and model.language.")
        return artifact

    @property
    def speech_model(self) -> str | None:
        """The Whisper that the configuration names, if it does."""
        return self.content.get("speech_model")

    @property
    def config(self) -> MultimodalPhiConfig:
        """The model's configuration.

        Raises:
            CheckpointError: it is another kind of model, or the file is damaged.
        """
        if (model_type := self.content.get("model_type")) != MultimodalPhiConfig.model_type:
            raise CheckpointError(
                f"a model of type {model_type!r} cannot see",
                where=str(self.folder),
                hint="Use it as model.language of a recipe and train, or give an Eden artifact.",
            )
        with readable(self.folder):
            return MultimodalPhiConfig.from_pretrained(self.folder)

    @property
    def parameters(self) -> int:
        """The weights of the whole model, counted on one without memory."""
        with torch.device("meta"):
            return int(MultimodalPhiForConditionalGeneration(self.config).num_parameters())

    @property
    def backbones(self) -> ModelSection:
        """What an adapter without a base was trained on, as a recipe says it.

        Raises:
            CheckpointError: the folder does not name it.
        """
        named, feature = self.content.get("backbones"), self.content.get("vision_feature")
        if not named:
            what = "the adapter names neither a base model nor backbones"
            raise CheckpointError(what, where=str(self.folder), hint="Train it again.")
        patches = {"vision_feature_layer": self.content["vision_feature_layer"]} if feature == "patches" else {}
        parts = {part: named[part]["id"] for part in named} | {f"{p}_revision": named[p]["revision"] for p in named}
        pictures = {key: self.content.get(key) for key in ("image_aspect", "tiles")}
        return ModelSection(**parts, vision_feature=feature, **pictures, **patches)

    @property
    def was_in_four_bits(self) -> bool:
        """Whether an adapter was trained beside 4-bit weights; False where the recipe of its run cannot be read."""
        try:
            return self.is_adapter and load_recipe(self.folder / RECIPE).quantization is not None
        except RecipeError:
            return False

    def local_dependency(self) -> str | None:
        """The first folder of this machine that it needs beside its own; None if it stands alone or on the hub."""
        needs = [self.speech_model]
        if self.is_adapter:
            backbones = (self.content.get("backbones") or {}).values()
            needs += [self.base] if self.base else [backbone["id"] for backbone in backbones]
        return next((name for name in needs if name and is_local(name)), None)
