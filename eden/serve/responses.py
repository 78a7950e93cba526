"""`POST /v1/responses`: OpenAI's newer way to ask what `completions.py` answers. No state is kept.

body -> ResponsesRequest -> ChatRequest -> Generation -> response | events
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from ..inference.request import Generation
from ..inference.sampler import Token
from .answers import TokenLogprob, logprobs
from .completions import (
    END,
    STILL_THERE,
    Submitting,
    collect,
    finish_reason,
    pieces,
    submit_answers,
    waiting,
    while_connected,
)
from .responses_schema import (
    IncompleteDetails,
    OutputMessage,
    OutputTextPart,
    ResponseFault,
    ResponseObject,
    ResponsesRequest,
    in_words_of_responses,
    new_response,
    parse_responses_request,
    usage_of,
)
from .schema import RequestError, check_model, to_request_error
from .service import Service


async def read_response_request(service: Service, body: bytes) -> ResponsesRequest:
    """What is asked for.

    Raises:
        RequestError: it is refused, with the field that is to blame.
    """
    request = await service.in_thread(parse_responses_request, body, service.settings.limits)
    check_model(request.model, service.name)
    return request


async def submit_response(service: Service, request: ResponsesRequest) -> list[Generation]:
    """Hears and decodes what a request holds, and puts its question into the queue: one answer.

    Raises:
        RequestError: it is refused, with the field that is to blame.
        EdenError: the engine is full or gone.
    """
    try:
        return await submit_answers(service, request.to_chat())
    except RequestError as error:
        raise in_words_of_responses(error, request) from error


async def whole_response(
    service: Service, http: Request, request: ResponsesRequest, generation: Generation
) -> Response:
    """Waits for the answer.

    Raises:
        ClientGone: the client hung up.
        RequestError: the answer failed, or took too long.
    """
    tokens = await while_connected(http, [generation], collect(generation))
    response, message = new_response(request, service.name), OutputMessage(status="in_progress", content=[])
    _complete(response, message, OutputTextPart(text=generation.text, logprobs=_told(service, tokens)), generation)
    return JSONResponse(response.model_dump())


async def events(service: Service, request: ResponsesRequest, submitting: Submitting) -> AsyncIterator[str]:
    """A response as it is written: it, its message and the message's text begin, grow and end."""
    response, message = new_response(request, service.name), OutputMessage(status="in_progress", content=[])
    part = OutputTextPart(text="", logprobs=[])
    numbers = itertools.count()

    def event(kind: str, **fields: Any) -> str:
        written = Event(type=kind, sequence_number=next(numbers), **fields).model_dump_json()
        return f"event: {kind}\ndata: {written}\n\n"

    item = {"item_id": message.id, "output_index": 0, "content_index": 0}
    yield event("response.created", response=response)
    yield event("response.in_progress", response=response)
    async for comment in waiting(service, submitting):
        yield comment
    try:
        (generation,) = submitting.result()
        yield event("response.output_item.added", output_index=0, item=message)
        yield event("response.content_part.added", **item, part=part)
        async with aclosing(pieces(service, [generation])) as written:
            async for _, delta in written:
                if delta is None:
                    yield STILL_THERE
                elif delta is not END:
                    told = _told(service, delta.tokens)
                    part.text += delta.text
                    part.logprobs += told
                    yield event("response.output_text.delta", **item, delta=delta.text, logprobs=told)
        _complete(response, message, part, generation)
    except Exception as error:  # whatever it is, who reads must hear of it: the status was sent long ago
        response.status, response.error = "failed", ResponseFault(message=str(to_request_error(error)))
        yield event("response.failed", response=response)
        return
    yield event("response.output_text.done", **item, text=part.text, logprobs=part.logprobs)
    yield event("response.content_part.done", **item, part=part)
    yield event("response.output_item.done", output_index=0, item=message)
    yield event(f"response.{response.status}", response=response)


class Event(BaseModel, extra="allow"):
    type: str
    sequence_number: int


def _complete(response: ResponseObject, message: OutputMessage, part: OutputTextPart, generation: Generation) -> None:
    """Ends a response with its text.

    Raises:
        RequestError: the answer did not come to its end.
    """
    message.status = response.status = "incomplete" if finish_reason(generation) == "length" else "completed"
    response.incomplete_details = IncompleteDetails() if response.status == "incomplete" else None
    message.content, response.output, response.usage = [part], [message], usage_of(generation)


def _told(service: Service, tokens: list[Token] | tuple[Token, ...]) -> list[TokenLogprob]:
    told = logprobs(service.assistant.processor.tokenizer, tuple(tokens))
    return [] if told is None else told.content
