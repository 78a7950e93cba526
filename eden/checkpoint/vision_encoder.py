"""The frozen half of a model: images to features, without the language model beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoImageProcessor, PreTrainedModel

from ..core.environment import versions
from ..core.private_api import attention_of
from ..errors import CheckpointError
from ..model import MultimodalPhiConfig
from ..model.modeling import run_tower
from ..model.tiling import pixels_of
from ..model.towers import tower_of
from ..recipe import ModelSection, Recipe
from .artifact import Artifact
from .backbones import LoadOptions, open_image_processor, readable
from .checkpoint import Checkpoint

TOWER = "model.vision_tower."
"""What a whole model's weights of the tower are called by."""


@dataclass(frozen=True)
class VisionEncoder:
    """A vision tower, and how its pixels are made and its features taken.

    Attributes:
        tower: CLIP's or SigLIP's, frozen.
        image_processor: the tower's, or LLaVA's, which pads.
        feature: `pooled` or `patches`.
        layer: of the patches.
        tiles: of a picture, at most.
    """

    tower: PreTrainedModel
    image_processor: Any
    feature: str
    layer: int
    tiles: int = 0

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> VisionEncoder:
        """That of a loaded model."""
        config = checkpoint.config
        return cls(
            checkpoint.core.model.vision_tower,
            checkpoint.processor.image_processor,
            config.vision_feature,
            config.vision_feature_layer,
            config.tiles,
        )

    def pixels(self, images: Sequence[PIL.Image.Image]) -> torch.Tensor:
        """RGB pictures -> pixels [I,3,H,W], float32, of them and their tiles."""
        return pixels_of(images, self.image_processor, self.tiles)

    @torch.inference_mode()
    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels [I,3,H,W] -> features [I,N,Dv], as the model itself takes them."""
        return run_tower(self.tower, pixels.to(self.tower.device), self.feature, self.layer).pooler_output

    @property
    def shape(self) -> tuple[int, int]:
        """Of an image's features: [N,Dv]."""
        config = MultimodalPhiConfig(vision_config=self.tower.config, vision_feature=self.feature)
        return config.num_image_tokens, config.image_feature_size

    def to(self, dtype: torch.dtype) -> VisionEncoder:
        """The same in another number format; its weights are those of this one, rounded or not."""
        if dtype == self.tower.dtype:
            return self
        tower = type(self.tower)(self.tower.config)
        tower.load_state_dict(self.tower.state_dict())
        tower = tower.to(self.tower.device, dtype).eval().requires_grad_(False)
        return VisionEncoder(tower, self.image_processor, self.feature, self.layer, self.tiles)

    @property
    def fingerprint(self) -> str:
        """Equal for encoders that give equal features: weights, kernels, architecture, layer, pixels, number format,
        and the versions of the libraries that decode, resize and compute.
        """
        digest = hashlib.sha256()
        architecture = {key: value for key, value in self.tower.config.to_dict().items() if not key.startswith("_")}
        del architecture["dtype"]  # what was once saved; the weights below have their own
        made_by = versions("torch", "transformers", "pillow", "numpy")
        taken = [self.feature, self.layer, attention_of(self.tower.config), made_by]
        taken += [self.tiles] if self.tiles else []  # what was made before there were any stays good
        for part in (architecture, self.image_processor.to_dict(), taken):
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
        for name, weight in sorted(self.tower.state_dict().items()):
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.contiguous().cpu().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def load_vision_encoder(recipe: Recipe) -> VisionEncoder:
    """The encoder of a recipe's model, without loading anything else of it.

    Raises:
        CheckpointError: the model is missing or incomplete.
        RecipeError: the recipe asks for another aspect of pictures than its base was trained with.
    """
    section = recipe.on_this_machine().model
    options = LoadOptions(None, section.dtype, None)
    if section.base is None:
        return _of_backbone(section, options)
    return _of_artifact(Artifact.of_base(section), options)


def _of_artifact(artifact: Artifact, options: LoadOptions) -> VisionEncoder:
    if artifact.base:
        return _of_artifact(Artifact.open(artifact.base, revision=artifact.base_revision), options)
    if artifact.is_adapter:
        return _of_backbone(artifact.backbones, options)
    folder, config = artifact.folder, artifact.config
    with readable(folder):
        tower = tower_of(config.vision_config).model_class(config.vision_config)
        tower.load_state_dict(_tower_weights(folder))
        image_processor = AutoImageProcessor.from_pretrained(folder)
    tower = tower.to(options.torch_device, options.torch_dtype(config.text_config)).eval().requires_grad_(False)
    return VisionEncoder(tower, image_processor, config.vision_feature, config.vision_feature_layer, config.tiles)


def _of_backbone(section: ModelSection, options: LoadOptions) -> VisionEncoder:
    name, revision = str(section.vision), section.vision_revision
    with readable(name):
        dtype = getattr(torch, str(options.dtype))
        kind = tower_of(AutoConfig.from_pretrained(name, revision=revision))
        tower = kind.model_class.from_pretrained(name, revision=revision, dtype=dtype)
        image_processor = open_image_processor(section)
    tower = tower.to(options.torch_device).eval().requires_grad_(False)
    return VisionEncoder(
        tower, image_processor, section.vision_feature, section.vision_feature_layer, section.tiles or 0
    )


def _tower_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tower's part of a model's weights, in one file or several; the rest is not read."""
    weights: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            weights |= {n.removeprefix(TOWER): file.get_tensor(n) for n in file.keys() if n.startswith(TOWER)}  # noqa: SIM118
    if not weights:
        raise CheckpointError("the folder holds no vision tower", where=str(folder), hint="Restore the folder.")
    return weights
