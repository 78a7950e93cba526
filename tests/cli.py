"""Commands in processes of their own, which are there at once and never outlive who started them."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from functools import cache
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent
PR_SET_CHILD_SUBREAPER = 36
LASTING: set[int] = set()


def take_in_orphans() -> None:
    """From here on, what this process's descendants leave behind is its own child: to be waited for, and ended."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


@cache
def fork_server() -> socket.socket:
    """Of this process; it ends with this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        server = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("fork_server.py"), str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},  # the pools of numpy's BLAS are threads that a fork would miss
            start_new_session=True,
        )
    LASTING.add(server.pid)
    return ours


class Started(subprocess.Popen[str]):
    """A process with its output in pipes and a session of its own, which is ended if the block is left by an error."""

    def __init__(self, command: Sequence[str | Path], **options: Any):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        super().__init__(list(map(str, command)), **(pipes | {"text": True, "start_new_session": True} | options))

    def __exit__(self, kind: Any, *error: Any) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, *error)

    def kill(self) -> None:
        """It and those that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def finished(self, said: str | None = None) -> subprocess.CompletedProcess[str]:
        """How it ended, whatever it takes; `said` is its input."""
        with self:
            stdout, stderr = self.communicate(said)
        return subprocess.CompletedProcess(self.args, self.returncode, stdout, stderr)


class Python(Started):
    """`python ...` as a fork of a process that has the libraries imported.

    Args:
        *arguments: Python's own: `-m module ...` or `-c script ...`.
        stop: a module, a function in it, and the number of the call at whose end the process stops.
        **options: of `subprocess.Popen`.
    """

    def __init__(self, *arguments: str | Path, stop: tuple[str, str, int] | None = None, **options: Any):
        self._stop = stop
        super().__init__(arguments, **options)

    def _execute_child(self, args: Any, *options: Any) -> None:
        cwd, env = options[4:6]
        pipes = stdin, _, _, stdout, _, stderr = options[9:15]
        environment = dict(os.environ if env is None else env)
        request = {"arguments": args, "cwd": str(cwd or Path.cwd()), "env": environment, "stop": self._stop}
        files = [inherited if file == -1 else file for inherited, file in enumerate((stdin, stdout, stderr))]
        server = fork_server()
        socket.send_fds(server, [json.dumps(request).encode()], files)
        self.pid = int(server.recv(100))
        self._child_created = True
        self._close_pipe_fds(*pipes)

    def wait_until_stopped(self) -> None:
        """Until it stops at the call that was named; that it ends before is a failure."""
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            self._handle_exitstatus(status)
            raise AssertionError(f"it ended with {self.returncode} before it stopped: {self.communicate()}")


def eden(*arguments: str | Path, said: str | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """`eden ...`, to its end."""
    stdin = subprocess.DEVNULL if said is None else subprocess.PIPE
    return Python("-m", "eden", *arguments, stdin=stdin, **options).finished(said)


def descendants() -> set[psutil.Process]:
    """The processes below this one, without those that serve all of its tests."""
    lasting = {*LASTING, resource_tracker._resource_tracker._pid}
    return {process for process in psutil.Process().children(recursive=True) if process.pid not in lasting}


def end(processes: Collection[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)
