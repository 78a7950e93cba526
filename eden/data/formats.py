"""Records become `Sample`s: the formats people have their data in, as one conversation type.

    {"id": "7", "image": "7.png", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}, ...]}
    {"id": "7", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "7.png"}}, ...]}]}
    {"images": ["7.png"], "texts": [{"user": "What is it?", "assistant": "A cat."}]}
    {"file_name": "7.png", "question": "What is it?", "answer": "A cat."}
    {"file_name": "7.png", "text": "A cat on a mat."}

A question may be spoken: `"audio": "7.wav"` with `<audio>` in the text, or a part `{"type": "input_audio", ...}`.
`messages` may come with `images`, too: they stand where the text says `<image>`, else before the first question.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..messages import Audio, Image, Message, Part, Role, Text
from .folders import Folder
from .records import DataFile, Record, RecordError, caption_request, open_data

__all__ = ["Media", "RecordError", "Sample", "parse", "read_samples"]

PLACEHOLDERS: dict[str, type[Image] | type[Audio]] = {"<image>": Image, "<audio>": Audio}
"""LLaVA's, and Eden's of the same kind; the record names the files under `image` and `audio`."""
LLAVA_ROLES: dict[str, Role] = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
LLAVA_ROLES["system"] = "system"
OPENAI_ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
CONTROL_TOKEN = re.compile(r"<\|(?:endoftext|user|assistant|system|end|image)\|>")


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
class Media:
    """Where the files stand that records name; without folders the names themselves stand for them."""

    images: Folder | None = None
    audio: Path | None = None

    def image(self, name: str) -> str | Path:
        return name if self.images is None else self.images.image(name)

    def recording(self, name: str) -> str | Path:
        return name if self.audio is None else self.audio / name


def open_with_media(
    path: str | Path, images: str | Path | None = None, audio: str | Path | None = None
) -> tuple[DataFile, Media]:
    """A data file and the folders that its names are relative to; None is the file's own.

    Raises:
        DataError: the file or a folder is missing, or it is no data set.
    """
    for what, given in (("images", images), ("recordings", audio)):
        if given is not None and not Path(given).is_dir():
            raise DataError(f"no such folder of {what}", where=str(given), hint="Check the path.")
    data = open_data(path)
    return data, Media(Folder(images or data.folder), Path(audio or data.folder))


def read_samples(
    path: str | Path, images: str | Path | None = None, audio: str | Path | None = None
) -> Iterator[Sample | RecordError]:
    """Reads a data file in order. A faulty record comes as an error, in its place; the reader goes on.

    Args:
        path: the data file, a folder of images with metadata, or anything else `open_data` knows.
        images: the folder that image names are relative to; None is the data file's own.
        audio: the same of the recordings.

    Raises:
        DataError: the file is missing, empty, or not valid.
    """
    data, media = open_with_media(path, images, audio)
    empty = True
    for record in data.read():
        empty = False
        yield record if isinstance(record, RecordError) else to_sample(data, record, media)
    if empty:
        raise empty_error(data)


def empty_error(data: DataFile) -> DataError:
    return DataError("the data set is empty", where=data.path, hint="Give a file with at least one record.")


def to_sample(data: DataFile, record: Record, media: Media) -> Sample | RecordError:
    """A record as a sample, or what is wrong with it."""
    own_id = id_of(record)
    where = data.where(record.number, own_id)
    try:
        return Sample(own_id or str(record.number), parse(record, media), where)
    except RecordError as error:
        return RecordError(error.kind, error.what, hint=str(error.hint), where=where, sample_id=own_id)


def id_of(record: Record) -> str | None:
    """The record's own id, if it has one."""
    value = record.value
    if not isinstance(value, dict) or value.get("id") is None:
        return None
    own_id = str(value["id"])
    return own_id if own_id.isascii() else own_id.encode("utf-8", "replace").decode()  # half a character prints nowhere


def parse(record: Record, media: Media) -> tuple[Message, ...]:
    """The turns of a record.

    Raises:
        RecordError: what is wrong with it, without its place.
    """
    messages = _messages(record, media)
    text = "\n".join([part.text for message in messages for part in message.content if isinstance(part, Text)])
    if "<|" in text and (found := CONTROL_TOKEN.search(text)):
        raise RecordError(
            "control_token",
            f"the text contains the control token {found.group()}",
            hint="Remove it; the chat template writes the control tokens.",
        )
    _check_characters(text, "the text")
    return messages


def _check_characters(text: str, noun: str) -> None:
    if not text.isascii() and (lone := re.search("[\ud800-\udfff]", text)):
        raise RecordError(
            "bad_text",
            f"{noun} contains half a character, \\u{ord(lone.group()):x}",
            hint="Write whole characters; the text was cut inside one.",
        )


def _messages(record: Record, media: Media) -> tuple[Message, ...]:
    value = record.value
    if not isinstance(value, dict):
        raise RecordError("bad_record", "the record is not an object", hint="Write one JSON object a record.")
    if isinstance(value.get("conversations"), list):
        return _from_llava(value, _sources(record, media))
    if isinstance(value.get("messages"), list):
        return _from_openai(value["messages"], value, _sources(record, media), media)
    if isinstance(value.get("texts"), list):
        return _from_openai(_from_pairs(value["texts"]), value, _sources(record, media), media)
    if "file_name" in value:
        return _from_metadata(record, media)
    raise RecordError(
        "bad_record",
        "the record has neither `conversations` nor `messages`",
        hint="Use LLaVA's format or OpenAI's messages.",
    )


_Sources = dict[str, list[Image | Audio]]


def _sources(record: Record, media: Media) -> _Sources:
    """The images and recordings a record names outside its turns, by placeholder, in order."""
    value = record.value
    images = _images(value["image"] if value.get("image") is not None else value.get("images"), record, media)
    audio = [Audio(media.recording(_local(name, "audio"))) for name in _names(value.get("audio"), "audio")]
    return {"<image>": [*images], "<audio>": [*audio]}


def _images(given: Any, record: Record, media: Media) -> list[Image]:
    return [
        Image(media.image(_local(name, "image")) if isinstance(name, str) else _embedded(name, record))
        for name in _names(given, "image")
    ]


def _names(given: Any, key: str) -> list[Any]:
    names = [] if given is None else given if isinstance(given, list) else [given]
    for name in names:
        if not (isinstance(name, str) and name) and not (key == "image" and isinstance(name, dict)):
            raise RecordError("bad_record", f"`{key}` is neither a name nor a list of names", hint="Write file names.")
    return names


def _embedded(name: dict[str, Any], record: Record) -> bytes:
    """The image itself where the record came with it, as Parquet's do."""
    index = name.get("embedded")
    if not isinstance(index, int) or not 0 <= index < len(record.embedded):
        raise RecordError("bad_record", "`image` is neither a name nor a list of names", hint="Write file names.")
    return record.embedded[index]


def _from_llava(value: Mapping[str, Any], sources: _Sources) -> tuple[Message, ...]:
    turns = value["conversations"]
    if not all(isinstance(turn, dict) and isinstance(turn.get("value"), str) for turn in turns):
        raise RecordError("bad_record", "a turn lacks its text in `value`", hint="Write {from, value} turns.")
    _check_placeholders([turn["value"] for turn in turns], sources)
    return tuple(Message(_role(LLAVA_ROLES, turn.get("from")), _with_media(turn["value"], sources)) for turn in turns)


def _check_placeholders(texts: list[str], sources: _Sources) -> None:
    """As many placeholders as files."""
    text = "\n".join(texts)
    for placeholder, found in sources.items():
        wanted = text.count(placeholder)
        if wanted != len(found):
            key, noun = ("image", "image") if placeholder == "<image>" else ("audio", "recording")
            raise RecordError(
                f"{key}_count",
                f"the text has {wanted} {placeholder} and the record {len(found)} {noun}{'s' * (len(found) != 1)}",
                hint=f"Write one {placeholder} for each {noun}.",
            )


def _with_media(text: str, sources: _Sources) -> tuple[Part, ...]:
    """A turn's text with each placeholder as the next file of its kind; they are used up."""
    if "<image>" not in text and "<audio>" not in text:
        return (Text(text),)
    pieces = re.split("(<image>|<audio>)", text)
    return _tidy([sources[piece].pop(0) if piece in PLACEHOLDERS else Text(piece) for piece in pieces])


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


def _from_openai(turns: list[Any], value: Mapping[str, Any], sources: _Sources, media: Media) -> tuple[Message, ...]:
    for turn in turns:
        if not isinstance(turn, dict):
            raise RecordError("bad_record", "a turn is not an object", hint="Write {role, content} turns.")
        if not isinstance(turn.get("content"), str | list):
            raise RecordError("bad_record", "a turn lacks its content", hint="Write a string or a list of parts.")
    if value.get("images") is None and value.get("image") is None:
        # Without files beside the turns, `<image>` in a text is a word like any other.
        return tuple(Message(_role(OPENAI_ROLES, turn.get("role")), _content(turn, media)) for turn in turns)
    return _with_images(turns, sources, media)


def _with_images(turns: list[dict[str, Any]], sources: _Sources, media: Media) -> tuple[Message, ...]:
    """Turns whose images stand beside them: at `<image>` or at image parts without a source, else before all."""
    written = [_placeholders(turn["content"]) for turn in turns]
    first = next((index for index, turn in enumerate(turns) if turn.get("role") == "user"), 0)
    if turns and not any("<image>" in part for parts in written for part in parts if isinstance(part, str)):
        written[first] = ["<image>"] * len(sources["<image>"]) + written[first]
    _check_placeholders(
        [part for parts in written for part in parts if isinstance(part, str)], sources | {"<audio>": []}
    )
    messages = []
    for turn, parts in zip(turns, written, strict=True):
        content: list[Part] = []
        for part in parts:
            content += _with_media(part, sources) if isinstance(part, str) else [_part(part, media)]
        messages.append(Message(_role(OPENAI_ROLES, turn.get("role")), _tidy(content)))
    return tuple(messages)


def _placeholders(content: str | list[Any]) -> list[Any]:
    """A turn's content with its texts as strings, and image parts that name no file as `<image>`."""
    if isinstance(content, str):
        return [content]
    written: list[Any] = []
    for part in content:
        part = {key: item for key, item in part.items() if item is not None} if isinstance(part, dict) else part
        if part == {"type": "image"}:
            written.append("<image>")
        elif isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
            written.append(part["text"])
        else:
            written.append(part)
    return written


def _from_pairs(pairs: list[Any]) -> list[Any]:
    """The Cauldron's `texts`: a question and its answer in one object."""
    if not all(isinstance(pair, dict) and {"user", "assistant"} <= pair.keys() for pair in pairs):
        raise RecordError("bad_record", "`texts` holds no {user, assistant} pairs", hint="Write both in each of them.")
    return [{"role": role, "content": pair[role]} for pair in pairs for role in ("user", "assistant")]


def _from_metadata(record: Record, media: Media) -> tuple[Message, ...]:
    """A row of an image folder's metadata or of Parquet, or a COCO caption."""
    value = record.value
    name, question, answer = value["file_name"], value.get("question"), value.get("answer")
    if not (images := _images(name or None, record, media)):
        raise RecordError("bad_record", "the record names no image", hint="Write its `file_name`.")
    if question is None and answer is None:
        answer = value.get("text")
        question = caption_request(f"{name} {id_of(record) or record.number}")
    if not isinstance(question, str) or not isinstance(answer, str):
        raise RecordError(
            "bad_record",
            "the record has neither `question` and `answer` nor `text`",
            hint="Write a question with its answer, or a caption as `text`.",
        )
    return Message("user", (*images, Text(question))), Message("assistant", (Text(answer),))


def _content(turn: dict[str, Any], media: Media) -> tuple[Part, ...]:
    content = turn["content"]
    return (Text(content),) if isinstance(content, str) else tuple(_part(part, media) for part in content)


def _part(part: Any, media: Media) -> Part:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return Text(part["text"])
    if kind in ("image", "image_url"):
        # OpenAI's {"image_url": {"url": ...}}, and transformers' {"image": ...}, {"url": ...} and {"path": ...}.
        source = _source(part, ("image_url", "image", "url", "path"))
        if source.startswith("data:"):
            return Image(_decoded(source.partition(";base64,")[2], "image"))
        return Image(media.image(_local(source, "image")))
    if kind in ("audio", "input_audio"):
        # OpenAI's {"input_audio": {"data": ..., "format": ...}}, and transformers' {"audio": ...} and so on.
        given = part.get("input_audio")
        if isinstance(given, dict) and isinstance(given.get("data"), str):
            return Audio(_decoded(given["data"], "audio"))
        source = _source(part, ("input_audio", "audio", "url", "path"))
        if source.startswith("data:"):
            return Audio(_decoded(source.partition(";base64,")[2], "audio"))
        return Audio(media.recording(_local(source, "audio")))
    raise RecordError(
        "bad_record", f"a part of type {kind!r} is not known", hint="Use text, image_url and input_audio parts."
    )


def _source(part: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    """What a media part names: a path or a URL."""
    source = next((part[key] for key in keys if key in part), None)
    if isinstance(source, dict):
        source = source.get("url") or source.get("path")
    if not isinstance(source, str) or not source:
        raise RecordError("bad_record", f"a part of type {part['type']} names no file", hint="Write its path.")
    return source


def _decoded(payload: str, kind: str) -> bytes:
    try:
        if payload:
            return base64.b64decode(payload, validate=True)
    except binascii.Error:
        pass
    hint = "Write data:image/png;base64,..." if kind == "image" else 'Write {"data": BASE64, "format": "wav"}.'
    raise RecordError(f"damaged_{kind}", "the data is not valid base64", hint=hint)


def _local(source: str, kind: str) -> str:
    """The name of a file, if it can be one of this machine."""
    if source.startswith(("http://", "https://")):
        noun = "image" if kind == "image" else "recording"
        raise RecordError(f"remote_{kind}", f"the {noun} {source} is remote", hint="Download it and write its path.")
    _check_characters(source, "the name of a file")
    return source


def _role(roles: Mapping[str, Role], name: Any) -> Role:
    if not isinstance(name, str) or name not in roles:
        raise RecordError("unknown_role", f"unknown speaker {name!r}", hint=f"Use one of {', '.join(roles)}.")
    return roles[name]
