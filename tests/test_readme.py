"""The README is the product's face: its commands and its Python run as they stand."""

import csv
import json
import os
import re
import shlex
import shutil
import signal
import tomllib
from pathlib import Path

import cli
import pytest

ROOT = Path(__file__).parent.parent


def code_blocks(path: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", (ROOT / path).read_text(), flags=re.M | re.S)


SHELL_LINES = "".join(code_blocks("README.md", "sh")).splitlines()
COMMANDS = [line.split("#")[0].strip() for line in SHELL_LINES if line.strip()]
PYTHON = code_blocks("README.md", "python")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the examples; the commands run in it in their order."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "examples", folder / "examples")
    return folder


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.M))
    named = {command.split()[1] for command in COMMANDS if command.startswith("make ")}
    assert named == {"demo", "test"} <= targets


def test_every_extra_is_told_of_and_eden_is_within_reach_before_it_is_called() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    told = re.findall(r"^\| `(\w+)` \|", (ROOT / "README.md").read_text().partition("| extra |")[2], flags=re.M)
    extras = set(project["optional-dependencies"])
    assert set(told[: len(extras)]) == extras
    (install,) = [command for command in COMMANDS if command.startswith("pip ")]
    assert set(re.findall(r"\[(\w+)\]", install)) <= extras
    first = next(place for place, command in enumerate(COMMANDS) if command.startswith("eden "))
    assert ". .venv/bin/activate" in COMMANDS[:first]


@pytest.mark.timeout(900)
def test_every_command_runs(place: Path) -> None:
    commands = [command for command in COMMANDS if not command.startswith(("make ", "pip ", ". "))]
    assert len(commands) >= 8 and all(command.startswith("eden ") for command in commands)
    environment = {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}
    for command in commands:
        if command == "eden serve":  # below, with what asks it
            continue
        fewer = ["training.max_steps=5"] if command.startswith("eden train decide") else []  # all of them below
        result = cli.eden(*shlex.split(command)[1:], *fewer, cwd=place, env=environment)
        assert result.returncode == 0, f"{command}\n{result.stderr}"
        assert result.stdout.strip(), command
    for block in PYTHON:
        if "OpenAI" not in block:
            run_python(block, place)


@pytest.mark.soak
@pytest.mark.timeout(2400)
def test_digits_in_class_folders_are_decided_from_the_readme(tmp_path: Path) -> None:
    (block,) = [block for block in code_blocks("README.md", "sh") if "--class-folders" in block]
    commands = [shlex.split(line)[1:] for line in block.splitlines()]
    for command in commands:
        result = cli.eden(*command, *(["--json"] if command[0] == "evaluate" else []), cwd=tmp_path)
        assert result.returncode == 0, f"{command}\n{result.stderr}"
        if command[0] == "evaluate":
            measures = json.loads(result.stdout)["decisions"]["after"]
            assert measures["accuracy"]["value"] >= 0.95 and measures["nll"]["value"] <= 0.15, measures
    rows = list(csv.DictReader((tmp_path / "sorted.csv").open()))
    assert len(rows) == 360 and float(rows[0]["confidence"]) < 0.9 < float(rows[-1]["confidence"])


def test_the_clients_of_readme_and_docs_are_answered(place: Path) -> None:
    """On a port of its own, for 8000 may be taken."""
    assert "eden serve" in COMMANDS
    blocks = [block for block in PYTHON if "OpenAI" in block] + code_blocks("docs/serving.md", "python")
    blocks += [block for block in code_blocks("docs/decisions.md", "python") if "OpenAI" in block]
    assert len(blocks) == 4
    with cli.Python("-m", "eden", "serve", "--port", "0", "--json") as server:
        assert server.stdout is not None
        address = json.loads(server.stdout.readline())["address"]
        for block in blocks:
            assert "http://127.0.0.1:8000" in block
            run_python(block.replace("http://127.0.0.1:8000", address), place)
        server.send_signal(signal.SIGINT)
        assert server.wait() == 0


def run_python(block: str, place: Path) -> None:
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # else it asks the network for prices
    result = cli.Python("-c", block, cwd=place, env=environment).finished()
    assert result.returncode == 0, f"{block}\n{result.stderr}"
