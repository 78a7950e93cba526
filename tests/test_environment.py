"""What is installed is what Eden asks for, and what it asks for is what was tested."""

import importlib.metadata
import json
import re
import tomllib
from pathlib import Path

import cli
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from eden.cli import main
from eden.core import processes
from eden.core.environment import TESTED, check_environment
from eden.core.processes import cores
from eden.errors import InputError

ROOT = Path(__file__).parent.parent
LOCK = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.M))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [
    requirement
    for lines in [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for line in lines
    if (requirement := Requirement(line)).name != PROJECT["name"]
]


def install(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Makes the installed versions of some packages appear as others."""
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: versions.get(name.replace("-", "_")) or real(name))
    serve = [f'{line}; extra == "serve"' for line in PROJECT["optional-dependencies"]["serve"]]
    lines = [*PROJECT["dependencies"], *serve]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)


def test_the_lock_holds_every_requirement_within_its_bounds() -> None:
    locked = {canonicalize_name(name): version for name, version in LOCK.items()}
    for requirement in REQUIREMENTS:
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), requirement


def test_libraries_with_an_upper_bound_are_those_whose_private_parts_are_used() -> None:
    bounded = {requirement.name for requirement in REQUIREMENTS if "<" in str(requirement.specifier)}
    assert bounded == set(TESTED)
    assert {name: LOCK[name] for name in TESTED} == TESTED


def test_this_environment_is_within_the_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    check_environment()
    install(monkeypatch)
    check_environment()


@pytest.mark.parametrize("version", ["5.22.0", "5.24.0", "6.0.0rc1"])
def test_a_library_outside_its_bounds_is_one_line_with_the_version_tested(
    version: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, transformers=version)
    monkeypatch.setattr("sys.argv", ["eden", "ask", "What can you do?"])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr()
    assert end.value.code == 2 and said.out == "" and said.err.count("\n") == 1
    assert f"transformers {version} is installed" in said.err and "(tested with 5.23.0)" in said.err
    assert ">=5.23" in said.err and "<5.24" in said.err and "pip install 'transformers==5.23.0'" in said.err


def test_extras_are_looked_at_if_they_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, python_multipart="0.0.1")
    with pytest.raises(InputError, match=r"python-multipart 0\.0\.1 is installed, and Eden needs >=0\.0\.28"):
        check_environment()


def test_what_only_developers_need_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["pytest>=99; extra == 'dev'"])
    check_environment()


def test_help_and_version_are_had_anywhere(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    install(monkeypatch, transformers="1.0")
    monkeypatch.setattr("sys.argv", ["eden", "--version"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0 and capsys.readouterr().out.strip()


@pytest.mark.parametrize(("quota", "number"), [("50000 100000", 1), ("100000 100000", 1), ("max 100000", None)])
def test_the_cores_of_a_container_are_those_of_its_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, number: int | None
) -> None:
    without = cores()
    monkeypatch.setattr(processes, "CGROUP", tmp_path)
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert cores() == (number or without)


PORTABLE = """
import builtins, importlib, json, pkgutil, sys, types
import eden
names = [module.name for module in pkgutil.walk_packages(eden.__path__, "eden.") if "__main__" not in module.name]
for name in names:  # with all that they need, which knows for itself what system it is on
    importlib.import_module(name)
for name in [name for name in sys.modules if name.partition(".")[0] == "eden"]:
    del sys.modules[name]
ABSENT = {
    "os": "O_NONBLOCK getppid getuid kill killpg fork sched_getaffinity sysconf statvfs uname mkfifo".split(),
    "signal": "SIGKILL SIGHUP SIGSTOP SIGALRM SIGUSR1 setitimer alarm pthread_sigmask".split(),
    **dict.fromkeys(("fcntl", "resource", "termios", "tty", "pwd", "grp", "posix"), []),
}
class Elsewhere(types.ModuleType):
    def __getattr__(self, name):
        if name in ABSENT[self.__name__]:
            raise AttributeError(f"there is no {self.__name__}.{name}")
        return getattr(sys.modules[self.__name__], name)
whole = builtins.__import__
def elsewhere(name, globals=None, *more, **options):
    module = whole(name, globals, *more, **options)
    if name not in ABSENT or not str((globals or {}).get("__name__")).startswith("eden"):
        return module
    if not ABSENT[name]:
        raise ImportError(f"there is no {name}")
    return Elsewhere(name)
builtins.__import__ = elsewhere
for name in names:
    importlib.import_module(name)
import PIL.Image
from eden.data.validate import check
from eden.recipe import load_recipe
from eden.training.train import train
PIL.Image.new("RGB", (64, 64), "red").save("red.png")
turns = [{"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", "value": "Red."}]
with open("data.json", "w") as file:
    json.dump([{"id": str(number), "image": "red.png", "conversations": turns} for number in range(4)], file)
report, _ = check("data.json")
changes = ["data.path=data.json", "data.images=null", "data.split_by=sample", "data.eval_fraction=0.25"]
changes += ["training.output_dir=run", "training.max_steps=1", "training.eval_strategy=no", "training.save_strategy=no"]
train(load_recipe("digits", changes))
assistant = eden.load("run")
answer = assistant.ask("What is it?", images=["red.png"], max_new_tokens=4)
import threading
import httpx
from eden.serve.server import Server, build_app, open_socket
from eden.serve.service import Service
with open_socket("127.0.0.1", 0) as bound:
    started = threading.Event()
    service = Service(assistant)
    server = Server(build_app(service, page=False), on_started=started.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    started.wait(60)
    body = {"model": service.name, "messages": [{"role": "user", "content": "What is it?"}], "max_tokens": 4}
    served = httpx.post(f"http://127.0.0.1:{bound.getsockname()[1]}/v1/chat/completions", json=body, timeout=60)
    server.should_exit = True
    thread.join(60)
print(json.dumps([len(names), report.ok, len(answer) > 0, served.status_code]))
"""
"""What Windows and macOS have not is hidden from Eden, which imports all its modules, checks, trains, asks, serves."""


def test_it_runs_without_what_other_systems_have_not(tmp_path: Path) -> None:
    result = cli.Python("-c", PORTABLE, cwd=tmp_path).finished()
    assert result.returncode == 0, result.stderr
    modules, checked, answered, status = json.loads(result.stdout)
    assert modules > 100 and checked and answered and status == 200
