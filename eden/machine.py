"""What the machine and this process are like."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")


def in_a_thread(work: Callable[[], Result]) -> Result:
    """Does the work in a thread that ends with it.

    GNU OpenMP keeps a pool of threads for every thread that ever computed. Once all pools together have more threads
    than the machine has cores, none waits actively for its next piece of work any more: on two cores, whoever
    computes after a thread that is left over, as from loading a model, is a third slower for it.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def peak_memory_mib() -> float:
    """The most memory this process has held, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux's getrusage would count the process that started this one, too
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
