"""Which files of a folder are included in an export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import InputError, first_line

EXCLUDED = ("checkpoint-*", ".*", "__pycache__", "*.pyc")
"""Training's checkpoints, hidden files and caches: no part of what is shown to others."""

EXPECTED = {
    *(".safetensors", ".json", ".jsonl", ".jinja", ".model", ".py", ".yaml", ".yml", ".md", ".txt", ".html"),
    *(".png", ".jpg", ".jpeg", ".webp", ".wav", ".whl"),
}
"""File types of models, Spaces and their documents; anything else is more likely data that slipped in."""
PICKLES = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}
WHISPER_MAGIC = b"\x0c\x00WhisperSpec\x00"
"""What CTranslate2 writes behind the format's number into a Whisper's `model.bin`, which is no pickle."""


def included_files(folder: Path) -> list[Path]:
    """The files that are copied or uploaded, relative to the folder and sorted.

    Raises:
        InputError: a link leads out of the folder or to another folder, or a file is of a type that neither models
            nor Spaces have.
    """
    root = folder.resolve()
    found = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if any(Path(part).match(pattern) for part in relative.parts for pattern in EXCLUDED):
            continue
        if path.is_symlink() and not (path.is_file() and path.resolve().is_relative_to(root)):
            raise InputError("a link that leads to no file of this folder", where=str(path), hint="Put the file there.")
        if path.is_file():
            _check_type(path)
            found.append(relative)
    return found


def front_matter(folder: Path) -> dict[str, Any]:
    """The YAML at the head of a folder's README.md; empty if there is none.

    Raises:
        InputError: it is no valid YAML.
    """
    import yaml

    path = folder / "README.md"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if not text.startswith("---\n"):
        return {}
    try:
        values = yaml.safe_load(text.split("\n---", 1)[0])
    except yaml.YAMLError as error:
        raise InputError(
            f"its head is no valid YAML ({first_line(error)})", where=str(path), hint="Mend it."
        ) from error
    return values if isinstance(values, dict) else {}


def _check_type(path: Path) -> None:
    if path.suffix.lower() in EXPECTED or path.stem == "LICENSE" or _is_whisper(path):
        return
    if path.suffix.lower() in PICKLES:
        raise InputError(
            "a pickle may run code on whoever loads it, so Eden ships safetensors only",
            where=str(path),
            hint="Save the weights as safetensors, or move the file out.",
        )
    raise InputError(
        f"no part of a model or a Space ({path.suffix or 'no'} type)", where=str(path), hint="Move it out."
    )


def _is_whisper(path: Path) -> bool:
    if path.name != "model.bin":
        return False
    with path.open("rb") as file:
        return file.read(4 + len(WHISPER_MAGIC))[4:] == WHISPER_MAGIC
