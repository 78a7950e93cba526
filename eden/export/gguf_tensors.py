"""Tensors into a GGUF file, one at a time: a model is never in memory twice.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

FORMATS = ("f16", "bf16", "q8_0")
"""Number formats of matrices; what is no matrix is always f32, and so is one that a format cannot hold."""
LARGEST_F16 = 65504.0


def write_tensors(writer: Any, path: Path, tensors: dict[str, tuple[torch.Tensor, str]]) -> None:
    """Writes a file whose metadata are in the writer already.

    Args:
        writer: a `gguf.GGUFWriter` without a file.
        path: the new file.
        tensors: by GGUF's names, each with its number format: `f32` or one of `FORMATS`.
    """
    import gguf
    import numpy as np

    kinds = {name: gguf.GGMLQuantizationType[outtype.upper()] for name, (_, outtype) in tensors.items()}
    for name, (tensor, _) in tensors.items():
        block, size = gguf.GGML_QUANT_SIZES[kinds[name]]
        nbytes = math.prod(tensor.shape) // block * size
        writer.add_tensor_info(name, list(tensor.shape), np.dtype(np.float32), nbytes, raw_dtype=kinds[name])
    with closing(writer):
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, (tensor, _) in tensors.items():
            numbers = tensor.detach().float().cpu().contiguous().numpy()
            writer.write_tensor_data(gguf.quants.quantize(numbers, kinds[name]))


def number_format(tensor: torch.Tensor, outtype: str) -> str:
    """`outtype` for what llama.cpp multiplies by, `f32` for all else."""
    if tensor.ndim != 2:
        return "f32"
    if outtype == "q8_0":  # in blocks, each within a row
        holds = tensor.shape[-1] % 32 == 0
    else:
        holds = outtype != "f16" or float(tensor.detach().abs().max()) <= LARGEST_F16
    return outtype if holds else "f32"
