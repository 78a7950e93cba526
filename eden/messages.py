"""The one conversation type. Data files, the command line, Python calls and HTTP requests all become `Message`s."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from .errors import MessageError

if TYPE_CHECKING:
    import PIL.Image

Role: TypeAlias = Literal["system", "user", "assistant"]
MediaSource: TypeAlias = "str | Path | bytes | PIL.Image.Image"


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """An image by path, encoded bytes or PIL image; it is decoded (`eden.vision.open_image`) only when needed."""

    source: MediaSource


@dataclass(frozen=True, slots=True)
class Audio:
    """A recording by path or encoded bytes; speech becomes text before the model sees it."""

    source: str | Path | bytes


Part: TypeAlias = Text | Image | Audio


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: who speaks, and the parts in the order they are said."""

    role: Role
    content: tuple[Part, ...]

    @classmethod
    def user(cls, text: str, images: Iterable[MediaSource] = ()) -> Message:
        """A user's turn: the images first, then the text."""
        return cls("user", (*map(Image, images), Text(text)))

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


def check_conversation(messages: Sequence[Message], *, answered: bool) -> None:
    """Checks the turns: an optional system message, then user and assistant in turn, none of them empty.

    Args:
        messages: the conversation.
        answered: True if the last word must be the assistant's (training), False if it must be the user's (asking).

    Raises:
        MessageError: which turn is wrong, and how.
    """
    if not messages:
        raise MessageError(
            "the conversation is empty", cure="It needs at least one user message.", kind="empty_message"
        )
    expected: Role = "user"
    for index, message in enumerate(messages):
        where = f"turn {index + 1}"
        if message.role not in get_args(Role):
            raise MessageError(f"unknown role {message.role!r}", where=where, cure="Use system, user or assistant.")
        if message.role == "system" and index == 0:
            continue
        if message.role != expected:
            start = index == 0 or (index == 1 and messages[0].role == "system")
            why = f"the conversation starts with the {message.role}" if start else f"two {message.role} turns in a row"
            cure = "User and assistant must alternate, the user first."
            raise MessageError(why, where=where, cure=cure, kind="turn_order")
        # A model may have said nothing in an earlier turn; only as a training target is an empty answer a fault.
        empty = not any(not isinstance(part, Text) or part.text.strip() for part in message.content)
        if empty and (answered or message.role != "assistant"):
            kind = "answer" if message.role == "assistant" else "message"
            raise MessageError(
                f"the {message.role}'s {kind} is empty",
                where=where,
                cure="Fill it or drop the sample.",
                kind=f"empty_{kind}",
            )
        if message.role == "assistant" and any(not isinstance(part, Text) for part in message.content):
            raise MessageError(
                "an assistant's turn holds an image or audio",
                where=where,
                cure="Move it to the user's.",
                kind="turn_order",
            )
        expected = "assistant" if message.role == "user" else "user"
    last: Role = "assistant" if answered else "user"
    if messages[-1].role != last:
        what = f"the last turn is the {messages[-1].role}'s"
        raise MessageError(what, cure=f"It must be the {last}'s.", kind="turn_order")


def to_chat(
    messages: Iterable[Message], open_image: Callable[[MediaSource], Any] | None = None
) -> list[dict[str, Any]]:
    """Messages as the dictionaries `MultimodalPhiProcessor.encode` takes.

    Args:
        messages: the conversation.
        open_image: decodes an image; None leaves the images out (their places stay).

    Raises:
        MessageError: an audio part is left; speech must be turned into text first.
    """
    chat = []
    for message in messages:
        content: list[dict[str, Any]] = []
        for part in message.content:
            if isinstance(part, Text):
                content.append({"type": "text", "text": part.text})
            elif isinstance(part, Image):
                content.append({"type": "image", "image": open_image(part.source) if open_image else None})
            else:
                raise MessageError("audio is not supported here yet", cure="Ask in text.")
        chat.append({"role": message.role, "content": content})
    return chat
