"""One run in several processes: who is the main one, who goes first, and what they agree on.

torchrun and `accelerate launch` start the processes and tell each its number through the environment; TrainingArguments
connects them. In one process everything here is a matter of course: it is the main one and agrees with itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import RunError

if TYPE_CHECKING:
    import torch

Value = TypeVar("Value")

BARRIER_TIMEOUT = timedelta(days=14)
"""How long a process waits for another's work, such as hearing a whole data set."""

LAUNCHER_TIMEOUT = 5.0
"""Seconds in which a launcher ends the other processes once one has failed; torchrun takes a fraction of one."""


def count() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_distributed() -> bool:
    """True if this is one of several processes."""
    return count() > 1


def rank() -> int:
    """Which of the processes this is; the main one is 0."""
    return int(os.environ.get("RANK", 0)) if is_distributed() else 0


def check_launch() -> None:
    """Sees that a launcher has started what it was asked for.

    Raises:
        RunError: `accelerate launch --cpu --num_processes 2` starts one process, unless it is given MPI's hosts.
    """
    asked_for_several = os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in os.environ
    by_mpi = any(name in os.environ for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"))
    if asked_for_several and "WORLD_SIZE" not in os.environ and not by_mpi:
        raise RunError(
            "accelerate launch --cpu has started one process where several were asked for",
            hint="Write --multi_gpu in place of --cpu, which starts them on a machine without a GPU, too.",
        )


def is_main() -> bool:
    """True in the one process that speaks and writes."""
    return rank() == 0


@contextmanager
def main_first() -> Iterator[None]:
    """The main process goes through the block, then the first of every other machine, then all the rest.

    So what the block keeps on disk is made once, on a disk that is shared as on one that is not.
    """
    first_here = int(os.environ.get("LOCAL_RANK", 0)) == 0
    turn = 0 if is_main() else 1 if first_here else 2
    for _ in range(turn):
        wait()
    yield
    for _ in range(turn, 2):
        wait()


def wait() -> None:
    """Waits until every process has come this far."""
    if _connected():
        import torch.distributed as dist

        dist.barrier(group=_gloo_group())


def any_rank(yes: bool) -> bool:
    """True in every process if `yes` is true in one of them."""
    if not _connected():
        return yes
    import torch
    import torch.distributed as dist

    answer = torch.tensor(int(yes))
    dist.all_reduce(answer, op=dist.ReduceOp.MAX, group=_gloo_group())
    return bool(answer)


def summed(values: torch.Tensor) -> torch.Tensor:
    """The sum over all processes of a tensor on the CPU; in every process the same."""
    if _connected() and values.numel():
        import torch.distributed as dist

        dist.all_reduce(values, group=_gloo_group())
    return values


def from_main(work: Callable[[], Value]) -> Value:
    """What `work` returns in the main process; the others do not do it."""
    if not _connected():
        return work()
    import torch.distributed as dist

    box: list[Any] = [work() if is_main() else None]
    dist.broadcast_object_list(box, src=0, group=_gloo_group())
    return box[0]


def leave() -> None:
    """Disconnects this process from the others, at the very end."""
    if _connected():
        import torch.distributed as dist

        _gloo_group.cache_clear()
        dist.destroy_process_group()


def wait_for_launcher(seconds: float = LAUNCHER_TIMEOUT) -> None:
    """Gives the launcher the time to end this process, whose failure another one has caused and explained.

    A bad recipe fails in every process, and the main one says so; where a process is gone, the others lose their
    connection to it. The launcher ends all at the first failure. Whoever is still there after a while is alone with its
    own failure and has to say so itself.
    """
    if is_distributed():
        time.sleep(seconds)


def _connected() -> bool:
    import torch.distributed as dist

    return is_distributed() and dist.is_available() and dist.is_initialized()


@cache
def _gloo_group() -> Any:
    """A group beside the one that trains: gloo, so that waiting does not occupy a GPU, and without a short timeout."""
    import torch.distributed as dist

    return dist.new_group(backend="gloo", timeout=BARRIER_TIMEOUT)
