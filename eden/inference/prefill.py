"""Reading the questions: images once each, prompts a bounded number of tokens at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from cachetools import LRUCache
from transformers import DynamicCache

from ..checkpoint import Checkpoint
from ..data.collate import collate


class ImageMemory:
    """Features of the images seen last: one that comes again, as in each turn of a chat, is not encoded again.

    Args:
        checkpoint: the model.
        capacity: images remembered.
    """

    def __init__(self, checkpoint: Checkpoint, capacity: int):
        self._checkpoint = checkpoint
        self._features: LRUCache[bytes, torch.Tensor] = LRUCache(capacity)  # by content

    def encode(self, pixels: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Images, each [3,H,W], as their features, each [N,Dv]; those not remembered go through the tower together."""
        keys = [_digest(image) for image in pixels]
        new = {key: image for key, image in zip(keys, pixels, strict=True) if key not in self._features}
        known = {key: self._features[key] for key in keys if key in self._features}
        if new:
            model = self._checkpoint.core.model
            batch = torch.stack(list(new.values())).to(self._checkpoint.core.device)
            # Copies: a part of a batch would keep the whole of it in memory.
            known |= zip(new, [features.clone() for features in model.encode_images(batch)], strict=True)
        for key in keys:
            self._features[key] = known[key]
        return [known[key] for key in keys]


class Prefill:
    """Prompts on their way into the batch: several short ones at once, or one of any length in parts.

    Args:
        checkpoint: the model.
        prompts: the ids of each.
        features: the image features of all of them in reading order, each [N,Dv].
    """

    def __init__(self, checkpoint: Checkpoint, prompts: Sequence[Sequence[int]], features: Sequence[torch.Tensor]):
        self.lengths = [len(ids) for ids in prompts]
        self.cache = DynamicCache()
        device = checkpoint.core.device
        batch = collate([{"input_ids": ids} for ids in prompts], checkpoint.processor.tokenizer.pad_token_id)
        self._model = checkpoint.model
        self._ids = batch["input_ids"].to(device)  # [B,T]
        # Without padding there is nothing to mask but the future, which faster kernels do on their own.
        self._mask = batch["attention_mask"].to(device) if len(set(self.lengths)) > 1 else None
        # In one list [1, tokens, Dv]: a part of a prompt may end amid an image.
        self._features = torch.cat(list(features)).unsqueeze(0) if features else None
        self._is_image = batch["input_ids"] == checkpoint.config.image_token_id
        self._done = 0

    def advance(self, max_tokens: int) -> torch.Tensor | None:
        """Reads on, `max_tokens` tokens at most of a single prompt, or all prompts of several.

        Returns:
            The logits [B,V] behind each prompt's last token once all is read, else None.
        """
        rows, width = self._ids.shape
        start, stop = self._done, width if rows > 1 else min(width, self._done + max_tokens)
        inputs: dict[str, Any] = {"input_ids": self._ids[:, start:stop]}
        if self._features is not None and (number := int(self._is_image[:, start:stop].sum())):
            before = int(self._is_image[:, :start].sum())
            inputs["image_features"] = self._features[:, before : before + number]
        last = torch.tensor(self.lengths, device=self._ids.device).unsqueeze(1) - 1 - start  # [B,1]
        output = self._model(
            **inputs,
            attention_mask=None if self._mask is None else self._mask[:, :stop],
            position_ids=torch.arange(start, stop, device=self._ids.device).expand(rows, -1),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=last if stop == width else 1,
        )
        self._done = stop
        return output.logits[:, 0].float() if stop == width else None


def _digest(image: torch.Tensor) -> bytes:
    return hashlib.sha256(image.contiguous().cpu().view(torch.uint8).numpy().tobytes()).digest()
