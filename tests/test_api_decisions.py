"""`POST /v1/decisions` by its real clients, beside the answers that are written meanwhile."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cli
import httpx
import openai
import pytest
import torch
from openai.types import Decision
from servers import EXAMPLES, SCENE, Running, asking, data_url, image_part, serving, until

import eden
from eden import Message
from eden.checkpoint.calibration import Calibration, Fitted
from eden.core.answers import AnswerSet
from eden.core.location import EDEN_TINY_FOLDER
from eden.inference.kv_cache import KVCache
from eden.serve.settings import Settings

PICTURE = EXAMPLES / "scene.png"
STAR: dict[str, Any] = {"type": "predicate", "instructions": "Is there a star?"}
HOW_MANY: dict[str, Any] = {
    "type": "choice",
    "instructions": "How many objects are there?",
    "choices": [{"value": "Three."}, {"value": "Four."}, {"value": "Five."}],
}
LEVELS: dict[str, Any] = {
    "type": "score",
    "instructions": "How many objects are there?",
    "levels": [{"label": "One."}, {"label": "Two."}, {"label": "Three."}, {"label": "Four."}],
}


def image(data: bytes = SCENE) -> dict[str, Any]:
    return {"type": "input_image", "image_url": data_url(data)}


def shown(*parts: Any) -> list[Any]:
    return [{"role": "user", "content": [image(), *parts]}]


def decide(server: Running, *questions: Any, given: Any = None, **more: Any) -> Decision:
    found = shown() if given is None else given
    return server.client().decisions.create(model=server.service.name, input=found, questions=questions, **more)


def post(server: Running, **fields: Any) -> httpx.Response:
    body = {"model": "eden-tiny", "input": shown(), "questions": [STAR], **fields}
    return httpx.post(f"{server.url}/v1/decisions", json=body, timeout=60)


# What is decided.


def test_each_kind_of_question_about_a_picture(server: Running) -> None:
    found = decide(server, {**STAR, "name": "star"}, HOW_MANY, {**LEVELS, "name": "number"})
    star, how_many, number = found.answers
    python = server.service.assistant
    assert star.type == "predicate" and star.name == "star"
    yes = python.decide("Is there a star?", [PICTURE]).probabilities["yes"]
    assert star.probability == pytest.approx(yes, abs=1e-4)
    expected = python.decide("How many objects are there?", [PICTURE], choices=["Three.", "Four.", "Five."])
    assert how_many.type == "choice" and how_many.name is None and how_many.choice == "Four."
    assert {of.value: of.probability for of in how_many.probabilities} == pytest.approx(
        expected.probabilities, abs=1e-4
    )
    assert how_many.confidence == pytest.approx(expected.confidence, abs=1e-3)
    expected = python.decide("How many objects are there?", [PICTURE], levels=["One.", "Two.", "Three.", "Four."])
    assert number.type == "score" and number.name == "number" and expected.score is not None
    assert [(of.value, of.label) for of in number.probabilities] == [
        (0, "One."),
        (1, "Two."),
        (2, "Three."),
        (3, "Four."),
    ]
    assert number.score == pytest.approx(sum(of.value * of.probability for of in number.probabilities))
    assert number.score == pytest.approx(expected.score - 1, abs=1e-3)
    assert found.model == "eden-tiny"


def test_the_tokens_of_what_is_shown_count_once(server: Running) -> None:
    one, two = decide(server, STAR).usage, decide(server, STAR, HOW_MANY).usage
    alone = decide(server, HOW_MANY).usage
    assert 0 < one.input_tokens < two.input_tokens < one.input_tokens + alone.input_tokens
    assert two.total_tokens == two.input_tokens and two.output_tokens == 0
    assert two.input_tokens_details.cached_tokens == two.output_tokens_details.reasoning_tokens == 0


def test_a_boolean_is_asked_as_yes_or_no_and_is_no_string(server: Running) -> None:
    both = {**STAR, "type": "choice", "choices": [{"value": False}, {"value": True}]}
    more = {**both, "choices": [{"value": True}, {"value": "true"}, {"value": False}]}
    star, choice, mixed = decide(server, STAR, both, more).answers
    assert star.type == "predicate" and choice.type == mixed.type == "choice"
    assert [of.value for of in choice.probabilities] == [False, True]
    assert choice.probabilities[1].probability == pytest.approx(star.probability, abs=1e-5)
    assert choice.choice is (star.probability > 0.5)
    assert [of.value for of in mixed.probabilities] == [True, "true", False]
    assert len({of.probability for of in mixed.probabilities}) == 3
    assert sum(of.probability for of in mixed.probabilities) == pytest.approx(1)


def test_what_may_be_given(server: Running) -> None:
    """Everything that the client's types have and Eden reads; each is one conversation of Python's."""
    point: dict[str, Any] = {"prompt_cache_breakpoint": {"mode": "explicit"}}
    data = {"type": "input_json", "data": {"größe": [1, None, {"a": True}]}}
    python = server.service.assistant
    for given, before in (
        ("The sky is blue.", "The sky is blue.\n\n"),
        ([{"role": "user", "content": "The sky is blue.", "type": "message"}], "The sky is blue.\n\n"),
        ([{"role": "user", "content": [{"type": "input_text", "text": "A"} | point, data]}], None),
        ([{"role": "user", "content": [data]}], '{"größe":[1,null,{"a":true}]}\n\n'),
        ("", ""),
    ):
        (answer,) = decide(server, STAR, given=given).answers
        if before is not None:
            expected = python.decide(f"{before}Is there a star?").probabilities["yes"]
            assert answer.type == "predicate" and answer.probability == pytest.approx(expected, abs=1e-4)
    talk: list[Any] = [
        {"role": "developer", "content": [{"type": "input_text", "text": "Answer shortly."}]},
        {"role": "user", "content": [image() | {"detail": "low"} | point, {"type": "input_text", "text": "hello"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Hello!"}], "phase": "final_answer"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
    ]
    labels: dict[str, Any] = {
        "prompt_cache_key": "a", "safety_identifier": "b", "prompt_cache_options": {"mode": "implicit", "ttl": "30m"},
    }  # fmt: skip
    (answer,) = decide(server, STAR, given=talk, **labels).answers
    (expected,) = python.decide_all(
        [
            [
                Message.system("Answer shortly."),
                Message.user("hello", [PICTURE]),
                Message.assistant("Hello!\n\nNo."),
                Message.user("Is there a star?"),
            ]
        ],
        [AnswerSet.of()],
    )
    assert answer.type == "predicate"
    assert answer.probability == pytest.approx(expected.probabilities["yes"], abs=1e-4)


def test_descriptions_stand_below_the_instructions(server: Running) -> None:
    choices = [{"value": "Three.", "description": "one more than two"}, {"value": "Four."}, {"value": "Five."}]
    (answer,) = decide(server, {**HOW_MANY, "choices": choices}).answers
    text = "How many objects are there?\n\nThree.: one more than two"
    expected = server.service.assistant.decide(text, [PICTURE], choices=["Three.", "Four.", "Five."])
    assert answer.type == "choice"
    assert [of.probability for of in answer.probabilities] == pytest.approx(
        [*expected.probabilities.values()], abs=1e-4
    )


def test_a_question_may_show_a_picture_of_its_own(server: Running) -> None:
    """It has a reading of its own; the others still share theirs."""
    ask = {"type": "input_text", "text": "Is there a star?"}
    own = {**STAR, "instructions": [image(), ask]}
    found = decide(server, STAR, own, STAR, own, given="").answers
    with_it = server.service.assistant.decide("Is there a star?", [PICTURE]).probabilities["yes"]
    without = server.service.assistant.decide("Is there a star?").probabilities["yes"]
    probabilities = [answer.probability for answer in found if answer.type == "predicate"]
    assert probabilities == pytest.approx([without, with_it, without, with_it], abs=1e-4)


def test_four_hundred_questions(server: Running) -> None:
    questions = [{**STAR, "name": str(number), "instructions": f"Is {number} even?"} for number in range(400)]
    assert [answer.name for answer in decide(server, *questions, given="").answers] == [str(n) for n in range(400)]


# What the model keeps.


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """eden-tiny with temperatures, and a threshold for levels that no answer reaches."""
    folder = Path(shutil.copytree(EDEN_TINY_FOLDER, tmp_path_factory.mktemp("calibrated") / "model"))
    fitted = {"predicate 2": Fitted(3.0, 100), "choice 3": Fitted(0.4, 100), "score 4": Fitted(9.0, 100, 0.99, 0.01)}
    Calibration(fitted).write(folder)
    return folder


def test_command_line_python_and_api_say_the_same(calibrated: Path, server: Running) -> None:
    """With the temperature that is kept with the model, which changes what it says."""
    raw = decide(server, STAR, HOW_MANY).answers
    assistant = eden.load(str(calibrated))
    with serving(model=str(calibrated)) as own:
        star, how_many, refused = decide(own, STAR, HOW_MANY, {**LEVELS, "name": "number"}).answers
    assert star.type == raw[0].type == "predicate" and how_many.type == raw[1].type == "choice"
    assert abs(star.probability - raw[0].probability) > 0.05
    assert how_many.confidence > raw[1].confidence
    python = assistant.decide("Is there a star?", [PICTURE])
    assert star.probability == pytest.approx(python.probabilities["yes"], abs=1e-4) and python.calibrated
    text, choices = HOW_MANY["instructions"], [choice["value"] for choice in HOW_MANY["choices"]]
    python = assistant.decide(text, [PICTURE], choices=choices)
    by_api = {of.value: of.probability for of in how_many.probabilities}
    assert by_api == pytest.approx(python.probabilities, abs=1e-4) and python.calibrated
    result = cli.eden("decide", "-m", calibrated, "--image", PICTURE, text, "--choices", ",".join(choices), "--json")
    assert json.loads(result.stdout)["probabilities"] == python.to_dict()["probabilities"]
    assert refused.type == "refusal" and refused.name == "number"
    levels = [level["label"] for level in LEVELS["levels"]]
    assert assistant.decide(LEVELS["instructions"], [PICTURE], levels=levels).refused


# What is refused.

A, B = {"value": "a"}, {"value": "b"}


def choosing(*choices: Any, **more: Any) -> dict[str, Any]:
    return {"questions": [{"type": "choice", "instructions": "which", "choices": list(choices), **more}]}


def saying(role: str, *parts: Any) -> dict[str, Any]:
    return {"input": [{"role": role, "content": list(parts)}]}


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        (choosing(A), "questions[0].choices", "invalid_value"),
        (choosing(*({"value": str(number)} for number in range(256))), "questions[0].choices", "invalid_value"),
        (choosing(A, {"value": "a "}), "questions[0].choices", "invalid_value"),
        (choosing({"value": True}, {"value": True}), "questions[0].choices", "invalid_value"),
        (choosing({"value": True}, {"value": "yes"}), "questions[0].choices", "invalid_value"),
        (choosing(A, {"value": " "}), "questions[0].choices", "invalid_value"),
        (choosing(A, {"value": 1}), "questions[0].choices[1].value", "invalid_value"),
        (choosing(A, {"value": "b<|end|>"}), "questions[0]", "invalid_value"),
        (choosing(A, {"value": "b", "weight": 1}), "questions[0].choices[1].weight", "unsupported_parameter"),
        (choosing(A, B, instructions=" \n"), "questions[0].instructions", "empty_message"),
        (choosing({**A, "description": "first"}, B, instructions=[]), "questions[0].instructions", "empty_message"),
        (choosing(A, B, threshold=1), "questions[0].threshold", "unsupported_parameter"),
        (choosing(A, B, instructions=[image(SCENE[:200])]), "questions[0].instructions[0].image_url", "damaged_image"),
        ({"questions": [{**LEVELS, "levels": [{"label": "low"}]}]}, "questions[0].levels", "invalid_value"),
        ({"questions": [{**LEVELS, "levels": 2 * [{"label": "low"}]}]}, "questions[0].levels", "invalid_value"),
        ({"questions": [STAR, {"type": "predicate"}]}, "questions[1].instructions", "invalid_value"),
        ({"questions": [{**STAR, "type": "box"}]}, "questions[0]", "unsupported_parameter"),
        ({"questions": []}, "questions", "invalid_value"),
        ({"questions": 401 * [STAR]}, "questions", "invalid_value"),
        ({"questions": None}, "questions", "invalid_value"),
        ({"made_up": 1}, "made_up", "unsupported_parameter"),
        ({"model": "gpt-6-luna"}, "model", "model_not_found"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": 17 * shown()}, "input", "invalid_value"),
        ({"input": 257 * [{"role": "user", "content": "a"}]}, "input", "invalid_value"),
        ({"input": "star " * 2000}, "input", "context_length_exceeded"),
        ({"input": "x" * 100_000}, "questions[0]", "context_length_exceeded"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": ""}]}, "input[0]",
         "unsupported_parameter"),
        ({"input": [{"type": "custom_tool_call_output", "call_id": "c", "output": ""}]}, "input[0]",
         "unsupported_parameter"),
        (saying("tool"), "input[0]", "unsupported_parameter"),
        (saying("user", {"type": "input_audio"}), "input[0].content[0]", "unsupported_parameter"),
        (saying("user", {"type": "input_image", "file_id": "f"}), "input[0].content[0].image_url", "invalid_value"),
        (saying("user", image(b"none")), "input[0].content[0].image_url", "not_an_image"),
        (saying("user", {"type": "input_image", "image_url": "https://example.com/a.png"}),
         "input[0].content[0].image_url", "remote_images_disabled"),
        (saying("user", {"type": "input_image", "image_url": "file:///etc/hostname"}),
         "input[0].content[0].image_url", "invalid_image_url"),
        (saying("system", image()), "input[0].content[0]", "unsupported_parameter"),
        (saying("user", {"type": "input_json", "data": 3}), "input[0].content[0].data", "invalid_value"),
        (saying("user", {"type": "input_json", "data": {"a": list(range(10_000))}}), "input[0].content[0].data",
         "invalid_value"),
        (saying("user", {"type": "input_json", "data": {"a": "x" * 2**18}}), "input[0].content[0].data",
         "invalid_value"),
        (saying("user", {"type": "input_json", "data": json.loads(32 * '{"a":' + "[]" + 32 * "}")}),
         "input[0].content[0].data", "invalid_value"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named(server: Running, fields: dict[str, Any], param: str, code: str) -> None:
    response = post(server, **fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (404 if "model" in fields else 400, param, code)
    assert "\n" not in error["message"] and "/work" not in error["message"] and "/tmp" not in error["message"]


def test_the_official_client_raises_what_it_raises_of_chat(server: Running) -> None:
    with pytest.raises(openai.BadRequestError, match="'a' stands twice among the choices") as refused:
        decide(server, *choosing(A, A)["questions"])
    assert (refused.value.param, refused.value.code) == ("questions[0].choices", "invalid_value")
    answer = httpx.post(f"{server.url}/v1/decisions", data={"model": "eden-tiny"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert httpx.post(f"{server.url}/v1/decisions", json=[]).status_code == 400
    assert httpx.get(f"{server.url}/v1/decisions").status_code == 405


# Beside the answers that are written.


@contextmanager
def passes(server: Running) -> Iterator[list[tuple[str, int]]]:
    """Every forward of the language model: of a decode step or of a decision, with its rows."""
    seen: list[tuple[str, int]] = []

    def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        kind = "step" if isinstance(kwargs["past_key_values"], KVCache) else "decision"
        seen.append((kind, len(kwargs["inputs_embeds"])))

    model = server.service.assistant.checkpoint.core.model.language_model
    handle = model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def beside(server: Running, forwards: int = 3) -> Iterator[tuple[Any, "Future[httpx.Response]", ThreadPoolExecutor]]:
    """An answer half written, which stands still until the gate is opened."""
    with ThreadPoolExecutor(8) as threads, server.held(forwards) as gate:
        answer = threads.submit(server.post, asking(image_part(), "Describe the picture."))
        assert gate.reached.wait(60)
        yield gate, answer, threads
        gate.open()


def waiting(server: Running) -> int:
    return server.service.engine.stats().waiting


def test_an_answer_goes_on_while_decisions_are_made(server: Running) -> None:
    questions = [{**STAR, "instructions": f"Is there a star, or number {number}?"} for number in range(150)]
    alone = decide(server, *questions)
    text = server.post(asking(image_part(), "Describe the picture.")).json()
    with passes(server) as seen, beside(server) as (gate, answer, threads):
        made = threads.submit(decide, server, *questions)
        until(lambda: waiting(server) == 1)
        gate.open()
        assert answer.result().json()["choices"] == text["choices"]
        for one, other in zip(made.result().answers, alone.answers, strict=True):
            assert one.type == other.type == "predicate" and one.probability == pytest.approx(
                other.probability, abs=1e-4
            )
    kinds = [kind for kind, _ in seen[1:]]  # the first reads the question that is answered
    first, last, number = kinds.index("decision"), len(kinds) - kinds[::-1].index("decision"), kinds.count("decision")
    assert number > 4 and kinds[first:last] == (number * ["decision", "step"])[:-1]


def test_decisions_that_wait_are_made_together(server: Running) -> None:
    expected = decide(server, STAR).answers[0]
    with passes(server) as seen, beside(server) as (gate, answer, threads):
        made = [threads.submit(decide, server, STAR) for _ in range(3)]
        until(lambda: waiting(server) == 3)
        gate.open()
        for each in made:
            (found,) = each.result().answers
            assert found.type == expected.type == "predicate"
            assert found.probability == pytest.approx(expected.probability, abs=1e-4)
        answer.result()
    assert [rows for kind, rows in seen[1:] if kind == "decision"] == [3, 3]  # the pictures, and what follows them


def test_a_full_queue_takes_no_decision() -> None:
    with serving(Settings(max_running=1, max_waiting=1)) as server:
        with beside(server) as (gate, answer, threads):
            made = threads.submit(post, server)
            until(lambda: waiting(server) == 1)
            refused = post(server)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert refused.json()["error"]["code"] == "overloaded"
            gate.open()
            assert answer.result().status_code == made.result().status_code == 200
        with beside(server) as (gate, answer, _):
            # A picture of each question's own takes a place in the queue each; the first is given back.
            own = {**STAR, "instructions": [image(), {"type": "input_text", "text": "Is there a star?"}]}
            assert post(server, questions=3 * [own]).status_code == 503
            gate.open()
            assert answer.result().status_code == 200
        until(lambda: server.running == waiting(server) == 0)
        assert post(server).status_code == 200


def test_who_hangs_up_frees_the_place() -> None:
    with serving() as server, beside(server) as (gate, answer, _):
        body = json.dumps({"model": "eden-tiny", "input": shown(), "questions": [STAR]}).encode()
        head = "POST /v1/decisions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
        with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as connection:
            connection.sendall(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            until(lambda: waiting(server) == 1)
        until(lambda: any(each.unwanted(0) for each in server.service.engine._decisions.waiting))
        gate.open()
        answer.result()
        until(lambda: server.service.engine.stats().finished == {"stop": 1, "cancelled": 1})
        until(lambda: 'eden_answer_seconds_count{outcome="cancelled"} 1.0' in httpx.get(f"{server.url}/metrics").text)
        assert waiting(server) == 0


def test_where_memory_runs_out_one_decision_is_refused() -> None:
    """Of three that are made together the one with the longest question; the answer and the others go on."""
    with serving() as server, beside(server) as (gate, answer, threads):
        model = server.service.assistant.checkpoint.core.model.language_model

        def run_out(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            if kwargs["inputs_embeds"].shape[1] > 60:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB at /somewhere")

        model.register_forward_pre_hook(run_out, with_kwargs=True)
        made = [threads.submit(post, server, input=text) for text in ("star", "star " * 60, "circle")]
        until(lambda: waiting(server) == 3)
        gate.open()
        statuses = [each.result().status_code for each in made]
        assert statuses == [200, 503, 200] and answer.result().status_code == 200
        assert made[1].result().json()["error"]["code"] == "overloaded"
        assert server.service.engine.stats().finished == {"stop": 1, "decided": 2, "error": 1}
        assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_server_that_ends_lets_a_decision_end() -> None:
    with ThreadPoolExecutor(1) as threads, serving() as server, server.held(1) as gate:
        made = threads.submit(post, server)
        assert gate.reached.wait(60)
        server.server.should_exit = True
        until(lambda: not server.server.servers or not any(each.is_serving() for each in server.server.servers))
        gate.open()
        assert made.result().status_code == 200


def test_decisions_are_counted() -> None:
    with serving() as server:
        tokens = decide(server, STAR).usage.input_tokens
        text = httpx.get(f"{server.url}/metrics").text.splitlines()
    for line in (
        'eden_requests_total{path="/v1/decisions",status="200"} 1.0',
        'eden_answers_total{outcome="decided"} 1.0',
        'eden_answer_seconds_count{outcome="decided"} 1.0',
        f"eden_prompt_tokens_total {float(tokens)}",
        "eden_completion_tokens_total 0.0",
    ):
        assert line in text


# Other clients.

LANGCHAIN = """
import json
from langchain_core.messages import HumanMessage
from langchain_openai.decisions import Choice, OpenAIDecisions, Predicate, Score
body = json.loads(BODY)
picture = {"type": "image_url", "image_url": {"url": body["input"][0]["content"][0]["image_url"]}}
decisions = OpenAIDecisions(model="eden-tiny", base_url=URL + "/v1", api_key="none")
how_many = "How many objects are there?"
found = decisions.invoke({
    "input": [HumanMessage([picture])],
    "questions": {
        "star": Predicate(instructions="Is there a star?"),
        "how_many": Choice(instructions=how_many, choices={"Three.": None, "Four.": None, "Five.": None}),
        "levels": Score(instructions=how_many, levels=["One.", "Two.", "Three.", "Four."]),
    },
})
levels = found.scores["levels"]
print(round(found.predicates["star"].probability, 3), found.choices["how_many"].choice,
      round(levels.score, 3), found.usage.input_tokens, levels.legend[3])
"""


def test_langchain(server: Running) -> None:
    """In a process of its own, with no key of its makers' around; LiteLLM is asked in `test_api.py`."""
    found = decide(server, STAR, HOW_MANY, LEVELS)
    star, _, levels = found.answers
    assert star.type == "predicate" and levels.type == "score"
    script = f"BODY, URL = {json.dumps(json.dumps({'input': shown()}))}, {server.url!r}\n{LANGCHAIN}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LANG", "OPENAI"))}
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    expected = f"{round(star.probability, 3)} Four. {round(levels.score, 3)} {found.usage.input_tokens} Four."
    assert result.stdout.strip() == expected, result.stdout + result.stderr
