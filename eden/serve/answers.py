"""What the API answers, in OpenAI's shapes.

Source: https://platform.openai.com/docs/api-reference/chat/object, .../chat/streaming, .../models/object
"""

from __future__ import annotations

import time
import uuid
from typing import Any, Literal

from pydantic import BaseModel, Field

from ..inference.detokenizer import token_bytes
from ..inference.request import Generation
from ..inference.sampler import Token


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    content: list[TokenLogprob]


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"]


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class _Completion(BaseModel):
    id: str = Field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = Field(default_factory=lambda: int(time.time()), description="seconds since 1970")
    model: str


class ChatCompletion(_Completion):
    object: Literal["chat.completion"] = "chat.completion"
    choices: list[Choice]
    usage: Usage


class Delta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    index: int
    delta: Delta
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class ChatCompletionChunk(_Completion):
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChunkChoice]
    usage: Usage | None = None


class Transcription(BaseModel):
    text: str


class TranscriptionSegment(BaseModel):
    id: int
    start: float = Field(description="in seconds")
    end: float = Field(description="in seconds")
    text: str


class VerboseTranscription(Transcription):
    task: Literal["transcribe"] = "transcribe"
    language: str | None
    duration: float = Field(description="in seconds")
    segments: list[TranscriptionSegment]


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["eden"] = "eden"
    max_model_len: int = Field(description="tokens of question and answer together, by the name that vLLM gives it")


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    status: Literal["ok", "failed", "closing"]


class Fault(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class ErrorResponse(BaseModel):
    error: Fault


def usage(generations: list[Generation]) -> Usage:
    """The tokens of all choices; the prompt counts once."""
    prompt = generations[0].prompt_tokens
    completion = sum(generation.completion_tokens for generation in generations)
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


def logprobs(tokenizer: Any, tokens: tuple[Token, ...]) -> Logprobs | None:
    """None where they were not asked for."""
    if not tokens or tokens[0].logprob is None:
        return None

    def named(token_id: int, logprob: float) -> dict[str, Any]:
        data = token_bytes(tokenizer, token_id)
        # JSON knows no minus infinity; OpenAI writes this number for what has no probability.
        return {"token": data.decode(errors="replace"), "logprob": max(logprob, -9999.0), "bytes": list(data)}

    return Logprobs(
        content=[
            TokenLogprob(
                **named(token.id, token.logprob if token.logprob is not None else 0.0),
                top_logprobs=[TopLogprob(**named(token_id, logprob)) for token_id, logprob in token.top],
            )
            for token in tokens
        ]
    )
