"""MultimodalPhiConfig: one vision config, one language model's config, and how the first feeds the second."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, CLIPVisionConfig, Phi3Config, PreTrainedConfig

from .families import families_of
from .towers import layers_of_features, tower_of


@strict
class MultimodalPhiConfig(PreTrainedConfig):
    """Configuration of a CLIP + ProjectionBlock + language model.

    Args:
        vision_config: of a tower of a known kind (`towers.py`), or its dictionary, which is a CLIP's if it names no
            `model_type`; `Dv` is its `projection_dim` when pooled (a SigLIP's `hidden_size`), its `hidden_size` for
            patches.
        text_config: of a language model of a known family (`families.py`), or its dictionary, which is a Phi-3's if it
            names no `model_type`; `D` is its `hidden_size`.
        vision_feature: `pooled` is the tower's own image embedding, one token an image; `patches` is LLaVA's choice,
            the patch states of `vision_feature_layer` without the class token, one token a patch.
        vision_feature_layer: index into the tower's hidden states, used by `patches` only; -2 is LLaVA's.
        image_aspect: how a picture becomes the tower's square in training: `crop` keeps its middle, as CLIP does; `pad`
            keeps all of it between bars of the mean colour, as LLaVA-1.5 does; `squash` stretches it. What does it is
            the image processor, which is saved beside.
        tiles: beside the whole of a picture, up to this many tiles of it are seen (`tiling`), each as an image.
        speech_model: the Whisper that turns speech into text before this model reads it: a size, hub id or folder.
        image_token_id: the id that marks where an image embedding goes; a spare row of Phi-3.5's embedding matrix.
        backbones: where the frozen parts came from, `{"vision": {"id", "revision"}, "language": {...}}`, or None
            for a model that stands on its own.

    Raises:
        ValueError: tower or language model are of another kind.

    Source: LLaVA, https://arxiv.org/abs/2304.08485 and https://arxiv.org/abs/2310.03744.
    """

    model_type = "multimodal_phi"
    sub_configs_defaults = {"vision_config": CLIPVisionConfig, "text_config": Phi3Config}
    sub_configs = sub_configs_defaults  # what transformers before 5.23 asks for; it does not make them of dictionaries

    vision_config: Any = None
    text_config: Any = None
    vision_feature: Literal["pooled", "patches"] = "pooled"
    vision_feature_layer: int = -2
    image_aspect: Literal["crop", "pad", "squash"] = "crop"
    tiles: int = 0
    speech_model: str = "small"
    image_token_id: int = 32011
    projector_hidden_act: str = "gelu"
    backbones: dict[str, dict[str, str | None]] | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        for name, usual in self.sub_configs.items():
            if not isinstance(part := getattr(self, name), PreTrainedConfig):
                setattr(self, name, AutoConfig.for_model(**{"model_type": usual.model_type} | (part or {})))
        families_of(self.text_config.model_type)  # these refuse another kind
        tower_of(self.vision_config)
        super().__post_init__(**kwargs)

    @property
    def image_feature_size(self) -> int:
        """`Dv`, the width of one image feature."""
        vision = self.vision_config
        return int(getattr(vision, tower_of(vision).pooled_size if self.vision_feature == "pooled" else "hidden_size"))

    @property
    def num_feature_layers(self) -> int:
        """Layers of the tower that make the features."""
        return layers_of_features(self.vision_config.num_hidden_layers, self.vision_feature, self.vision_feature_layer)

    @property
    def num_image_tokens(self) -> int:
        """`N`, the number of tokens one image takes; a picture with tiles is several."""
        vision = self.vision_config
        return 1 if self.vision_feature == "pooled" else int(vision.image_size // vision.patch_size) ** 2


__all__ = ["MultimodalPhiConfig"]
