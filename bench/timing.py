"""How long something takes, in this process or in one of its own."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

PEAK = """
import atexit, runpy, sys
from eden.core.processes import peak_memory_mib
atexit.register(lambda: print("peak", peak_memory_mib()))
"""
"""Goes ahead of what a process runs: only the process itself can tell the most memory that it has held."""


@dataclass(frozen=True)
class Finished:
    """A process that ended well: seconds from its start, most memory in MiB, and what it said on stdout."""

    seconds: float
    peak: float
    output: str


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """What the work gives, and the seconds it took."""
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def run(
    arguments: Sequence[str | Path], *, until: str | None = None, environment: Mapping[str, str] | None = None
) -> Finished:
    """Runs Python in a process of its own, and measures it.

    Args:
        arguments: of `python`: `-m MODULE ...` or `-c SCRIPT ...`.
        until: the seconds end when a line on stderr contains this; None: when the process does.
        environment: set on top of this process's own.

    Raises:
        CalledProcessError: it failed; the end of its stderr is noted.
        ValueError: it never said `until`.
    """
    kind, program, *rest = map(str, arguments)
    if kind == "-m":
        program = f"runpy.run_module({program!r}, run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", f"{PEAK}\n{program}", *rest]
    lines, seconds = [], None
    with tempfile.TemporaryFile("w+") as output:
        started = time.perf_counter()
        with subprocess.Popen(
            command, stdout=output, stderr=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}
        ) as process:
            for line in process.stderr or ():
                lines.append(line)
                if until is not None and seconds is None and until in line:
                    seconds = time.perf_counter() - started
        if until is None:
            seconds = time.perf_counter() - started
        output.seek(0)
        said = output.read()
    if process.returncode:
        error = subprocess.CalledProcessError(process.returncode, [kind, *arguments[1:]])
        error.add_note("".join(lines[-20:]))
        raise error
    if seconds is None:
        raise ValueError(f"{arguments} never said {until!r}")
    said, _, peak = said.rpartition("peak ")
    return Finished(seconds, float(peak), said)
