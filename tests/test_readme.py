"""The README is the product's face: its commands and its Python run as they stand."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.M | re.S)
COMMANDS = [
    line.split("#")[0].strip() for kind, block in BLOCKS if kind == "sh" for line in block.splitlines() if line.strip()
]
PYTHON = [block for kind, block in BLOCKS if kind == "python"]


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


def test_every_command_runs(place: Path) -> None:
    commands = [command for command in COMMANDS if not command.startswith("make ")]
    assert len(commands) >= 8 and all(command.startswith("eden ") for command in commands)
    bin_folder = Path(sys.executable).parent
    for command in commands:
        result = subprocess.run(
            command, shell=True, cwd=place, capture_output=True, text=True, env={"PATH": f"{bin_folder}:/usr/bin:/bin"}
        )
        assert result.returncode == 0, f"{command}\n{result.stderr}"
        assert result.stdout.strip(), command
    for index, block in enumerate(PYTHON):
        result = subprocess.run([sys.executable, "-c", block], cwd=place, capture_output=True, text=True)
        assert result.returncode == 0, f"block {index}\n{result.stderr}"
