"""What API and page share: one model, one engine, the limits, and who may come in.

    messages -> transcribe_messages -> open_images (decoded within the limits) -> submit -> Generation, in the engine
                                                                               -> decide -> Deciding, in the engine

Every step blocks and may be called by any thread. The API calls them from threads of its own, so that its loop stays
free; speech has one thread, or a few recordings would keep everybody else's questions waiting.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from cachetools import LRUCache

from ..core.answers import AnswerSet
from ..core.processes import cores
from ..errors import ContextError, EdenError, ImageError, OverloadError
from ..inference.assistant import Assistant
from ..inference.decisions import Decision
from ..inference.engine import Engine
from ..inference.grammar import Grammar
from ..inference.kv_cache import rows_that_fit
from ..inference.readings import read_together
from ..inference.request import Deciding, DecisionRequest, Generation, Request, Task
from ..inference.sampling import Sampling
from ..media.images import image_size, open_image
from ..media.speech import Transcript
from ..messages import AudioSource, Image, Message, Part, check_conversation, to_chat, transcribe_message
from .metrics import Metrics
from .settings import Settings

Result = TypeVar("Result")

REMEMBERED_TRANSCRIPTS = 256
DEFAULT_NEW_TOKENS = 1024
"""The longest answer where a request does not say; the room in the context may be less."""


class Service:
    """A model that answers many people at once, within limits.

    Args:
        assistant: the model and its speech model.
        settings: the limits, and how many are answered at once.
    """

    def __init__(self, assistant: Assistant, settings: Settings | None = None):
        self.assistant = assistant
        settings = settings or Settings()
        core = assistant.checkpoint.core
        self.fits = rows_that_fit(core.config.text_config, assistant.context_length, core.device, core.dtype)
        self.settings = replace(settings, max_running=min(settings.max_running, self.fits))
        self.name = self.settings.name or _public_name(assistant.checkpoint.name)
        self.engine = Engine(
            assistant.checkpoint, max_running=self.settings.max_running, max_waiting=self.settings.max_waiting
        )
        self.metrics = Metrics(self.engine)
        self._capacity = self.settings.max_running + self.settings.max_waiting
        self._inside = 0
        self._lock = threading.Lock()
        self._transcribing = threading.Lock()  # one recording at a time: answers are written on the same cores
        self._encoding = threading.Lock()  # of all that is done to a question, only a tokenizer is not made for threads
        self._transcripts: LRUCache[tuple[bytes, str | None], Transcript] = LRUCache(REMEMBERED_TRANSCRIPTS)
        # One more than cores, for whom nothing big keeps waiting; not many more, for each may hold decoded pictures.
        self._executor = ThreadPoolExecutor(min(cores(), 7) + 1, thread_name_prefix="eden-prepare")
        self._speech_executor = ThreadPoolExecutor(1, thread_name_prefix="eden-speech")
        self._schema_executor = ThreadPoolExecutor(1, thread_name_prefix="eden-schema")
        vocabulary = assistant.processor.tokenizer.get_vocab()
        self._longest_token = max(map(len, vocabulary))

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Counts somebody in, from before the body is read until the answer has ended.

        Raises:
            OverloadError: as many are inside as may run and wait; nothing of the request was read.
        """
        with self._lock:
            if self._inside >= self._capacity:
                raise OverloadError(f"{self._inside} requests are being answered", hint="Ask again in a moment.")
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1

    async def in_thread(self, work: Callable[..., Result], *args: Any, speech: bool = False) -> Result:
        """Runs blocking work beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(
            self._speech_executor if speech else self._executor, work, *args
        )

    async def grammar(self, json_schema: Mapping[str, Any]) -> Grammar:
        """A JSON schema, compiled beside the event loop; new ones wait for each other.

        Raises:
            InputError: nothing can fit it, or it holds what is not supported.
        """
        return await asyncio.get_running_loop().run_in_executor(
            self._schema_executor, self.assistant.grammar, json_schema
        )

    def transcribe(self, source: AudioSource, language: str | None = None) -> Transcript:
        """What is said in a recording; one that comes again, as in each turn of a chat, is not heard again.

        Raises:
            AudioError: it cannot be read, or it is too long.
            InputError: the Whisper does not know the language.
        """
        limits = self.settings.limits
        key = (hashlib.sha256(source).digest(), language) if isinstance(source, bytes) else None
        with self._lock:
            if key is not None and key in self._transcripts:
                return self._transcripts[key]
        with self._transcribing:
            transcript = self.assistant.transcriber.transcribe(
                source, language=language, max_bytes=limits.audio_bytes, max_seconds=limits.audio_seconds
            )
        with self._lock:
            if key is not None:
                self._transcripts[key] = transcript
        return transcript

    def transcribe_messages(self, messages: Sequence[Message]) -> list[Message]:
        """The messages with speech as text.

        Raises:
            AudioError: a recording cannot be read, or it is the question and nothing is said in it.
        """
        return [transcribe_message(message, lambda source: self.transcribe(source).text) for message in messages]

    def open_images(self, messages: Sequence[Message], names: Sequence[str] | None = None) -> list[Message]:
        """The messages with images decoded, within the limits.

        Args:
            messages: all of a request.
            names: what each message's content is called in errors; None is `messages[0].content` and so on.

        Raises:
            ImageError: one cannot be; its `where` is the place, as `messages[0].content[1]`.
        """
        limits = self.settings.limits
        opened, pixels = [], 0
        for turn, message in enumerate(messages):
            parts: list[Part] = list(message.content)
            for place, part in enumerate(parts):
                if isinstance(part, Image):
                    where = f"{names[turn] if names else f'messages[{turn}].content'}[{place}]"
                    image = open_image(
                        part.source, max_bytes=limits.image_bytes, max_pixels=limits.image_pixels, where=where
                    )
                    pixels += image.width * image.height
                    if pixels > limits.all_pixels:
                        raise ImageError(
                            f"the images up to this one have {pixels:,} pixels, the limit is {limits.all_pixels:,}",
                            where=where,
                            hint="Scale them down; the model looks at a few hundred pixels a side.",
                            kind="image_too_large",
                        )
                    parts[place] = Image(image)
            opened.append(replace(message, content=tuple(parts)))
        return opened

    def submit(
        self, messages: Sequence[Message], *, max_new_tokens: int | None = None, n: int = 1, **sampling: Any
    ) -> list[Generation]:
        """Encodes a conversation without speech and puts it into the engine's queue.

        Args:
            messages: the conversation, its turns in any order; what the assistant says last is gone on with.
            max_new_tokens: the longest answer; None is `DEFAULT_NEW_TOKENS`. It is never more than the room there is.
            n: answers to the same question; with a seed each is sampled with the next one.
            sampling: the other fields of `Sampling`.

        Returns:
            The answers, n of them.

        Raises:
            MessageError, ContextError, InputError: it cannot be asked.
            OverloadError: the queue is full.
            EngineStopped: the model answers no more.
        """
        self._checked(messages)
        processor = self.assistant.processor
        with self._encoding:
            example = processor.encode(to_chat(messages, image_size=image_size), add_generation_prompt=True)
        example |= processor.pixels(to_chat(messages, open_image))
        room = self.assistant.context_length - len(example["input_ids"])
        length = max(1, min(max_new_tokens or DEFAULT_NEW_TOKENS, room))
        seed = sampling.pop("seed", None)
        generations: list[Generation] = []
        with _all_or_none(generations):
            for choice in range(n):
                drawn = Sampling(
                    max_new_tokens=length, seed=None if seed is None else (seed + choice) % 2**63, **sampling
                )
                request = Request.of(
                    example, drawn, deadline=self.settings.limits.answer_seconds, on_end=self.metrics.count_answer
                )
                generations.append(self.engine.submit(request))
        return generations

    def decide(
        self, conversations: Sequence[Sequence[Message]], answers: Sequence[AnswerSet], names: Sequence[str]
    ) -> list[tuple[list[int], Deciding]]:
        """Encodes questions without speech and puts them into the engine's queue, those about the same images as one.

        Args:
            conversations: each ends with its question. Images that are the same object are read once.
            answers: the answers that each may have.
            names: what each is called in errors.

        Returns:
            What is decided together, each with the numbers of its conversations.

        Raises:
            MessageError, ContextError, InputError: one cannot be asked; `where` names it.
            OverloadError, EngineStopped: as `submit` does.
        """
        checkpoint = self.assistant.checkpoint
        readings = list(read_together(checkpoint, conversations, answers, names, self._checked, self._encoding))
        decided: list[Deciding] = []
        with _all_or_none(decided):
            for _, reading in readings:
                request = DecisionRequest(reading, self.settings.limits.answer_seconds, self.metrics.count_answer)
                decided.append(self.engine.decide(request))
        return [(numbers, task) for (numbers, _), task in zip(readings, decided, strict=True)]

    def decisions(self, answers: Sequence[AnswerSet], decided: Sequence[tuple[list[int], Deciding]]) -> list[Decision]:
        """What `decide` gave and the engine has decided, with the temperature and threshold kept with the model."""
        logs = {number: of for numbers, task in decided for number, of in zip(numbers, task.logs, strict=True)}
        return [self.assistant.decision(of, of.joined(logs[number])) for number, of in enumerate(answers)]

    def _checked(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The conversation, unless it is not worth encoding.

        Raises:
            MessageError, ContextError: why.
        """
        check_conversation(messages, answered=False, ordered=False)
        context = self.assistant.context_length
        characters = sum(len(message.text) for message in messages)
        if characters > context * self._longest_token:
            raise ContextError(
                f"this model's maximum context length is {context:,} tokens; the conversation has {characters:,} "
                "characters",
                hint="Shorten it.",
            )
        return messages

    def close(self) -> None:
        """Finishes the running answers and takes no more."""
        self.engine.close()
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._speech_executor.shutdown(wait=False, cancel_futures=True)
        self._schema_executor.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _all_or_none(submitted: Sequence[Task]) -> Iterator[None]:
    """Of what belongs together nothing is done where a part is refused."""
    try:
        yield
    except EdenError:
        for task in submitted:
            task.cancel()
        raise


def _public_name(name: str) -> str:
    """A hub id stays as it is; of a folder only its name is anybody's business."""
    return Path(name).resolve().name if Path(name).exists() else name
