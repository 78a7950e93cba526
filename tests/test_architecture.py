"""The house: rooms import only from floors below their own, nothing in a circle, and all is small enough to read."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import cli
import pytest

import eden

ROOT = Path(eden.__file__).parents[1]

# The rooms from the ground up, each with its floor and the rooms it may import. Names a room imports stand above it, on
# a lower floor. All but `model`, which travels with a checkpoint, may import what stands beside the rooms.
ROOMS = """
1  model       <-
2  core        <-
3  recipe      <- core
3  media       <- core
4  checkpoint  <- model core recipe
4  tiny        <- core media
5  data        <- model core recipe media checkpoint
6  inference   <- model core media checkpoint data
7  training    <- model core recipe media checkpoint data inference
7  evaluate    <- core media checkpoint tiny data inference
8  plan        <- model core recipe checkpoint data training
8  serve       <- core media data inference
8  export      <- model core media checkpoint data inference
9  cli         <- core recipe media checkpoint tiny data inference training evaluate plan serve export
9  tiny_build  <- model core media checkpoint tiny data inference evaluate
"""
FLOOR = {line.split()[1]: int(line.split()[0]) for line in ROOMS.strip().splitlines()}
MAY_IMPORT = {line.split()[1]: set(line.split("<-")[1].split()) for line in ROOMS.strip().splitlines()}
BESIDE = {"errors", "messages"}
"""Modules beside the rooms; another, `eden.__main__`, and the package itself may import every room."""
ONLY_IN = {
    "av": {"eden.media.audio", "eden.media.mixing"},
    "faster_whisper": {"eden.media.speech", "eden.core.private_api"},
    "jinja2": {"eden.core.html_report", "eden.export.space", "tiny_build.build", "tiny_build.build_whisper"},
    "yaml": {"eden.export.allowed_files", "eden.export.space"},
    "ruamel": {"eden.recipe.yaml"},
}
"""Libraries that one place uses for all: a second one that decodes audio, hears, or writes pages would be a defect."""
LIMIT_LINES, LIMIT_FUNCTION = 400, 60


def modules() -> dict[str, Path]:
    """Every module by dotted name, the package's own `__init__` (which imports lazily) left out."""
    paths = [path for folder in ("eden", "tiny_build") for path in (ROOT / folder).rglob("*.py")]
    parts = {path: path.relative_to(ROOT).with_suffix("").parts for path in paths}
    named = {".".join(part for part in parts[path] if part != "__init__"): path for path in paths}
    return {name: path for name, path in named.items() if name != "eden"}


MODULES = modules()


def room(name: str) -> str:
    return name.removeprefix("eden.").split(".")[0]


def imported(name: str) -> set[str]:
    """What a module imports, as `module` or `module.name`; lazy imports and those for type checking included."""
    path = MODULES[name]
    base = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            above = base[: len(base) - (node.level - 1)] if node.level else []
            module = [*above, *((node.module or "").split(".") if node.module else [])]
            found |= {".".join([*module, alias.name]) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def imported_modules(name: str) -> set[str]:
    """Eden's modules among them."""
    found = imported(name)
    return {target if target in MODULES else target.rpartition(".")[0] for target in found} & set(MODULES) - {name}


IMPORTS = {name: imported_modules(name) for name in MODULES}


def test_every_module_is_in_a_room() -> None:
    assert {room(name) for name in MODULES} == {*FLOOR, *BESIDE, "__main__"}


@pytest.mark.parametrize("name", [pytest.param(name, id=f"{FLOOR[name]}-{name}") for name in FLOOR])
def test_a_room_imports_only_what_it_may(name: str) -> None:
    assert all(FLOOR[other] < FLOOR[name] for other in MAY_IMPORT[name])
    may = {name, *MAY_IMPORT[name], *(BESIDE if name != "model" else ())}
    reached = {f"{module} imports {other}" for module in MODULES if room(module) == name for other in IMPORTS[module]}
    assert not {line for line in reached if room(line.split()[-1]) not in may}


@pytest.mark.parametrize("name", [*FLOOR, *sorted(BESIDE)])
def test_no_imports_go_in_a_circle(name: str) -> None:
    """Inside a room; between rooms, their floors forbid it."""
    inside = {module for module in MODULES if room(module) == name}
    circle: list[str] = []
    try:
        graphlib.TopologicalSorter({module: IMPORTS[module] & inside for module in inside}).prepare()
    except graphlib.CycleError as error:
        circle = error.args[1]
    assert circle == []


def test_what_stands_beside_the_rooms_imports_none() -> None:
    assert not {room(other) for name in BESIDE for other in IMPORTS[f"eden.{name}"]} - BESIDE


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_a_library_that_one_place_uses_for_all(library: str) -> None:
    users = {name for name in MODULES if any(target.split(".")[0] == library for target in imported(name))}
    assert users == ONLY_IN[library]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_modules_and_functions_stay_small(name: str) -> None:
    source = MODULES[name].read_text()
    assert source.count("\n") <= LIMIT_LINES
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < LIMIT_FUNCTION, f"{name}.{node.name} is too long"


def test_every_module_imports() -> None:
    names = [name for name in MODULES if name != "eden.__main__"]
    script = f"import {', '.join(names)}, sys; print(len(set({names}) & set(sys.modules)))"
    result = cli.Python("-c", script, cwd=ROOT).finished()
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) == len(names)


@pytest.mark.parametrize(
    ("name", "light"),
    [("eden", {"torch", "transformers", "PIL", "pydantic"}), ("eden.cli.main", {"torch", "transformers"}),
     ("eden.data.validate", {"torch", "transformers"})],
)  # fmt: skip
def test_what_comes_first_loads_nothing_heavy(name: str, light: set[str]) -> None:
    script = f"import sys, {name}; print(sorted({light!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"


def test_the_public_surface() -> None:
    from eden import errors

    assert all(hasattr(eden, name) for name in eden.__all__)
    raised = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert raised <= set(eden.__all__)


@pytest.mark.parametrize(
    "page", [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name
)
def test_the_files_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(r"`((?:eden|tiny_build|bench|tests|examples)/[\w./-]+)`", page.read_text())
    assert not [name for name in named if not (ROOT / name).exists()]


def test_the_files_that_the_architecture_names_in_short_exist() -> None:
    named = re.findall(r"`(\w+\.py)`", (ROOT / "docs/architecture.md").read_text())
    there = {path.name for path in MODULES.values()} | {"app.py"}  # written by `eden export --to space`
    assert named and not set(named) - there
