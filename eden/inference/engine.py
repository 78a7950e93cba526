"""The engine: many answers at once on one model. The one generation loop; transformers' `generate` is its reference.

One thread owns the model and takes turns. In each, answers that nobody wants any more end, waiting questions are
read, within a bound, decisions are made, within the same, and every running answer gets one token:

    submit -> queue -> prefill -> KVCache row -> one token a turn -> Generation
                          ^ images through ImageMemory        |
                          <---- a row is freed as soon as its answer ends
    decide -> queue -> Scoring, of several together, one pass a turn -> Deciding

so answers join and leave between two tokens of the others (continuous batching: Orca,
https://www.usenix.org/conference/osdi22/presentation/yu).
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections import Counter, deque
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import torch

from ..checkpoint import Checkpoint
from ..errors import EngineStopped, OverloadError, first_line
from .decision_queue import DecisionQueue
from .detokenizer import TextStream
from .kv_cache import KVCache, is_out_of_memory
from .prefill import ImageMemory, Prefill
from .request import Deciding, DecisionRequest, EngineStats, FinishReason, Generation, Request, Task, start_prefill
from .sampler import Sampler, Token, sample_tokens

AnyTask = TypeVar("AnyTask", bound=Task)

IDLE_SECONDS = 2.0
"""The thread of an engine that has nothing to do ends after this long; the next question starts another."""

_open: weakref.WeakSet[Engine] = weakref.WeakSet()


@dataclass(eq=False)
class _Row:
    """A running answer: what samples its tokens, what makes them text. Its index in the list is its KV cache row."""

    generation: Generation
    sampler: Sampler
    text: TextStream
    ids: list[int]  # question and answer so far


class Engine:
    """Answers questions of any number of threads, together.

    Args:
        checkpoint: the model; nothing else may change it while the engine runs.
        max_running: answers written at once; memory for their keys and values is taken as they come.
        max_waiting: questions that may wait for them.
        prefill_tokens: read at most between two tokens of a running answer, of questions, and as many of decisions.
        remembered_images: images whose features are kept, the latest first.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        max_running: int = 8,
        max_waiting: int = 64,
        prefill_tokens: int = 512,
        remembered_images: int = 256,
    ):
        self.checkpoint = checkpoint
        self.max_running = max_running
        self._room = max_running  # fewer after memory ran out; one more with every answer that ends well
        self.max_waiting = max_waiting
        self.prefill_tokens = prefill_tokens
        self.error: Exception | None = None
        eos = checkpoint.core.generation_config.eos_token_id
        self._end_ids = frozenset(eos if isinstance(eos, list) else [] if eos is None else [eos])
        self._images = ImageMemory(checkpoint, remembered_images)
        self._changed = threading.Condition()
        self._waiting: deque[Generation] = deque()
        self._worker: threading.Thread | None = None
        self._decisions = DecisionQueue(checkpoint, self._images, prefill_tokens, self._changed)
        self._unended = 0  # questions taken and not ended yet
        self._closing: str | None = None  # "finish" what runs, or "now"
        # From here on the worker's own.
        self._kv_cache = KVCache(checkpoint.config.text_config)
        self._rows: list[_Row] = []
        self._reading: list[Generation] = []
        self._prefill: Prefill | None = None
        self._retry: deque[Generation] = deque()
        self._counts: Counter[str] = Counter()
        self._finished: Counter[str] = Counter()
        _open.add(self)

    @property
    def alive(self) -> bool:
        """True while it takes questions: neither closed nor failed."""
        return self.error is None and self._closing is None

    def stats(self) -> EngineStats:
        with self._changed:
            waiting = sum(map(len, self._queues))
            return EngineStats(
                waiting=waiting,
                # Not the rows: an answer leaves its row a moment before it is counted as finished.
                running=self._unended - waiting,
                finished=dict(self._finished),
                prompt_tokens=self._counts["prompt_tokens"],
                completion_tokens=self._counts["completion_tokens"],
                steps=self._counts["steps"],
            )

    def submit(self, request: Request, *, wait: bool = False) -> Generation:
        """Puts a question into the queue; any thread may.

        Args:
            request: the question.
            wait: wait for a place in the queue rather than refuse.

        Raises:
            ContextError, InputError: it cannot be answered (`Request.check`).
            OverloadError: the queue is full.
            EngineStopped: the engine was closed, or it failed.
        """
        request.check(self.checkpoint)
        return self._enter(Generation(request), self._waiting, wait)

    def decide(self, request: DecisionRequest) -> Deciding:
        """Puts a decision into the queue, where it has a place as a question has; any thread may.

        Raises:
            ContextError: a question is too long.
            OverloadError, EngineStopped: as `submit` does.
        """
        request.reading.check(self.checkpoint.context_length)
        return self._enter(Deciding(request), self._decisions.waiting)

    def _enter(self, task: AnyTask, queue: deque[AnyTask], wait: bool = False) -> AnyTask:
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: not self.alive or self._has_room())
            if not self.alive:
                raise self._stopped() from self.error
            if not self._has_room():
                waiting = sum(map(len, self._queues))
                raise OverloadError(f"{waiting} questions wait already", hint="Ask again in a moment.")
            queue.append(task)
            self._unended += 1
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="eden-engine", daemon=True)
                self._worker.start()
            self._changed.notify_all()
        return task

    @property
    def _queues(self) -> tuple[deque[Any], ...]:
        return self._retry, self._waiting, self._decisions.retry, self._decisions.waiting

    def _has_room(self) -> bool:
        # Not the queue's length alone: of questions that come at once all wait a moment, however many may run.
        return self._unended < self.max_running + self.max_waiting

    def close(self, finish: bool = True) -> None:
        """Takes no more questions and waits for the end; questions still in the queue fail with `EngineStopped`.

        Args:
            finish: complete the running answers; else they end as cancelled, at their next token.
        """
        with self._changed:
            self._closing = "finish" if finish and self._closing != "now" else "now"
            worker = self._worker
            self._changed.notify_all()
        if worker is not None and worker is not threading.current_thread():
            worker.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(finish=error is None)

    # The worker.

    @torch.inference_mode()
    def _work(self) -> None:
        try:
            while self._has_work():
                self._end_unwanted()
                self._read()
                self._decide()
                if self._rows:
                    self._step()
        except Exception as error:
            self._fail(error)

    def _has_work(self) -> bool:
        """True if there is something to do; waits for it a while. Once it says False, the thread is gone."""
        with self._changed:
            if self._rows or self._reading or self._decisions.is_busy or any(self._queues):
                return True
            self._changed.wait_for(lambda: any(self._queues) or self._closing, IDLE_SECONDS)
            if not any(self._queues):
                self._worker = None
            return any(self._queues)

    def _end_unwanted(self) -> None:
        """Ends what was cancelled or is late, and when closing, what shall not run on."""
        now = time.monotonic()
        stop: FinishReason | None = "cancelled" if self._closing == "now" else None
        for row in reversed(range(len(self._rows))):
            if reason := self._rows[row].generation.unwanted(now) or stop:
                self._free(row, reason)
        # Of what is being read only a single long question lasts more than a turn.
        if self._reading and (reason := self._reading[0].unwanted(now) or stop):
            (generation,), self._reading, self._prefill = self._reading, [], None
            self._end(generation, reason)
        ended: list[tuple[Task, FinishReason]] = list(self._decisions.unwanted(now, stop))
        with self._changed:
            for queue in self._queues:
                for task in tuple(queue):
                    if reason := "error" if self._closing else task.unwanted(now):
                        queue.remove(task)
                        ended.append((task, reason))
        for task, reason in ended:
            self._end(task, reason, self._stopped() if reason == "error" else None)

    def _read(self) -> None:
        """Reads some of the waiting questions; one that cannot be read fails alone."""
        try:
            if self._prefill is None:
                self._take()
                if not self._reading:
                    return
                self._prefill = start_prefill(self.checkpoint, self._images, [g.request for g in self._reading])
            logits = self._prefill.advance(self.prefill_tokens)
            if logits is None:
                return
            self._kv_cache.join(self._prefill.cache, self._prefill.lengths)
        except Exception as error:
            reading, self._reading, self._prefill = self._reading, [], None
            if is_out_of_memory(error):
                self._save_memory()
            if len(reading) > 1:  # one of them is to blame: each reads on its own
                self._retry.extend(reading)
            else:
                self._end(reading[0], "error", error)
            return
        self._prefill = None
        new = [self._new_row(generation) for generation in self._reading]
        self._counts["prompt_tokens"] += sum(len(row.ids) for row in new)
        self._rows += new
        self._reading = []
        self._write(len(self._rows) - len(new), logits)

    def _decide(self) -> None:
        """One pass for decisions; one that cannot be made fails alone."""
        for deciding, error in self._decisions.advance():
            if is_out_of_memory(error):
                self._save_memory()
            if error is None:
                self._counts["prompt_tokens"] += deciding.prompt_tokens
            self._end(deciding, "decided" if error is None else "error", error)

    def _take(self) -> None:
        """Takes the questions off the queue that are read together, in order: what fits the bound, but at least one."""
        with self._changed:
            free = self._room - len(self._rows)
            if self._retry:
                self._reading = [self._retry.popleft()] if free else []
                return
            width = 0
            while self._waiting and len(self._reading) < free:
                width = max(width, self._waiting[0].prompt_tokens)
                if self._reading and width * (len(self._reading) + 1) > self.prefill_tokens:
                    break
                self._reading.append(self._waiting.popleft())
        for generation in self._reading:
            generation.started_at = time.monotonic()

    def _new_row(self, generation: Generation) -> _Row:
        sampling = generation.request.sampling
        return _Row(
            generation,
            Sampler(sampling, self.checkpoint.core.device),
            TextStream(self.checkpoint.processor.tokenizer, sampling.stop, generation.request.input_ids[-1]),
            list(generation.request.input_ids),
        )

    def _step(self) -> None:
        """One token for every running answer. Where memory runs out the longest gives way, and the rest go on."""
        core = self.checkpoint.core
        last = torch.tensor([[row.ids[-1]] for row in self._rows], device=core.device)
        try:
            output = self.checkpoint.model(input_ids=last, **self._kv_cache.next_step(core.device, core.dtype))
            logits = output.logits[:, -1].float()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._free(max(range(len(self._rows)), key=lambda row: len(self._rows[row].ids)), "error", error)
            self._save_memory()
            return
        self._kv_cache.count_step()
        self._counts["steps"] += 1
        self._write(0, logits)

    def _save_memory(self) -> None:
        """Memory ran out: as many rows as there are now are enough for a while, and none is kept in reserve."""
        self._room = max(1, len(self._rows))
        self._kv_cache.save_memory()

    def _write(self, first: int, logits: torch.Tensor) -> None:
        """Samples the next token of the rows from `first` on, gives out their text, and frees those that ended."""
        rows = self._rows[first:]
        tokens = sample_tokens(logits, [row.sampler for row in rows], [row.ids for row in rows])
        for index in reversed(range(len(rows))):  # from behind: the last row takes the place of one that leaves
            token = tokens[index]
            if isinstance(token, Exception):
                self._free(first + index, "error", token)
            elif reason := self._append(rows[index], token):
                self._free(first + index, reason)

    def _append(self, row: _Row, token: Token) -> FinishReason | None:
        """Adds a token to an answer; why it ends, if it does."""
        generation = row.generation
        if not generation.token_ids:
            generation.first_token_at = time.monotonic()
        self._counts["completion_tokens"] += 1
        generation.token_ids.append(token.id)
        row.ids.append(token.id)
        if token.id in self._end_ids:
            return "stop"
        if delta := row.text.push(token):
            generation.add(delta)
        if row.text.stopped:
            return "stop"
        full = len(generation.token_ids) >= generation.request.sampling.max_new_tokens
        return "length" if full else None

    def _free(self, index: int, reason: FinishReason, error: Exception | None = None) -> None:
        """Frees a row and ends its answer; the row is free before anyone hears of it."""
        row, last = self._rows[index], self._rows.pop()
        if row is not last:
            self._rows[index] = last
        self._kv_cache.leave(index)
        if delta := row.text.finish():
            row.generation.add(delta)
        self._end(row.generation, reason, error)

    def _end(self, task: Task, reason: FinishReason, error: Exception | None = None) -> None:
        if is_out_of_memory(error):  # not kept as it is: it would hold the tensors of the step that failed
            error = OverloadError("there is no memory for this answer now", hint="Ask again in a moment.")
        if reason in ("stop", "length"):
            self._room = min(self._room + 1, self.max_running)
        with self._changed:
            self._finished[reason] += 1
            self._unended -= 1
            self._changed.notify_all()
        task.end(reason, error)

    def _fail(self, error: Exception) -> None:
        """The model itself failed: nothing that runs or waits can be answered, nor what would come."""
        with self._changed:
            self.error = error
            lost: list[Task] = [*(row.generation for row in self._rows), *self._reading, *self._decisions.clear()]
            self._rows, self._reading, self._prefill = [], [], None
            for queue in self._queues:
                lost += queue
                queue.clear()
            self._kv_cache = KVCache(self.checkpoint.config.text_config)
            self._worker = None
            self._changed.notify_all()
        for task in lost:
            if not task.done:
                self._end(task, "error", self._stopped())

    def _stopped(self) -> EngineStopped:
        if self.error is None:
            return EngineStopped("the engine was closed", hint="Open another to ask on.")
        stopped = EngineStopped(f"the engine failed ({first_line(self.error)})", hint="Open another to ask on.")
        stopped.__cause__ = self.error
        return stopped


@atexit.register
def _stop_all() -> None:
    """A process that ends in the middle of an answer ends that answer first: torch must not run while Python goes."""
    for engine in tuple(_open):
        engine.close(finish=False)
