"""Asking a model, in writing or by voice: one question, a stream, a conversation, or thousands in batches."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from queue import Queue
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from .checkpoint import Checkpoint
from .data.collate import collate
from .errors import ContextError
from .messages import AudioSource, MediaSource, Message, check_conversation, hear, to_chat
from .speech import Transcriber, Transcript
from .vision import open_image


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn.

    Attributes:
        max_new_tokens: the longest answer, in tokens.
        temperature: 0 is greedy: always the likeliest token.
        top_p: draw from the likeliest tokens that together hold this probability.
        seed: makes draws repeatable; None draws anew each time.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def for_generate(self) -> dict[str, Any]:
        options: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "do_sample": self.temperature > 0}
        if self.temperature > 0:
            options |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return options


class Assistant:
    """A model that answers questions about images, speech and text. Not safe to use from several threads at once.

    Args:
        checkpoint: the model.
        transcriber: its ears; None is the Whisper that the model's configuration names.
    """

    def __init__(self, checkpoint: Checkpoint, transcriber: Transcriber | None = None):
        self.checkpoint = checkpoint
        self.processor = checkpoint.processor
        if transcriber is not None:
            self.transcriber = transcriber

    @cached_property
    def transcriber(self) -> Transcriber:
        """Turns speech into text; its Whisper is loaded when the first recording comes."""
        return Transcriber(self.checkpoint.config.speech_model)

    @property
    def context_length(self) -> int:
        """Tokens the model reads and writes at most, prompt and answer together.

        Phi-3.5 degrades past its original window, where its rotary scaling switches; Eden stays within it.
        """
        config = self.checkpoint.config.text_config
        return int(min(config.max_position_embeddings, config.original_max_position_embeddings))

    def ask(
        self,
        question: str = "",
        images: Iterable[MediaSource] = (),
        audio: Iterable[AudioSource] = (),
        **sampling: Any,
    ) -> str:
        """The whole answer to one question.

        Args:
            question: in words; empty if it is spoken.
            images: paths, encoded bytes or PIL images, shown before the question.
            audio: paths, encoded bytes or samples (float32, mono, 16 kHz). Without words beside it a recording is the
                question, else it is quoted as context.
            sampling: the fields of `Sampling`.

        Raises:
            ImageError, AudioError, MessageError, ContextError: what was given cannot be asked.
        """
        return "".join(self.stream(question, images, audio, **sampling))

    def stream(
        self,
        question: str = "",
        images: Iterable[MediaSource] = (),
        audio: Iterable[AudioSource] = (),
        **sampling: Any,
    ) -> Iterator[str]:
        """The answer piece by piece, as it is written. Arguments and errors are those of `ask`."""
        return self.reply([Message.user(question, images, audio)], Sampling(**sampling))

    def hear(
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

        return [hear(message, words) for message in messages]

    def chat(self, system: str | None = None, **sampling: Any) -> Chat:
        """A conversation that remembers what was said."""
        return Chat(self, [Message.system(system)] if system else [], Sampling(**sampling))

    def reply(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[str]:
        """Streams the answer to a conversation whose last word is the user's. Closing the iterator ends the work."""
        inputs = self._inputs([messages], sampling.max_new_tokens)
        return self._stream(inputs, sampling)

    @torch.inference_mode()
    def answer_all(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        max_new_tokens: int = 128,
        batch_size: int = 32,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[str]:
        """Greedy answers to many conversations, in batches padded on the left, in the order given."""
        answers: list[str] = []
        for start in range(0, len(conversations), batch_size):
            inputs = self._inputs(conversations[start : start + batch_size], max_new_tokens)
            output = self.checkpoint.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
            new_tokens = output[:, inputs["input_ids"].shape[1] :]
            answers += [text.strip() for text in self.processor.batch_decode(new_tokens, skip_special_tokens=True)]
            if on_progress is not None:
                on_progress(len(answers), len(conversations))
        return answers

    def _inputs(self, conversations: Sequence[Sequence[Message]], max_new_tokens: int) -> dict[str, torch.Tensor]:
        examples = []
        for messages in conversations:
            check_conversation(messages, answered=False)
            chat = to_chat(self.hear(messages), open_image)
            example = self.processor.encode(chat, add_generation_prompt=True)
            if (length := len(example["input_ids"])) + max_new_tokens > self.context_length:
                raise ContextError(
                    f"the conversation has {length:,} tokens and the answer may take {max_new_tokens:,}; "
                    f"the model holds {self.context_length:,}",
                    cure="Shorten the conversation or ask for a shorter answer.",
                )
            examples.append(example)
        batch = collate(examples, self.processor.tokenizer.pad_token_id, side="left")
        del batch["labels"]
        return {name: tensor.to(self.checkpoint.core.device) for name, tensor in batch.items()}

    def _stream(self, inputs: dict[str, torch.Tensor], sampling: Sampling) -> Iterator[str]:
        streamer = TextIteratorStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        closed = threading.Event()
        failures: Queue[BaseException] = Queue()

        def work() -> None:
            try:
                with torch.inference_mode():
                    if sampling.seed is not None:
                        torch.manual_seed(sampling.seed)
                    self.checkpoint.model.generate(
                        **inputs,
                        **sampling.for_generate(),
                        streamer=streamer,
                        stopping_criteria=StoppingCriteriaList([_StopWhen(closed)]),
                    )
            except BaseException as error:
                failures.put(error)
                streamer.end()

        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        try:
            yield from (piece for piece in streamer if piece)
        finally:
            closed.set()
            worker.join()
        if not failures.empty():
            raise failures.get()


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
        (message,) = self.assistant.hear([Message.user(question, images, audio)], on_transcript)
        pieces = []
        for piece in self.assistant.reply([*self.messages, message], self.sampling):
            pieces.append(piece)
            yield piece
        self.messages += [message, Message.assistant("".join(pieces))]


class _StopWhen(StoppingCriteria):
    """Ends generation at the next token once the event is set."""

    def __init__(self, event: threading.Event):
        self.event = event

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device)
