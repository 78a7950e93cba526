"""Questions with closed sets of answers, encoded so that those which show the same share a reading."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from typing import Any

import PIL.Image

from ..checkpoint import Checkpoint
from ..core.answers import AnswerSet
from ..errors import InputError
from ..media.images import image_size, open_image
from ..messages import Image, Message, Text, to_chat
from .decisions import Reading, answer_ids


def read_together(
    checkpoint: Checkpoint,
    conversations: Sequence[Sequence[Message]],
    answers: Sequence[AnswerSet],
    where: Sequence[str],
    prepare: Callable[[Sequence[Message]], Sequence[Message]],
    turn: AbstractContextManager[Any] | None = None,
) -> Iterator[tuple[list[int], Reading]]:
    """Readings one after the other, each with the numbers of its conversations.

    Args:
        checkpoint: the model.
        conversations: each with the user's as the last word.
        answers: that each may have.
        where: what each is called in errors.
        prepare: gives a conversation without speech, or refuses it.
        turn: held while one is encoded, and for each anew, where several threads share a tokenizer.

    Raises:
        ImageError, AudioError, MessageError, ContextError: one cannot be asked; its place is named by `where`.
    """
    processor = checkpoint.processor
    tokens = lru_cache(maxsize=None)(lambda text: answer_ids(checkpoint, text))
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for number, messages in enumerate(conversations):
        groups[_shown(messages)].append(number)
    for numbers in groups.values():
        examples, ids = [], []
        for number in numbers:
            with naming(where[number]):
                messages = prepare(conversations[number])
                with turn or nullcontext():
                    chat = to_chat(messages, image_size=image_size)
                    examples.append(processor.encode(chat, add_generation_prompt=True))
                    ids.append([tokens(text) for text in answers[number].all_spellings])
                if len(examples) == 1:
                    examples[0] |= processor.pixels(to_chat(messages, open_image))
        yield numbers, Reading.of(examples, ids, checkpoint.config.image_token_id)


def _shown(messages: Sequence[Message]) -> tuple[Hashable, ...]:
    """The pictures, and the words that stand before the last of them: who has the same can share a reading."""
    parts = [part for message in messages for part in message.content]
    last = max((place for place, part in enumerate(parts) if isinstance(part, Image)), default=-1)
    sources = [
        part.source if isinstance(part, Image) else part.text
        for part in parts[: last + 1]
        if isinstance(part, Image | Text)
    ]
    # To compare opened pictures would take longer than to read one twice.
    return tuple(id(source) if isinstance(source, PIL.Image.Image) else source for source in sources)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """What cannot be asked is named in its error."""
    try:
        yield
    except InputError as error:
        raise error.at(name) from error
