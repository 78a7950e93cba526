"""The keys and values of the answers being written: rows come and go, and nothing is copied to make one step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin

from ..core.private_api import attention_of
from ..core.processes import free_memory
from ..model.attention import PACKED_SDPA

COLUMN_STEP = 64
"""Room for this many tokens is made at a time."""


def is_out_of_memory(error: Exception | None) -> bool:
    """Whether memory ran out, the device's or the machine's."""
    from accelerate.utils.memory import should_reduce_batch_size

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return error is not None and bool(should_reduce_batch_size(error))


def rows_that_fit(config: PreTrainedConfig, tokens: int, device: torch.device, dtype: torch.dtype) -> int:
    """How many rows of so many tokens there is memory for now, with a fifth of it left to work in; at least one."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    row = 2 * config.num_hidden_layers * config.num_key_value_heads * size * tokens * dtype.itemsize
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    return max(1, int(0.8 * free) // row)


class KVCache(Cache):
    """A key/value cache for one token a row and step, each row of its own length.

        column   0 1 2 3 4 5 6 7
        row 0    k k k k k k . .    6 tokens: the next stands in column 6, which is its position
        row 1    k k k . . . . .
        row 2    k k k k k . . .
        row 3    . . . . . . . .    free

    Rows are aligned on the left, so a token's column is its position and stays so. Running rows are the first ones: a
    step reads views of the memory, and a row that leaves is replaced by the last. Columns behind a row's end hold
    what was left there, finite and masked out. Memory grows in steps, and goes once no row is left.

    Args:
        config: of the language model.
    """

    def __init__(self, config: PreTrainedConfig):
        self._config = config
        self.lengths: list[int] = []  # tokens of each running row
        self.has_reserve = True  # memory is taken for more rows and tokens than there are
        self._layers = [_KVCacheLayer(self) for _ in range(config.num_hidden_layers)]
        super().__init__(layers=list(self._layers))

    def join(self, prompts: Cache, lengths: Sequence[int]) -> None:
        """Adds a row for each prompt.

        Args:
            prompts: their keys and values [rows, heads, T, head size], by layer, padded on the right.
            lengths: tokens of each.
        """
        first, width = len(self.lengths), max(lengths)
        rows = slice(first, first + len(lengths))
        for layer, prompt in zip(self._layers, prompts.layers, strict=True):
            layer.reserve(rows.stop, width, like=prompt.keys)
            for memory, new in ((layer.keys, prompt.keys), (layer.values, prompt.values)):
                memory[rows, :, :width] = new[:, :, :width]
                memory[rows, :, width:] = 0  # whoever was here before might have left infinities
        self.lengths.extend(lengths)

    def leave(self, row: int) -> None:
        """Frees a row; the last running row takes its number."""
        last = len(self.lengths) - 1
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        self.has_reserve = self.has_reserve or last == 0
        for layer in self._layers:
            if last == 0:
                layer.release()
            elif row != last:
                layer.keys[row] = layer.keys[last]
                layer.values[row] = layer.values[last]

    def next_step(self, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        """Makes room for one more token in every row; `count_step` counts it once it is there.

        Returns:
            What the model's forward takes beside the tokens: `position_ids` [B,1], `attention_mask`, and this cache.
        """
        # Columns that the step reads; CUDA's kernels copy masks of odd widths.
        self.width = -(-(max(self.lengths) + 1) // 8) * 8
        for layer in self._layers:
            layer.reserve(len(self.lengths), self.width, like=layer.keys)
        self.columns = torch.tensor(self.lengths, device=device)
        self.rows = torch.arange(len(self.lengths), device=device)
        return {
            "position_ids": self.columns.unsqueeze(1),
            "attention_mask": self._mask(dtype),
            "past_key_values": self,
            "use_cache": True,
        }

    def count_step(self) -> None:
        self.lengths = [length + 1 for length in self.lengths]

    def save_memory(self) -> None:
        """Memory ran out: until no row is left, none is taken but for what there is."""
        self.has_reserve = False
        torch.cuda.empty_cache()

    def _mask(self, dtype: torch.dtype) -> torch.Tensor:
        """Every row's own columns, in the form that the attention implementation takes."""
        positions = torch.arange(self.width, device=self.columns.device)
        ends = self.columns.unsqueeze(1)
        visible = positions <= ends  # [B, width]
        implementation = attention_of(self._config)
        if implementation not in ("sdpa", "eager", PACKED_SDPA):
            return visible  # flash kernels cut the rows out by this mask, and know the window themselves
        if (window := getattr(self._config, "sliding_window", None)) is not None:
            visible &= positions > ends - window
        visible = visible[:, None, None]  # [B, 1, 1, width]
        if implementation != "eager":
            return visible
        return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(
            ~visible, torch.finfo(dtype).min
        )


class _KVCacheLayer(CacheLayerMixin):
    """One layer's keys and values, each [rows, heads, columns, head size]."""

    is_sliding = False
    keys: Any  # a tensor while there are rows, else None
    values: Any

    def __init__(self, cache: KVCache):
        super().__init__()
        self._cache = cache

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes one token a row [B, heads, 1, head size]; returns the columns that the step reads, without a copy."""
        cache = self._cache
        self.keys[cache.rows, :, cache.columns] = key_states[:, :, 0]
        self.values[cache.rows, :, cache.columns] = value_states[:, :, 0]
        running = len(cache.lengths)
        return self.keys[:running, :, : cache.width], self.values[:running, :, : cache.width]

    def reserve(self, rows: int, columns: int, like: torch.Tensor) -> None:
        """Makes the memory at least this large; it grows by doubled rows (eight at most) and half again the columns.

        Args:
            rows: needed.
            columns: needed.
            like: keys of the layer, for their heads, size, format and device.
        """
        has_rows, has_columns = (0, 0) if self.keys is None else (self.keys.shape[0], self.keys.shape[2])
        if rows <= has_rows and columns <= has_columns:
            return
        if self._cache.has_reserve:
            rows = has_rows if rows <= has_rows else max(rows, min(2 * has_rows, has_rows + 8))
            columns = has_columns if columns <= has_columns else max(columns, has_columns * 3 // 2)
        else:
            rows, columns = max(rows, len(self._cache.lengths)), max(columns, *self._cache.lengths, 0)
        columns = -(-columns // COLUMN_STEP) * COLUMN_STEP
        # Zeros, not empty: what is masked is still multiplied by zero, and not-a-number would survive that.
        keys, values = (like.new_zeros(rows, like.shape[1], columns, like.shape[3]) for _ in range(2))
        if running := self._cache.lengths:
            kept = (slice(len(running)), slice(None), slice(max(running)))
            keys[kept], values[kept] = self.keys[kept], self.values[kept]
        self.keys, self.values = keys, values

    def release(self) -> None:
        self.keys = self.values = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing: memory is reserved before a step."""

    def get_seq_length(self) -> int:
        return self._cache.width - 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.width, 0

    def get_max_length(self) -> int:
        return -1
