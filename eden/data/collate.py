"""Examples become a batch. The only place of the package that pads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from ..model.processing import IGNORE_INDEX


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
        `input_ids`, `attention_mask` and, if the examples have them, `labels` [B,T]; `pixel_values` [I,3,H,W] if any
        example has images.
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
    if pixels := [example["pixel_values"] for example in examples if "pixel_values" in example]:
        batch["pixel_values"] = torch.cat(pixels)
    return batch
