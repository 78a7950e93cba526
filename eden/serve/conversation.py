"""The page's conversations: what was asked, heard and answered, and how the next answer is written.

    text and files -> recordings heard, shown at once -> the earlier turns and this one -> the answer, piece by piece

A conversation stays on the server. The browser shows it and sends only what is new, so nothing that a browser claims
about earlier turns is ever read. Gradio is not needed here: the page (`eden.serve.page`) draws what this holds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import EdenError, ImageError, MessageError
from ..inference.request import Generation
from ..media.audio import FORMATS as AUDIO_FORMATS
from ..messages import Message
from .service import Service

log = logging.getLogger("eden.serve")

AUDIO_SUFFIXES = frozenset(f".{name}" for name in (*AUDIO_FORMATS, "oga", "opus"))
UPLOADS_KEPT = 3600
"""How long an uploaded file is kept."""
FRAME_SECONDS = 0.05
"""The page is redrawn at most this often: a browser shows no more, and every redraw sends a message."""

Answer = Callable[["Turn", Sequence[Message], dict[str, Any]], Generator[tuple[str, str | None], None, None]]


@dataclass(eq=False)
class Turn:
    """A question and its answer.

    Attributes:
        text: what was typed.
        files: what was uploaded, pictures and recordings.
        transcripts: what was said in each recording.
        message: the question as the model reads it, speech as words; None until it is heard.
        answer: all of it so far.
        ended: why the answer ended, a `FinishReason`; None while it is written.
        failure: why there is no answer, in a sentence for the user.
        stopped: the user wants no more of it.
        generation: the answer in the engine, while it is written by this process.
    """

    text: str = ""
    files: tuple[str, ...] = ()
    transcripts: list[str] = field(default_factory=list)
    message: Message | None = None
    answer: str = ""
    ended: str | None = None
    failure: str = ""
    stopped: bool = False
    generation: Generation | None = None

    @property
    def pictures(self) -> list[str]:
        return [file for file in self.files if not is_recording(file)]

    @property
    def recordings(self) -> list[str]:
        return [file for file in self.files if is_recording(file)]

    @property
    def counts(self) -> bool:
        """Whether later answers know of it: it was answered, at least in part."""
        return self.ended is not None and not self.failure and bool(self.answer)

    @property
    def stopped_elsewhere(self) -> bool:
        """Whether it was stopped while another process writes it, as on a lent GPU, and does not know."""
        return self.stopped and self.generation is None

    def stop(self) -> None:
        """Ends the answer before the next decode step, or before it begins. Any thread may."""
        self.stopped = True
        if self.generation is not None:
            self.generation.cancel()


@dataclass
class Conversation:
    """The turns of one chat; the last one may still be answered."""

    turns: list[Turn] = field(default_factory=list)

    def stop(self) -> None:
        for turn in self.turns[-1:]:
            turn.stop()

    def clear(self) -> None:
        self.stop()
        self.turns.clear()

    def take_back(self) -> Turn | None:
        """Removes the last turn, to ask it again."""
        self.stop()
        return self.turns.pop() if self.turns else None

    @property
    def is_busy(self) -> bool:
        """Whether the last turn is still answered."""
        return any(turn.ended is None for turn in self.turns[-1:])

    def ends_with(self, turn: Turn) -> bool:
        return turn in self.turns[-1:]

    def ask(
        self,
        service: Service,
        answer: Answer,
        text: str,
        files: Sequence[str],
        sampling: Callable[[], dict[str, Any]],
    ) -> Iterator[Turn]:
        """Adds a turn and has it answered; gives the turn each time there is something new to show.

        Whatever goes wrong becomes the turn's `failure`: nothing is raised.

        Args:
            service: the model and its limits.
            answer: `Answers.write`, perhaps on another GPU.
            text: what was typed.
            files: paths of what was uploaded.
            sampling: gives the fields of `Sampling`, or says what is wrong with them.
        """
        self.stop()
        turn = Turn(text.strip(), tuple(files))
        self.turns.append(turn)
        try:
            yield turn
            with service.admitted():
                earlier = [other for other in self.turns[:-1] if other.counts]
                _check_limits(service, [*earlier, turn])
                yield from _transcribe(service, turn)
                messages = [message for other in earlier for message in _spoken(other)]
                assert turn.message is not None
                if not turn.stopped:
                    with closing(answer(turn, [*messages, turn.message], sampling())) as pieces:
                        for turn.answer, ended in pieces:
                            turn.ended = ended or ("cancelled" if turn.stopped_elsewhere else None)
                            if turn.ended is not None:
                                break
                            yield turn
        except EdenError as error:
            turn.failure = in_a_sentence(error)
        except Exception:
            log.exception("a question on the page could not be answered")
            turn.failure = "Something went wrong on the server. Please try again."
        finally:  # also where the page closes this generator
            turn.stop()
            turn.ended = turn.ended or ("error" if turn.failure else "cancelled")
        yield turn


class Answers:
    """Writes the answers of a service.

    Args:
        service: the model.
        gpu: decorates the generator that writes, as `spaces.GPU` does where a GPU is lent for each answer.
    """

    def __init__(self, service: Service, gpu: Callable[[Any], Any] | None = None):
        self._service = service
        self.write: Answer = gpu(self._write) if gpu is not None else self._write

    def _write(
        self, turn: Turn, messages: Sequence[Message], sampling: dict[str, Any]
    ) -> Generator[tuple[str, str | None], None, None]:
        """The text so far, and why it ended: None until it has."""
        (generation,) = self._service.submit(self._service.open_images(messages), **sampling)
        turn.generation = generation
        try:
            if turn.stopped:  # before there was anything to cancel
                generation.cancel()
            text, shown = "", 0.0
            for _ in generation:
                if generation.text == text:  # it came with what was shown last
                    continue
                with suppress(TimeoutError):
                    generation.wait(shown + FRAME_SECONDS - time.monotonic())
                text, shown = generation.text, time.monotonic()
                yield text, None
            yield generation.text.strip(), generation.finish_reason
        finally:
            generation.cancel()
            turn.generation = None


def is_recording(file: str) -> bool:
    return Path(file).suffix.lower() in AUDIO_SUFFIXES


def in_a_sentence(error: EdenError) -> str:
    """What is wrong and what to do about it; not where, which is a path on the server."""
    text = error.fault.advice[:1].upper() + error.fault.advice[1:]
    return text if text.endswith(".") else f"{text}."


def _transcribe(service: Service, turn: Turn) -> Iterator[Turn]:
    """Makes the turn's `message`; what is heard in each recording is shown before the next."""
    recordings = [Path(file).read_bytes() for file in turn.recordings]
    for recording in recordings:
        if not turn.stopped:
            turn.transcripts.append(service.transcribe(recording).text)
            yield turn
    if turn.stopped and len(turn.transcripts) < len(recordings):
        turn.message = Message.user("")
        return
    # The service remembers what was heard in the same bytes.
    (turn.message,) = service.transcribe_messages([Message.user(turn.text, turn.pictures, recordings)])


def _spoken(turn: Turn) -> list[Message]:
    assert turn.message is not None
    return [turn.message, Message.assistant(turn.answer)]


def _check_limits(service: Service, turns: Sequence[Turn]) -> None:
    """Refuses a conversation before any of its files is read.

    Raises:
        MessageError, ImageError: which limit, and what to do.
    """
    limits = service.settings.limits
    files = [Path(file) for turn in turns for file in turn.files]
    if not all(file.exists() for file in files):
        raise ImageError(
            f"a file of this conversation is gone: uploads are kept for {UPLOADS_KEPT // 60} minutes",
            hint="Start over, and send it again.",
        )
    for kind, count, limit in (
        ("pictures", sum(len(turn.pictures) for turn in turns), limits.images),
        ("recordings", sum(len(turn.recordings) for turn in turns), limits.recordings),
        ("messages", 2 * len(turns) - 1, limits.messages),
    ):
        if count > limit:
            raise MessageError(f"the conversation has {count} {kind}, the limit is {limit}", hint="Start over.")
    size = sum(file.stat().st_size for file in files)
    if size > limits.body_bytes:
        raise MessageError(
            f"the conversation's files have {size:,} bytes, the limit is {limits.body_bytes:,}",
            hint="Start over, or send smaller files.",
        )
