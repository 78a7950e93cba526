"""Where models are: eden-tiny in the package, a folder of this machine, or a repository of the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, first_line
from .files import finish_folder

EDEN_TINY = "eden-tiny"
"""The name of the model inside the package."""
EDEN_TINY_FOLDER = Path(__file__).parents[1] / "tiny" / "weights"


def find_model(name: str, *, revision: str | None = None, files: list[str] | None = None) -> Path:
    """The local folder of a model: `eden-tiny`'s, the folder itself, or a hub repository's snapshot.

    Args:
        name: `eden-tiny`, a folder, or a hub id.
        revision: of the hub repository: a branch, tag or commit.
        files: patterns of those to download from the hub; None is all.

    Raises:
        CheckpointError: there is no such model.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    folder = EDEN_TINY_FOLDER if name == EDEN_TINY else Path(name)
    if not folder.is_dir():
        refuse_missing_folder(name)
        try:
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=files))
        except (HFValidationError, HfHubHTTPError, OSError) as error:
            raise CheckpointError(
                f"no such folder, and no such model on the hub ({first_line(error)})",
                where=name,
                hint="Check the path or the hub id, and the network.",
            ) from error
    finish_folder(folder)
    if not (folder / "config.json").exists():
        raise CheckpointError(
            "the folder holds no config.json, so it is no Eden artifact",
            where=str(folder),
            hint="Give the folder that a training run ended with.",
        )
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """A file of a model's folder.

    Raises:
        CheckpointError: it is no JSON object.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        what = f"not valid JSON ({first_line(error)})"
        raise CheckpointError(what, where=str(path), hint="Restore the file.") from error


def refuse_missing_folder(name: str) -> None:
    """Sees that what is no folder can be a hub id, so that a path is never looked up as somebody's repository.

    Raises:
        CheckpointError: it is a path by its writing, or one into a folder that is there, as `runs/demo` beside `runs/`.
    """
    owner, slash, rest = name.partition("/")
    if not Path(name).exists() and (
        is_local(name) or name.startswith("~") or "\\" in name or "/" in rest or name.endswith("/")
        or (slash and (owner == "runs" or Path(owner).is_dir()))
    ):  # fmt: skip
        hint = "Check the path; a hub id is owner/name, without a folder of the owner's name here."
        raise CheckpointError("no such folder", where=name, hint=hint)


def refuse_without_weights(folder: Path) -> None:
    """Sees that a model's folder holds weights, whole or of an adapter; what is no folder is passed.

    Raises:
        CheckpointError: it holds none.
    """
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in ("*.safetensors", "pytorch_model*.bin")):
        raise CheckpointError("the folder holds no weights", where=str(folder), hint="Restore its .safetensors files.")


def is_local(name: str) -> bool:
    """True for a folder's path, false for a hub id, a size of Whisper and `eden-tiny`."""
    return name != EDEN_TINY and (Path(name).is_dir() or name.startswith(("/", "./", "../")))
