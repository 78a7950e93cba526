"""What a figure was measured on."""

import os
import platform
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from eden.core.numeric_format import Machine

CpuKind: TypeAlias = Literal["with bf16 units", "without bf16 units"]
"""A figure from one says nothing about the other: they compute in different number formats."""
LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "CT2_FORCE_CPU_ISA")
"""Variables that hold torch, oneDNN, MKL and CTranslate2 to older instructions than the CPU has."""


def describe() -> str:
    """Cores, instruction set and library of this machine, in one line."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    units = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    limits = [f"{name}={os.environ[name]}" for name in LIMITS if name in os.environ]
    cpu = "; ".join(filter(None, (", ".join(units), " ".join(limits))))
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{os.cpu_count()} cores {platform.machine()} ({cpu}), {gpu}, torch {torch.__version__}"


def cpu_kind() -> CpuKind:
    """The kind of this machine's CPU, as the variables above let it be."""
    return "with bf16 units" if Machine.here("cpu").bf16_units else "without bf16 units"
