"""Records become `Sample`s: the formats people have their data in, as one conversation type.

    {"id": "7", "image": "7.png", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}, ...]}
    {"id": "7", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "7.png"}}, ...]}]}
    {"images": ["7.png"], "texts": [{"user": "What is it?", "assistant": "A cat."}]}
    {"file_name": "7.png", "question": "What is it?", "answer": "A cat."}
    {"file_name": "7.png", "text": "A cat on a mat."}
    {"file_name": "7.png", "question": "How bad is it?", "answer": "slight", "levels": ["none", "slight", "bad"]}

`ROLES` and `records.PAIRS` list the names that are known; `from`/`value` and `role`/`content` may stand in either list,
and `image` for `file_name`. A question may be spoken: `"audio": "7.wav"`, or a part `{"type": "input_audio", ...}`.
Files beside turns stand where the text says `<image>` or `<audio>`, else before the first question. A turn of the
assistant with `"weight": 0` is not learnt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..core.answers import AnswerSet
from ..errors import DataError, InputError
from ..messages import Audio, Image, Message, Part, Role, Text
from .class_folders import open_class_folders
from .control_tokens import CONTROL_TOKEN
from .folders import Folder
from .records import PAIRS, TURNS, DataFile, Record, RecordError, caption_request, open_data
from .sources import Media, check_characters, image_of, part_of, recording_of

__all__ = ["Media", "RecordError", "Sample", "parse", "read_samples"]

PLACEHOLDERS: dict[str, type[Image] | type[Audio]] = {"<image>": Image, "<audio>": Audio}
"""LLaVA's, and Eden's of the same kind; the record names the files under `image` and `audio`."""
ROLES: dict[str, Role] = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "assistant", "bot", "model"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
"""Who speaks, in lower case."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation of a data set.

    Attributes:
        id: the record's own, or its number.
        messages: the turns; images and recordings are named, not yet opened.
        where: file and record or line, for messages to people.
        answers: those that its last question may have, if the record names them.
    """

    id: str
    messages: tuple[Message, ...]
    where: str
    answers: AnswerSet | None = None


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
    data = open_class_folders(path) or open_data(path)
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
        return Sample(own_id or str(record.number), parse(record, media)[1], where, answers_of(record.value))
    except RecordError as error:
        return error.at(where, own_id)


def answers_of(value: Mapping[str, Any]) -> AnswerSet | None:
    """The closed set that a record names: `"choices": ["ok", "cracked"]`, or `levels`, from the lowest on.

    In CSV they are in one cell, with `|` between them.

    Raises:
        RecordError: it is none.
    """
    if not {"question", "answer"} <= value.keys():  # in other formats the names mean something else
        return None
    given = {key: value[key] for key in ("choices", "levels") if value.get(key) is not None}
    given = {key: names.split("|") if isinstance(names, str) else names for key, names in given.items()}
    if not given:
        return None
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in given.values()):
        raise RecordError(
            f"`{next(iter(given))}` is no list of strings", kind="bad_answers", hint="Write one, or `a|b|c`."
        )
    try:
        return AnswerSet.of(**given)
    except InputError as error:
        raise RecordError(replace(error.fault, kind="bad_answers")) from error


def id_of(record: Record) -> str | None:
    """The record's own id, if it has one."""
    value = record.value
    if not isinstance(value, dict) or value.get("id") is None:
        return None
    own_id = str(value["id"])
    return own_id if own_id.isascii() else own_id.encode("utf-8", "replace").decode()  # half a character prints nowhere


def parse(record: Record, media: Media) -> tuple[str, tuple[Message, ...]]:
    """The format of a record, in the names it was known by, and its turns.

    Raises:
        RecordError: what is wrong with it, without its place.
    """
    form, messages = _read(record, media)
    text = "\n".join([part.text for message in messages for part in message.content if isinstance(part, Text)])
    if "<" in text and (found := CONTROL_TOKEN.search(text)):
        raise RecordError(
            f"the text contains the control token {found.group()}",
            kind="control_token",
            hint="Remove it; the chat template writes the control tokens.",
        )
    check_characters(text, "the text")
    if (closed := answers_of(record.value)) is not None and messages and closed.index(messages[-1].text) is None:
        what = f"the answer {messages[-1].text:.60} is none of {', '.join(closed.answers):.100}"
        raise RecordError(what, kind="bad_answers", hint="Correct it, or name it among them.")
    answers = [message for message in messages if message.role == "assistant"]
    if answers and not any(message.learnt for message in answers):
        raise RecordError(
            "every answer has the weight 0", kind="empty_answer", hint="Give one a 1, or drop the record."
        )
    return form, messages


def _read(record: Record, media: Media) -> tuple[str, tuple[Message, ...]]:
    value = record.value
    if not isinstance(value, dict):
        raise RecordError("the record is not an object", kind="bad_record", hint="Write one JSON object a record.")
    key = next((key for key in TURNS if isinstance(value.get(key), list)), None)
    pair = next((keys for keys in PAIRS if set(keys) <= value.keys()), None)
    is_llava = False
    if key == "texts":
        form, turns = "texts (user, assistant)", _from_pairs(value[key])
    elif key is not None:
        is_llava = any(isinstance(turn, dict) and not {"from", "value"}.isdisjoint(turn) for turn in value[key])
        form = f"{key} (from, value)" if is_llava else f"{key} (role, content)"
        turns = _from_llava(value[key]) if is_llava else value[key]
    elif pair is not None:
        form, turns = ", ".join(pair), _from_pair(value, *pair)
    elif any(name in value for name in ("file_name", "image", "images")):
        form, turns = "text", _from_caption(record)
    else:
        hint = "Use LLaVA's format or OpenAI's messages."
        raise RecordError("the record has neither `conversations` nor `messages`", kind="bad_record", hint=hint)
    system = value.get("system")
    if isinstance(system, str) and system.strip() and not (turns and _speaker(turns[0]) == "system"):
        turns = [{"role": "system", "content": system}, *turns]
    return form, _from_turns(turns, value, _sources(record, media), media, is_llava)


_Sources = dict[str, list[Image | Audio]]


def _sources(record: Record, media: Media) -> _Sources:
    """The images and recordings a record names outside its turns, by placeholder, in order."""
    value = record.value
    given = next((value[key] for key in ("image", "images", "file_name") if value.get(key) is not None), None)
    if "file_name" in value and not given:
        raise RecordError("the record names no image", kind="bad_record", hint="Write its `file_name`.")
    images = [
        image_of(name, media) if isinstance(name, str) else Image(_embedded(name, record))
        for name in _names(given, "image")
    ]
    return {
        "<image>": [*images],
        "<audio>": [recording_of(name, media) for name in _names(value.get("audio"), "audio")],
    }


def _names(given: Any, key: str) -> list[Any]:
    names = [] if given is None else given if isinstance(given, list) else [given]
    for name in names:
        if not (isinstance(name, str) and name) and not (key == "image" and isinstance(name, dict)):
            raise RecordError(
                f"`{key}` is neither a name nor a list of names", kind="bad_record", hint="Write file names."
            )
    return names


def _embedded(name: dict[str, Any], record: Record) -> bytes:
    """The image itself where the record came with it, as Parquet's do."""
    index = name.get("embedded")
    if not isinstance(index, int) or not 0 <= index < len(record.embedded):
        raise RecordError("`image` is neither a name nor a list of names", kind="bad_record", hint="Write file names.")
    return record.embedded[index]


def _from_llava(turns: list[Any]) -> list[dict[str, Any]]:
    """LLaVA's turns in OpenAI's names."""
    if not all(isinstance(turn, dict) and isinstance(turn.get("value"), str) for turn in turns):
        raise RecordError("a turn lacks its text in `value`", kind="bad_record", hint="Write {from, value} turns.")
    return [turn | {"role": turn.get("from"), "content": turn["value"]} for turn in turns]


def _check_placeholders(texts: list[str], sources: _Sources) -> None:
    """As many placeholders as files."""
    text = "\n".join(texts)
    for placeholder, found in sources.items():
        wanted = text.count(placeholder)
        if wanted != len(found):
            key, noun = ("image", "image") if placeholder == "<image>" else ("audio", "recording")
            raise RecordError(
                f"the text has {wanted} {placeholder} and the record {len(found)} {noun}{'s' * (len(found) != 1)}",
                kind=f"{key}_count",
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


def _from_turns(
    turns: list[Any], value: Mapping[str, Any], sources: _Sources, media: Media, is_llava: bool
) -> tuple[Message, ...]:
    """Turns with the files that stand beside them: at their placeholders, else, but not in LLaVA's, before all."""
    for turn in turns:
        if not isinstance(turn, dict):
            raise RecordError("a turn is not an object", kind="bad_record", hint="Write {role, content} turns.")
        if not isinstance(turn.get("content"), str | list):
            raise RecordError("a turn lacks its content", kind="bad_record", hint="Write a string or a list of parts.")
    written = [_placeholders(turn["content"]) for turn in turns]
    # Without files beside the turns, `<image>` in a text is a word like any other, if it is not LLaVA's.
    beside = is_llava or any(value.get(key) is not None for key in ("image", "images", "file_name", "audio"))
    if beside:
        texts = [part for parts in written for part in parts if isinstance(part, str)]
        first = next((index for index, turn in enumerate(turns) if _speaker(turn) == "user"), 0)
        for placeholder, found in sources.items():
            if turns and not is_llava and not any(placeholder in text for text in texts):
                written[first] = [placeholder] * len(found) + written[first]
        _check_placeholders([part for parts in written for part in parts if isinstance(part, str)], sources)
    else:
        written = [turn["content"] if isinstance(turn["content"], list) else [turn["content"]] for turn in turns]
    messages = []
    for turn, parts in zip(turns, written, strict=True):
        content: list[Part] = []
        for part in parts:
            if not isinstance(part, str):
                content.append(part_of(part, media))
            else:
                content += _with_media(part, sources) if beside else [Text(part)]
        messages.append(Message(_role(turn), _tidy(content) if beside else tuple(content), _is_learnt(turn)))
    return tuple(messages)


def _is_learnt(turn: Mapping[str, Any]) -> bool:
    """False for OpenAI's `"weight": 0`."""
    weight = turn.get("weight")
    if weight not in (None, 0, 1):
        raise RecordError(
            f"a turn has the weight {weight!r:.40}", kind="bad_record", hint="Write 1, or 0 to leave it out."
        )
    return weight != 0 or _speaker(turn) != "assistant"


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
        raise RecordError(
            "`texts` holds no {user, assistant} pairs", kind="bad_record", hint="Write both in each of them."
        )
    return [{"role": role, "content": pair[role]} for pair in pairs for role in ("user", "assistant")]


def _from_pair(value: Mapping[str, Any], asked: str, answered: str) -> list[Any]:
    """A question and its answer in one object, with Alpaca's `input` and the turns before it in `history`."""
    question, history = value[asked], value.get("history") or []
    if isinstance(question, str) and isinstance(more := value.get("input"), str) and more.strip():
        question = f"{question}\n{more}"
    if not (isinstance(history, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in history)):
        raise RecordError("`history` holds no pairs", kind="bad_record", hint="Write [[question, answer], ...].")
    if not isinstance(question, str) or not isinstance(value[answered], str):
        raise _no_pair()
    pairs = [*history, (question, value[answered])]
    return [{"role": role, "content": text} for pair in pairs for role, text in zip(_BOTH, pair, strict=True)]


_BOTH = ("user", "assistant")


def _from_caption(record: Record) -> list[Any]:
    """A row of an image folder's metadata, or a COCO caption."""
    value = record.value
    if not isinstance(value.get("text"), str) or not {"question", "answer"}.isdisjoint(value):
        raise _no_pair()
    shown = value.get("file_name") or value.get("image") or value.get("images")
    question = caption_request(f"{shown} {id_of(record) or record.number}")
    return [{"role": "user", "content": question}, {"role": "assistant", "content": value["text"]}]


def _no_pair() -> RecordError:
    return RecordError(
        "the record has neither `question` and `answer` nor `text`",
        kind="bad_record",
        hint="Write a question with its answer, or a caption as `text`.",
    )


def _speaker(turn: Any) -> Role | None:
    name = turn.get("role") if isinstance(turn, dict) else None
    return ROLES.get(name.lower()) if isinstance(name, str) else None


def _role(turn: Mapping[str, Any]) -> Role:
    if (role := _speaker(turn)) is None:
        name = turn.get("role")
        raise RecordError(f"unknown speaker {name!r:.60}", kind="unknown_role", hint=f"Use one of {', '.join(ROLES)}.")
    return role
