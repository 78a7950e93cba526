"""A process that has everything imported and nothing begun. Told to, it forks one that does what `python ...` would."""

import atexit
import functools
import gc
import importlib
import itertools
import json
import os
import runpy
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What most commands import, and what is slow to import.
MODULES = [
    "conftest",
    "torch",
    "transformers.models.clip.modeling_clip",
    "transformers.models.phi3.modeling_phi3",
    "transformers.trainer",
    "peft",
    "bitsandbytes",
    "faster_whisper",
    "eden.cli.demo",
    "eden.evaluate",
    "eden.export.space",
    "eden.plan",
    "eden.serve.server",
    "eden.training.train",
    "eden.data.xray",
]


def check_threads() -> None:
    """A fork has one thread; what others held it would never get. That of pyarrow's jemalloc lets go before a fork."""
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    assert len(names) - names.count("jemalloc_bg_thd") == 1, names


def next_child(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Forks for each request, and returns in the fork; ends the process when nobody is left who could ask.

    The fork's parent ends at once, so that it becomes the child of the test's process, which has said that it takes
    in its descendants' orphans: it can wait for it like for any other.
    """
    while True:
        message, files, _, _ = socket.recv_fds(connection, 2**20, 3)
        if not message:
            sys.exit()
        reading, writing = os.pipe()
        between = os.fork()
        if between == 0:
            child = os.fork()
            if child == 0:
                os.close(reading)
                os.close(writing)
                connection.close()
                return json.loads(message), files
            os.write(writing, str(child).encode())
            os._exit(0)
        os.waitpid(between, 0)
        connection.send(os.read(reading, 100))
        for file in (reading, writing, *files):
            os.close(file)


def stops(function: Callable[..., Any], call: int) -> Callable[..., Any]:
    """The function; its process stops, as if by SIGSTOP from outside, at the end of one of the calls."""
    calls = itertools.count(1)

    @functools.wraps(function)
    def stopping(*arguments: Any, **options: Any) -> Any:
        result = function(*arguments, **options)
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGSTOP)
        return result

    return stopping


def read_settings_again() -> None:
    """What modules read of the environment when they are imported: where the hub is, and which process this is."""
    from huggingface_hub import constants, hf_api, hf_file_system

    from eden.cli import options

    said_by = options.err
    for module in (constants, sys.modules["datasets.config"], options):
        importlib.reload(module)
    for asks in (hf_api.api, hf_file_system.hffs, hf_file_system.hffs._api):
        asks.endpoint = constants.ENDPOINT
    vars(said_by).update(vars(options.err))  # which others have imported


def become(request: dict[str, Any], files: list[int]) -> None:
    """Takes on what a new process would have been given."""
    for standard, file in enumerate(files):
        os.dup2(file, standard)
        os.close(file)
    sys.stdout = os.fdopen(1, "w", closefd=False)  # the one from before believes that it can seek, as in /dev/null
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are told not to hear it
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    read_settings_again()
    sys.path[:0] = [request["cwd"], *filter(None, request["env"].get("PYTHONPATH", "").split(os.pathsep))]
    if request["stop"]:
        name, function, call = request["stop"]
        owner = importlib.import_module(name)
        *classes, last = function.split(".")
        for part in classes:
            owner = getattr(owner, part)
        setattr(owner, last, stops(getattr(owner, last), call))


def exit_code(option: str, what: str, *arguments: str) -> int:
    """Does as Python would, up to the clearing away of all modules, which takes a second and is nothing to see."""
    code = 0
    sys.argv = [option, *arguments]
    try:
        if option == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        code = end.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    from eden.cli.main import _quiet_libraries

    before = dict(os.environ)
    _quiet_libraries()  # some of it is looked at while the libraries are imported
    for module in MODULES:
        importlib.import_module(module)
    check_threads()
    gc.freeze()
    request, files = next_child(socket.socket(fileno=int(sys.argv[1])))
    request["env"] = {name: os.environ[name] for name in os.environ.keys() - before} | request["env"]
    become(request, files)
    os._exit(exit_code(*request["arguments"]))
