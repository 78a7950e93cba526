"""The Dockerfile names what is there; no container engine is needed to see that."""

import json
import re
import tomllib
from pathlib import Path

import typer

from eden.cli.main import app

ROOT = Path(__file__).parent.parent
INSTRUCTIONS = [
    tuple(line.split(" ", 1)) for line in (ROOT / "Dockerfile").read_text().splitlines() if re.match(r"[A-Z]+ ", line)
]


def arguments(instruction: str) -> list[str]:
    return [rest for name, rest in INSTRUCTIONS if name == instruction]


def test_everything_copied_is_there_and_sent() -> None:
    sources = {source for rest in arguments("COPY") for source in rest.split()[:-1]}
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sources == sent and all((ROOT / source).exists() for source in sources)
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"pyproject.toml", needed["readme"], *needed["license-files"]} <= sources


def test_versions_come_from_the_lock() -> None:
    installs = [rest for rest in arguments("RUN") if "pip install" in rest]
    assert len(installs) == 2 and all("-c constraints.txt" in rest and "==" not in rest for rest in installs)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert re.search(r"\.\[(\w+)\]", installs[-1]).group(1) in extras  # type: ignore[union-attr]


def test_the_command_and_its_options_exist() -> None:
    (entry,), (more,) = arguments("ENTRYPOINT"), arguments("CMD")
    program, verb, *words = json.loads(entry) + json.loads(more)
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    values = command.make_context(verb, list(words)).params
    assert program == "eden" and values["host"] == "0.0.0.0" and values["model"] == "eden-tiny"
    assert [str(values["port"])] == arguments("EXPOSE")
    assert f":{values['port']}/health" in "".join(rest for name, rest in INSTRUCTIONS if name == "HEALTHCHECK")
