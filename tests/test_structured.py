"""Answers held to JSON schemas: in Python, by the engine, by the official client, and on the command line."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, Literal

import cli
import openai
import pytest
import torch
from jsonschema import Draft202012Validator, FormatChecker
from openai import OpenAI
from pydantic import BaseModel, Field
from schemas import chain, random_schema
from servers import Running, asking, image_part

import eden
from eden import InputError
from eden.inference.assistant import Assistant
from eden.inference.detokenizer import token_bytes
from eden.inference.engine import Engine
from eden.inference.grammar import ANY_OBJECT
from eden.inference.request import Generation, Request
from eden.inference.sampling import Sampling
from eden.messages import Message

POINT = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["circle", "square", "star"]},
        "size": {"type": "integer", "minimum": 1, "maximum": 9},
        "label": {"type": "string", "maxLength": 12},
    },
    "required": ["kind", "size", "label"],
    "additionalProperties": False,
}
LIST = {"type": "array", "items": {"enum": ["red", "blue"]}, "minItems": 2, "maxItems": 4}


@pytest.fixture(scope="module")
def assistant() -> Assistant:
    return eden.load("eden-tiny")


def answer_all(assistant: Assistant, samplings: list[Sampling]) -> list[Generation]:
    asked = assistant.encode([Message.user("hello")])
    with Engine(assistant.checkpoint, max_running=32, max_waiting=400) as engine:
        generations = [engine.submit(Request.of(asked, sampling)) for sampling in samplings]
        return [generation.wait() for generation in generations]


def check(schema: Any, text: str) -> None:
    Draft202012Validator(schema, format_checker=FormatChecker()).validate(json.loads(text))


def schema_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


# The engine.


def test_two_hundred_answers_fit_two_hundred_schemas(assistant: Assistant) -> None:
    """Greedy and drawn, several at once, each with its own."""
    draw = random.Random(0)
    schemas = [random_schema(draw) for _ in range(200)]
    generations = answer_all(
        assistant,
        [
            Sampling(max_new_tokens=400, temperature=float(seed % 2), seed=seed, grammar=assistant.grammar(schema))
            for seed, schema in enumerate(schemas)
        ],
    )
    closing = assistant.processor.tokenizer.convert_tokens_to_ids("<|end|>")
    for schema, generation in zip(schemas, generations, strict=True):
        check(schema, generation.text)
        assert generation.finish_reason == "stop" and generation.token_ids[-1] == closing


def test_several_at_once_are_answered_as_alone(assistant: Assistant) -> None:
    samplings = [
        Sampling(max_new_tokens=60, grammar=assistant.grammar(POINT), logprobs=2),
        Sampling(max_new_tokens=60, temperature=1.5, seed=3, top_p=0.9, grammar=assistant.grammar(LIST)),
        Sampling(max_new_tokens=20),
        Sampling(max_new_tokens=60, temperature=2.0, seed=5, top_k=8, repetition_penalty=1.2,
                 grammar=assistant.grammar(POINT)),
        Sampling(max_new_tokens=60, grammar=assistant.grammar(ANY_OBJECT), stop=(":",)),
    ]  # fmt: skip
    together = [generation.token_ids for generation in answer_all(assistant, samplings)]
    assert together == [answer_all(assistant, [sampling])[0].token_ids for sampling in samplings]
    assert len({tuple(ids) for ids in together}) == 5


def test_tokens_are_the_likeliest_of_those_that_fit(assistant: Assistant) -> None:
    """Against a plain loop without a cache, which asks the schema about every token by its text."""
    checkpoint, tokenizer = assistant.checkpoint, assistant.processor.tokenizer
    answers = ("yes", "no", "not sure")
    (generation,) = answer_all(
        assistant, [Sampling(max_new_tokens=30, grammar=assistant.grammar({"enum": list(answers)}))]
    )
    texts = [f'"{answer}"'.encode() for answer in answers]
    ids, written = list(generation.request.input_ids), b""
    pieces = [b"" if i in tokenizer.all_special_ids else token_bytes(tokenizer, i) for i in range(len(tokenizer))]
    while written not in texts:
        with torch.inference_mode():
            logits = checkpoint.model(input_ids=torch.tensor([ids])).logits[0, -1].float()
        fits = [i for i, piece in enumerate(pieces) if piece and any(t.startswith(written + piece) for t in texts)]
        ids.append(max(fits, key=lambda i: float(logits[i])))
        written += pieces[ids[-1]]
    assert generation.text.encode() == written  # of letters that nothing else can follow the tokens may be others


def test_neither_images_nor_control_tokens_nor_spare_rows_are_ever_allowed(assistant: Assistant) -> None:
    tokenizer = assistant.processor.tokenizer
    never = torch.zeros(assistant.checkpoint.config.text_config.vocab_size, dtype=torch.bool)
    never[[*tokenizer.added_tokens_decoder, *range(len(tokenizer), len(never))]] = True
    closing = tokenizer.convert_tokens_to_ids("<|end|>")
    constraint = assistant.grammar({"type": "string"}).start()
    for text in ['"', "<", "|", "image", "|", ">", '"']:
        assert bool(constraint.forbidden()[never].all())
        constraint.advance(tokenizer.convert_tokens_to_ids(text) if len(text) == 1 else tokenizer(text).input_ids[-1])
    assert (~constraint.forbidden()).nonzero().flatten().tolist() == [closing]


def test_an_answer_that_is_cut_short_says_so(assistant: Assistant) -> None:
    (generation,) = answer_all(assistant, [Sampling(max_new_tokens=4, grammar=assistant.grammar(POINT))])
    assert generation.finish_reason == "length" and generation.text.startswith('{"kin')


def test_an_answer_whose_schema_gets_too_complex_ends_alone(assistant: Assistant) -> None:
    """A row of 3,000 keys to choose from, which only the second token meets."""
    wide = {"type": "object", "properties": {f"{i:x}": {"type": "null"} for i in range(1200)}}
    late = {"type": "object", "properties": {"a": wide}, "required": ["a"], "additionalProperties": False}
    engine = assistant.engine
    asked = assistant.encode([Message.user("hello")])
    failing, other = (
        engine.submit(Request.of(asked, Sampling(grammar=assistant.grammar(schema)))) for schema in (late, LIST)
    )
    check(LIST, other.wait().text)
    with pytest.raises(InputError, match="too complex to be followed"):
        failing.wait()


# Schemas that are refused.


def nested(depth: int) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": nested(depth - 1) if depth else {}}, "required": ["a"]}


def references(number: int) -> dict[str, Any]:
    """Each names the next: compiling follows them all, a call in a call."""
    steps = {
        f"d{i}": {"type": "object", "properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}}, "required": ["a"]}
        for i in range(number)
    }
    return {"$ref": "#/$defs/d0", "$defs": {**steps, f"d{number}": {"type": "null"}}}


ENDLESS = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}
EITHER = {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/a"},
          "minItems": 1}, {"$ref": "#/$defs/a"}]}}}  # fmt: skip
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no type": ({"type": "strang"}, "invalid type: strang"),
    "wrong shape": ({"properties": 5}, "properties must be an object"),
    "an empty range": ({"type": "integer", "minimum": 5, "maximum": 3}, "unsatisfiable"),
    "nothing": ({"enum": []}, "unsatisfiable"),
    "both": ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "unsatisfiable"),
    "deep": ({"type": "object", "properties": {"a": {"pattern": "^a$", "type": "string", "minLength": 2}},
              "required": ["a"]}, "unsatisfiable"),
    "not supported": ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    "a broken pattern": ({"type": "string", "pattern": "["}, "unclosed character class"),
    "an unknown reference": ({"$ref": "#/$defs/x"}, "does not exist"),
    "a reference elsewhere": ({"$ref": "https://example.org/x"}, "not present"),
    "itself": ({"$ref": "#"}, "without end"),
    "recursion": (ENDLESS, "without end"),
    "recursion either way": (EITHER, "without end"),
    "too long": ({"enum": ["x" * 40_000]}, "the limit is 32,768"),
    "too deep": (nested(100), "recursion limit exceeded"),
    "what overflows the stack": (references(300), "too complex"),
    "what takes minutes": ({"allOf": [{"type": "string", "pattern": f"[a-z]{{3}}x{i}"} for i in range(200)]},
                           "too complex"),
    "not JSON": ({"const": float("nan")}, "not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_nothing_can_fit_is_refused_in_one_line(assistant: Assistant, name: str) -> None:
    schema, words = REFUSED[name]
    with pytest.raises(InputError) as refused:
        assistant.ask("hello", json_schema=schema)
    assert words in str(refused.value) and "\n" not in str(refused.value) and len(str(refused.value)) < 250
    assert refused.value.fault.kind == "invalid_json_schema"


def test_recursion_that_can_end_is_taken(assistant: Assistant) -> None:
    schema = chain()
    generations = answer_all(
        assistant,
        [
            Sampling(max_new_tokens=200, temperature=1.0, seed=seed, grammar=assistant.grammar(schema))
            for seed in range(8)
        ],
    )
    ended = [generation for generation in generations if generation.finish_reason == "stop"]
    assert ended
    for generation in ended:
        check(schema, generation.text)


def test_plain_generate_says_that_it_follows_no_grammar(assistant: Assistant) -> None:
    with pytest.raises(InputError, match="follows no grammar"):
        Sampling(grammar=assistant.grammar(LIST)).for_generate()


# The API.


def test_the_answer_fits_and_streams_as_it_is(client: OpenAI, server: Running) -> None:
    asked = asking(image_part(), "What is at the top left?", response_format=schema_format(POINT))
    completion = client.chat.completions.create(**asked)
    text = completion.choices[0].message.content
    check(POINT, text)
    chunks = list(client.chat.completions.create(**asked, stream=True))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == text and sum(map(bool, pieces)) > 5
    assert chunks[-1].choices[0].finish_reason == completion.choices[0].finish_reason == "stop"
    messages = [Message.user("What is at the top left?", [Path("examples/scene.png")])]
    grammar = server.service.assistant.grammar(POINT)
    assert "".join(server.service.assistant.reply(messages, Sampling(grammar=grammar))) == text


class Shape(BaseModel):
    kind: Literal["circle", "square"]
    size: int = Field(ge=0, le=99)
    big: bool | None


class Shapes(BaseModel):
    shapes: list[Shape] = Field(min_length=1, max_length=2)


def test_a_model_of_pydantic_is_parsed(client: OpenAI) -> None:
    completion = client.chat.completions.parse(**asking("Which shapes?"), response_format=Shapes)
    parsed = completion.choices[0].message.parsed
    assert isinstance(parsed, Shapes) and 1 <= len(parsed.shapes) <= 2


def test_any_object(client: OpenAI) -> None:
    for seed in range(3):
        drawn = asking("hello", response_format={"type": "json_object"}, max_tokens=400, seed=seed) | {"temperature": 1}
        choice = client.chat.completions.create(**drawn).choices[0]
        assert choice.message.content.startswith("{")
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content), dict)


@pytest.mark.parametrize("name", ["nothing", "recursion", "not supported"])
def test_a_schema_is_refused_before_anything_waits(client: OpenAI, server: Running, name: str) -> None:
    schema, words = REFUSED[name]
    with server.held(0) as gate, pytest.raises(openai.BadRequestError, match=words) as refused:
        client.chat.completions.create(**asking("hello", response_format=schema_format(schema)))
    assert not gate.reached.is_set() and server.running == 0
    assert (refused.value.code, refused.value.param) == ("invalid_json_schema", "response_format.json_schema.schema")


@pytest.mark.parametrize(
    ("answer_format", "param"),
    [
        ({"type": "json_schema"}, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": {"name": "a"}}, "response_format.json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": True}}, "response_format.json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"name": 1, "schema": {}}}, "response_format.json_schema.name"),
        ({"type": "json_object", "json_schema": {}}, "response_format.json_schema"),
    ],
)
def test_a_format_that_is_none_is_refused_by_its_field(client: OpenAI, answer_format: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**asking("hello", response_format=answer_format))
    assert refused.value.param == param


# The command line.


def test_the_command_line_takes_a_file(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(POINT))
    done = cli.eden("ask", "hello", "--json-schema", str(file))
    assert done.returncode == 0, done.stderr
    check(POINT, done.stdout)
    file.write_text("[1")
    done = cli.eden("ask", "hello", "--json-schema", str(file))
    assert done.returncode == 2 and str(file) in done.stderr
