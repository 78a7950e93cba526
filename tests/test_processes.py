"""The processes that tests start: as new ones would be, they stop where they are told to, and end with their test."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cli
import psutil
import pytest


def test_a_process_has_its_own_arguments_folder_environment_and_input(tmp_path: Path) -> None:
    script = (
        "import json, os, sys; print(json.dumps([sys.argv[1:], os.getcwd(), os.environ['NAME'], sys.stdin.read()]))"
    )
    environment = os.environ | {"NAME": "of mine"}
    process = cli.Python("-c", script, "a", "b c", cwd=tmp_path, env=environment, stdin=subprocess.PIPE)
    result = process.finished("hello")
    assert json.loads(result.stdout) == [["a", "b c"], str(tmp_path), "of mine", "hello"] and "NAME" not in os.environ


@pytest.mark.parametrize("start", [lambda *a: cli.Started([sys.executable, *a]), cli.Python], ids=["new", "forked"])
@pytest.mark.parametrize(
    ("script", "code", "said"),
    [
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('no such thing')", 1, "no such thing"),
        ("raise OSError('gone')", 1, "OSError: gone"),
        ("import atexit, sys; atexit.register(print, 'bye', file=sys.stderr)", 0, "bye"),
        ("import threading, sys; threading.Timer(0.1, print, ['later'], {'file': sys.stderr}).start()", 0, "later"),
    ],
)
def test_it_ends_as_python_does(start: Callable[..., cli.Started], script: str, code: int, said: str) -> None:
    result = start("-c", script).finished()
    assert (result.returncode, (result.stderr.splitlines() or [""])[-1]) == (code, said)


def test_it_asks_the_hub_that_its_environment_names(tmp_path: Path) -> None:
    script = """
import json
from datasets import config
from huggingface_hub import HfApi, HfFileSystem, constants, hf_hub_url, is_offline_mode
from huggingface_hub.hf_api import api
places = [api.endpoint, HfApi().endpoint, HfFileSystem().endpoint, config.HF_ENDPOINT, hf_hub_url("me/x", "a")]
print(json.dumps([places, constants.HF_HUB_CACHE, str(config.HF_DATASETS_CACHE), is_offline_mode()]))
"""
    for offline in (False, True):
        url, home = f"http://127.0.0.1:{offline:d}", tmp_path / str(offline)
        settings = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_OFFLINE": f"{offline:d}"}
        result = cli.Python("-c", script, env=os.environ | settings).finished()
        places = [*[url] * 4, f"{url}/me/x/resolve/main/a"]
        assert json.loads(result.stdout) == [places, f"{home}/hub", f"{home}/datasets", offline], result.stderr


def test_it_stops_at_the_end_of_the_call_that_was_named() -> None:
    script = "import json; [print(json.dumps(number), flush=True) for number in range(5)]"
    with cli.Python("-c", script, stop=("json", "dumps", 3)) as process:
        process.wait_until_stopped()
        assert process.stdout is not None and os.read(process.stdout.fileno(), 100) == b"0\n1\n"
        process.send_signal(signal.SIGCONT)
        assert process.communicate()[0].split() == ["2", "3", "4"]
    assert process.returncode == 0


def test_that_it_never_makes_that_call_is_a_failure() -> None:
    process = cli.Python("-c", "print('done')", stop=("json", "dumps", 1))
    with process, pytest.raises(AssertionError, match=r"it ended with 0 before it stopped: .*done"):
        process.wait_until_stopped()


@pytest.fixture(scope="module")
def left_behind() -> Iterator[list[psutil.Process]]:
    """Processes of a test that has ended, as the module has, too."""
    processes: list[psutil.Process] = []
    yield processes
    assert len(processes) == 2 and not any(process.is_running() for process in processes)


def test_what_a_test_leaves_behind_ends_with_it(left_behind: list[psutil.Process]) -> None:
    """A process, and one of its own in another session."""
    script = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
print(child.pid, flush=True)
child.wait()
"""
    process = cli.Python("-c", script)
    assert process.stdout is not None
    left_behind += [psutil.Process(process.pid), psutil.Process(int(process.stdout.readline()))]


def test_one_that_is_left_by_an_error_ends_at_once() -> None:
    with pytest.raises(ZeroDivisionError), cli.Python("-c", "import time; time.sleep(600)") as process:
        raise ZeroDivisionError
    assert process.returncode == -signal.SIGKILL
