"""OpenAI's decisions as they come over the wire, checked, and the answers in OpenAI's shape.

As with chat (`schema.py`), what Eden does not do is refused by name, and null is as good as not there.

Source: https://platform.openai.com/docs/api-reference/decisions, and the types of the `openai` package (3.57)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, JsonValue
from pydantic_core import PydanticCustomError

from ..core.answers import MOST_ANSWERS, NO, YES, AnswerSet
from ..inference.decisions import Decision
from ..messages import Image, Message, Part, Text, is_empty
from .schema import NO_TOOLS, FetchImage, RequestError, image_bytes, parse_body
from .settings import Limits
from .wire import Wire

MOST_QUESTIONS = 400
JSON_LEVELS, JSON_VALUES, JSON_BYTES = 32, 10_000, 256 * 2**10
"""What a part of JSON may hold: containers in containers, values, and bytes of UTF-8 without spaces."""


class CacheBreakpoint(Wire):
    mode: Literal["explicit"]


class InputText(Wire):
    type: Literal["input_text"]
    text: str
    prompt_cache_breakpoint: CacheBreakpoint | None = Field(None, description="changes nothing")


class InputImage(Wire):
    type: Literal["input_image"]
    image_url: str
    detail: Literal["auto", "low", "high", "original"] | None = Field(None, description="all are seen at one size")
    prompt_cache_breakpoint: CacheBreakpoint | None = Field(None, description="changes nothing")


def _to_text(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def _within_limits(data: Any) -> Any:
    layer, levels, values = [data], 0, 0
    while layer:
        values += len(layer)
        containers = [value for value in layer if isinstance(value, (dict, list))]
        levels += bool(containers)
        layer = [inner for outer in containers for inner in (outer.values() if isinstance(outer, dict) else outer)]
    size = len(_to_text(data).encode())
    for number, limit, noun in (
        (levels, JSON_LEVELS, "levels"),
        (values, JSON_VALUES, "values"),
        (size, JSON_BYTES, "bytes"),
    ):
        if number > limit:
            raise ValueError(f"{number:,} {noun}, the limit is {limit:,}")
    return data


class InputJson(Wire):
    type: Literal["input_json"]
    data: Annotated[dict[str, JsonValue] | list[dict[str, JsonValue]], AfterValidator(_within_limits)] = Field(
        description="read as text, without spaces"
    )


class OutputText(Wire):
    type: Literal["output_text"]
    text: str


class OutputRefusal(Wire):
    type: Literal["refusal"]
    refusal: str


InputPart: TypeAlias = Annotated[InputText | InputImage | InputJson, Field(discriminator="type")]
OutputPart: TypeAlias = Annotated[OutputText | OutputRefusal, Field(discriminator="type")]


class _InputMessage(Wire):
    type: Literal["message"] | None = None


class UserMessage(_InputMessage):
    role: Literal["user"]
    content: str | Annotated[list[InputPart], Field(fail_fast=True)]


class SystemMessage(_InputMessage):
    role: Literal["system", "developer"]
    content: str | Annotated[list[InputText], Field(fail_fast=True)]


class AssistantMessage(_InputMessage):
    role: Literal["assistant"]
    content: str | Annotated[list[OutputPart], Field(fail_fast=True)]
    phase: Literal["commentary", "final_answer"] | None = Field(None, description="changes nothing")


def _without_tools(item: Any) -> Any:
    kind = item.get("type") if type(item) is dict else None
    if isinstance(kind, str) and kind.startswith(("function_call", "custom_tool_call")):
        raise PydanticCustomError("unsupported", NO_TOOLS)
    return item


InputMessage: TypeAlias = Annotated[
    UserMessage | SystemMessage | AssistantMessage, Field(discriminator="role"), BeforeValidator(_without_tools)
]


class _Question(Wire):
    instructions: str | Annotated[list[InputPart], Field(fail_fast=True)]
    name: str | None = Field(None, description="comes back with the answer")


class PredicateQuestion(_Question):
    type: Literal["predicate"]


class ChoiceOption(Wire):
    value: str | bool = Field(description="true is asked as yes, false as no")
    description: str | None = Field(None, description="stands below the instructions")


class ChoiceQuestion(_Question):
    type: Literal["choice"]
    choices: list[ChoiceOption] = Field(min_length=2, max_length=MOST_ANSWERS)


class ScoreLevel(Wire):
    label: str
    description: str | None = Field(None, description="stands below the instructions")


class ScoreQuestion(_Question):
    type: Literal["score"]
    levels: list[ScoreLevel] = Field(min_length=2, max_length=MOST_ANSWERS, description="the lowest first")


Question: TypeAlias = Annotated[PredicateQuestion | ChoiceQuestion | ScoreQuestion, Field(discriminator="type")]


class DecisionBody(Wire):
    """What is asked. Below `questions` stands what changes no answer."""

    model: str
    input: str | Annotated[list[InputMessage], Field(min_length=1, fail_fast=True)]
    questions: list[Question] = Field(min_length=1, max_length=MOST_QUESTIONS, fail_fast=True)
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    safety_identifier: str | None = None


def parse_decision(body: bytes, limits: Limits) -> DecisionBody:
    """Reads and checks a request's body.

    Raises:
        RequestError: as `schema.parse_chat_request` does.
    """
    request = parse_body(DecisionBody, body)
    messages = [] if isinstance(request.input, str) else request.input
    if len(messages) > limits.messages:
        raise RequestError(f"{len(messages)} messages, the limit is {limits.messages}", param="input")
    contents = [*(message.content for message in messages), *(question.instructions for question in request.questions)]
    images = sum(isinstance(part, InputImage) for parts in contents if isinstance(parts, list) for part in parts)
    if images > limits.images:
        raise RequestError(f"{images} images, the limit is {limits.images}", param="input")
    return request


def to_input(request: DecisionBody, limits: Limits, fetch_image: FetchImage | None) -> dict[str, Message]:
    """What is to be judged, by its place in the request: messages with images as bytes, not yet decoded.

    Raises:
        RequestError: a URL that is not allowed, or data that is no base64.
    """
    if isinstance(request.input, str):
        return {"input": Message.user(request.input)}
    found = {}
    for number, message in enumerate(request.input):
        where = f"input[{number}].content"
        role = "system" if message.role == "developer" else message.role
        found[where] = Message(role, _parts(message.content, where, limits, fetch_image))
    return found


def to_questions(request: DecisionBody, limits: Limits, fetch_image: FetchImage | None) -> dict[str, Message]:
    """The questions, by their place in the request. What describes a choice or level stands below, a line each.

    Raises:
        RequestError: one is empty, or as `to_input` does.
    """
    found = {}
    for number, question in enumerate(request.questions):
        where = f"questions[{number}].instructions"
        parts = _parts(question.instructions, where, limits, fetch_image)
        if is_empty(Message("user", parts)):
            raise RequestError("the question is empty", param=where, code="empty_message")
        if described := [f"{text}: {about}" for text, about in _described(question) if about is not None]:
            parts = (*parts, Text("\n\n" + "\n".join(described)))
        found[where] = Message("user", parts)
    return found


def _parts(
    content: str | Sequence[InputPart | OutputPart], where: str, limits: Limits, fetch_image: FetchImage | None
) -> tuple[Part, ...]:
    if isinstance(content, str):
        return (Text(content),)
    parts: list[Part] = []
    for index, part in enumerate(content):
        if isinstance(part, InputImage):
            url = part.image_url
            parts.append(Image(image_bytes(url, f"{where}[{index}].image_url", limits, fetch_image)))
        elif isinstance(part, InputJson):
            parts.append(Text(_to_text(part.data)))
        else:
            parts.append(Text(part.refusal if isinstance(part, OutputRefusal) else part.text))
    return tuple(parts)


def _described(question: Question) -> list[tuple[str, str | None]]:
    """The texts of a question's answers, as given, each with its description."""
    if isinstance(question, ChoiceQuestion):
        return [(_text(choice.value), choice.description) for choice in question.choices]
    if isinstance(question, ScoreQuestion):
        return [(level.label.strip(), level.description) for level in question.levels]
    return []


def _text(value: str | bool) -> str:
    """A choice as the model knows it."""
    if isinstance(value, str):
        return value.strip()
    return YES if value else NO


def to_answers(question: Question) -> AnswerSet:
    """The answers that a question may have; true and false alone are those of a predicate.

    Raises:
        InputError: one is empty, or two are the same.
    """
    if isinstance(question, PredicateQuestion):
        return AnswerSet.of()
    texts = [text for text, _ in _described(question)]
    if isinstance(question, ScoreQuestion):
        return AnswerSet.of(levels=texts)
    values = [choice.value for choice in question.choices]
    return AnswerSet.of(None if values in ([True, False], [False, True]) else texts)


# What is answered.


class PredicateAnswer(BaseModel):
    type: Literal["predicate"] = "predicate"
    name: str | None
    probability: float = Field(description="of yes")


class ChoiceProbability(BaseModel):
    value: str | bool
    probability: float


class ChoiceAnswer(BaseModel):
    type: Literal["choice"] = "choice"
    name: str | None
    choice: str | bool
    confidence: float = Field(description="1 minus the normalised entropy of the probabilities")
    probabilities: list[ChoiceProbability]


class ScoreProbability(BaseModel):
    value: int = Field(description="the level's place, the lowest being 0")
    label: str
    probability: float


class ScoreAnswer(BaseModel):
    type: Literal["score"] = "score"
    name: str | None
    score: float = Field(description="the mean of the levels' places")
    confidence: float = Field(description="1 minus the normalised entropy of the probabilities")
    probabilities: list[ScoreProbability]


class RefusalAnswer(BaseModel):
    """The likeliest answer is less likely than the threshold that is kept with the model."""

    type: Literal["refusal"] = "refusal"
    name: str | None


Answer: TypeAlias = PredicateAnswer | ChoiceAnswer | ScoreAnswer | RefusalAnswer


class InputTokensDetails(BaseModel):
    cache_write_tokens: Literal[0] = 0
    cached_tokens: Literal[0] = 0


class OutputTokensDetails(BaseModel):
    reasoning_tokens: Literal[0] = 0


class DecisionUsage(BaseModel):
    input_tokens: int
    input_tokens_details: InputTokensDetails = Field(default_factory=InputTokensDetails)
    output_tokens: Literal[0] = Field(0, description="nothing is written")
    output_tokens_details: OutputTokensDetails = Field(default_factory=OutputTokensDetails)
    total_tokens: int


class DecisionResponse(BaseModel):
    answers: list[Answer] = Field(description="in the order of the questions")
    model: str
    usage: DecisionUsage


def to_answer(question: Question, decision: Decision) -> Answer:
    """A decision about a question in OpenAI's shape."""
    name, confidence = question.name, decision.confidence
    if decision.refused:
        return RefusalAnswer(name=name)
    if isinstance(question, PredicateQuestion):
        return PredicateAnswer(name=name, probability=decision.probabilities[YES])
    if isinstance(question, ChoiceQuestion):
        values = [choice.value for choice in question.choices]
        likely = [ChoiceProbability(value=v, probability=decision.probabilities[_text(v)]) for v in values]
        chosen = max(likely, key=lambda of: of.probability).value
        return ChoiceAnswer(name=name, choice=chosen, confidence=confidence, probabilities=likely)
    levels = [
        ScoreProbability(value=place, label=level.label, probability=decision.probabilities[level.label.strip()])
        for place, level in enumerate(question.levels)
    ]
    assert decision.score is not None
    return ScoreAnswer(name=name, score=decision.score - 1, confidence=confidence, probabilities=levels)
