"""Asking a model, in writing or by voice: one question, a stream, a conversation, or thousands in batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..checkpoint import Checkpoint
from ..core.answers import AnswerSet
from ..media.images import open_image
from ..media.speech import Transcriber, Transcript
from ..messages import (
    AudioSource,
    MediaSource,
    Message,
    check_conversation,
    to_chat,
    transcribe_message,
)
from .decisions import Decision, DecisionQuestion, Reading, batches, score
from .engine import Engine
from .grammar import Grammar, Grammars
from .prefill import ImageMemory
from .readings import naming, read_together
from .request import Generation, Request
from .sampling import Sampling

PREFILL_TOKENS = 4096
"""Read at once where many questions are answered and no stream can stall."""


class Assistant:
    """A model that answers questions about images, speech and text. Not safe to use from several threads at once.

    Args:
        checkpoint: the model.
        transcriber: its speech model; None is the Whisper that the model's configuration names.
    """

    def __init__(self, checkpoint: Checkpoint, transcriber: Transcriber | None = None):
        self.checkpoint = checkpoint
        self.processor = checkpoint.processor
        self._grammars = Grammars(checkpoint)
        if transcriber is not None:
            self.transcriber = transcriber

    @cached_property
    def transcriber(self) -> Transcriber:
        """Turns speech into text; its Whisper is loaded when the first recording comes."""
        return Transcriber(self.checkpoint.config.speech_model)

    @cached_property
    def engine(self) -> Engine:
        """What writes the answers; it starts with the first question, and needs no closing."""
        return Engine(self.checkpoint)

    @property
    def context_length(self) -> int:
        """Tokens the model reads and writes at most, prompt and answer together."""
        return self.checkpoint.context_length

    def ask(
        self,
        question: str = "",
        images: Iterable[MediaSource] = (),
        audio: Iterable[AudioSource] = (),
        *,
        json_schema: Mapping[str, Any] | None = None,
        **sampling: Any,
    ) -> str:
        """The whole answer to one question.

        Args:
            question: in words; empty if it is spoken.
            images: paths, encoded bytes or PIL images, shown before the question.
            audio: paths, encoded bytes or samples (float32, mono, 16 kHz). Without words beside it a recording is the
                question, else it is quoted as context.
            json_schema: the answer is JSON that fits it, unless `max_new_tokens` cuts it short.
            sampling: the fields of `Sampling`.

        Raises:
            ImageError, AudioError, MessageError, ContextError: what was given cannot be asked.
            InputError: nothing can fit the schema, or it holds what is not supported.
        """
        return "".join(self.stream(question, images, audio, json_schema=json_schema, **sampling))

    def stream(
        self,
        question: str = "",
        images: Iterable[MediaSource] = (),
        audio: Iterable[AudioSource] = (),
        *,
        json_schema: Mapping[str, Any] | None = None,
        **sampling: Any,
    ) -> Iterator[str]:
        """The answer piece by piece, as it is written. Arguments and errors are those of `ask`."""
        if json_schema is not None:
            sampling["grammar"] = self.grammar(json_schema)
        return self.reply([Message.user(question, images, audio)], Sampling(**sampling))

    def grammar(self, json_schema: Mapping[str, Any]) -> Grammar:
        """A JSON schema as `Sampling` takes it. One that is new takes a moment, and any thread may ask.

        Raises:
            InputError: nothing can fit it, or it holds what is not supported.
        """
        return self._grammars.compile(json_schema)

    def transcribe_messages(
        self, messages: Sequence[Message], on_transcript: Callable[[Transcript], None] | None = None
    ) -> list[Message]:
        """The messages with speech as text, which is how the model reads them; those without come back as they are.

        Args:
            messages: a conversation or a part of one.
            on_transcript: called with what was heard in each recording.

        Raises:
            AudioError: a recording cannot be read, or it is the question and nothing is said in it.
        """

        def words(source: AudioSource) -> str:
            transcript = self.transcriber.transcribe(source)
            if on_transcript is not None:
                on_transcript(transcript)
            return transcript.text

        return [transcribe_message(message, words) for message in messages]

    def chat(self, system: str | None = None, **sampling: Any) -> Chat:
        """A conversation that remembers what was said."""
        return Chat(self, [Message.system(system)] if system else [], Sampling(**sampling))

    def reply(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[str]:
        """Streams the answer to a conversation whose last word is the user's. Closing the iterator ends the work."""
        request = self.request(messages, sampling)
        request.check(self.checkpoint)
        return self._stream(request)

    def answer_all(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        max_new_tokens: int = 128,
        batch_size: int = 32,
        names: Sequence[str] | None = None,
        keep_cut: bool = True,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[str]:
        """Greedy answers to many conversations, `batch_size` at a time, in the order given.

        The next conversation takes the place of one that is answered, and is prepared while the others are.

        Args:
            conversations: each with the user's as the last word.
            max_new_tokens: the longest answer, in tokens.
            batch_size: conversations asked at once.
            names: what each is called in errors; None numbers them.
            keep_cut: whether an answer that `max_new_tokens` has cut is given as far as it goes; else it is empty.
            on_progress: called with (answered, all).

        Raises:
            ImageError, AudioError, MessageError, ContextError: one cannot be asked; `where` names it.
        """
        sampling = Sampling(max_new_tokens=max_new_tokens)
        answers: list[str] = []
        pending: deque[Generation] = deque()

        def collect(to: int) -> None:
            while len(pending) > to:
                answer = pending.popleft().wait()
                answers.append(answer.text.strip() if keep_cut or answer.finish_reason == "stop" else "")
                if on_progress is not None:
                    on_progress(len(answers), len(conversations))

        # An engine of its own: here nobody waits for a first token, so questions are read as many at once as there are.
        with Engine(
            self.checkpoint, max_running=batch_size, max_waiting=batch_size, prefill_tokens=PREFILL_TOKENS
        ) as engine:
            for index, messages in enumerate(conversations):
                with naming(names[index] if names else f"conversation {index + 1}"):
                    pending.append(engine.submit(self.request(messages, sampling), wait=True))
                collect(2 * batch_size)
            collect(0)
        return answers

    def decide(
        self,
        question: str = "",
        images: Iterable[MediaSource] = (),
        audio: Iterable[AudioSource] = (),
        *,
        choices: Sequence[str] | None = None,
        levels: Sequence[str] | None = None,
        name: str | None = None,
    ) -> Decision:
        """How likely each answer of a closed set is: of choices, of levels in order, or else of yes and no.

        Args:
            question: in words; empty if it is spoken.
            images: as `ask` takes them.
            audio: as `ask` takes them.
            choices: 2 to 255 different answers; their order changes nothing.
            levels: the same, from the lowest to the highest.
            name: comes back with the decision.

        Raises:
            ImageError, AudioError, MessageError, ContextError: what was given cannot be asked.
            InputError: choices or levels are no set of answers.
        """
        asked = DecisionQuestion(question, AnswerSet.of(choices, levels), name)
        return self.decide_each([asked], images, audio)[0]

    def decide_each(
        self,
        questions: Sequence[DecisionQuestion],
        images: Iterable[MediaSource] = (),
        audio: Iterable[AudioSource] = (),
    ) -> list[Decision]:
        """Many questions about the same images and recordings, which are read once. Errors are those of `decide`."""
        images, audio = list(images), list(audio)
        conversations = [[Message.user(question.text, images, audio)] for question in questions]
        return self.decide_all(conversations, [question.answers for question in questions], questions=questions)

    def decide_all(
        self,
        conversations: Sequence[Sequence[Message]],
        answers: Sequence[AnswerSet],
        *,
        questions: Sequence[DecisionQuestion] | None = None,
        where: Sequence[str] | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[Decision]:
        """Decisions about many conversations, in the order given; those with the same images share one reading.

        Args:
            conversations: each with the user's as the last word.
            answers: the answers that each may have.
            questions: name the decisions.
            where: what each conversation is called in errors; None numbers them.
            on_progress: called with how many are decided.

        Raises:
            ImageError, AudioError, MessageError, ContextError: one cannot be asked; `where` names it.
        """
        found = self.score_answers(conversations, answers, where=where, on_progress=on_progress)
        names = [None] * len(answers) if questions is None else [question.name for question in questions]
        return [self.decision(*each) for each in zip(answers, found, names, strict=True)]

    def decision(self, answers: AnswerSet, logs: Sequence[float], name: str | None = None) -> Decision:
        """From the logarithmic probabilities of the answers, with the temperature and threshold kept with the model."""
        fitted = self.checkpoint.calibration.fitted if self.checkpoint.calibration is not None else {}
        return Decision.of(answers, logs, name, fitted.get(answers.key))

    def score_answers(
        self,
        conversations: Sequence[Sequence[Message]],
        answers: Sequence[AnswerSet],
        *,
        where: Sequence[str] | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[float]]:
        """The logarithmic probability of each answer, not normalised over the set. Arguments are `decide_all`'s."""
        memory = ImageMemory(self.checkpoint, capacity=1)
        found: dict[int, list[float]] = {}
        order: list[int] = []

        def prepared(messages: Sequence[Message]) -> list[Message]:
            check_conversation(messages, answered=False)
            return self.transcribe_messages(messages)

        def readings() -> Iterator[Reading]:
            names = where or [f"conversation {place + 1}" for place in range(len(conversations))]
            for places, reading in read_together(self.checkpoint, conversations, answers, names, prepared):
                order.extend(places)
                yield reading

        for batch in batches(self.checkpoint, readings()):
            branches = [branch for reading in score(self.checkpoint, memory, batch) for branch in reading]
            for place, of_branch in zip(order[len(found) :], branches, strict=False):  # the next reading is known, too
                found[place] = answers[place].joined(of_branch)
            if on_progress is not None:
                on_progress(len(found))
        return [found[place] for place in range(len(answers))]

    def request(self, messages: Sequence[Message], sampling: Sampling) -> Request:
        """A conversation whose last word is the user's, as the engine takes it.

        Raises:
            ImageError, AudioError, MessageError: it cannot be asked.
        """
        check_conversation(messages, answered=False)
        return Request.of(self.encode(self.transcribe_messages(messages)), sampling)

    def encode(self, messages: Sequence[Message]) -> dict[str, Any]:
        """A conversation without speech as `input_ids` and, if it has images, `pixel_values` [I,3,H,W].

        Raises:
            ImageError: an image cannot be opened.
        """
        return self.processor.encode(to_chat(messages, open_image), add_generation_prompt=True)

    def _stream(self, request: Request) -> Iterator[str]:
        generation = self.engine.submit(request, wait=True)
        try:
            yield from (delta.text for delta in generation if delta.text)
        finally:
            generation.cancel()


@dataclass
class Chat:
    """A conversation in progress; `messages` is all that was said so far."""

    assistant: Assistant
    messages: list[Message] = field(default_factory=list)
    sampling: Sampling = field(default_factory=Sampling)

    def ask(self, question: str = "", images: Iterable[MediaSource] = (), audio: Iterable[AudioSource] = ()) -> str:
        return "".join(self.stream(question, images, audio))

    def stream(
        self,
        question: str = "",
        images: Iterable[MediaSource] = (),
        audio: Iterable[AudioSource] = (),
        on_transcript: Callable[[Transcript], None] | None = None,
    ) -> Iterator[str]:
        """Streams the answer; question and answer are remembered once it is complete, speech as its words."""
        (message,) = self.assistant.transcribe_messages([Message.user(question, images, audio)], on_transcript)
        deltas = []
        for delta in self.assistant.reply([*self.messages, message], self.sampling):
            deltas.append(delta)
            yield delta
        self.messages += [message, Message.assistant("".join(deltas))]
