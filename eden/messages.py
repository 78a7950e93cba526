"""The one conversation type. Data files, the command line, Python calls and HTTP requests all become `Message`s."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from .errors import AudioError, MessageError

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image

Role: TypeAlias = Literal["system", "user", "assistant"]
_ROLES = get_args(Role)
MediaSource: TypeAlias = "str | Path | bytes | PIL.Image.Image"
AudioSource: TypeAlias = "str | Path | bytes | np.ndarray"


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """An image by path, encoded bytes or PIL image; it is decoded (`eden.media.images.open_image`) only when needed."""

    source: MediaSource


@dataclass(frozen=True, slots=True)
class Audio:
    """A recording by path, encoded bytes or samples (float32, mono, 16 kHz).

    Speech becomes text (`transcribe_message`) before the model sees it.
    """

    source: AudioSource


Part: TypeAlias = Text | Image | Audio


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: who speaks, the parts in the order they are said, and whether an assistant's is a training target."""

    role: Role
    content: tuple[Part, ...]
    learnt: bool = True

    @classmethod
    def user(cls, text: str, images: Iterable[MediaSource] = (), audio: Iterable[AudioSource] = ()) -> Message:
        """A user's turn: the images first, then the recordings, then the text, which recordings may stand for."""
        spoken = tuple(map(Audio, audio))
        return cls("user", (*map(Image, images), *spoken, *([Text(text)] if text or not spoken else [])))

    @classmethod
    def assistant(cls, text: str) -> Message:
        return cls("assistant", (Text(text),))

    @classmethod
    def system(cls, text: str) -> Message:
        return cls("system", (Text(text),))

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content if isinstance(part, Text))

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(part for part in self.content if isinstance(part, Image))

    @property
    def audio(self) -> tuple[Audio, ...]:
        return tuple(part for part in self.content if isinstance(part, Audio))


def check_conversation(messages: Sequence[Message], *, answered: bool, ordered: bool = True) -> None:
    """Checks the turns: an optional system message, then user and assistant in turn, none of them empty.

    Args:
        messages: the conversation.
        answered: True if the last word must be the assistant's (training), False if it must be the user's (asking).
        ordered: False leaves the order of the turns to the template.

    Raises:
        MessageError: which turn is wrong, and how.
    """
    if not messages:
        raise MessageError(
            "the conversation is empty", hint="It needs at least one user message.", kind="empty_message"
        )
    expected: Role = "user"
    for index, message in enumerate(messages):
        where = f"turn {index + 1}"
        if message.role not in _ROLES:
            raise MessageError(f"unknown role {message.role!r}", where=where, hint="Use system, user or assistant.")
        if message.role == "system" and index == 0:
            continue
        if ordered and message.role != expected:
            start = index == 0 or (index == 1 and messages[0].role == "system")
            why = f"the conversation starts with the {message.role}" if start else f"two {message.role} turns in a row"
            if message.role == "system":
                why = "a system turn behind the first turn"
            hint = "User and assistant must alternate, the user first."
            raise MessageError(why, where=where, hint=hint, kind="turn_order")
        # A model may have said nothing in an earlier turn; only as a training target is an empty answer a fault.
        if is_empty(message) and (answered or message.role != "assistant"):
            kind = "answer" if message.role == "assistant" else "message"
            raise MessageError(
                f"the {message.role}'s {kind} is empty",
                where=where,
                hint="Fill it or leave it out.",
                kind=f"empty_{kind}",
            )
        if half := re.search("[\ud800-\udfff]", message.text):
            raise MessageError(
                f"the {message.role}'s message contains half a character, \\u{ord(half.group()):x}",
                where=where,
                hint="Write whole characters, in UTF-8.",
                kind="bad_text",
            )
        if message.role == "assistant" and not all(type(part) is Text for part in message.content):
            raise MessageError(
                "an assistant's turn holds an image or audio",
                where=where,
                hint="Move it to the user's.",
                kind="turn_order",
            )
        expected = "assistant" if message.role == "user" else "user"
    last: Role = "assistant" if answered else "user"
    if ordered and messages[-1].role != last:
        what = f"the last turn is the {messages[-1].role}'s"
        raise MessageError(what, hint=f"It must be the {last}'s.", kind="turn_order")


def is_empty(message: Message) -> bool:
    """Whether nobody could see or hear anything in it."""
    return all(isinstance(part, Text) and not any(map(_is_visible, part.text)) for part in message.content)


def _is_visible(character: str) -> bool:
    """False for white space, characters without a width, marks without a letter, and letters that are blank."""
    if character.isascii():
        return character > " "
    return unicodedata.category(character) not in _INVISIBLE and character not in "\u2800\u115f\u1160\u3164\uffa0"


_INVISIBLE = {"Cc", "Cf", "Cs", "Mn", "Me", "Zl", "Zp", "Zs"}


def transcribe_message(message: Message, transcribe: Callable[[AudioSource], str]) -> Message:
    """The message with each recording as text: the words themselves where nothing is written, else quoted as context.

    Args:
        message: any message; one without audio is returned as it is.
        transcribe: from a recording to its words.

    Raises:
        AudioError: nothing is written, and nothing was said either.
    """
    if not message.audio:
        return message
    is_the_question = not message.text.strip()
    parts: list[Part] = []
    for part in message.content:
        if isinstance(part, Text) and not part.text.strip():
            continue
        if isinstance(part, Audio):
            words = transcribe(part.source)
            part = Text(words if is_the_question else f'Audio transcript: "{words}"')
        if isinstance(part, Text) and parts and isinstance(parts[-1], Text):
            parts.append(Text("\n"))
        parts.append(part)
    heard = replace(message, content=tuple(parts))
    if not heard.text.strip():
        raise AudioError(
            "no speech was heard in the recording", hint="Speak louder or closer, or ask in text.", kind="silent_audio"
        )
    return heard


def to_chat(
    messages: Iterable[Message],
    open_image: Callable[[MediaSource], Any] | None = None,
    image_size: Callable[[MediaSource], tuple[int, int]] | None = None,
) -> list[dict[str, Any]]:
    """Messages as the dictionaries `MultimodalPhiProcessor.encode` takes.

    Args:
        messages: the conversation.
        open_image: decodes an image; None leaves the images out (their places stay).
        image_size: gives width and height of an image that is left out, for models with tiles; asked only then.

    Raises:
        MessageError: an audio part is left; speech must be turned into text (`transcribe_message`) first.
    """
    chat = []
    for message in messages:
        content: list[dict[str, Any]] = []
        for part in message.content:
            if isinstance(part, Text):
                content.append({"type": "text", "text": part.text})
            elif isinstance(part, Image):
                image = {"type": "image", "image": open_image(part.source) if open_image else None}
                content.append(image | ({"size": partial(image_size, part.source)} if image_size else {}))
            else:
                raise MessageError(
                    "a recording was not turned into text", hint="Call eden.messages.transcribe_message first."
                )
        chat.append({"role": message.role, "content": content} | ({} if message.learnt else {"weight": 0}))
    return chat
