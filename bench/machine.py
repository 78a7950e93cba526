"""What a figure was measured on."""

import os
import platform
from pathlib import Path

import torch


def describe() -> str:
    """Cores, instruction set and library of this machine, in one line."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    units = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    return f"{os.cpu_count()} cores {platform.machine()} ({', '.join(units)}){gpu}, torch {torch.__version__}"
