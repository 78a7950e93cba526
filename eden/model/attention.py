"""Attention over several samples in one row, at the cost of each alone.

    row      a a a b b c c c c        a token of b sees the b's before it and nothing of a or c:
             1 . . . . . . . .        of the row's 81 pairs, only those of the triangles are computed
             1 1 . . . . . . .
             1 1 1 . . . . . .
             . . . 1 . . . . .
             . . . 1 1 . . . .
             . . . . . 1 . . .
             . . . . . 1 1 . .
             . . . . . 1 1 1 .
             . . . . . 1 1 1 1

As flash-attention's kernels for rows of several sequences (https://arxiv.org/abs/2307.08691), with torch's own.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED_SDPA = "packed_sdpa"
"""The name under which `attn_implementation` knows it; without `sample_lengths` it is `sdpa`."""


def packed_sdpa_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    sample_lengths: Sequence[int] | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function; queries, keys and values are [1, heads, T, head size].

    Args:
        module: the layer.
        query: of every token.
        key: the same.
        value: the same.
        attention_mask: only without `sample_lengths`.
        sample_lengths: tokens of each sample of the row; they sum up to T.
        sliding_window: how far a token sees back.
        kwargs: transformers' own.

    Returns:
        The attended values [1, T, heads, head size].
    """
    if sample_lengths is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, sliding_window=sliding_window, **kwargs
        )
    samples = zip(*(states.split(list(sample_lengths), dim=2) for states in (query, key, value)), strict=True)
    outputs = []
    for of_sample in samples:
        length, window = of_sample[0].shape[2], None
        if sliding_window is not None and length > sliding_window:
            positions = torch.arange(length, device=query.device)
            window = (positions <= positions[:, None]) & (positions > positions[:, None] - sliding_window)
        outputs.append(sdpa_attention_forward(module, *of_sample, window, **kwargs)[0])
    return torch.cat(outputs, dim=1), None


def takes_flat_rows(implementation: str | None) -> bool:
    """True for attention to which samples in one row cost no more than each alone; None is a run's own choice."""
    return implementation in (None, PACKED_SDPA) or implementation.startswith("flash_attention")


AttentionInterface.register(PACKED_SDPA, packed_sdpa_forward)
AttentionMaskInterface.register(PACKED_SDPA, sdpa_mask)
