"""A folder that Hugging Face runs as a Space: the page, what it needs, the model, and Eden as a wheel.

    app.py  README.md  requirements.txt  eden_multimodal-….whl  model/ (only for a model from a folder)

https://huggingface.co/docs/hub/spaces-config-reference says what the head of the README means.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jinja2 import Environment, StrictUndefined

from .. import __version__
from ..core.files import new_folder
from ..core.location import EDEN_TINY, find_model, is_local
from ..errors import InputError
from .allowed_files import front_matter, included_files
from .wheel import NAME, build_wheel, server_requirements

if TYPE_CHECKING:
    from ..checkpoint.artifact import Artifact

HARDWARE = ((10**9, "cpu-basic"), (6 * 10**9, "t4-small"), (10 * 10**9, "l4x1"))
"""The most parameters that each of the hub's machines holds: in fp32 in 16 GB of memory, in bf16 on 16 and 24 GB GPUs,
with room for the conversations."""
LARGEST_HARDWARE = "a100-large"
DEFAULT_LICENSE = "apache-2.0"
MODEL_FOLDER = "model"


def write_space(model: str, folder: str | Path) -> Path:
    """Writes a Space that asks a model.

    Args:
        model: `eden-tiny`, which is in the wheel; an artifact's folder, which is copied (an adapter whose base is only
            on this machine is merged into it first); or a hub id, which the Space downloads.
        folder: where to; files of the same names are replaced.

    Raises:
        CheckpointError: there is no such model, or it is incomplete.
        InputError: the model hears with a Whisper that is only on this machine, or Eden is installed without its
            server.
        StorageError: the disk is full or the folder is not writable.
    """
    copied = model != EDEN_TINY and is_local(model)
    artifact, license_name = _facts(model)
    parameters = artifact.parameters
    hardware = suggest_hardware(parameters)
    requirements = server_requirements()
    name = Path(model).resolve().name if copied else model
    front = {
        "title": name.rsplit("/", 1)[-1],
        "emoji": "🌱",
        "colorFrom": "green",
        "colorTo": "blue",
        "sdk": "gradio",
        "sdk_version": _pinned("gradio", requirements),
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "app_file": "app.py",
        "license": license_name,
        "suggested_hardware": hardware,
    }
    with new_folder(folder) as new:
        if copied:
            _copy_model(artifact, new / MODEL_FOLDER)
        wheel = build_wheel(new)
        (new / "requirements.txt").write_text("\n".join([*requirements, ""]), encoding="utf-8")
        facts = {
            "wheel": wheel.name,
            "version": __version__,
            "package": NAME,
            "copied": copied,
            "reference": _literal(MODEL_FOLDER if copied else model),
            "name": _literal(name),
            "title": front["title"],
            "front_matter": yaml.safe_dump(front, allow_unicode=True, sort_keys=False),
            "model": f"`{name}`, in `{MODEL_FOLDER}/`" if copied else f"`{model}`",
            "parameters": parameters,
            "hardware": hardware,
        }
        for page in ("app.py", "README.md"):
            (new / page).write_text(_render(f"{page}.jinja", facts), encoding="utf-8")
    return Path(folder)


def suggest_hardware(parameters: int) -> str:
    """The smallest of the hub's machines that holds a model of this size."""
    return next((name for most, name in HARDWARE if parameters <= most), LARGEST_HARDWARE)


def _facts(model: str) -> tuple[Artifact, str]:
    """A model's folder and its licence, without loading or downloading a weight."""
    files = ["config.json", "README.md"]
    folder = find_model(model, files=files)
    from ..checkpoint.artifact import Artifact  # takes seconds, which a misspelt name should not

    return Artifact.open(model, files=files), str(front_matter(folder).get("license", DEFAULT_LICENSE))


def _copy_model(artifact: Artifact, target: Path) -> None:
    model = artifact.folder
    if is_local(speech := artifact.speech_model or EDEN_TINY):
        raise InputError(
            f"the model hears with a Whisper that is only on this machine: {speech}",
            where=str(model / "config.json"),
            hint="Set speech_model to a size such as small, or to a hub id.",
        )
    if artifact.local_dependency() is not None:
        from .. import checkpoint as checkpoints

        checkpoints.save(checkpoints.merge(checkpoints.load_as_stored(str(model))), target)
        return
    for path in included_files(model):
        (target / path.parent).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model / path, target / path)


def _pinned(name: str, requirements: list[str]) -> str:
    return next(line.split("==")[1] for line in requirements if line.startswith(f"{name}=="))


def _literal(text: str) -> str:
    """A text as Python source; JSON's strings are, too, and have the quotes that the rest of app.py has."""
    return json.dumps(text, ensure_ascii=False)


def _render(name: str, facts: dict[str, Any]) -> str:
    environment = Environment(trim_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined)
    return environment.from_string((Path(__file__).parent / name).read_text(encoding="utf-8")).render(facts)
