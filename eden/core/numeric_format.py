"""The number format a machine computes in, decided in one place.

bf16 halves memory and is fast where a processor has units for it. Where it has none, a CPU emulates it, many times
slower than fp32, and a GPU refuses or emulates it. So `bfloat16` in a recipe means: bf16 where the machine has it.
A small model on a CPU computes in fp32 all the same: what bf16 would save is minutes, and its probabilities are worse.
"""

from __future__ import annotations

import functools
import os
import platform
import time
from dataclasses import dataclass
from typing import Literal, TypeAlias

Name: TypeAlias = Literal["bfloat16", "float16", "float32"]
AMPERE = (8, 0)
"""The first compute capability with bf16 units."""

SMALL_TO_TRAIN, SMALL_TO_ANSWER = 10**7, 10**9
"""Models with fewer parameters, by `estimated_parameters`, compute in fp32 on a CPU even where it has bf16 units.

Training is mostly large products, which those units speed up several times. For a model like eden-tiny they save from
nothing to half of a run of minutes (docs/log.md), and what it learns in fp32 is better calibrated.
"""


@dataclass(frozen=True)
class Machine:
    """What decides.

    Attributes:
        device: `cpu`, `cuda` or `mps`.
        capability: of a CUDA device.
        bf16_units: whether a CPU has instructions for products of bf16, and torch uses them.
    """

    device: str
    capability: tuple[int, int] | None = None
    bf16_units: bool = False

    @classmethod
    def here(cls, device: str | None = None) -> Machine:
        """The machine that runs this; its GPU if it has one, unless another device is named."""
        import torch

        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device.startswith("cuda"):
            return cls("cuda", torch.cuda.get_device_capability(device))
        return cls(device, bf16_units=device == "cpu" and _cpu_has_bf16_units())


@dataclass(frozen=True)
class NumericFormat:
    """What a machine computes in where bf16 is asked for, and why."""

    name: Name
    reason: str

    def __str__(self) -> str:
        return f"computing in {self.name}: {self.reason}"

    def instead_of(self, asked: Name) -> Name:
        """The format for what a recipe asks: halves become this one, float32 stays."""
        return asked if asked == "float32" else self.name


def numeric_format(
    machine: Machine | None = None, parameters: int | None = None, *, training: bool = False
) -> NumericFormat:
    """The format of a machine for a model.

    Args:
        machine: None is this one.
        parameters: of the model, by `estimated_parameters`; None is a large one.
        training: it trains; else it answers.
    """
    machine = machine or Machine.here()
    if machine.device == "cuda":
        capability = machine.capability or (0, 0)
        of = f"a GPU of compute capability {capability[0]}.{capability[1]}"
        if capability >= AMPERE:
            return NumericFormat("bfloat16", f"{of} has bf16 units")
        return NumericFormat("float16", f"{of} has no bf16 units; training scales the loss")
    small = parameters is not None and parameters < (SMALL_TO_TRAIN if training else SMALL_TO_ANSWER)
    if machine.device == "cpu" and machine.bf16_units and small:
        gain = "is better calibrated" if training else "is fast and exact"
        return NumericFormat("float32", f"a small model on a CPU {gain} in it")
    if machine.device == "cpu" and machine.bf16_units:
        return NumericFormat("bfloat16", "this CPU has bf16 units")
    if machine.device == "cpu":
        return NumericFormat("float32", "this CPU has no bf16 units and would emulate it")
    return NumericFormat("float32", f"bf16 was not tried on {machine.device}")


def estimated_parameters(layers: int, width: int) -> int:
    """Of a language model, by the usual estimate: 12 * layers * width^2, tables not counted."""
    return 12 * layers * width**2


def emulation_factor() -> float:
    """How many times longer a layer takes here in bf16 than in fp32, forward and backward; measured within a second."""
    import torch

    def seconds(dtype: torch.dtype) -> float:
        layer, rows = torch.nn.Linear(256, 256, dtype=dtype), torch.ones(64, 256, dtype=dtype)
        layer(rows).sum().backward()
        started = time.perf_counter()
        for _ in range(4):
            layer(rows).sum().backward()
        return time.perf_counter() - started

    return seconds(torch.bfloat16) / seconds(torch.float32)


@functools.cache
def _cpu_has_bf16_units() -> bool:
    """AVX-512 BF16 or AMX on x86, as torch and oneDNN are allowed to use them; what oneDNN says elsewhere.

    oneDNN also takes bf16 on any AVX-512, but without the units at no more than the speed of fp32.
    """
    import torch

    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    limited = any(os.environ.get(name, "").upper().startswith(("AVX2", "SSE", "AVX512_CORE_VNNI")) for name in LIMITS)
    if limited or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""Variables by which a user holds oneDNN to older instructions."""
