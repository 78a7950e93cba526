"""What differs between vision towers, as data: one row for each kind. All else is the same code."""

from dataclasses import dataclass
from typing import Any

from transformers import CLIPVisionModelWithProjection, PreTrainedConfig, SiglipVisionModel


@dataclass(frozen=True)
class Tower:
    """A kind of vision tower.

    Attributes:
        title: for people.
        whole: `model_type` of a checkpoint that holds the text half as well.
        model_class: transformers' own.
        class_tokens: states before those of the patches.
        first_norm: the module between embeddings and layers, if there is one.
        pooled: the output that is one embedding an image.
        pooled_size: the configuration's name of its width.
    """

    title: str
    whole: str
    model_class: Any
    class_tokens: int
    first_norm: str | None
    pooled: str
    pooled_size: str


TOWERS = {
    "clip_vision_model": Tower(
        "CLIP", "clip", CLIPVisionModelWithProjection, 1, "pre_layrnorm", "image_embeds", "projection_dim"
    ),
    # Also SigLIP2 of a fixed resolution, which is published under the same name.
    "siglip_vision_model": Tower("SigLIP", "siglip", SiglipVisionModel, 0, None, "pooler_output", "hidden_size"),
}
"""By `model_type`."""


def layers_of_features(layers: int, feature: str, layer: int) -> int:
    """How many of a tower's layers make the features; those behind them are not computed.

    Args:
        layers: that the tower has.
        feature: `pooled` or `patches`.
        layer: of the patches: an index into the hidden states, of which the first is the layers' input.
    """
    return layers if feature == "pooled" else range(layers + 1)[layer]


def tower_of(config: PreTrainedConfig) -> Tower:
    """The kind of a tower, by its configuration or that of a whole checkpoint.

    Raises:
        ValueError: it is of another kind; the message names those that there are.
    """
    for model_type, tower in TOWERS.items():
        if config.model_type in (model_type, tower.whole):
            return tower
    known = "CLIP (clip), SigLIP and SigLIP2 of a fixed resolution (siglip)"
    raise ValueError(f"no vision tower of type {config.model_type!r} is known; those that work: {known}")
