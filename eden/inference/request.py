"""A question for the engine, and the answer while it is written."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch

from ..errors import EdenError, RunError, first_line
from .detokenizer import TextDelta
from .sampling import Sampling

FinishReason: TypeAlias = Literal["stop", "length", "cancelled", "deadline", "error"]


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


@dataclass(frozen=True)
class EngineStats:
    """What an engine does and did.

    Attributes:
        waiting: questions in the queue.
        running: answers being written, those whose question is being read included.
        finished: answers ended, by finish reason.
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


class Generation:
    """An answer, from its place in the queue to its end. Any thread may read it, or end it.

    `for delta in generation` (or `async for`) gives each delta of text as it comes, from the beginning every time;
    an answer that failed then raises its error.

    Attributes:
        request: what was asked.
        token_ids: the tokens so far, those of a stop string and the closing token included.
        finish_reason: None while it is written; `stop` (the model ended it, or a stop string), `length`
            (`max_new_tokens`), `cancelled`, `deadline`, or `error`.
        submitted_at, started_at, first_token_at, finished_at: `time.monotonic()`; None before.
    """

    def __init__(self, request: Request):
        self.request = request
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.submitted_at = time.monotonic()
        self.started_at: float | None = None
        self.first_token_at: float | None = None
        self.finished_at: float | None = None
        self._deltas: list[TextDelta] = []
        self._error: Exception | None = None
        self._cancelled = False
        self._changed = threading.Condition()
        self._ended = threading.Event()  # so that who waits for the end is not woken by every delta
        self._listeners: list[Callable[[], None]] = []

    @property
    def done(self) -> bool:
        return self.finish_reason is not None

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

    def cancel(self) -> None:
        """Ends the answer before the next decode step; one that has ended stays as it is."""
        self._cancelled = True

    def wait(self, timeout: float | None = None) -> Generation:
        """Blocks until the answer has ended.

        Args:
            timeout: in seconds.

        Raises:
            TimeoutError: it has not ended by then.
            EngineStopped, RunError: it failed.
        """
        if not self._ended.wait(timeout):
            raise TimeoutError(f"no end of the answer within {timeout} s")
        self._raise_if_failed()
        return self

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
        loop, changed, seen = asyncio.get_running_loop(), asyncio.Event(), 0

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed; nobody reads any more
                loop.call_soon_threadsafe(changed.set)

        self._listeners.append(wake)
        try:
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
        finally:
            self._listeners.remove(wake)
        self._raise_if_failed()

    # The engine's side.

    def unwanted(self, now: float) -> FinishReason | None:
        """Why it should be ended before it is complete, if it should."""
        if self._cancelled:
            return "cancelled"
        deadline = self.request.deadline
        return "deadline" if deadline is not None and now - self.submitted_at >= deadline else None

    def add(self, delta: TextDelta) -> None:
        with self._changed:
            self._deltas.append(delta)
            self._tell()

    def end(self, reason: FinishReason, error: Exception | None = None) -> None:
        with self._changed:
            self.finished_at = time.monotonic()
            self._error = error
            self.finish_reason = reason
            self._ended.set()
            self._tell()
        if self.request.on_end is not None:
            self.request.on_end(self)

    def _tell(self) -> None:
        self._changed.notify_all()
        for wake in tuple(self._listeners):
            wake()

    def _raise_if_failed(self) -> None:
        if self._error is None:
            return
        if isinstance(self._error, EdenError):  # a new one each time: several threads may raise it
            raise type(self._error)(self._error.fault) from self._error.__cause__
        raise RunError(f"the question could not be answered: {first_line(self._error)}") from self._error
