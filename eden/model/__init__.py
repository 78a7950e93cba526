"""The model: CLIP vision tower -> projector -> Phi-3, and the processor that feeds it.

Imports nothing of Eden outside this folder, so that the folder can travel with a checkpoint as remote code.
Importing it registers the three classes with transformers' Auto classes.
"""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from .configuration import MultimodalPhiConfig
from .modeling import MultimodalPhiForConditionalGeneration, MultimodalPhiModel
from .processing import MultimodalPhiProcessor
from .projection import ProjectionBlock

AutoConfig.register(MultimodalPhiConfig.model_type, MultimodalPhiConfig, exist_ok=True)
AutoModel.register(MultimodalPhiConfig, MultimodalPhiModel, exist_ok=True)
AutoModelForImageTextToText.register(MultimodalPhiConfig, MultimodalPhiForConditionalGeneration, exist_ok=True)
AutoProcessor.register(MultimodalPhiConfig, MultimodalPhiProcessor, exist_ok=True)

# What `save_pretrained` copies beside the weights, so that a process without Eden can load them (trust_remote_code).
MultimodalPhiConfig.register_for_auto_class()
MultimodalPhiModel.register_for_auto_class("AutoModel")
MultimodalPhiForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
MultimodalPhiProcessor.register_for_auto_class("AutoProcessor")

__all__ = [
    "MultimodalPhiConfig",
    "MultimodalPhiForConditionalGeneration",
    "MultimodalPhiModel",
    "MultimodalPhiProcessor",
    "ProjectionBlock",
]
