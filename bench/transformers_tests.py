"""transformers' own tests for vision-language models, on Eden's classes: CONTRIBUTING.md says how they are run.

They come with transformers' source, not with its package; here is only what they need to know of Eden.
"""

import unittest

import torch
from tests.vlm_tester import VLMModelTest, VLMModelTester
from transformers import CLIPVisionConfig, Phi3Config
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, MODEL_MAPPING_NAMES

from eden.model import MultimodalPhiConfig, MultimodalPhiForConditionalGeneration, MultimodalPhiModel

# By these tables of names the tests know which class takes labels, and which has no loss.
MODEL_MAPPING_NAMES[MultimodalPhiConfig.model_type] = MultimodalPhiModel.__name__
MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[MultimodalPhiConfig.model_type] = (
    MultimodalPhiForConditionalGeneration.__name__
)


class PatchesTester(VLMModelTester):
    """A model of a few thousand weights, four image tokens an image."""

    config_class = MultimodalPhiConfig
    text_config_class = Phi3Config
    vision_config_class = CLIPVisionConfig
    base_model_class = MultimodalPhiModel
    conditional_generation_class = MultimodalPhiForConditionalGeneration

    def __init__(self, parent: unittest.TestCase, **sizes: object):
        super().__init__(parent, **{"vision_feature": "patches", "projection_dim": 24, **sizes})

    def create_attention_mask(self, input_ids: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(input_ids)


class PooledTester(PatchesTester):
    """The same, one image token an image."""

    def __init__(self, parent: unittest.TestCase):
        super().__init__(parent, vision_feature="pooled", num_image_tokens=1)


class PatchesTest(VLMModelTest, unittest.TestCase):
    model_tester_class = PatchesTester


class PooledTest(VLMModelTest, unittest.TestCase):
    model_tester_class = PooledTester
