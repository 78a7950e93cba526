"""Vision in the words of llama.cpp: CLIP's tower and the projector as LLaVA's (`mmproj`, projector `mlp`).

    Eden       patches, class token    layers   states of the patches   norm       linear_1  GELU  linear_2
    llama.cpp  v.patch_embd, v.class_embd   v.blk.*                     v.post_ln  mm.0      GELU  mm.2

The projector's norm stands where CLIP has one for its last states, which LLaVA does not use. llama.cpp approximates
GELU by tanh.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import Checkpoint
from ..errors import CheckpointError
from ..model import MultimodalPhiConfig, ProjectionBlock
from ..model.towers import tower_of
from .gguf_tensors import number_format, write_tensors

PROJECTOR = {"norm": "v.post_ln", "linear_1": "mm.0", "linear_2": "mm.2"}


def check_vision(config: MultimodalPhiConfig, name: str) -> None:
    """Looks whether llama.cpp's LLaVA computes what a model's vision does.

    Args:
        config: the model's.
        name: of the model, for the error.

    Raises:
        CheckpointError: it does not.
    """
    vision, epsilon, fault = config.vision_config, ProjectionBlock(1, 1).norm.eps, None
    if config.vision_feature == "pooled":
        what = "llama.cpp cannot see with one pooled embedding an image"
        raise CheckpointError(what, where=name, hint="Train with model.vision_feature=patches, or use --to hf.")
    if (tower := tower_of(vision)).title != "CLIP":
        raise CheckpointError(f"no GGUF file is written of a {tower.title} tower", where=name, hint="Use --to hf.")
    if config.tiles:
        hint = "Train with model.tiles=0, or use --to hf."
        raise CheckpointError("llama.cpp cannot see a picture in Eden's tiles", where=name, hint=hint)
    if vision.layer_norm_eps != epsilon:
        fault = f"the tower's norms have an epsilon of {vision.layer_norm_eps:g}, the projector's {epsilon:g}"
    elif vision.hidden_act not in ("quick_gelu", "gelu"):
        fault = f"the tower's activation is {vision.hidden_act}"
    elif config.projector_hidden_act not in ("gelu", "gelu_pytorch_tanh"):
        fault = f"the projector's activation is {config.projector_hidden_act}"
    elif config.num_feature_layers == 0:
        fault = "the features are those before the first layer"
    if fault is not None:
        raise CheckpointError(f"llama.cpp cannot see as it does: {fault}", where=name, hint="Use --to hf.")


def write_vision(checkpoint: Checkpoint, name: str, path: Path) -> None:
    """Writes the tower, up to the layer whose states are the features, and the projector.

    Args:
        checkpoint: a merged model whose vision was checked.
        name: of the model.
        path: the new file.
    """
    import gguf

    vision, image_processor = checkpoint.config.vision_config, checkpoint.processor.image_processor
    layers = checkpoint.config.num_feature_layers
    writer = gguf.GGUFWriter(None, "clip")
    writer.add_type(gguf.GGUFType.MMPROJ)
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_projection_dim(checkpoint.config.text_config.hidden_size)
    writer.add_vision_image_size(vision.image_size)
    writer.add_vision_patch_size(vision.patch_size)
    writer.add_vision_image_mean(image_processor.image_mean)
    writer.add_vision_image_std(image_processor.image_std)
    writer.add_vision_embedding_length(vision.hidden_size)
    writer.add_vision_feed_forward_length(vision.intermediate_size)
    writer.add_vision_head_count(vision.num_attention_heads)
    writer.add_vision_attention_layernorm_eps(vision.layer_norm_eps)
    writer.add_vision_use_gelu(vision.hidden_act == "gelu")  # else it is quick_gelu
    writer.add_vision_block_count(layers)
    # Without it llama.cpp leaves out one more: https://github.com/ggml-org/llama.cpp/issues/25817
    writer.add_array("clip.vision.feature_layer", [layers])
    write_tensors(writer, path, dict(_tensors(checkpoint, layers)))


def _tensors(checkpoint: Checkpoint, layers: int) -> Iterator[tuple[str, tuple[torch.Tensor, str]]]:
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, layers)
    vision = checkpoint.core.model.vision_tower.vision_model
    for name, tensor in vision.named_parameters():
        layer = re.match(r"encoder\.layers\.(\d+)\.", name)
        if name.startswith("pre_layrnorm.") or (layer is not None and int(layer[1]) < layers):
            module, kind = name.rsplit(".", 1)
            yield f"{names[f'vision_tower.vision_model.{module}']}.{kind}", (tensor, number_format(tensor, "f16"))
    yield from _embeddings(vision.embeddings)
    for name, tensor in checkpoint.core.model.projector.named_parameters():
        module, kind = name.split(".")
        yield f"{PROJECTOR[module]}.{kind}", (tensor, number_format(tensor, "f16"))


def _embeddings(embeddings: Any) -> Iterator[tuple[str, tuple[torch.Tensor, str]]]:
    """Patches and class token, each with its position already added, and no positions beside.

    llama.cpp's LLaVA puts the class token behind the patches, but gives out positions and takes features as if it stood
    before them (https://github.com/ggml-org/llama.cpp/issues/25814). A patch keeps a position that is in a bias of its
    own, in either order. What is left of the fault is that the first patch is dropped and the class token seen instead,
    behind the last.
    """
    positions = embeddings.position_embedding.weight.detach()  # [1+N,Dv]
    yield "v.class_embd", (embeddings.class_embedding.detach() + positions[0], "f32")
    yield "v.patch_embd.weight", (embeddings.patch_embedding.weight, "f32")
    yield "v.patch_embd.bias", (positions[1:], "f32")
    yield "v.position_embd.weight", (torch.zeros_like(positions), "f32")
