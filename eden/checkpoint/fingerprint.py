"""By what a model is known again."""

from __future__ import annotations

import hashlib
import json

from .checkpoint import Checkpoint

SAMPLED = 1024
"""Numbers of each tensor that a model is known by."""


def model_fingerprint(checkpoint: Checkpoint, *, without: str | None = None) -> str:
    """A model by its weights, its configuration and its processor, not by its path, which another may fill.

    Args:
        checkpoint: the model.
        without: tensors with this in their names are left out.
    """
    import torch

    config, processor = checkpoint.config.to_dict(), checkpoint.processor
    for name in ("_name_or_path", "transformers_version", "image_aspect", "tiles"):  # the processor tells the last two
        config.pop(name, None)
    parts = [config, processor.chat_template, processor.image_processor.to_dict()]
    parts += [processor.tiles] if processor.tiles else []
    digest = hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode())
    for name, tensor in sorted(checkpoint.model.state_dict().items()):
        if without is not None and without in name:
            continue
        flat = tensor.detach().flatten()
        sample = flat[:: max(1, flat.numel() // SAMPLED)].contiguous().cpu()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
