"""What the machine and this process are like."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")

CGROUP = Path("/sys/fs/cgroup")
"""Where Linux says what the container that this process is in may use."""


def run_in_thread(work: Callable[[], Result]) -> Result:
    """Does the work in a thread that ends with it.

    GNU OpenMP keeps a pool of threads for every thread that ever computed. Once all pools together have more threads
    than the machine has cores, none waits actively for its next piece of work any more: on two cores, whoever
    computes after a thread that is left over, as from loading a model, is a third slower for it.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


@contextmanager
def single_threaded_pool(threads: int) -> Iterator[Executor]:
    """Threads that compute on one core each: for work of many equal pieces, where a piece shared by all cores would
    wait for the slowest of them, again and again.
    """
    import torch

    whole = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(whole)  # threads that begin later take over what was set last


@contextmanager
def ignore_sigint() -> Iterator[None]:
    """Processes that are started in the block do not hear Ctrl-C, which is this process's to answer."""
    in_charge = threading.current_thread() is threading.main_thread()  # in others, Ctrl-C is somebody else's
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_charge else None
    try:
        yield
    finally:
        if in_charge:
            signal.signal(signal.SIGINT, previous)


@contextmanager
def processes(begin: Callable[..., None] | None = None, *arguments: Any) -> Iterator[Executor]:
    """Other processes to compute in, one a core; they end with this one, however it ends.

    On Linux they are forks, which have everything imported and no copy of what `arguments` hold. They may use neither
    CUDA nor OpenMP.

    Args:
        begin: called once in each process.
        *arguments: what it is called with.
    """
    start = "fork" if sys.platform == "linux" else "spawn"
    context = multiprocessing.get_context(start)
    pool = ProcessPoolExecutor(cores(), context, _begin, (os.getpid(), begin, arguments))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def cores() -> int:
    """How many cores this process may use, the quota of the container it is in included."""
    number = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = CGROUP / "cpu.max"
    if quota.exists() and (limit := quota.read_text().split())[0].isdecimal():
        number = min(number, max(1, round(int(limit[0]) / int(limit[1]))))
    return number


def _begin(parent: int, begin: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer

    import psutil

    process = psutil.Process(parent)

    def end_with_parent() -> None:
        with suppress(psutil.Error):
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    if begin is not None:
        begin(*arguments)


def free_memory() -> int:
    """Bytes that this process can take before the machine, or the container it is in, has none left."""
    import psutil

    free = int(psutil.virtual_memory().available)
    limit, used = (CGROUP / f"memory.{name}" for name in ("max", "current"))
    if limit.exists() and (most := limit.read_text().strip()).isdecimal():
        free = min(free, int(most) - int(used.read_text()))
    return free


def peak_memory_mib() -> float:
    """The most memory this process has held, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux's getrusage would count the process that started this one, too
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    import psutil

    if (peak := getattr(psutil.Process().memory_info(), "peak_wset", None)) is not None:  # Windows
        return float(peak) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
