"""OpenAI's chat completions as they come over the wire, checked, and as Eden's own types.

What Eden does not do is refused by name, unless it asks for what happens anyway. The fields of the classes below are
the list of what is taken: what changes an answer, values that are as good as none, and labels that change nothing.
null is as good as not there, everywhere.

Source: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from ..errors import AudioError, CheckpointError, ContextError, EngineStopped, ImageError, InputError, OverloadError
from ..inference.grammar import ANY_OBJECT
from ..messages import Audio, Image, Message, Part, Role, Text
from .settings import Limits
from .wire import JsonObjectFormat, JsonSchemaFormat, ResponseFormat, Wire

log = logging.getLogger("eden.serve")
AnyBody = TypeVar("AnyBody", bound=Wire)

UNIONS = ("content", "input", "instructions", "questions")
"""Fields with a list of objects of several kinds; in an error's steps the kind follows the number."""
KINDS = ("response_format", "format")
"""Fields with one such object."""
LONGEST_ECHO = 300
"""Characters of an error that may be a client's own."""


class RequestError(InputError):
    """A request that cannot be answered.

    Args:
        what: what is wrong.
        param: the field it is wrong in, as `messages[0].content[1].image_url`.
        code: OpenAI's short name of the fault.
        status: the HTTP status.
        headers: that go with the status, as `Retry-After`.
    """

    def __init__(
        self,
        what: str,
        *,
        param: str | None = None,
        code: str = "invalid_value",
        status: int = 400,
        headers: Mapping[str, str] | None = None,
    ):
        param = None if param is None else param[:LONGEST_ECHO]  # a client may have made it up
        super().__init__(what[:LONGEST_ECHO], where=param, kind=code)
        self.param = param
        self.code = code
        self.status = status
        self.headers = dict(headers or {})

    def to_dict(self) -> dict[str, Any]:
        kinds = {401: "authentication_error", 500: "server_error", 503: "overloaded_error"}
        kind = kinds.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class TextPart(Wire):
    type: Literal["text"]
    text: str


class ImageUrl(Wire):
    url: str
    detail: Literal["auto", "low", "high", "original"] | None = Field(None, description="all are seen at one size")


class ImagePart(Wire):
    type: Literal["image_url"]
    image_url: ImageUrl | str


class InputAudio(Wire):
    data: str = Field(description="base64")
    format: str = Field("wav", description="a hint; the format is known by the content")


class AudioPart(Wire):
    type: Literal["input_audio"]
    input_audio: InputAudio


ContentPart: TypeAlias = Annotated[TextPart | ImagePart | AudioPart, Field(discriminator="type")]


NO_TOOLS = "this server calls no tools, and reads no calls and results of others' either; leave those turns out"


class ChatMessage(Wire):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[ContentPart], Field(fail_fast=True)] | None = None
    name: str | None = Field(None, description="a label; it changes no answer")
    provider_specific_fields: dict[str, Any] | None = Field(None, description="a label, by LiteLLM")
    refusal: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None

    @model_validator(mode="before")
    @classmethod
    def _is_without_tools(cls, fields: Any) -> Any:
        if type(fields) is dict:
            calls = fields.get("tool_calls") or fields.get("function_call")
            if calls or fields.get("role") in ("tool", "function"):
                raise PydanticCustomError("unsupported", NO_TOOLS)
        return fields


StopString: TypeAlias = Annotated[str, Field(min_length=1, max_length=1000)]


class StreamOptions(Wire):
    include_usage: bool | None = False
    include_obfuscation: Literal[False] | None = None


class ChatRequest(Wire):
    """What is asked. Below `user` stands what changes no answer, for clients that always send it."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1, fail_fast=True)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: int | None = Field(1, ge=1)
    stop: StopString | Annotated[list[StopString], Field(max_length=4)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1, description="0 always takes the likeliest token")
    top_k: int | None = Field(None, ge=-1, description="not OpenAI's; 0 and -1 are off")
    repetition_penalty: float | None = Field(None, gt=0, le=2, description="not OpenAI's; 1 is off")
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    user: str | None = None
    metadata: dict[str, Any] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    service_tier: str | None = None
    tools: list[dict[str, Any]] | None = Field(None, description="never called: the answer is in words")
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    functions: list[dict[str, Any]] | None = Field(None, description="as `tools`")
    function_call: Literal["none", "auto"] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    min_p: Literal[0] | None = None
    reasoning_effort: Literal["none"] | None = None
    response_format: ResponseFormat | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    modalities: Annotated[list[Literal["text"]], Field(min_length=1)] | None = None
    store: Literal[False] | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> ChatRequest:
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ; give one")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        return self

    @property
    def max_new_tokens(self) -> int | None:
        """The longest answer asked for, in tokens."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def json_schema(self) -> Mapping[str, Any] | None:
        """What the answer has to fit."""
        if isinstance(self.response_format, JsonSchemaFormat):
            return self.response_format.json_schema.definition
        return ANY_OBJECT if isinstance(self.response_format, JsonObjectFormat) else None

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


def check_model(asked: str, served: str) -> None:
    """Refuses a request for another model than the one that is served.

    Raises:
        RequestError: with status 404.
    """
    if asked != served:
        raise RequestError(
            f"there is no model {asked[:100]!r} here; this server has {served!r}",
            param="model",
            code="model_not_found",
            status=404,
        )


FetchImage: TypeAlias = Callable[[str, str], bytes]
"""Gets an image by its URL; the second argument is the field it stands in."""


def parse_chat_request(body: bytes, limits: Limits) -> ChatRequest:
    """Reads and checks a request's body.

    Raises:
        RequestError: as `parse_body`, or there is more of something than allowed.
    """
    request = parse_body(ChatRequest, body)
    check_limits(request, limits)
    return request


def parse_body(kind: type[AnyBody], body: bytes) -> AnyBody:
    """A request's body as an object of its endpoint's.

    Raises:
        RequestError: not JSON, an unknown or unsupported field, or a wrong type.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error) from None
    except RecursionError:
        raise RequestError("the body is nested too deep", code="invalid_json") from None


def check_limits(request: ChatRequest, limits: Limits) -> None:
    """Refuses more of something than allowed.

    Raises:
        RequestError: what there is too much of.
    """
    if len(request.messages) > limits.messages:
        raise RequestError(f"{len(request.messages)} messages, the limit is {limits.messages}", param="messages")
    parts = [part for message in request.messages if isinstance(message.content, list) for part in message.content]
    for kind, limit, noun in (
        (ImagePart, limits.images, "images"),
        (AudioPart, limits.recordings, "recordings"),
    ):
        if (number := sum(isinstance(part, kind) for part in parts)) > limit:
            raise RequestError(f"{number} {noun}, the limit is {limit}", param="messages")
    if (request.n or 1) > limits.choices:
        raise RequestError(f"n is {request.n}, the limit is {limits.choices}", param="n")


def to_messages(request: ChatRequest, limits: Limits, fetch_image: FetchImage | None = None) -> list[Message]:
    """The request's conversation with its images and recordings as bytes, not yet decoded.

    Args:
        request: a checked request.
        limits: of one request.
        fetch_image: gets an image by its `https:` URL; None refuses them.

    Raises:
        RequestError: a URL that is not allowed, or data that is no base64.
    """
    messages = []
    for number, message in enumerate(request.messages):
        role: Role = "system" if message.role == "developer" else message.role
        if message.content is None or isinstance(message.content, str):
            messages.append(Message(role, (Text(message.content or ""),)))
            continue
        parts: list[Part] = []
        for index, part in enumerate(message.content):
            where = f"messages[{number}].content[{index}]"
            if isinstance(part, TextPart):
                parts.append(Text(part.text))
            elif isinstance(part, ImagePart):
                url = part.image_url if isinstance(part.image_url, str) else part.image_url.url
                parts.append(Image(image_bytes(url, f"{where}.image_url", limits, fetch_image)))
            else:
                parts.append(Audio(_decoded(part.input_audio.data, f"{where}.input_audio", limits.audio_bytes)))
        messages.append(Message(role, tuple(parts)))
    return messages


def to_request_error(error: Exception, param: str | None = None) -> RequestError:
    """An error as one over the wire. Its place in the request is told, and no path: none was given.

    Args:
        error: any; one that Eden does not raise on purpose goes to the log, and the client hears that there was one.
        param: the field it is about, where the error does not know.
    """
    if isinstance(error, RequestError):
        return error
    # A model that cannot be loaded is not the client's fault, nor are the folders named in the error its business.
    if not isinstance(error, (InputError, OverloadError, EngineStopped)) or isinstance(error, CheckpointError):
        log.error("the server failed", exc_info=error)
        return RequestError("the server failed", code="internal_error", status=500)
    if isinstance(error, OverloadError):
        return RequestError(error.fault.advice, code="overloaded", status=503, headers={"Retry-After": "1"})
    if isinstance(error, EngineStopped):
        return RequestError(
            "the model does not answer any more", code="engine_stopped", status=503, headers={"Retry-After": "10"}
        )
    if isinstance(error, ImageError) and error.fault.where:
        param = f"{error.fault.where}.image_url"
    fallback = {ContextError: "context_length_exceeded", ImageError: "invalid_image", AudioError: "invalid_audio"}
    return RequestError(
        error.fault.advice, param=param, code=error.fault.kind or fallback.get(type(error), "invalid_value")
    )


def image_bytes(url: str, where: str, limits: Limits, fetch_image: FetchImage | None) -> bytes:
    """An image of a data URL, or of an `https:` one where they are fetched.

    Raises:
        RequestError: it is neither, its data is no base64, or too large.
    """
    if url[:5].lower() == "data:":
        header, comma, payload = url.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            raise RequestError("a data URL must be data:image/png;base64,...", param=where, code="invalid_image_url")
        return _decoded(payload, where, limits.image_bytes)
    if url.startswith("https://") and fetch_image is not None:
        return fetch_image(url, where)
    if url.startswith(("https://", "http://")):
        raise RequestError(
            "this server does not fetch images; send them as data:image/png;base64,...",
            param=where,
            code="remote_images_disabled",
        )
    raise RequestError("an image is sent as data:image/png;base64,...", param=where, code="invalid_image_url")


def _decoded(payload: str, where: str, max_bytes: int) -> bytes:
    """The bytes of base64, in lines or with the alphabet of URLs, too."""
    if not payload:
        raise RequestError("there is no data", param=where, code="invalid_base64")
    if len(payload) * 3 // 4 > max_bytes + max_bytes // 16:  # with room for line breaks
        raise RequestError(f"more than {max_bytes:,} bytes", param=where, code="media_too_large")
    try:
        written = payload.encode("ascii").translate(bytes.maketrans(b"-_", b"+/"), b" \t\r\n").rstrip(b"=")
        data = base64.b64decode(written + b"=" * (-len(written) % 4), validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if not data:
        raise RequestError("the data is not valid base64", param=where, code="invalid_base64")
    if len(data) > max_bytes:
        raise RequestError(f"more than {max_bytes:,} bytes", param=where, code="media_too_large")
    return data


def _refusal(error: ValidationError) -> RequestError:
    """The deepest fault in one line: of a content that is neither text nor good parts, the fault in the parts."""
    faults = error.errors(include_url=False, include_input=False)
    # Of equally deep ones not that it is of the other type: five stops in a list are too many, and not "no string".
    fault = max(faults, key=lambda fault: (len(fault["loc"]), not fault["type"].endswith("_type")))
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Invalid JSON: ")
    if fault["type"] == "json_invalid":
        return RequestError(f"the body is not valid JSON ({message})", code="invalid_json")
    made_up = fault["type"] == "extra_forbidden"
    name = _field_name(fault["loc"], made_up)
    kind, context = fault["type"], fault.get("ctx", {})
    if kind in ("literal_error", "union_tag_invalid"):
        expected = str(context.get("expected") or context["expected_tags"]).replace("False", "false")
        return RequestError(f"only {expected} is supported", param=name, code="unsupported_parameter")
    if made_up or kind == "none_required" or (kind == "too_long" and context["max_length"] == 0):
        return RequestError("not supported by this server", param=name, code="unsupported_parameter")
    code = "unsupported_parameter" if kind == "unsupported" else "invalid_value"
    return RequestError(f"{message[:1].lower()}{message[1:]}", param=name or None, code=code)


def _field_name(location: tuple[int | str, ...], made_up: bool = False) -> str:
    """`messages[0].content[1].image_url.url` of pydantic's steps, which also name the members of unions.

    Args:
        location: the steps.
        made_up: the last is a name that a client gave, whatever it looks like.
    """
    members = ("str", "bool", "constrained-str", ImageUrl.__name__)
    last = len(location) - 1
    steps = [
        step
        for place, step in enumerate(location)
        if isinstance(step, int) or (made_up and place == last) or not ("[" in step or step in members)
    ]
    name = ""
    for place, step in enumerate(steps):
        if isinstance(step, int):
            name += f"[{step}]"
        elif not (place and steps[place - 1] in KINDS) and not (
            place > 1 and isinstance(steps[place - 1], int) and steps[place - 2] in UNIONS
        ):
            name += f".{step}" if name else step
    return name
