"""What the engine is asked, and what comes of it: a question and its answer while it is written; a decision."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeAlias

import torch

from ..checkpoint import Checkpoint
from ..errors import ContextError, EdenError, InputError, RunError, first_line
from .decisions import Reading
from .detokenizer import TextDelta
from .prefill import ImageMemory, Prefill
from .sampling import Sampling

FinishReason: TypeAlias = Literal["stop", "length", "decided", "cancelled", "deadline", "error"]
"""`stop` (the model ended its answer, or a stop string) or `length` (`max_new_tokens`), of a decision `decided`; and of
either `cancelled`, `deadline`, or `error`."""


@dataclass(frozen=True, eq=False)
class Request:
    """One question, as `MultimodalPhiProcessor.encode` makes it, and how to answer it.

    Attributes:
        input_ids: T ids, N of `<|image|>` for each image.
        sampling: how the answer is sampled.
        pixel_values: [I,3,H,W] of its images, or
        image_features: [I,N,Dv] of them, but not both.
        deadline: seconds from now on until the answer ends, complete or not; None waits for it.
        on_end: called with the answer once it has ended, however that was.
    """

    input_ids: Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    pixel_values: torch.Tensor | None = None
    image_features: torch.Tensor | None = None
    deadline: float | None = None
    on_end: Callable[[Generation], None] | None = None

    @classmethod
    def of(cls, example: Mapping[str, Any], sampling: Sampling | None = None, **more: Any) -> Request:
        """The request of an example of `MultimodalPhiProcessor.encode(..., add_generation_prompt=True)`.

        Args:
            example: what was encoded.
            sampling: how it is answered.
            more: other attributes.
        """
        return cls(example["input_ids"], sampling or Sampling(), example.get("pixel_values"), **more)

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuses what the model cannot answer, before it waits for its turn.

        Raises:
            ContextError: question and answer may not fit into the context.
            InputError: it is empty, or its images do not fit its `<|image|>` tokens.
        """
        length, room = len(self.input_ids), self.sampling.max_new_tokens
        if length + room > checkpoint.context_length:
            raise ContextError(
                # In words that clients (LiteLLM) know the fault by.
                f"this model's maximum context length is {checkpoint.context_length:,} tokens; "
                f"the conversation has {length:,} and the answer may take {room:,}",
                hint="Shorten the conversation or ask for a shorter answer.",
            )
        if length == 0:
            raise InputError("there is no question", where="input_ids")
        if self.pixel_values is not None and self.image_features is not None:
            raise InputError("both pixel_values and image_features are given", hint="Give one of them.")
        images = self.pixel_values if self.pixel_values is not None else self.image_features
        embeddings = 0 if images is None else images.shape[0] * checkpoint.config.num_image_tokens
        tokens = sum(token_id == checkpoint.config.image_token_id for token_id in self.input_ids)
        if tokens != embeddings:
            raise InputError(f"the text holds {tokens} <|image|> tokens but the images give {embeddings} embeddings")


def start_prefill(checkpoint: Checkpoint, images: ImageMemory, requests: Sequence[Request]) -> Prefill:
    """The prompts of questions that are read together, with the features of their images in reading order."""
    encoded = iter(images.encode([image for r in requests if r.pixel_values is not None for image in r.pixel_values]))
    features: list[torch.Tensor] = []
    for request in requests:
        if request.image_features is not None:
            features.extend(request.image_features.to(checkpoint.core.device))
        elif request.pixel_values is not None:
            features.extend(next(encoded) for _ in request.pixel_values)
    return Prefill(checkpoint, [request.input_ids for request in requests], features)


@dataclass(frozen=True, eq=False)
class DecisionRequest:
    """Questions with closed sets of answers about what is read once for them all.

    Attributes:
        reading: as `Reading.of` makes it.
        deadline, on_end: as a `Request`'s.
    """

    reading: Reading
    deadline: float | None = None
    on_end: Callable[[Deciding], None] | None = None


@dataclass(frozen=True)
class EngineStats:
    """What an engine does and did.

    Attributes:
        waiting: questions in the queue, those of decisions included.
        running: answers being written, those whose question is being read included, and decisions being made.
        finished: answers and decisions ended, by finish reason.
        prompt_tokens: read, in all.
        completion_tokens: written, in all.
        steps: decode steps made.
    """

    waiting: int
    running: int
    finished: dict[str, int]
    prompt_tokens: int
    completion_tokens: int
    steps: int


class Task:
    """What the engine was given to do, from its place in the queue to its end. Any thread may wait for it, or end it.

    Attributes:
        finish_reason: None until it has ended.
        submitted_at, started_at, finished_at: `time.monotonic()`; None before.
    """

    def __init__(self, request: Request | DecisionRequest) -> None:
        self.finish_reason: FinishReason | None = None
        self.submitted_at = time.monotonic()
        self.started_at: float | None = None
        self.finished_at: float | None = None
        self._deadline = request.deadline
        self._on_end: Callable[[Any], None] | None = request.on_end
        self._error: Exception | None = None
        self._cancelled = False
        self._changed = threading.Condition()
        self._ended = threading.Event()  # so that who waits for the end is not woken by every delta
        self._listeners: list[Callable[[], None]] = []

    @property
    def done(self) -> bool:
        return self.finish_reason is not None

    def cancel(self) -> None:
        """Ends it before the next step; one that has ended stays as it is."""
        self._cancelled = True

    def wait(self, timeout: float | None = None) -> Self:
        """Blocks until it has ended.

        Args:
            timeout: in seconds.

        Raises:
            TimeoutError: it has not ended by then.
            EngineStopped, OverloadError, RunError: it failed.
        """
        if not self._ended.wait(timeout):
            raise TimeoutError(f"no end of the answer within {timeout} s")
        self._raise_if_failed()
        return self

    async def finished(self) -> Self:
        """Waits as `wait` does, and leaves the event loop free."""
        with self._listening() as changed:
            while not self.done:
                changed.clear()
                if not self.done:
                    await changed.wait()
        self._raise_if_failed()
        return self

    # The engine's side.

    def unwanted(self, now: float) -> FinishReason | None:
        """Why it should be ended before it is complete, if it should."""
        if self._cancelled:
            return "cancelled"
        return "deadline" if self._deadline is not None and now - self.submitted_at >= self._deadline else None

    def end(self, reason: FinishReason, error: Exception | None = None) -> None:
        with self._changed:
            self.finished_at = time.monotonic()
            self._error = error
            self.finish_reason = reason
            self._ended.set()
            self._tell()
        if self._on_end is not None:
            self._on_end(self)

    def _tell(self) -> None:
        self._changed.notify_all()
        for wake in tuple(self._listeners):
            wake()

    @contextlib.contextmanager
    def _listening(self) -> Iterator[asyncio.Event]:
        """An event of the running loop that is set whenever there is something new."""
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed; nobody waits any more
                loop.call_soon_threadsafe(changed.set)

        self._listeners.append(wake)
        try:
            yield changed
        finally:
            self._listeners.remove(wake)

    def _raise_if_failed(self) -> None:
        if self._error is None:
            return
        if isinstance(self._error, EdenError):  # a new one each time: several threads may raise it
            raise type(self._error)(self._error.fault) from self._error.__cause__
        raise RunError(f"the question could not be answered: {first_line(self._error)}") from self._error


class Deciding(Task):
    """A decision that waits, is made, or is made already.

    Attributes:
        request: what was asked.
        logs: the logarithmic probability of each answer, by question; empty until it is decided.
    """

    def __init__(self, request: DecisionRequest):
        super().__init__(request)
        self.request = request
        self.logs: list[list[float]] = []

    @property
    def prompt_tokens(self) -> int:
        """Tokens that are read: of what is shared, of each question, and of its answers."""
        return self.request.reading.all_tokens


class Generation(Task):
    """An answer.

    `for delta in generation` (or `async for`) gives each delta of text as it comes, from the beginning every time;
    an answer that failed then raises its error.

    Attributes:
        request: what was asked.
        token_ids: the tokens so far, those of a stop string and the closing token included.
        first_token_at: `time.monotonic()`; None before.
    """

    def __init__(self, request: Request):
        super().__init__(request)
        self.request = request
        self.token_ids: list[int] = []
        self.first_token_at: float | None = None
        self._deltas: list[TextDelta] = []

    @property
    def text(self) -> str:
        """All text so far."""
        return "".join(delta.text for delta in self._deltas)

    @property
    def prompt_tokens(self) -> int:
        return len(self.request.input_ids)

    @property
    def completion_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def seconds_to_first_token(self) -> float | None:
        return None if self.first_token_at is None else self.first_token_at - self.submitted_at

    def __iter__(self) -> Iterator[TextDelta]:
        seen = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.done or len(self._deltas) > seen)  # noqa: B023
                new, over = self._deltas[seen:], self.done
            yield from new
            seen += len(new)
            if over:
                break
        self._raise_if_failed()

    async def __aiter__(self) -> AsyncIterator[TextDelta]:
        seen = 0
        with self._listening() as changed:
            while True:
                changed.clear()
                with self._changed:
                    new, over = self._deltas[seen:], self.done
                for delta in new:
                    yield delta
                seen += len(new)
                if over:
                    break
                await changed.wait()
        self._raise_if_failed()

    # The engine's side.

    def add(self, delta: TextDelta) -> None:
        with self._changed:
            self._deltas.append(delta)
            self._tell()
