"""OpenAI's responses as they come over the wire, checked, as the chat that they ask for; and their objects.

As with chat (`schema.py`), what Eden does not do is refused by name, and null is as good as not there.

Source: https://platform.openai.com/docs/api-reference/responses, and the types of the `openai` package (3.57)
"""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from ..inference.request import Generation
from .answers import TokenLogprob
from .decision_schema import (
    InputImage,
    InputText,
    InputTokensDetails,
    OutputRefusal,
    OutputTokensDetails,
)
from .schema import (
    AudioPart,
    ChatMessage,
    ChatRequest,
    ContentPart,
    ImagePart,
    RequestError,
    TextPart,
    check_limits,
    parse_body,
)
from .settings import Limits
from .wire import JsonObjectFormat, JsonSchema, JsonSchemaFormat, ResponseFormat, TextFormat, Wire

LOGPROBS = "message.output_text.logprobs"


class OutputText(Wire):
    type: Literal["output_text"]
    text: str
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    logprobs: list[Any] | None = Field(None, description="a label, of an answer that comes back")


Part: TypeAlias = Annotated[
    InputText | InputImage | AudioPart | OutputText | OutputRefusal, Field(discriminator="type")
]


class _Message(Wire):
    type: Literal["message"] | None = None
    content: str | Annotated[list[Part], Field(fail_fast=True)]
    id: str | None = Field(None, description="a label")
    status: str | None = Field(None, description="a label")


class AskingMessage(_Message):
    role: Literal["system", "developer", "user"]


class AnsweringMessage(_Message):
    role: Literal["assistant"]
    phase: str | None = Field(None, description="a label")


def _is_message(item: Any) -> Any:
    if type(item) is dict and item.get("type") not in (None, "message"):
        raise PydanticCustomError("unsupported", "only messages are read: this server keeps nothing and calls no tools")
    return item


InputMessage: TypeAlias = Annotated[
    AskingMessage | AnsweringMessage, Field(discriminator="role"), BeforeValidator(_is_message)
]


class NamedSchemaFormat(JsonSchema):
    type: Literal["json_schema"]


class TextConfig(Wire):
    format: Annotated[TextFormat | JsonObjectFormat | NamedSchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(Wire):
    effort: Literal["none"] | None = None


class ResponseStreamOptions(Wire):
    include_obfuscation: Literal[False] | None = None


class ResponsesRequest(Wire):
    """What is asked. Below `user` stands what changes no answer, for clients that always send it."""

    model: str
    input: str | Annotated[list[InputMessage], Field(min_length=1, fail_fast=True)]
    instructions: str | None = Field(None, description="a system turn before the input")
    stream: bool | None = False
    stream_options: ResponseStreamOptions | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    include: list[Literal["message.output_text.logprobs"]] | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    text: TextConfig | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    service_tier: str | None = None
    store: bool | None = Field(None, description="nothing is kept")
    tools: list[dict[str, Any]] | None = Field(None, description="never called: the answer is in words")
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    reasoning: Reasoning | None = None

    @property
    def logprobs(self) -> bool:
        return bool(self.include) or self.top_logprobs is not None

    def to_chat(self) -> ChatRequest:
        """The same as a chat completion is asked for."""
        messages = [] if self.instructions is None else [ChatMessage(role="system", content=self.instructions)]
        if isinstance(self.input, str):
            messages.append(ChatMessage(role="user", content=self.input))
        else:
            messages += [ChatMessage(role=message.role, content=_content(message)) for message in self.input]
        return ChatRequest(
            model=self.model,
            messages=messages,
            max_completion_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            logprobs=self.logprobs,
            top_logprobs=self.top_logprobs,
            response_format=_chat_format(self.text),
        )


def _content(message: InputMessage) -> str | list[ContentPart]:
    if isinstance(message.content, str):
        return message.content
    parts: list[ContentPart] = []
    for part in message.content:
        if isinstance(part, InputImage):
            parts.append(ImagePart(type="image_url", image_url=part.image_url))
        elif isinstance(part, AudioPart):
            parts.append(part)
        else:
            parts.append(TextPart(type="text", text=part.refusal if isinstance(part, OutputRefusal) else part.text))
    return parts


def _chat_format(text: TextConfig | None) -> ResponseFormat | None:
    asked = None if text is None else text.format
    return JsonSchemaFormat(type="json_schema", json_schema=asked) if isinstance(asked, NamedSchemaFormat) else asked


def parse_responses_request(body: bytes, limits: Limits) -> ResponsesRequest:
    """Reads and checks a request's body.

    Raises:
        RequestError: as `schema.parse_chat_request` does.
    """
    request = parse_body(ResponsesRequest, body)
    try:
        check_limits(request.to_chat(), limits)
    except RequestError as error:
        raise in_words_of_responses(error, request) from None
    return request


def in_words_of_responses(error: RequestError, request: ResponsesRequest) -> RequestError:
    """An error of the chat that a request asked for, with the field of the request that it is about."""
    param = error.param
    if param is not None and param.startswith("messages["):
        number, _, rest = param.removeprefix("messages[").partition("]")
        place = int(number) - (request.instructions is not None)
        param = "instructions" if place < 0 else f"input[{place}]{rest}"
    param = {"messages": "input", "response_format.json_schema.schema": "text.format.schema"}.get(param or "", param)
    what = error.fault.what
    return RequestError(what, param=param, code=error.code, status=error.status, headers=error.headers)


# What is answered.


def _id(kind: str) -> Any:
    return Field(default_factory=lambda: f"{kind}_{uuid.uuid4().hex}")


class OutputTextPart(BaseModel):
    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = Field(default_factory=list, max_length=0)
    logprobs: list[TokenLogprob]


class OutputMessage(BaseModel):
    id: str = _id("msg")
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputTextPart]


class IncompleteDetails(BaseModel):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseFault(BaseModel):
    code: Literal["server_error"] = "server_error"
    message: str


class ResponseUsage(BaseModel):
    input_tokens: int
    input_tokens_details: InputTokensDetails = Field(default_factory=InputTokensDetails)
    output_tokens: int
    output_tokens_details: OutputTokensDetails = Field(default_factory=OutputTokensDetails)
    total_tokens: int


class ResponseObject(BaseModel):
    id: str = _id("resp")
    object: Literal["response"] = "response"
    created_at: int = Field(default_factory=lambda: int(time.time()), description="seconds since 1970")
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ResponseFault | None = None
    incomplete_details: IncompleteDetails | None = None
    model: str
    output: list[OutputMessage]
    usage: ResponseUsage | None = None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    temperature: float
    top_p: float
    top_logprobs: int
    text: dict[str, Any]
    tools: list[Any] = Field(default_factory=list, max_length=0, description="none is ever called")
    tool_choice: Literal["none", "auto"]
    parallel_tool_calls: bool
    truncation: Literal["disabled"] = "disabled"
    background: Literal[False] = False
    store: Literal[False] = False
    previous_response_id: None = None
    reasoning: None = None
    user: str | None


def new_response(request: ResponsesRequest, name: str) -> ResponseObject:
    """A response that is begun; what was asked for comes back in it."""
    answer_format = request.text.format if request.text is not None else None
    return ResponseObject(
        status="in_progress",
        model=name,
        output=[],
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        metadata=request.metadata or {},
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        top_logprobs=request.top_logprobs or 0,
        text={"format": (answer_format or TextFormat(type="text")).model_dump(by_alias=True, exclude_none=True)},
        tool_choice=request.tool_choice or "auto",
        parallel_tool_calls=request.parallel_tool_calls is not False,
        user=request.user,
    )


def usage_of(generation: Generation) -> ResponseUsage:
    read, written = generation.prompt_tokens, generation.completion_tokens
    return ResponseUsage(input_tokens=read, output_tokens=written, total_tokens=read + written)
