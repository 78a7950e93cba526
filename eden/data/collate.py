"""Examples become a batch: padded to rows of one width, or one after the other in a single row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from ..model.loss import IGNORE_INDEX


def collate(
    examples: Sequence[Mapping[str, Any]], pad_token_id: int, side: Literal["left", "right"] = "right"
) -> dict[str, torch.Tensor]:
    """Pads examples of `MultimodalPhiProcessor.encode` to the longest of them.

    Args:
        examples: B examples; their images are joined in reading order, whatever number each of them holds. Those that
            only ask need no `labels`.
        pad_token_id: fills `input_ids`; padding is masked out and never supervised.
        side: `right` to train, `left` to generate (the answer must follow the prompt without a gap).

    Returns:
        `input_ids`, `attention_mask` and, if the examples have them, `labels` [B,T]; `pixel_values` [I,3,H,W] or
        `image_features` [I,N,Dv] if any example has images.
    """
    width = max(len(example["input_ids"]) for example in examples)  # T

    def padded(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
        gaps = [[fill] * (width - len(row)) for row in rows]
        filled = [gap + list(row) if side == "left" else list(row) + gap for row, gap in zip(rows, gaps, strict=True)]
        return torch.tensor(filled, dtype=torch.long)

    ids = [example["input_ids"] for example in examples]
    batch = {
        "input_ids": padded(ids, pad_token_id),
        "attention_mask": padded([[1] * len(row) for row in ids], 0),
    }
    if "labels" in examples[0]:
        batch["labels"] = padded([example["labels"] for example in examples], IGNORE_INDEX)
    return batch | _images(examples)


def collate_flat(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Examples with labels in one row, without padding; the model keeps them apart by their lengths.

    Args:
        examples: of `MultimodalPhiProcessor.encode`.

    Returns:
        `input_ids` and `labels` [1,T]; `sample_lengths`, which sum up to T; the images as from `collate`.
    """
    lengths = [len(example["input_ids"]) for example in examples]
    joined = {
        name: torch.cat([torch.as_tensor(example[name], dtype=torch.long) for example in examples]).unsqueeze(0)
        for name in ("input_ids", "labels")
    }
    # A sample's first token is nothing that the sample before it could know.
    joined["labels"][0, [sum(lengths[:index]) for index in range(len(lengths))]] = IGNORE_INDEX
    return {**joined, "sample_lengths": lengths, **_images(examples)}


def _images(examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """The images of all examples, in reading order, as pixels or as features."""
    found = {}
    for name in ("pixel_values", "image_features"):
        if images := [example[name] for example in examples if name in example]:
            found[name] = torch.cat(images)
    return found
