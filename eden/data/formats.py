"""Data files become `Sample`s: LLaVA JSON or JSONL, and messages (OpenAI's content parts) JSON or JSONL.

    {"id": "7", "image": "7.png", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}, ...]}
    {"id": "7", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "7.png"}}, ...]}]}

A question may be spoken: `"audio": "7.wav"` with `<audio>` in the text, or a part `{"type": "input_audio", ...}`.

The format is known by content: a file that begins with `[` is one JSON list, any other is JSON lines.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..messages import Audio, Image, Message, Part, Role, Text

PLACEHOLDERS: dict[str, type[Image] | type[Audio]] = {"<image>": Image, "<audio>": Audio}
"""LLaVA's, and Eden's of the same kind; the record names the files under `image` and `audio`."""
LLAVA_ROLES: dict[str, Role] = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
LLAVA_ROLES["system"] = "system"
CONTROL_TOKEN = re.compile(r"<\|(?:endoftext|user|assistant|system|end|image)\|>")


class RecordError(DataError):
    """A fault of one record; `sample_id` is the record's own id, if it could be read."""

    def __init__(self, kind: str, what: str, *, cure: str, where: str | None = None, sample_id: str | None = None):
        super().__init__(what, where=where, cure=cure, kind=kind)
        self.sample_id = sample_id


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation of a data set.

    Attributes:
        id: the record's own, or its number.
        messages: the turns; images and recordings are named, not yet opened.
        where: file and record or line, for messages to people.
    """

    id: str
    messages: tuple[Message, ...]
    where: str


@dataclass(frozen=True, slots=True)
class _Folders:
    """Where the files stand that records name."""

    images: Path
    audio: Path


def read_samples(
    path: str | Path, images: str | Path | None = None, audio: str | Path | None = None
) -> Iterator[Sample | RecordError]:
    """Reads a data file in order. A faulty record comes as an error, in its place; the reader goes on.

    Args:
        path: the data file.
        images: the folder that image names are relative to; None is the data file's own.
        audio: the same of the recordings.

    Raises:
        DataError: the file is missing, empty, or no JSON at all.
    """
    path = Path(path)
    for what, given in (("images", images), ("recordings", audio)):
        if given is not None and not Path(given).is_dir():
            raise DataError(f"no such folder of {what}", where=str(given), cure="Check the path.")
    folders = _Folders(Path(images or path.parent), Path(audio or path.parent))
    number = 0
    for where, record in _records(path):
        number += 1
        if isinstance(record, RecordError):
            yield record
            continue
        sample_id = str(record["id"]) if isinstance(record, dict) and "id" in record else str(number)
        where = f"{where} (id {sample_id})"
        try:
            yield Sample(sample_id, _messages(record, folders), where)
        except RecordError as error:
            yield RecordError(error.kind, error.what, cure=str(error.cure), where=where, sample_id=sample_id)
    if number == 0:
        raise DataError("the data set is empty", where=str(path), cure="Give a file with at least one record.")


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """Each record with the place it stands at; a line that is no JSON comes as a RecordError."""
    try:
        with path.open(encoding="utf-8") as file:
            start = file.read(4096).lstrip("\ufeff \t\r\n")
            file.seek(0)
            if start.startswith("["):
                yield from _json_list(path, file.read())
            else:
                yield from _json_lines(path, file)
    except FileNotFoundError:
        raise DataError("no such data file", where=str(path), cure="Check the path.") from None
    except UnicodeDecodeError:
        raise DataError("not a text file in UTF-8", where=str(path), cure="Give a JSON or JSONL file.") from None
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=str(path), cure="Check the path.") from None


def _json_list(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    try:
        records = json.loads(text.lstrip("\ufeff"))
    except (json.JSONDecodeError, RecursionError) as error:
        place = f" line {error.lineno} column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        what = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deep"
        raise DataError(
            f"not valid JSON ({what})", where=f"{path}{place}", cure="The file may be cut off; copy it again."
        ) from None
    for number, record in enumerate(records, 1):
        yield f"{path} record {number}", record


def _json_lines(path: Path, lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            yield where, json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            yield where, RecordError("bad_json", f"not valid JSON ({error})", where=where, cure="Correct the line.")


def _messages(record: Any, folders: _Folders) -> tuple[Message, ...]:
    if not isinstance(record, dict):
        raise RecordError("bad_record", "the record is not an object", cure="Write one JSON object a record.")
    if isinstance(record.get("conversations"), list):
        messages = _from_llava(record, folders)
    elif isinstance(record.get("messages"), list):
        messages = tuple(_from_openai(turn, folders) for turn in record["messages"])
    else:
        raise RecordError(
            "bad_record",
            "the record has neither `conversations` nor `messages`",
            cure="Use LLaVA's format or OpenAI's messages.",
        )
    for message in messages:
        if found := CONTROL_TOKEN.search(message.text):
            raise RecordError(
                "control_token",
                f"the text contains the control token {found.group()}",
                cure="Remove it; the chat template writes the control tokens.",
            )
    return messages


def _from_llava(record: Mapping[str, Any], folders: _Folders) -> tuple[Message, ...]:
    turns = record["conversations"]
    if not all(isinstance(turn, dict) and isinstance(turn.get("value"), str) for turn in turns):
        raise RecordError("bad_record", "a turn lacks its text in `value`", cure="Write {from, value} turns.")
    sources = {
        "<image>": (resolve_image(name, folders.images) for name in _names(record, "image", "<image>")),
        "<audio>": (folders.audio / name for name in _names(record, "audio", "<audio>")),
    }
    messages = []
    for turn in turns:
        parts: list[Part] = []
        for piece in re.split("(<image>|<audio>)", turn["value"]):
            kind = PLACEHOLDERS.get(piece)
            parts.append(Text(piece) if kind is None else kind(next(sources[piece])))
        messages.append(Message(_role(LLAVA_ROLES, turn.get("from")), _tidy(parts)))
    return tuple(messages)


def _names(record: Mapping[str, Any], key: str, placeholder: str) -> list[str]:
    """The files a LLaVA record names under a key, as many as there are placeholders in its text."""
    given = record.get(key)
    names = [] if given is None else given if isinstance(given, list) else [given]
    if not all(isinstance(name, str) and name for name in names):
        raise RecordError("bad_record", f"`{key}` is neither a name nor a list of names", cure="Write file names.")
    wanted = sum(turn["value"].count(placeholder) for turn in record["conversations"])
    if wanted != len(names):
        noun = "image" if key == "image" else "recording"
        raise RecordError(
            f"{key}_count",
            f"the text has {wanted} {placeholder} and the record {len(names)} {noun}{'s' * (len(names) != 1)}",
            cure=f"Write one {placeholder} for each {noun}.",
        )
    return names


def _tidy(parts: list[Part]) -> tuple[Part, ...]:
    """Drops the line breaks LLaVA writes between a placeholder and the text: the chat template has its own."""
    tidied: list[Part] = []
    for index, part in enumerate(parts):
        if not isinstance(part, Text):
            tidied.append(part)
            continue
        text = part.text
        if index > 0:
            text = text.lstrip("\r\n")
        if index < len(parts) - 1:
            text = text.rstrip("\r\n")
        if text or len(parts) == 1:
            tidied.append(Text(text))
    return tuple(tidied)


def _from_openai(turn: Any, folders: _Folders) -> Message:
    if not isinstance(turn, dict):
        raise RecordError("bad_record", "a turn is not an object", cure="Write {role, content} turns.")
    role = _role({"system": "system", "user": "user", "assistant": "assistant"}, turn.get("role"))
    content = turn.get("content")
    if isinstance(content, str):
        return Message(role, (Text(content),))
    if not isinstance(content, list):
        raise RecordError("bad_record", "a turn lacks its content", cure="Write a string or a list of parts.")
    return Message(role, tuple(_part(part, folders) for part in content))


def _part(part: Any, folders: _Folders) -> Part:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return Text(part["text"])
    if kind in ("image", "image_url"):
        # OpenAI's {"image_url": {"url": ...}}, and transformers' {"image": ...}, {"url": ...} and {"path": ...}.
        source = _source(part, ("image_url", "image", "url", "path"))
        if source.startswith("data:"):
            return Image(_decoded(source.partition(";base64,")[2], "image"))
        return Image(resolve_image(_local(source, "image"), folders.images))
    if kind in ("audio", "input_audio"):
        # OpenAI's {"input_audio": {"data": ..., "format": ...}}, and transformers' {"audio": ...} and so on.
        given = part.get("input_audio")
        if isinstance(given, dict) and isinstance(given.get("data"), str):
            return Audio(_decoded(given["data"], "audio"))
        source = _source(part, ("input_audio", "audio", "url", "path"))
        if source.startswith("data:"):
            return Audio(_decoded(source.partition(";base64,")[2], "audio"))
        return Audio(folders.audio / _local(source, "audio"))
    raise RecordError(
        "bad_record", f"a part of type {kind!r} is not known", cure="Use text, image_url and input_audio parts."
    )


def _source(part: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    """What a media part names: a path or a URL."""
    source = next((part[key] for key in keys if key in part), None)
    if isinstance(source, dict):
        source = source.get("url") or source.get("path")
    if not isinstance(source, str) or not source:
        raise RecordError("bad_record", f"a part of type {part['type']} names no file", cure="Write its path.")
    return source


def _decoded(payload: str, kind: str) -> bytes:
    try:
        if payload:
            return base64.b64decode(payload, validate=True)
    except binascii.Error:
        pass
    cure = "Write data:image/png;base64,..." if kind == "image" else 'Write {"data": BASE64, "format": "wav"}.'
    raise RecordError(f"damaged_{kind}", "the data is not valid base64", cure=cure)


def _local(source: str, kind: str) -> str:
    if source.startswith(("http://", "https://")):
        noun = "image" if kind == "image" else "recording"
        raise RecordError(f"remote_{kind}", f"the {noun} {source} is remote", cure="Download it and write its path.")
    return source


def _role(roles: Mapping[str, Role], name: Any) -> Role:
    if name not in roles:
        raise RecordError("unknown_role", f"unknown speaker {name!r}", cure=f"Use one of {', '.join(roles)}.")
    return roles[name]


def resolve_image(name: str, folder: Path) -> Path:
    """The path of an image, also where a data set and COCO's folders disagree on its name.

    LLaVA-Instruct says `000000033471.jpg` or `coco/train2017/000000033471.jpg`; the folders of COCO 2014 hold
    `COCO_train2014_000000033471.jpg`. The name as given is returned where nothing is found: the check reports it.
    """
    path = folder / name
    if path.exists():
        return path
    stem = Path(name).name
    bare = re.sub(r"^COCO_(?:train|val)2014_", "", stem)
    for other in (stem, bare, f"COCO_train2014_{bare}", f"COCO_val2014_{bare}"):
        if (folder / other).exists():
            return folder / other
    return path
