"""Decisions in the engine: those that wait are made together, a pass between two tokens of the running answers."""

from __future__ import annotations

import threading
import time
from collections import deque

from ..checkpoint import Checkpoint
from .decisions import Reading, Scoring
from .prefill import ImageMemory
from .request import Deciding, FinishReason


class DecisionQueue:
    """Decisions that wait and those being made. All but `waiting` is the engine's thread's own.

    Args:
        checkpoint: the model.
        images: the engine's; remembers those seen last.
        max_tokens: read in one pass.
        changed: the engine's lock; guards `waiting`.
    """

    def __init__(self, checkpoint: Checkpoint, images: ImageMemory, max_tokens: int, changed: threading.Condition):
        self.waiting: deque[Deciding] = deque()
        self.retry: deque[Deciding] = deque()  # made one by one: a pass over them together failed
        self._checkpoint = checkpoint
        self._images = images
        self._max_tokens = max_tokens
        self._changed = changed
        self._batch: list[Deciding] = []
        self._scoring: Scoring | None = None

    @property
    def is_busy(self) -> bool:
        """Whether some are being made."""
        return bool(self._batch)

    def advance(self) -> list[tuple[Deciding, Exception | None]]:
        """One pass of the model for those being made, or else for some of those that wait.

        Returns:
            The decisions that are made now, and one that cannot be made with what went wrong.
        """
        if not self._batch:
            self._take()
            if not self._batch:
                return []
        try:
            if self._scoring is None:
                readings = [deciding.request.reading for deciding in self._batch]
                self._scoring = Scoring(self._checkpoint, self._images, readings)
            found = self._scoring.advance(self._max_tokens)
        except Exception as error:
            failed = self.clear()
            if len(failed) == 1:
                return [(failed[0], error)]
            self.retry.extend(deciding for deciding in failed if not deciding.done)  # one of them is to blame
            return []
        if found is None:
            return []
        made: list[tuple[Deciding, Exception | None]] = []
        for deciding, logs in zip(self.clear(), found, strict=True):
            if not deciding.done:
                deciding.logs = logs
                made.append((deciding, None))
        return made

    def unwanted(self, now: float, stop: FinishReason | None) -> list[tuple[Deciding, FinishReason]]:
        """Of those being made what shall end now, each with its reason; where nobody waits for the rest, it is left.

        Args:
            now: `time.monotonic()`.
            stop: the reason to end all of them, if there is one.
        """
        left = [deciding for deciding in self._batch if not deciding.done]
        ended = [(deciding, reason) for deciding in left if (reason := deciding.unwanted(now) or stop)]
        if len(ended) == len(left):
            self.clear()
        return ended

    def clear(self) -> list[Deciding]:
        """Those being made, which are so no more."""
        batch, self._batch, self._scoring = self._batch, [], None
        return batch

    def _take(self) -> None:
        """Takes those that are made together, in order: what fits the bound, but at least one."""
        with self._changed:
            if self.retry:
                self._batch = [self.retry.popleft()]
            else:
                readings: list[Reading] = []
                while self.waiting and self.waiting[0].request.reading.fits(readings, self._max_tokens):
                    self._batch.append(self.waiting.popleft())
                    readings.append(self._batch[-1].request.reading)
        for deciding in self._batch:
            deciding.started_at = time.monotonic()
