"""The house: modules import only from floors below their own, and stay small enough to read."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import eden

PACKAGE = Path(eden.__file__).parent

# Each line is a floor; a module may import what stands above it in this list, on its own floor or a higher line.
FLOORS = """
F0  core core.private_api core.numeric_format
F0  errors
F0  core.environment
F0  files location machine ranks
F0  messages console sampling
F0  strict_yaml arguments
F0  recipe
F1  vision audio
F1  speech
F2  model.projection model.configuration
F2  model.attention model.loss
F2  model.modeling model.processing
F2  model
F2  four_bits
F2  backbones
F2  checkpoint
F2  vision_encoder
F3  data data.collate data.json_stream data.folders data.cache data.parquet data.image_table
F3  data.records
F3  data.formats
F3  data.store
F3  data.media data.statistics
F3  data.validate data.tokens data.transcripts data.features
F3  data.dataset
F3  data.packing
F3  tiny tiny.world tiny.smalltalk tiny.tokenizer tiny.voice
F3  tiny.questions
F3  tiny.optimize tiny.foreign tiny.conversations
F3  tiny.dataset tiny.tower
F3  tiny.sentences tiny.untrained
F3  tiny.whisper
F3  report model_card
F3  xray
F4  slots decoding
F4  prefill generation
F4  engine
F4  assistant
F4  prepare transcribe seeing
F4  evaluate.measures
F4  evaluate.questions evaluate.marking evaluate.captions
F4  evaluate.official
F4  evaluate.benchmarks
F4  evaluate.tasks
F4  evaluate.spoken evaluate.predictions
F4  evaluate.run
F4  evaluate.compare evaluate.report
F4  evaluate
F3  tiny.curriculum
F4  tiny.build tiny.build_whisper
F4  parallel
F4  trainer resume
F4  train
F4  plan.shapes plan.workload
F4  plan.memory
F4  plan.budget plan.measure
F4  plan.forecast
F4  plan
F4  demo
F4  export.contents export.wheel
F4  export.space export.hub
F4  export.gguf_file
F4  export.gguf_vocabulary export.gguf_eyes
F4  export.gguf
F4  export
F5  serve.settings serve.metrics
F5  serve.service
F5  serve.schema serve.responses
F5  serve.fetch
F5  serve.chat serve.guard
F5  serve.transcriptions
F5  serve.api
F5  serve.gate serve.conversation
F5  serve.page
F5  serve.server
F5  serve
F5  cli.shared
F5  cli.talk cli.data cli.work cli.plan cli.judge cli.serve cli.ship
F5  cli.main
F5  cli
F5  __main__
"""
RANK = {module: rank for rank, line in enumerate(FLOORS.strip().splitlines()) for module in line.split()[1:]}
LIMIT_LINES, LIMIT_FUNCTION = 400, 60


def modules() -> dict[str, Path]:
    """Every module of the package by dotted name, the package's own `__init__` (which imports lazily) left out."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name:
            found[name] = path
    return found


MODULES = modules()


def eden_imports(name: str, path: Path) -> set[str]:
    """Modules of Eden that a module imports, lazy imports and those for type checking included."""
    base = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "eden"):
            above = base[: len(base) - (node.level - 1)] if node.level else []
            module = [*above, *((node.module or "").split(".") if node.module else [])]
            module = [part for part in module if part != "eden"]
            for alias in node.names:
                target = ".".join([*module, alias.name])
                found.add(target if target in MODULES else ".".join(module))
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("eden.") for alias in node.names if alias.name.startswith("eden.")}
    return found - {"", name}


def test_every_module_has_a_floor() -> None:
    assert set(MODULES) == set(RANK)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_go_down(name: str) -> None:
    upward = {
        other
        for other in eden_imports(name, MODULES[name])
        # A package's own __init__ is above its modules.
        if RANK[other] > RANK[name]
    }
    assert not upward, f"{name} reaches up to {upward}"


@pytest.mark.parametrize("name", [name for name in sorted(MODULES) if name.split(".")[0] == "model"])
def test_the_model_imports_nothing_of_eden_outside_itself(name: str) -> None:
    """So that the folder can travel with a checkpoint."""
    assert all(other.split(".")[0] == "model" for other in eden_imports(name, MODULES[name]))


@pytest.mark.parametrize("name", sorted(MODULES))
def test_modules_and_functions_stay_small(name: str) -> None:
    source = MODULES[name].read_text()
    assert source.count("\n") < LIMIT_LINES
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < LIMIT_FUNCTION, f"{name}.{node.name} is too long"


def test_every_module_imports() -> None:
    names = [f"eden.{name}" for name in MODULES if name != "__main__"]
    script = f"import {', '.join(names)}, sys; print(len(set({names}) & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) == len(names)


def test_import_eden_loads_nothing_heavy() -> None:
    script = "import sys, eden; print(sorted({'torch', 'transformers', 'peft', 'PIL', 'pydantic'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"


def test_the_public_surface() -> None:
    from eden import errors

    assert all(hasattr(eden, name) for name in eden.__all__)
    raised = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert raised <= set(eden.__all__)


def test_one_place_decodes_images_one_audio_one_pads_one_writes_html() -> None:
    """A second copy of any of these is a defect."""
    sources = {name: path.read_text() for name, path in MODULES.items()}
    assert {name for name, text in sources.items() if "PIL.Image.open" in text} == {"vision"}
    assert {name for name, text in sources.items() if "av.open" in text} == {"audio"}
    assert {name for name, text in sources.items() if "report_template" in text} == {"report"}
    assert {name for name, text in sources.items() if "* (width - len(" in text} == {"data.collate"}
