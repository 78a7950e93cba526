"""Decisions in the engine: the same as outside, beside answers, and how each ends."""

import asyncio
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from conftest import make_image, make_model, make_processor
from servers import until

from eden import ContextError, EngineStopped, Message, OverloadError
from eden.checkpoint import Checkpoint
from eden.core.answers import AnswerSet
from eden.inference.assistant import Assistant
from eden.inference.decisions import Reading, answer_ids
from eden.inference.engine import Engine
from eden.inference.request import Deciding, DecisionRequest, Request
from eden.inference.sampling import Sampling

ASKED = [
    ("is it cracked", AnswerSet.of(), "red"),
    ("which", AnswerSet.of(["hex", "hex nut", "b"]), "blue"),
    ("how bad is this one here", AnswerSet.of(levels=["none", "slight", "bad"]), None),
    ("which letter", AnswerSet.of([chr(97 + place) for place in range(20)]), "red"),
]


@pytest.fixture(scope="module")
def assistant() -> Assistant:
    model = make_model("patches")
    return Assistant(Checkpoint(model, make_processor(model.config.num_image_tokens), "random", None))


def conversation(text: str, colour: str | None) -> list[Message]:
    return [Message.user(text, [make_image(colour)] if colour else [])]


def request(assistant: Assistant, number: int) -> DecisionRequest:
    text, answers, colour = ASKED[number]
    ids = [answer_ids(assistant.checkpoint, spelling) for spelling in answers.all_spellings]
    examples = [assistant.encode(conversation(text, colour))]
    return DecisionRequest(Reading.of(examples, [ids], assistant.checkpoint.config.image_token_id))


def expected(assistant: Assistant) -> list[Any]:
    conversations = [conversation(text, colour) for text, _, colour in ASKED]
    return [
        pytest.approx(logs, abs=1e-3) for logs in assistant.score_answers(conversations, [of for _, of, _ in ASKED])
    ]


def logs(deciding: Deciding, number: int) -> list[float]:
    (of_question,) = deciding.logs
    return ASKED[number][1].joined(of_question)


@contextmanager
def at_each_forward(assistant: Assistant, call: Callable[[int], None]) -> Iterator[list[int]]:
    """Calls with the number of the forward, the first being 1; the rows of each."""
    rows: list[int] = []

    def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        rows.append(len(kwargs["inputs_embeds"]))
        call(len(rows))

    model = assistant.checkpoint.core.model.language_model
    handle = model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield rows
    finally:
        handle.remove()


@pytest.mark.parametrize("prefill_tokens", [8, 60, 10_000])
def test_decisions_are_those_outside_the_engine(assistant: Assistant, prefill_tokens: int) -> None:
    """Whatever is read at once, beside an answer that stays as it is."""
    asked = Request.of(assistant.encode(conversation("hello", "red")), Sampling(max_new_tokens=30))
    with Engine(assistant.checkpoint) as engine:
        alone = engine.submit(asked).wait().token_ids
    with Engine(assistant.checkpoint, prefill_tokens=prefill_tokens) as engine:
        answer = engine.submit(asked)
        made = [engine.decide(request(assistant, number % 4)) for number in range(8)]

        async def all_of_them() -> None:
            await asyncio.gather(*(deciding.finished() for deciding in made))

        asyncio.run(all_of_them())
        assert [logs(deciding, number % 4) for number, deciding in enumerate(made)] == 2 * expected(assistant)
        assert answer.wait().token_ids == alone
        assert engine.stats().finished == {"decided": 8, "length": 1}
        assert engine.stats().running == engine.stats().waiting == 0


def test_one_that_is_cancelled_leaves_the_others_alone(assistant: Assistant) -> None:
    right = expected(assistant)
    with Engine(assistant.checkpoint) as engine:
        begun, submitted, made = threading.Event(), threading.Event(), list[Deciding]()

        def cancel(forward: int) -> None:
            if forward == 1:
                begun.set()
                assert submitted.wait(60)
            if forward == 3:  # behind the first, alone, the prefixes of the others have been read: their last pass
                made[2].cancel()

        with at_each_forward(assistant, cancel) as rows:
            made += [engine.decide(request(assistant, 0))]
            assert begun.wait(60)
            made += [engine.decide(request(assistant, number)) for number in (1, 2, 3)]
            submitted.set()
            for place, number in ((0, 0), (1, 1), (3, 3)):
                assert logs(made[place].wait(), number) == right[number]
        assert made[2].wait().finish_reason == "cancelled" and not made[2].logs
        assert rows == [1, 1, 3, 3]


def test_what_nobody_waits_for_is_left(assistant: Assistant) -> None:
    with Engine(assistant.checkpoint) as engine:
        made: list[Deciding] = []
        submitted = threading.Event()

        def cancel(forward: int) -> None:
            assert submitted.wait(60)
            made[0].cancel()

        with at_each_forward(assistant, cancel) as rows:
            made.append(engine.decide(request(assistant, 0)))
            submitted.set()
            assert made[0].wait().finish_reason == "cancelled" and not made[0].logs
            late = DecisionRequest(request(assistant, 0).reading, deadline=0.0)
            assert engine.decide(late).wait().finish_reason == "deadline"
        assert rows == [1]  # the prefix, and not what follows it


@pytest.mark.parametrize("finish", [True, False])
def test_closing(assistant: Assistant, finish: bool) -> None:
    """What is being made is finished, or not; what waits is told that there is no engine any more."""
    engine = Engine(assistant.checkpoint, prefill_tokens=1)
    submitted, closing = threading.Event(), threading.Event()

    def wait(forward: int) -> None:
        submitted.set()
        assert closing.wait(60)

    with at_each_forward(assistant, wait):
        running = engine.decide(request(assistant, 0))
        assert submitted.wait(60)
        waiting = engine.decide(request(assistant, 1))
        closer = threading.Thread(target=engine.close, args=(finish,))
        closer.start()
        until(lambda: not engine.alive)
        closing.set()
        closer.join(60)
    assert running.wait().finish_reason == ("decided" if finish else "cancelled")
    with pytest.raises(EngineStopped):
        waiting.wait()
    with pytest.raises(EngineStopped):
        engine.decide(request(assistant, 0))


def test_memory_that_runs_out_again_and_again_spoils_no_decision(assistant: Assistant) -> None:
    """In a tenth of all forwards, while answers and decisions come and go."""
    rng, right = random.Random(0), expected(assistant)
    asked = Request.of(assistant.encode(conversation("hello", "red")), Sampling(max_new_tokens=9))
    with Engine(assistant.checkpoint, max_waiting=100) as engine:
        alone = engine.submit(asked).wait().token_ids

        def run_out(forward: int) -> None:
            if rng.random() < 0.1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        with at_each_forward(assistant, run_out):
            made, answers = [], []
            for number in range(40):
                answers.append(engine.submit(asked, wait=True))
                made.append(engine.decide(request(assistant, number % 4)))
            refused = 0
            for number, deciding in enumerate(made):
                try:
                    assert logs(deciding.wait(), number % 4) == right[number % 4]
                except OverloadError:
                    refused += 1
            for answer in answers:
                try:
                    assert answer.wait().token_ids == alone
                except OverloadError:
                    refused += 1
        assert engine.alive and 0 < refused < 40
        assert sum(engine.stats().finished.values()) == 81 and engine.stats().finished["error"] == refused


def test_a_question_that_is_too_long_is_refused_before_it_waits(assistant: Assistant) -> None:
    reading = request(assistant, 0).reading
    long = Reading(list(reading.prefix) * 1000, reading.pixels, reading.branches)
    with Engine(assistant.checkpoint) as engine, pytest.raises(ContextError, match="maximum context length"):
        engine.decide(DecisionRequest(long))
