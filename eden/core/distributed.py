"""One run in several processes: who is the main one, who goes first, and what they agree on.

torchrun and `accelerate launch` start the processes and tell each its number through the environment; TrainingArguments
connects them. In one process everything here is a matter of course: it is the main one and agrees with itself.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import EdenError, RunError

if TYPE_CHECKING:
    import torch

Value = TypeVar("Value")

SILENCE = timedelta(minutes=10)
"""How long a process waits for another of which it hears nothing."""

ALIVE_EVERY = 2.0
"""Seconds between two times that a process at work, such as hearing a whole data set, lets the others hear of it."""

ELSEWHERE = "another_process"
"""The kind of an error whose cause is in another process, which says so itself if it can."""

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


def main_first(work: Callable[[], Value]) -> Value:
    """What `work` returns here; the main process does it first, then the first of every other machine, then the rest.

    So what it keeps on disk is made once, on a disk that is shared as on one that is not.

    Raises:
        RunError: it has failed in another process.
    """
    if not _connected():
        return work()
    first_here = int(os.environ.get("LOCAL_RANK", 0)) == 0
    turn = 0 if is_main() else 1 if first_here else 2
    done = [_phase(work if phase == turn else None) for phase in range(3)]
    return done[turn]  # type: ignore[return-value]


def together(work: Callable[[], Value]) -> Value:
    """What `work` returns here; all processes do it, and where it fails in one, the others end with the cause.

    Raises:
        RunError: it has failed in another process.
    """
    return _phase(work) if _connected() else work()  # type: ignore[return-value]


def wait() -> None:
    """Waits until every process has come this far."""
    if _connected():
        import torch.distributed as dist

        with _among_all() as group:
            dist.barrier(group=group)


def any_rank(yes: bool) -> bool:
    """True in every process if `yes` is true in one of them."""
    if not _connected():
        return yes
    import torch
    import torch.distributed as dist

    answer = torch.tensor(int(yes))
    with _among_all() as group:
        dist.all_reduce(answer, op=dist.ReduceOp.MAX, group=group)
    return bool(answer)


def summed(values: torch.Tensor) -> torch.Tensor:
    """The sum over all processes of a tensor on the CPU; in every process the same."""
    if _connected() and values.numel():
        import torch.distributed as dist

        with _among_all() as group:
            dist.all_reduce(values, group=group)
    return values


def from_main(work: Callable[[], Value]) -> Value:
    """What `work` returns in the main process; the others do not do it.

    Raises:
        RunError: in a process that is not the main one; it has failed there.
    """
    if not _connected():
        return work()
    import torch.distributed as dist

    box: list[Any] = [_phase(work if is_main() else None)]
    with _among_all() as group:
        dist.broadcast_object_list(box, src=0, group=group)
    return box[0]


def leave() -> None:
    """Disconnects this process from the others, at the very end."""
    if _connected():
        import torch.distributed as dist

        _gloo_groups.cache_clear()
        # What still holds the groups, as a DDP model in a circle of references does, would take them down later with
        # Python's lock held, and wait for a thread of theirs that waits for the lock.
        gc.collect()
        dist.destroy_process_group()


def wait_for_launcher(seconds: float = LAUNCHER_TIMEOUT) -> None:
    """Gives the launcher the time to end this process, whose failure another one has caused and explained.

    A bad recipe fails in every process, and the main one says so; where a process is gone, the others lose their
    connection to it. The launcher ends all at the first failure. Whoever is still there after a while is alone with its
    own failure and has to say so itself.
    """
    if is_distributed():
        time.sleep(seconds)


def wait_after(error: EdenError) -> None:
    """As `wait_for_launcher`, before an error is said: longer if it is known to be another's, which may end slowly."""
    if error.fault.kind != ELSEWHERE:
        wait_for_launcher()
    elif "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun's and Accelerate's; no other launcher is known to end all
        wait_for_launcher(12 * LAUNCHER_TIMEOUT)


def _connected() -> bool:
    import torch.distributed as dist

    return is_distributed() and dist.is_available() and dist.is_initialized()


@cache
def _gloo_groups() -> tuple[Any, Any]:
    """Two groups beside the one that trains: gloo, so that waiting does not occupy a GPU.

    In one they tell each other how they are, in the other all else, which may go on at the same time.
    """
    import torch.distributed as dist

    return dist.new_group(backend="gloo", timeout=SILENCE), dist.new_group(backend="gloo", timeout=SILENCE)


@contextmanager
def _among_all() -> Iterator[Any]:
    """The group for what all processes do; that one of them is gone is one line."""
    try:
        yield _gloo_groups()[1]
    except RuntimeError as error:
        raise _lost() from error


def _lost() -> RunError:
    hint = "What it said itself, or its machine's log, names the cause."
    return RunError("another process is gone or does not answer", hint=hint, kind=ELSEWHERE)


@dataclass(frozen=True)
class _State:
    """How a process is: at work or not, and why it has failed, if so."""

    working: bool
    failure: str | None = None


def _phase(work: Callable[[], Value] | None) -> Value | None:
    """What `work` returns; who has none waits for those that have, however long they are at it.

    Raises:
        RunError: it has failed in another process, which is named with the cause; or one is not heard of any more.
    """
    mine, changed = [_State(work is not None)], threading.Event()
    told: Future[list[_State]] = Future()
    with _among_all():  # the groups are made here if they are not yet, and not in the thread
        threading.Thread(target=_tell_each_other, args=(_gloo_groups()[0], mine, changed, told), daemon=True).start()
    try:
        value = None if work is None else work()
    except BaseException as error:
        mine[0] = _State(False, str(error) if isinstance(error, EdenError) else f"{type(error).__name__}: {error}")
        changed.set()
        with suppress(Exception):
            told.result(5 * ALIVE_EVERY)  # not for ever: this process has something to say
        of_another = error.fault.kind == ELSEWHERE if isinstance(error, EdenError) else isinstance(error, RuntimeError)
        if of_another and told.done():
            _check(told)
        raise
    mine[0] = _State(False)
    changed.set()
    _check(told)
    return value


def _tell_each_other(group: Any, mine: list[_State], changed: threading.Event, told: Future[list[_State]]) -> None:
    """Rounds in which every process says how it is (`mine`), until none is at work any more, or one has failed."""
    import torch.distributed as dist

    states: list[Any] = [None] * count()
    try:
        while True:
            dist.all_gather_object(states, mine[0], group=group)
            if any(state.failure for state in states) or not any(state.working for state in states):
                return told.set_result(states)
            if mine[0].working:
                changed.wait(ALIVE_EVERY)
    except RuntimeError as error:
        told.set_exception(error)


def _check(told: Future[list[_State]]) -> None:
    try:
        states = told.result()
    except RuntimeError as error:
        raise _lost() from error
    for other, state in enumerate(states):
        if state.failure and other != rank():
            raise RunError(f"process {other} has failed: {state.failure}", kind=ELSEWHERE)
