"""transformers' own tests for vision-language models, on Eden's classes: CONTRIBUTING.md says how they are run.

They come with transformers' source, not with its package; here is only what they need to know of Eden.
"""

import unittest
from dataclasses import dataclass
from typing import Any

import torch
from tests.test_modeling_common import floats_tensor
from tests.vlm_tester import VLMModelTest, VLMModelTester
from transformers import CLIPVisionConfig, LlamaConfig, Phi3Config, SiglipVisionConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, MODEL_MAPPING_NAMES

from eden.model import MultimodalPhiConfig, MultimodalPhiForConditionalGeneration, MultimodalPhiModel

# By these tables of names the tests know which class takes labels, and which has no loss.
MODEL_MAPPING_NAMES[MultimodalPhiConfig.model_type] = MultimodalPhiModel.__name__
MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[MultimodalPhiConfig.model_type] = (
    MultimodalPhiForConditionalGeneration.__name__
)


@dataclass(frozen=True)
class Kind:
    """A model of a few thousand weights.

    Attributes:
        vision: the tower's configuration.
        language: the language model's.
        feature: `patches`, of which an image has four, or `pooled`.
        tiles: in a row's picture, each an image beside the overview; one row of them, behind a row end.
    """

    vision: Any
    language: Any
    feature: str = "patches"
    tiles: int = 0


KINDS = {
    "ClipPhi3Patches": Kind(CLIPVisionConfig, Phi3Config),
    "ClipPhi3Pooled": Kind(CLIPVisionConfig, Phi3Config, "pooled"),
    "SiglipLlamaPatches": Kind(SiglipVisionConfig, LlamaConfig),
    "SiglipLlamaPooled": Kind(SiglipVisionConfig, LlamaConfig, "pooled"),
    "ClipPhi3Tiles": Kind(CLIPVisionConfig, Phi3Config, tiles=2),
}


class EdenTester(VLMModelTester):  # type: ignore[misc]
    """What all kinds have; a kind's own is made of this."""

    kind: Kind
    config_class = MultimodalPhiConfig
    base_model_class = MultimodalPhiModel
    conditional_generation_class = MultimodalPhiForConditionalGeneration

    def __init__(self, parent: unittest.TestCase):
        kind, self.of_image = self.kind, 4 if self.kind.feature == "patches" else 1
        tokens = self.of_image * (1 + kind.tiles) + bool(kind.tiles)  # and a row end
        super().__init__(
            parent, vision_feature=kind.feature, tiles=kind.tiles, num_image_tokens=tokens, projection_dim=24
        )

    def create_attention_mask(self, input_ids: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(input_ids)

    def create_pixel_values(self) -> torch.Tensor:
        side, images = self.image_size, self.batch_size * (1 + self.kind.tiles)
        return floats_tensor([images, self.num_channels, side, side], scale=1.0)

    def place_image_tokens(self, input_ids: torch.Tensor, config: MultimodalPhiConfig) -> torch.Tensor:
        input_ids = super().place_image_tokens(input_ids, config)
        if self.kind.tiles:
            input_ids[:, self.of_image] = self._safe_token_id()
        return input_ids


class TiledTest(VLMModelTest):  # type: ignore[misc]
    """Where these tests take images for rows, and a row has several, as Qwen2-VL's own have it."""

    def prepare_config_and_inputs_for_generate(self, batch_size: int = 2) -> Any:
        config, inputs = super().prepare_config_and_inputs_for_generate(batch_size)
        images = batch_size * (1 + self.model_tester.kind.tiles)
        return config, inputs | {"pixel_values": self.model_tester.create_pixel_values()[:images]}

    def _image_features_prepare_config_and_inputs(self) -> Any:
        config, inputs = super()._image_features_prepare_config_and_inputs()
        return config, inputs | {"pixel_values": inputs["pixel_values"][: self.model_tester.batch_size]}

    @unittest.skip("It gives each row one image.")
    def test_mismatching_num_image_tokens(self) -> None:
        pass

    @unittest.skip("It gives each row one image.")
    def test_generate_compile_model_forward_fullgraph(self) -> None:
        pass


for name, kind in KINDS.items():
    of_kind = {"kind": kind, "vision_config_class": kind.vision, "text_config_class": kind.language}
    tester = type(f"{name}Tester", (EdenTester,), of_kind)
    bases = (TiledTest if kind.tiles else VLMModelTest, unittest.TestCase)
    globals()[f"{name}Test"] = type(f"{name}Test", bases, {"model_tester_class": tester})
