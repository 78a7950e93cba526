"""`/v1/responses` by the official client; what it answers is what chat answers."""

from __future__ import annotations

import base64
import re
from typing import Any, Literal

import openai
import pytest
from openai import OpenAI
from openai.types.responses import Response
from pydantic import BaseModel
from servers import QUESTION, SCENE, Running, data_url

TEXT = {"type": "input_text", "text": "How many objects are there?"}
PICTURE = {"type": "input_image", "image_url": data_url(SCENE), "detail": "auto"}
SPOKEN = {"type": "input_audio", "input_audio": {"data": base64.b64encode(QUESTION).decode(), "format": "wav"}}


@pytest.fixture(scope="module")
def client(server: Running) -> OpenAI:
    return server.client(_strict_response_validation=True)


def respond(client: OpenAI, asked: Any, **more: Any) -> Any:
    return client.responses.create(**{"model": "eden-tiny", "input": asked, "temperature": 0, **more})


def user(*content: Any) -> list[Any]:
    return [{"role": "user", "content": list(content)}]


def test_text_pictures_and_recordings(client: OpenAI) -> None:
    for asked in (user(PICTURE, TEXT), user(PICTURE, SPOKEN), [*user(PICTURE), *user(TEXT)]):
        response = respond(client, asked)
        assert response.output_text == "Four." and response.status == "completed"
    assert response.usage.output_tokens == 3
    assert response.usage.total_tokens == response.usage.input_tokens + 3
    assert response.output[0].role == "assistant" and response.output[0].status == "completed"
    assert response.model == "eden-tiny" and response.error is None


def test_it_answers_as_chat_does(client: OpenAI) -> None:
    said = {"temperature": 1.5, "top_p": 0.0}
    response = respond(client, "What can you do?", instructions="Answer shortly.", **said, metadata={"a": "b"})
    turns: Any = [
        {"role": "system", "content": "Answer shortly."},
        {"role": "user", "content": "What can you do?"},
    ]
    completion = client.chat.completions.create(model="eden-tiny", messages=turns, **said)
    assert response.output_text == completion.choices[0].message.content
    assert response.usage.input_tokens == completion.usage.prompt_tokens
    assert (response.instructions, response.metadata, response.temperature) == ("Answer shortly.", {"a": "b"}, 1.5)


def test_a_conversation_goes_on_with_what_came_back(client: OpenAI) -> None:
    asked: list[Any] = user(PICTURE, {"type": "input_text", "text": "What shape is the red object?"})
    first = respond(client, asked)
    asked += first.output  # as OpenAI's guide has it
    asked.append({"role": "user", "content": "How many objects are there?", "type": "message"})
    assert respond(client, asked, store=True).output_text == "Four."


def test_a_stream_tells_each_step(client: OpenAI) -> None:
    asked = user(PICTURE, {"type": "input_text", "text": "Describe the picture."})
    whole = respond(client, asked)
    events = list(respond(client, asked, stream=True))
    kinds = [event.type for event in events]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text and len(deltas) > 20
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert kinds[4 + len(deltas) :] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(len(events)))
    final = events[-1].response
    assert isinstance(final, Response) and final.output_text == whole.output_text and final.usage == whole.usage
    assert len({event.response.id for event in events if hasattr(event, "response")}) == 1
    with client.responses.stream(model="eden-tiny", input=asked, temperature=0) as stream:
        assert stream.get_final_response().output_text == whole.output_text


def test_an_answer_that_is_cut_short_is_incomplete(client: OpenAI) -> None:
    asked = user(PICTURE, {"type": "input_text", "text": "Describe the picture."})
    response = respond(client, asked, max_output_tokens=5)
    assert response.status == response.output[0].status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens" and response.usage.output_tokens == 5
    assert list(respond(client, asked, max_output_tokens=5, stream=True))[-1].type == "response.incomplete"


def test_an_answer_that_fails_in_a_stream_says_so(client: OpenAI, server: Running) -> None:
    asked = user(PICTURE, {"type": "input_text", "text": "Describe the picture."})
    with server.held(4) as gate:
        stream = iter(respond(client, asked, stream=True))
        assert next(stream).type == "response.created"
        assert gate.reached.wait(60)
        (generation,) = server.wanted()
        generation.cancel()  # as a server that closes does
        gate.open()
        last = list(stream)[-1]
    assert last.type == "response.failed" and "closing" in last.response.error.message


def test_logprobs(client: OpenAI) -> None:
    response = respond(client, user(PICTURE, TEXT), include=["message.output_text.logprobs"], top_logprobs=2)
    (part,) = response.output[0].content
    assert b"".join(bytes(token.bytes) for token in part.logprobs).strip() == b"Four."
    assert all(len(token.top_logprobs) == 2 for token in part.logprobs)


class Shape(BaseModel):
    kind: Literal["circle", "square"]
    big: bool


def test_a_model_of_pydantic_is_parsed(client: OpenAI) -> None:
    parsed = client.responses.parse(model="eden-tiny", input="Which shape?", text_format=Shape, temperature=0)
    assert isinstance(parsed.output_parsed, Shape)
    schema = {"type": "json_schema", "name": "list", "schema": {"type": "array", "items": {"enum": [0]}, "maxItems": 2}}
    response = respond(client, "hello", text={"format": schema})
    assert re.fullmatch(r"\[(0(, 0)?)?\]", response.output_text)
    assert response.text.format.name == "list"
    with pytest.raises(openai.BadRequestError, match="unsatisfiable") as refused:
        respond(client, "hello", text={"format": schema | {"schema": {"enum": []}}})
    assert (refused.value.code, refused.value.param) == ("invalid_json_schema", "text.format.schema")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("previous_response_id", "resp_1"),
        ("conversation", "conv_1"),
        ("background", True),
        ("prompt", {"id": "pmpt_1"}),
        ("tool_choice", "required"),
        ("tool_choice", {"type": "function", "name": "f"}),
        ("truncation", "auto"),
        ("reasoning", {"effort": "low"}),
        ("include", ["reasoning.encrypted_content"]),
        ("text", {"verbosity": "low"}),
        ("context_management", [{"type": "compaction"}]),
        ("made_up", 1),
    ],
)
def test_what_is_not_supported_is_refused_by_name(client: OpenAI, field: str, value: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        respond(client, "hello", extra_body={field: value})
    assert str(refused.value.param).split(".")[0].split("[")[0] == field
    assert refused.value.code == "unsupported_parameter"


@pytest.mark.parametrize(
    ("asked", "param", "code"),
    [
        ([], "input", "invalid_value"),
        ("", "input", "empty_message"),
        (user({"type": "input_file", "file_id": "f"}), "input[0].content[0]", "unsupported_parameter"),
        (user(TEXT, PICTURE | {"image_url": "file:///etc/passwd"}), "input[0].content[1].image_url",
         "invalid_image_url"),
        (user(PICTURE | {"image_url": data_url(b"no picture")}), "input[0].content[0].image_url", "not_an_image"),
        (user({**SPOKEN, "input_audio": {"data": "!", "format": "wav"}}), "input[0].content[0].input_audio",
         "invalid_base64"),
        ([{"type": "function_call_output", "call_id": "c", "output": "4"}], "input[0]", "unsupported_parameter"),
        ([{"type": "item_reference", "id": "msg_1"}], "input[0]", "unsupported_parameter"),
        (17 * user(PICTURE), "input", "invalid_value"),
    ],
)  # fmt: skip
def test_wrong_input_is_refused_by_its_place(client: OpenAI, asked: Any, param: str, code: str) -> None:
    for more in ({}, {"instructions": "Answer shortly."}):
        with pytest.raises(openai.BadRequestError) as refused:
            respond(client, asked, **more)
        assert (refused.value.param, refused.value.code) == (param, code)


def test_what_asks_for_the_default_is_taken(client: OpenAI) -> None:
    defaults = {
        "tools": [], "tool_choice": "none", "parallel_tool_calls": True, "store": False, "background": False,
        "truncation": "disabled", "metadata": {}, "user": "somebody", "service_tier": "auto", "include": [],
        "reasoning": {"effort": "none"}, "text": {"format": {"type": "text"}, "verbosity": "medium"}, "top_p": 1,
        "prompt_cache_key": "a", "safety_identifier": "b", "max_tool_calls": 3, "previous_response_id": None,
    }  # fmt: skip
    assert respond(client, user(PICTURE, TEXT), **defaults).output_text == "Four."
