"""What a record names: a file beside it, or the picture or recording itself as a data URL."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..messages import Audio, Image, Part, Text
from .folders import Folder
from .records import RecordError

LONGEST_NAME = 4096
"""Bytes of a path, on most systems."""


@dataclass(frozen=True, slots=True)
class Media:
    """Where the files stand that records name; without folders the names themselves stand for them."""

    images: Folder | None = None
    audio: Path | None = None

    def image(self, name: str) -> str | Path:
        return name if self.images is None else self.images.image(name)

    def recording(self, name: str) -> str | Path:
        return name if self.audio is None else self.audio / name


def check_characters(text: str, noun: str) -> None:
    if not text.isascii() and (lone := re.search("[\ud800-\udfff]", text)):
        raise RecordError(
            f"{noun} contains half a character, \\u{ord(lone.group()):x}",
            kind="bad_text",
            hint="Write whole characters; the text was cut inside one.",
        )


def image_of(source: str, media: Media) -> Image:
    return Image(_data(source, "image") or media.image(_file_name(source, "image")))


def recording_of(source: str, media: Media) -> Audio:
    return Audio(_data(source, "audio") or media.recording(_file_name(source, "audio")))


def part_of(part: Any, media: Media) -> Part:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return Text(part["text"])
    if kind in ("image", "image_url"):
        # OpenAI's {"image_url": {"url": ...}}, and transformers' {"image": ...}, {"url": ...} and {"path": ...}.
        return image_of(_source(part, ("image_url", "image", "url", "path")), media)
    if kind in ("audio", "input_audio"):
        # OpenAI's {"input_audio": {"data": ..., "format": ...}}, and transformers' {"audio": ...} and so on.
        given = part.get("input_audio")
        if isinstance(given, dict) and isinstance(given.get("data"), str):
            return Audio(_decoded(given["data"], "audio"))
        return recording_of(_source(part, ("input_audio", "audio", "url", "path")), media)
    raise RecordError(
        f"a part of type {kind!r} is not known", kind="bad_record", hint="Use text, image_url and input_audio parts."
    )


def _source(part: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    """What a media part names: a path or a URL."""
    source = next((part[key] for key in keys if key in part), None)
    if isinstance(source, dict):
        source = source.get("url") or source.get("path")
    if not isinstance(source, str) or not source:
        raise RecordError(f"a part of type {part['type']} names no file", kind="bad_record", hint="Write its path.")
    return source


def _data(source: str, kind: str) -> bytes | None:
    """What a data URL holds; None of anything else."""
    return _decoded(source.partition(";base64,")[2], kind) if source[:5].lower() == "data:" else None


def _decoded(payload: str, kind: str) -> bytes:
    try:
        if payload:
            return base64.b64decode(payload, validate=True)
    except binascii.Error:
        pass
    hint = "Write data:image/png;base64,..." if kind == "image" else 'Write {"data": BASE64, "format": "wav"}.'
    raise RecordError("the data is not valid base64", kind=f"damaged_{kind}", hint=hint)


def _file_name(source: str, kind: str) -> str:
    """The name of a file, if it can be one of this machine."""
    if source.startswith(("http://", "https://")):
        noun = "image" if kind == "image" else "recording"
        hint = "Download it and write its path."
        raise RecordError(f"the {noun} {source:.200} is remote", kind=f"remote_{kind}", hint=hint)
    if len(source) > LONGEST_NAME:
        what = f"the name of a file has {len(source):,} characters: {source:.40}..."
        raise RecordError(
            what, kind="bad_record", hint=f"Write a path, or the file itself as data:{kind}/TYPE;base64,..."
        )
    check_characters(source, "the name of a file")
    return source
