"""`POST /v1/chat/completions`: from a body to answers, whole or as a stream of events.

    body -> ChatRequest -> messages -> Service: transcribe, open images, submit -> Generations -> completion | chunks

Whoever hangs up is noticed while waiting and while streaming; the answers end at their next token.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from ..errors import EdenError, InputError
from ..inference.detokenizer import TextDelta
from ..inference.request import Generation, Task
from ..inference.sampler import Token
from ..messages import Message, Text
from .answers import (
    AnswerMessage,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    Delta,
    logprobs,
    usage,
)
from .fetch import fetch_image
from .schema import (
    ChatRequest,
    FetchImage,
    RequestError,
    check_model,
    parse_chat_request,
    to_messages,
    to_request_error,
)
from .service import Service

Result = TypeVar("Result")
Submitting = asyncio.Future[list[Generation]]
"""The answers to a question, once it is in the queue."""

END = TextDelta("", ())
STILL_THERE = ": still there\n\n"
"""A comment, which clients pass over."""


class ClientGone(Exception):
    """Whoever asked has hung up; there is nobody to answer."""


async def read_request(service: Service, body: bytes) -> ChatRequest:
    """What is asked for.

    Raises:
        RequestError: it is refused, with the field that is to blame.
    """
    request = await service.in_thread(parse_chat_request, body, service.settings.limits)
    check_model(request.model, service.name)
    return request


async def submit_answers(service: Service, request: ChatRequest) -> list[Generation]:
    """Hears and decodes what a request holds, and puts its question into the queue.

    Raises:
        RequestError: it is refused, with the field that is to blame.
        EdenError: the engine is full or gone.
    """
    limits = service.settings.limits
    grammar = None
    if (json_schema := request.json_schema) is not None:
        try:
            grammar = await service.grammar(json_schema)
        except InputError as error:
            raise to_request_error(error, param="response_format.json_schema.schema") from error
    try:
        messages = await service.in_thread(to_messages, request, limits, image_fetcher(service))
        if any(message.audio for message in messages):
            messages = await service.in_thread(service.transcribe_messages, messages, speech=True)

        def submit() -> list[Generation]:
            # In one go: decoded images are large, and so are held by as many requests as there are threads, at most.
            return service.submit(
                as_turns(service.open_images(messages)),
                max_new_tokens=request.max_new_tokens,
                n=request.n or 1,
                temperature=1.0 if request.temperature is None else request.temperature,
                top_p=1.0 if request.top_p is None else request.top_p,
                top_k=max(request.top_k or 0, 0),
                repetition_penalty=request.repetition_penalty or 1.0,
                seed=request.seed,
                stop=request.stop_strings,
                logprobs=(request.top_logprobs or 0) if request.logprobs else None,
                grammar=grammar,
            )

        return await service.in_thread(submit)
    except EdenError as error:
        raise to_request_error(error, param="messages") from error


def image_fetcher(service: Service) -> FetchImage | None:
    """Gets images by URL, where hosts are named that they may be on."""
    settings = service.settings
    if not settings.image_hosts:
        return None

    def fetch(url: str, where: str) -> bytes:
        return fetch_image(url, hosts=settings.image_hosts, max_bytes=settings.limits.image_bytes, where=where)

    return fetch


def as_turns(messages: Sequence[Message]) -> list[Message]:
    """A conversation as a template can say it: one system turn, the first, and neighbours of one role as one turn.

    What becomes one turn stands in paragraphs of its own, as Ollama has it. An answer that is begun stays the last.
    """
    turns: list[Message] = []
    systems = [message for message in messages if message.role == "system" and message.content != (Text(""),)]
    for message in [*systems, *(message for message in messages if message.role != "system")]:
        if turns and turns[-1].role == message.role:
            before = turns.pop().content
            both = all(isinstance(part, Text) and part.text for part in (*before[-1:], *message.content[:1]))
            message = replace(message, content=(*before, *([Text("\n\n")] if both else []), *message.content))
        turns.append(message)
    if turns and turns[-1].role == "assistant" and not turns[-1].text:
        turns.pop()
    return turns


async def whole_answer(service: Service, http: Request, generations: Sequence[Generation]) -> Response:
    """Waits for all choices, then answers.

    Raises:
        ClientGone: the client hung up.
        RequestError: an answer failed, or took too long.
    """
    tokens = await while_connected(http, generations, asyncio.gather(*map(collect, generations)))
    tokenizer = service.assistant.processor.tokenizer
    choices = [
        Choice(
            index=index,
            message=AnswerMessage(content=generation.text),
            logprobs=logprobs(tokenizer, tuple(tokens[index])),
            finish_reason=finish_reason(generation),
        )
        for index, generation in enumerate(generations)
    ]
    completion = ChatCompletion(model=service.name, choices=choices, usage=usage(list(generations)))
    return JSONResponse(completion.model_dump())


async def begun(service: Service, submitting: Awaitable[list[Generation]]) -> Submitting:
    """Waits for a question to be in the queue, but no longer than a stream may say nothing.

    Raises:
        RequestError, EdenError: it was refused until then, so that the status can still say so.
    """
    task = asyncio.ensure_future(submitting)
    await asyncio.wait([task], timeout=service.settings.silent_seconds)
    if task.done():
        task.result()
    return task


async def waiting(service: Service, submitting: Submitting) -> AsyncIterator[str]:
    """What a stream says while recordings are heard and pictures decoded."""
    while not submitting.done():
        yield STILL_THERE
        await asyncio.wait([submitting], timeout=service.settings.silent_seconds)


class AnswerStream(StreamingResponse):
    """Answers as they are written, as server-sent events.

    Args:
        events: the events.
        submitting: what they tell of.
        on_end: called once the stream has ended, whatever way, and its question is no longer being prepared.
    """

    def __init__(self, events: AsyncIterator[str], submitting: Submitting, on_end: Callable[[], None]):
        super().__init__(
            events,
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
        self._submitting, self._on_end = submitting, on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:  # not in the events themselves: one who hangs up before the first never starts them
            self._submitting.add_done_callback(self._end)

    def _end(self, submitted: Submitting) -> None:
        if not submitted.cancelled() and submitted.exception() is None:
            end(submitted.result())
        self._on_end()


async def chunks(service: Service, request: ChatRequest, submitting: Submitting) -> AsyncIterator[str]:
    """The events of a chat completion; with several choices their chunks interleave as they come."""
    include_usage = bool(request.stream_options and request.stream_options.include_usage)
    first = ChatCompletionChunk(model=service.name, choices=[])
    tokenizer = service.assistant.processor.tokenizer

    def event(*choices: ChunkChoice, **more: Any) -> str:
        chunk = first.model_copy(update={"choices": list(choices), **more})
        hidden = None if include_usage else {"usage"}
        return f"data: {chunk.model_dump_json(exclude=hidden)}\n\n"

    async for comment in waiting(service, submitting):
        yield comment
    try:
        generations = submitting.result()
        for index in range(len(generations)):
            yield event(ChunkChoice(index=index, delta=Delta(role="assistant", content="")))
        async with aclosing(pieces(service, generations)) as written:
            async for index, delta in written:
                if delta is None:
                    yield STILL_THERE
                elif delta is END:
                    reason = finish_reason(generations[index])
                    yield event(ChunkChoice(index=index, delta=Delta(), finish_reason=reason))
                else:
                    told = logprobs(tokenizer, delta.tokens)
                    yield event(ChunkChoice(index=index, delta=Delta(content=delta.text), logprobs=told))
    except Exception as error:  # whatever it is, who reads must hear of it
        # The status was sent long ago: the error is an event, and no finish reason is made up.
        yield f"data: {json.dumps(to_request_error(error).to_dict())}\n\n"
        return
    if include_usage:
        yield event(usage=usage(list(generations)))
    yield "data: [DONE]\n\n"


async def pieces(
    service: Service, generations: Sequence[Generation]
) -> AsyncGenerator[tuple[int, TextDelta | None], None]:
    """The text of answers as it comes, with the answer's number; `END` where one ended, None where none says anything.

    Raises:
        EdenError: an answer failed.
    """
    queue: asyncio.Queue[tuple[int, TextDelta] | Exception] = asyncio.Queue()

    async def read(index: int, generation: Generation) -> None:
        try:
            async for delta in generation:
                queue.put_nowait((index, delta))
            queue.put_nowait((index, END))
        except Exception as error:
            queue.put_nowait(error)

    readers = [asyncio.ensure_future(read(index, generation)) for index, generation in enumerate(generations)]
    try:
        unfinished = len(readers)
        while unfinished:
            try:
                async with asyncio.timeout(service.settings.silent_seconds):
                    item = await queue.get()
            except TimeoutError:
                yield 0, None
                continue
            if isinstance(item, Exception):
                raise item
            yield item
            unfinished -= item[1] is END
    finally:
        for reader in readers:
            reader.cancel()


async def while_connected(http: Request, tasks: Sequence[Task], work: Awaitable[Result]) -> Result:
    """Waits for work, and then, or once the client is gone, ends the tasks that it waits for.

    Raises:
        ClientGone: the client hung up.
    """
    gone, working = asyncio.ensure_future(hung_up(http)), asyncio.ensure_future(work)
    try:
        await asyncio.wait((gone, working), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        for future in (gone, working):
            future.cancel()
        await asyncio.gather(gone, working, return_exceptions=True)
        end(tasks)


async def hung_up(http: Request) -> None:
    """Returns once the client is gone. Its body must have been read."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


def end(tasks: Sequence[Task]) -> None:
    """Ends what still runs."""
    for task in tasks:
        task.cancel()


async def collect(generation: Generation) -> list[Token]:
    """The tokens of an answer, once it has ended."""
    return [token async for text_delta in generation for token in text_delta.tokens]


def finish_reason(task: Task) -> Any:
    """OpenAI's word for how an answer ended; of a decision only that it did.

    Raises:
        RequestError: it did not come to its end.
    """
    if task.finish_reason == "deadline":
        raise RequestError(
            "the answer took too long. Ask for a shorter one, or in a moment",
            code="deadline_exceeded",
            status=503,
            headers={"Retry-After": "5"},
        )
    if task.finish_reason == "cancelled":  # only a server that closes ends what somebody still waits for
        raise RequestError("the server is closing", code="engine_stopped", status=503, headers={"Retry-After": "10"})
    return task.finish_reason
