"""The engine against plain `generate`, token for token, and what happens when answers end early, late or badly.

The model is random, so the words mean nothing but are exact. Hooks on its modules count and hold its steps.
"""

import asyncio
import gc
import random
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import cli
import pytest
import torch
from conftest import make_image, make_model, make_processor, make_tokenizer
from transformers import DynamicCache

from eden import ContextError, EngineStopped, InputError, OverloadError, RunError
from eden.checkpoint import Checkpoint, add_adapters, load
from eden.core.processes import free_memory
from eden.inference import engine as engine_module
from eden.inference.detokenizer import TextStream, token_bytes
from eden.inference.engine import Engine
from eden.inference.kv_cache import KVCache, rows_that_fit
from eden.inference.request import Generation, Request
from eden.inference.sampler import Token
from eden.inference.sampling import Sampling
from eden.recipe import LoraSection
from eden.tiny.world import scenes


@pytest.fixture(scope="module", params=["pooled", "patches"])
def either(request: pytest.FixtureRequest) -> Checkpoint:
    return make_checkpoint(request.param)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return make_checkpoint("patches")


DESCRIBE = {"type": "text", "text": "Describe the picture."}


def make_checkpoint(vision_feature: str) -> Checkpoint:
    model = make_model(vision_feature)
    return Checkpoint(model, make_processor(model.config.num_image_tokens), "random", None)


def example(checkpoint: Checkpoint, question: str, *colours: str) -> dict[str, Any]:
    images = [{"type": "image", "image": make_image(colour)} for colour in colours]
    content = [*images, {"type": "text", "text": question}]
    return checkpoint.processor.encode([{"role": "user", "content": content}], add_generation_prompt=True)


def mixed(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Questions short and long, without an image, with one, with several, with the same again."""
    return [
        example(checkpoint, "hello"),
        example(checkpoint, "which colour is this one here, and why do you think so", "red"),
        example(checkpoint, "compare", "red", "blue", "lime"),
        example(checkpoint, "a " * 40),
        example(checkpoint, "and these", "blue", "blue"),
        example(checkpoint, "b"),
    ]


@torch.inference_mode()
def plain(checkpoint: Checkpoint, asked: dict[str, Any], sampling: Sampling) -> Any:
    """What `generate` makes of one question: its new ids, or its whole output if that is a dictionary."""
    ids = torch.tensor([asked["input_ids"]])
    options = sampling.for_generate()
    if "pixel_values" in asked:
        options["pixel_values"] = asked["pixel_values"]
    if sampling.stop:
        options["tokenizer"] = checkpoint.processor.tokenizer
    if sampling.seed is not None:
        torch.manual_seed(sampling.seed)
    output = checkpoint.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    return output[0, ids.shape[1] :].tolist() if isinstance(output, torch.Tensor) else output


@contextmanager
def at_each_step(checkpoint: Checkpoint, call: Callable[[int], None]) -> Iterator[None]:
    """Calls back with the number of the decode step before each of them."""
    steps = 0

    def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal steps
        if isinstance(kwargs["past_key_values"], KVCache):
            steps += 1
            call(steps)

    handle = checkpoint.core.model.language_model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class Gate:
    """Holds the engine at its first decode step until it is opened, so that a test knows what runs and what waits."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, step: int) -> None:
        self.reached.set()
        assert self.opened.wait(60)


# Against plain generate.


@pytest.mark.parametrize("max_running", [1, 2, 8])
def test_greedy_answers_are_those_of_plain_generate(either: Checkpoint, max_running: int) -> None:
    """Of every length, so that with two rows each answer joins and leaves amid another."""
    examples = mixed(either)
    samplings = [Sampling(max_new_tokens=length) for length in (9, 30, 4, 17, 1, 12)]
    with Engine(either, max_running=max_running) as engine:
        generations = [
            engine.submit(Request.of(asked, sampling)) for asked, sampling in zip(examples, samplings, strict=True)
        ]
        answers = [generation.wait().token_ids for generation in generations]
    assert answers == [plain(either, asked, sampling) for asked, sampling in zip(examples, samplings, strict=True)]
    assert len({tuple(answer[:1]) for answer in answers}) > 1
    assert {generation.finish_reason for generation in generations} == {"length"}


def test_an_answer_may_join_while_another_is_amid_its_own(checkpoint: Checkpoint) -> None:
    long, late = example(checkpoint, "tell me", "red"), example(checkpoint, "and this", "blue")
    joined: list[Generation] = []
    with Engine(checkpoint) as engine:

        def join(step: int) -> None:
            if step in (3, 11):
                joined.append(engine.submit(Request.of(late, Sampling(max_new_tokens=5))))

        with at_each_step(checkpoint, join):
            first = engine.submit(Request.of(long, Sampling(max_new_tokens=20))).wait()
            answers = [generation.wait().token_ids for generation in joined]
        assert engine.stats().steps == 19  # the first token of an answer comes with its question
    assert first.token_ids == plain(checkpoint, long, Sampling(max_new_tokens=20))
    assert answers == 2 * [plain(checkpoint, late, Sampling(max_new_tokens=5))]


def test_a_long_question_is_read_in_parts_between_the_tokens_of_others(either: Checkpoint) -> None:
    """Five tokens a turn, so that a part ends amid an image's four."""
    short, long = example(either, "hello"), example(either, "compare " * 5, "red", "blue", "lime")
    sampling = Sampling(max_new_tokens=30)
    started_at: list[int] = []
    with Engine(either, prefill_tokens=5) as engine:
        generations: list[Generation] = []

        def join(step: int) -> None:
            if step == 2:
                generations.append(engine.submit(Request.of(long, sampling)))
            if len(generations) == 1 and generations[0].token_ids:
                started_at.append(step)

        with at_each_step(either, join):
            first = engine.submit(Request.of(short, sampling)).wait()
            second = generations[0].wait()
    assert first.token_ids == plain(either, short, sampling)
    assert second.token_ids == plain(either, long, sampling)
    assert started_at[0] == 2 + -(-len(long["input_ids"]) // 5)


@pytest.mark.parametrize(("attention", "window"), [("eager", None), ("sdpa", 7), ("eager", 7)])
def test_other_attention_and_a_sliding_window(attention: str, window: int | None) -> None:
    checkpoint = make_checkpoint("patches")
    checkpoint.core.set_attn_implementation(attention)
    checkpoint.config.text_config.sliding_window = window
    examples, sampling = mixed(checkpoint), Sampling(max_new_tokens=12)
    with Engine(checkpoint) as engine:
        answers = [g.wait().token_ids for g in [engine.submit(Request.of(asked, sampling)) for asked in examples]]
    assert answers == [plain(checkpoint, asked, sampling) for asked in examples]


def test_a_model_with_adapters() -> None:
    whole = make_checkpoint("patches")
    lora = LoraSection(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=["qkv_proj", "o_proj"])
    adapted = Checkpoint(add_adapters(whole.core, lora), whole.processor, "adapted", None)
    for name, parameter in adapted.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.model.eval()
    examples, sampling = mixed(adapted), Sampling(max_new_tokens=8)
    with Engine(adapted) as engine:
        answers = [g.wait().token_ids for g in [engine.submit(Request.of(asked, sampling)) for asked in examples]]
    assert answers == [plain(adapted, asked, sampling) for asked in examples]


def test_draws_are_those_of_generate_whatever_else_is_in_the_batch(checkpoint: Checkpoint) -> None:
    samplings = [
        Sampling(max_new_tokens=12, temperature=5.0, seed=1),
        Sampling(max_new_tokens=12, temperature=3.0, top_k=5, seed=2),
        Sampling(max_new_tokens=12, temperature=4.0, top_p=0.7, seed=3, repetition_penalty=1.3),
        Sampling(max_new_tokens=12, repetition_penalty=1.8),
        Sampling(max_new_tokens=12, temperature=5.0),
        Sampling(max_new_tokens=12, temperature=5.0, seed=1),
    ]
    asked = example(checkpoint, "hello", "red")
    with Engine(checkpoint) as engine:
        together = [engine.submit(Request.of(asked, sampling)) for sampling in samplings]
        answers = [generation.wait().token_ids for generation in together]
    seeded = [index for index, sampling in enumerate(samplings) if sampling.seed is not None or sampling.is_greedy]
    for index in seeded:
        assert answers[index] == plain(checkpoint, asked, samplings[index])
    assert answers[0] == answers[5]
    assert len({tuple(answer) for answer in answers}) == 5


def test_logprobs_are_the_models_own(checkpoint: Checkpoint) -> None:
    asked = example(checkpoint, "hello", "red")
    sampling = Sampling(max_new_tokens=6, temperature=5.0, seed=3, top_k=4, logprobs=3)
    with Engine(checkpoint) as engine:
        generation = engine.submit(Request.of(asked, sampling)).wait()
    output = plain(checkpoint, asked, sampling)
    expected = torch.stack(output.logits).squeeze(1).log_softmax(-1)
    tokens = [token for delta in generation for token in delta.tokens]
    assert [token.id for token in tokens] == generation.token_ids == output.sequences[0, -6:].tolist()
    for token, logprobs in zip(tokens, expected, strict=True):
        assert token.logprob == pytest.approx(float(logprobs[token.id]), abs=1e-4)
        assert [token_id for token_id, _ in token.top] == logprobs.topk(3).indices.tolist()
        assert [logprob for _, logprob in token.top] == pytest.approx(logprobs.topk(3).values.tolist(), abs=1e-4)


def test_the_models_closing_token_ends_an_answer() -> None:
    checkpoint = make_checkpoint("pooled")
    asked = example(checkpoint, "hello", "red")
    free = plain(checkpoint, asked, Sampling(max_new_tokens=12))
    checkpoint.core.generation_config.eos_token_id = [free[5], 3]
    with Engine(checkpoint) as engine:
        generation = engine.submit(Request.of(asked, Sampling(max_new_tokens=12))).wait()
    assert generation.token_ids == plain(checkpoint, asked, Sampling(max_new_tokens=12))
    assert generation.finish_reason == "stop"
    assert generation.token_ids[-1] in (free[5], 3)
    assert all(token.id != generation.token_ids[-1] for delta in generation for token in delta.tokens)
    assert (generation.prompt_tokens, generation.completion_tokens) == (
        len(asked["input_ids"]),
        1 + free.index(free[5]),
    )


# Text as it grows.


def test_a_stop_string_across_tokens_is_never_seen() -> None:
    """eden-tiny's answer, stopped at what begins at every seventh character, within a word and between words."""
    checkpoint = load()
    world = [{"role": "user", "content": [{"type": "image", "image": next(scenes(0, "test"))[1]}, DESCRIBE]}]
    asked = checkpoint.processor.encode(world, add_generation_prompt=True)
    with Engine(checkpoint) as engine:
        whole = engine.submit(Request.of(asked)).wait().text
        for start in range(0, len(whole) - 4, 7):
            stop = whole[start : start + 4]
            sampling = Sampling(stop=("never said", stop))
            generation = engine.submit(Request.of(asked, sampling))
            assert "".join(delta.text for delta in generation) == whole.split(stop)[0]
            assert generation.finish_reason == "stop"
            assert generation.token_ids == plain(checkpoint, asked, sampling)


def stream(text: str, stop: tuple[str, ...] = ()) -> tuple[TextStream, list[str]]:
    tokenizer = make_tokenizer()
    stream, deltas = TextStream(tokenizer, stop), []
    for token_id in tokenizer(text)["input_ids"]:
        if not stream.stopped and (delta := stream.push(Token(token_id))):
            deltas.append(delta.text)
    return stream, deltas


def test_what_only_looks_like_a_stop_string_is_given_once_that_is_known() -> None:
    text, deltas = stream("aab aac", stop=("aac",))
    assert deltas == ["aab", " "]
    assert text.stopped
    text, deltas = stream("abab", stop=("abac",))
    assert deltas == ["ab"]
    assert text.finish().text == "ab"


def test_characters_of_several_bytes_come_whole() -> None:
    sentence = "grün, 日本 und 🎉"
    text, deltas = stream(sentence)
    assert "".join(deltas) == sentence
    assert text.finish() is None
    assert "🎉" in deltas and "\ufffd" not in "".join(deltas)
    # Cut amid the last character, as an answer is that reached its length.
    tokenizer = make_tokenizer()
    cut = TextStream(tokenizer)
    deltas = [delta.text for token_id in tokenizer(sentence)["input_ids"][:-1] if (delta := cut.push(Token(token_id)))]
    rest = cut.finish()
    assert "".join(deltas) + (rest.text if rest else "") == sentence[:-1]
    assert [token_bytes(tokenizer, i) for i in tokenizer("a ü")["input_ids"]] == [b" ", b"a", b" ", b"\xc3", b"\xbc"]


def test_noise_is_decoded_as_the_tokenizer_does() -> None:
    tokenizer = make_tokenizer()
    byte = lambda value: value + 3  # noqa: E731
    a, b = tokenizer.convert_tokens_to_ids(["a", "b"])
    for ids in ([byte(0x41), byte(0xF3), a], [a, byte(0xFF)], [byte(0x94), b, byte(0xE2), b]):
        noise = TextStream(tokenizer)
        deltas = [delta.text for token_id in ids if (delta := noise.push(Token(token_id)))]
        rest = noise.finish()
        assert "".join(deltas) + (rest.text if rest else "") == tokenizer.decode(ids)


def test_tokens_come_with_the_piece_they_begin_in() -> None:
    tokenizer = make_tokenizer()
    text = TextStream(tokenizer, stop=("cd",))
    ids = tokenizer("abüccd")["input_ids"]
    deltas = [delta for token_id in ids if (delta := text.push(Token(token_id)))]
    assert "".join(delta.text for delta in deltas) == "abüc"
    assert [token.id for delta in deltas for token in delta.tokens] == ids[:-2]


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@contextmanager
def memory_that_runs_out(checkpoint: Checkpoint, when: Callable[[bool], bool]) -> Iterator[None]:
    """Memory runs out amid a forward, behind its first layer, where `when` says so of a decode step or of a reading."""

    def hook(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if when(isinstance(kwargs["past_key_values"], KVCache)):
            raise OUT_OF_MEMORY

    handle = checkpoint.core.model.language_model.layers[0].register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def test_where_memory_runs_out_the_longest_gives_way_and_the_rest_go_on(checkpoint: Checkpoint) -> None:
    examples, sampling = mixed(checkpoint), Sampling(max_new_tokens=12)
    longest = max(range(len(examples)), key=lambda index: len(examples[index]["input_ids"]))
    steps: list[bool] = []
    all_submitted = threading.Event()

    def at_the_fifth(is_step: bool) -> bool:
        assert all_submitted.wait(60)
        steps.append(is_step)
        return sum(steps) == 5 and is_step

    with Engine(checkpoint, prefill_tokens=10_000) as engine, memory_that_runs_out(checkpoint, at_the_fifth):
        generations = [engine.submit(Request.of(asked, sampling)) for asked in examples]
        all_submitted.set()
        with pytest.raises(OverloadError, match="no memory for this answer"):
            generations[longest].wait()
        for index, generation in enumerate(generations):
            if index != longest:
                assert generation.wait().token_ids == plain(checkpoint, examples[index], sampling)
        again = engine.submit(Request.of(examples[longest], sampling)).wait()
        assert again.token_ids == plain(checkpoint, examples[longest], sampling)
        assert engine.alive and engine.stats().finished == {"error": 1, "length": len(examples)}


@pytest.mark.parametrize("number", [60, pytest.param(1000, marks=pytest.mark.soak)])
def test_memory_that_runs_out_again_and_again_spoils_no_answer(checkpoint: Checkpoint, number: int) -> None:
    """In a tenth of the readings and of the steps, while answers come and go."""
    rng, examples = random.Random(0), mixed(checkpoint)
    sampling = Sampling(max_new_tokens=9)
    expected = [plain(checkpoint, asked, sampling) for asked in examples]
    with Engine(checkpoint, max_running=4) as engine, memory_that_runs_out(checkpoint, lambda _: rng.random() < 0.1):
        generations = [engine.submit(Request.of(examples[i % 6], sampling), wait=True) for i in range(number)]
        refused = 0
        for index, generation in enumerate(generations):
            try:
                assert generation.wait().token_ids == expected[index % 6]
            except OverloadError:
                refused += 1
    assert 0 < refused < number / 2
    assert engine.error is None and engine.stats().finished == {"length": number - refused, "error": refused}


def test_what_is_kept_in_reserve_is_given_back_where_memory_runs_out() -> None:
    checkpoint = make_checkpoint("pooled")
    slots = KVCache(checkpoint.config.text_config)
    step = {"device": torch.device("cpu"), "dtype": torch.float32}

    def joined(length: int) -> None:
        prompt = DynamicCache()
        for layer in range(2):
            prompt.update(*(2 * [torch.full((1, 2, length, 32), float(length))]), layer)
        slots.join(prompt, [length])

    for length in (3, 60, 63):
        joined(length)
    slots.leave(0)
    slots.save_memory()
    before = slots.layers[0].keys.shape
    for _ in range(2):
        slots.next_step(**step)
        slots.count_step()
    after = slots.layers[0].keys
    assert before[0] == 4 and after.shape[0] == 2  # rows
    assert after[0, 0, :63].eq(63).all() and after[1, 0, :60].eq(60).all()
    for row in (1, 0):
        slots.leave(row)
    assert slots.has_reserve


def test_how_many_rows_fit_into_memory() -> None:
    config = make_checkpoint("pooled").config.text_config  # 2 layers, 2 heads of 32
    free = free_memory()
    rows = rows_that_fit(config, 1024, torch.device("cpu"), torch.float32)
    assert 0.5 * free < rows * (2 * 2 * 2 * 32 * 1024 * 4) < 0.9 * free
    assert rows_that_fit(config, 10**12, torch.device("cpu"), torch.float32) == 1


def test_reading_asynchronously(checkpoint: Checkpoint) -> None:
    asked = example(checkpoint, "hello", "red")

    async def read(generation: Generation) -> str:
        return "".join([delta.text async for delta in generation])

    async def read_all(engine: Engine) -> list[str]:
        return await asyncio.gather(
            *(read(engine.submit(Request.of(asked, Sampling(max_new_tokens=n)))) for n in (3, 20))
        )

    with Engine(checkpoint) as engine:
        short, long = asyncio.run(read_all(engine))
        assert long == engine.submit(Request.of(asked, Sampling(max_new_tokens=20))).wait().text
    assert long.startswith(short)


# Ends.


def test_a_cancelled_answer_frees_its_row_within_one_step(checkpoint: Checkpoint) -> None:
    asked = example(checkpoint, "hello", "red")
    running: list[int] = []
    with Engine(checkpoint) as engine:
        generations: list[Generation] = []

        def cancel(step: int) -> None:
            running.append(engine.stats().running)
            if step == 5:
                generations[0].cancel()

        gate = Gate()
        with at_each_step(checkpoint, lambda step: gate(step) or cancel(step)):
            generations += [engine.submit(Request.of(asked, Sampling(max_new_tokens=n))) for n in (2000, 12)]
            gate.opened.set()
            cancelled, other = (generation.wait() for generation in generations)
    assert cancelled.finish_reason == "cancelled"
    assert running[4:7] == [2, 1, 1]  # before the fifth, sixth and seventh step
    assert cancelled.completion_tokens <= 6
    assert other.token_ids == plain(checkpoint, asked, Sampling(max_new_tokens=12))
    assert cancelled.token_ids == plain(checkpoint, asked, Sampling(max_new_tokens=cancelled.completion_tokens))
    assert engine.stats().finished == {"cancelled": 1, "length": 1}


def test_cancelled_or_late_in_the_queue_is_never_begun(checkpoint: Checkpoint) -> None:
    asked, gate = example(checkpoint, "hello"), Gate()
    with Engine(checkpoint, max_running=1) as engine, at_each_step(checkpoint, gate):
        engine.submit(Request.of(asked, Sampling(max_new_tokens=3)))
        assert gate.reached.wait(60)
        cancelled, late = (engine.submit(Request.of(asked, deadline=deadline)) for deadline in (None, 0.0))
        cancelled.cancel()
        gate.opened.set()
        reasons = [generation.wait().finish_reason for generation in (cancelled, late)]
    assert reasons == ["cancelled", "deadline"]
    assert cancelled.started_at is None and late.started_at is None


def test_a_deadline_ends_an_answer_with_what_it_has(checkpoint: Checkpoint) -> None:
    asked, gate = example(checkpoint, "hello"), Gate()

    def pass_an_hour(step: int) -> None:
        if step == 5:
            generation.submitted_at -= 3600

    with Engine(checkpoint) as engine, at_each_step(checkpoint, lambda step: gate(step) or pass_an_hour(step)):
        generation = engine.submit(Request.of(asked, Sampling(max_new_tokens=4000), deadline=3600))
        gate.opened.set()
        generation.wait()
    assert generation.finish_reason == "deadline"
    assert generation.token_ids == plain(checkpoint, asked, Sampling(max_new_tokens=6))


def test_a_full_queue_refuses_or_waits(checkpoint: Checkpoint) -> None:
    asked, gate = example(checkpoint, "hello"), Gate()
    request = Request.of(asked, Sampling(max_new_tokens=3))
    with Engine(checkpoint, max_running=1, max_waiting=2) as engine, at_each_step(checkpoint, gate):
        generations = [engine.submit(request)]
        assert gate.reached.wait(60)
        generations += [engine.submit(request) for _ in range(2)]
        assert engine.stats().waiting == 2 and engine.stats().running == 1
        with pytest.raises(OverloadError, match="2 questions wait already"):
            engine.submit(request)
        opener = threading.Timer(0, gate.opened.set)
        opener.start()
        generations.append(engine.submit(request, wait=True))
        answers = [generation.wait().token_ids for generation in generations]
    assert answers == 4 * [plain(checkpoint, asked, request.sampling)]


def test_an_image_is_encoded_once(either: Checkpoint) -> None:
    encoded: list[int] = []
    embeddings = either.core.model.vision_tower.vision_model.embeddings  # the tower's first layer
    handle = embeddings.register_forward_hook(lambda module, args, output: encoded.append(len(args[0])))
    asked = [example(either, "one", "red"), example(either, "two", "blue", "red", "blue")]
    sampling = Sampling(max_new_tokens=4)
    with Engine(either, remembered_images=2) as engine:
        answers = [engine.submit(Request.of(again, sampling)).wait().token_ids for again in (*asked, *asked)]
        assert encoded == [1, 1]
        engine.submit(Request.of(example(either, "three", "lime"), sampling)).wait()  # forgets the oldest of the three
        engine.submit(Request.of(asked[0], sampling)).wait()
    handle.remove()
    assert sum(encoded) in (3, 4)
    assert answers == 2 * [plain(either, again, sampling) for again in asked]


def test_features_computed_before_are_taken(either: Checkpoint) -> None:
    asked, sampling = example(either, "compare", "red", "blue"), Sampling(max_new_tokens=6)
    features = either.core.model.encode_images(asked["pixel_values"])
    with Engine(either) as engine:
        request = Request(asked["input_ids"], sampling, image_features=features)
        assert engine.submit(request).wait().token_ids == plain(either, asked, sampling)


def test_a_question_that_cannot_be_read_fails_alone(checkpoint: Checkpoint) -> None:
    good, bad = example(checkpoint, "hello", "red"), example(checkpoint, "hello", "blue")
    bad["pixel_values"] = torch.zeros(1, 3, 48, 48)  # not the tower's size
    sampling, gate = Sampling(max_new_tokens=5), Gate()
    with Engine(checkpoint) as engine, at_each_step(checkpoint, gate):
        running = engine.submit(Request.of(good, sampling))
        assert gate.reached.wait(60)
        generations = [engine.submit(Request.of(asked, sampling)) for asked in (good, bad, good)]
        gate.opened.set()
        with pytest.raises(RunError, match=r"could not be answered: .*48"):
            generations[1].wait()
        answers = [generation.wait().token_ids for generation in (running, generations[0], generations[2])]
        assert engine.alive
    assert answers == 3 * [plain(checkpoint, good, sampling)]
    assert engine.stats().finished == {"length": 3, "error": 1}


def test_logits_that_are_no_numbers_fail_their_own_answer(checkpoint: Checkpoint) -> None:
    """A draw from them is impossible; the rows beside it, and the next one in its slot, are not touched."""
    asked = example(checkpoint, "hello", "red")
    broken = Request(
        asked["input_ids"],
        Sampling(max_new_tokens=5, temperature=1.0),
        image_features=torch.full((1, 4, 32), float("nan")),
    )
    with Engine(checkpoint, max_running=2) as engine:
        generations = [engine.submit(Request.of(asked, Sampling(max_new_tokens=9))), engine.submit(broken)]
        with pytest.raises(RunError, match="could not be answered"):
            list(generations[1])
        later = engine.submit(Request.of(asked, Sampling(max_new_tokens=9)))
        answers = [generations[0].wait().token_ids, later.wait().token_ids]
    assert answers == 2 * [plain(checkpoint, asked, Sampling(max_new_tokens=9))]


def test_a_model_that_fails_ends_the_engine(checkpoint: Checkpoint) -> None:
    asked = example(checkpoint, "hello")

    def fail(step: int) -> None:
        if step == 3:
            raise RuntimeError("the device is gone")

    engine = Engine(checkpoint, max_running=1)
    with at_each_step(checkpoint, fail):
        running, waiting = (engine.submit(Request.of(asked, Sampling(max_new_tokens=9))) for _ in range(2))
        for generation in (running, waiting):
            with pytest.raises(EngineStopped, match=r"the engine failed .the device is gone"):
                list(generation)
            assert generation.finish_reason == "error"
    assert running.completion_tokens == 3
    assert not engine.alive and str(engine.error) == "the device is gone"
    with pytest.raises(EngineStopped, match="the device is gone"):
        engine.submit(Request.of(asked))
    engine.close()


@pytest.mark.parametrize("finish", [True, False])
def test_closing(checkpoint: Checkpoint, finish: bool) -> None:
    asked, gate = example(checkpoint, "hello"), Gate()
    engine = Engine(checkpoint, max_running=1)
    with at_each_step(checkpoint, gate):
        running, waiting = (engine.submit(Request.of(asked, Sampling(max_new_tokens=9))) for _ in range(2))
        assert gate.reached.wait(60)
        closer = threading.Thread(target=engine.close, args=(finish,))
        closer.start()
        while engine.alive:
            pass
        with pytest.raises(EngineStopped, match="was closed"):
            engine.submit(Request.of(asked))
        gate.opened.set()
        closer.join()
    expected = plain(checkpoint, asked, Sampling(max_new_tokens=9))
    assert running.wait().finish_reason == ("length" if finish else "cancelled")
    assert running.token_ids == expected[: 9 if finish else 2]
    with pytest.raises(EngineStopped, match="was closed"):
        waiting.wait()
    engine.close()
    assert engine.stats().running == engine.stats().waiting == 0


def test_an_idle_engine_holds_nothing(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread, and so no model, outlives its last user; a new question starts a new thread."""
    monkeypatch.setattr(engine_module, "IDLE_SECONDS", 0.0)
    engine = Engine(checkpoint)
    for _ in range(2):
        engine.submit(Request.of(example(checkpoint, "hello"), Sampling(max_new_tokens=2))).wait()
        for thread in threading.enumerate():
            if thread.name == "eden-engine":
                thread.join(60)
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is None


def test_a_process_ends_amid_an_answer() -> None:
    script = """
import eden
from eden.messages import Message
from eden.inference.sampling import Sampling
assistant = eden.load("eden-tiny")
assistant.checkpoint.core.generation_config.eos_token_id = None
deltas = assistant.reply([Message.user("hello")], Sampling(max_new_tokens=900))
print(repr(next(deltas)))
"""
    result = cli.Started([sys.executable, "-c", script]).finished()  # not a fork, which does not end as Python does
    assert (result.returncode, result.stdout != "") == (0, True), result.stderr


# Refusals.


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("top_p", -0.1),
        ("top_p", 1.5),
        ("top_k", -1),
        ("top_k", 2.5),
        ("repetition_penalty", 0.0),
        ("seed", 2**64),
        ("logprobs", 21),
        ("stop", ("",)),
        ("stop", "end"),
    ],
)
def test_sampling_names_the_field_that_cannot_be(field: str, value: Any) -> None:
    with pytest.raises(InputError) as caught:
        Sampling(**{field: value})
    assert str(caught.value).startswith(f"{field}: ")


def test_requests_that_cannot_be_answered_are_refused_at_once(checkpoint: Checkpoint) -> None:
    asked = example(checkpoint, "hello", "red")
    with Engine(checkpoint) as engine:
        with pytest.raises(ContextError, match=r"length is 4,096 tokens; .* may take 4,090"):
            engine.submit(Request.of(asked, Sampling(max_new_tokens=4090)))
        with pytest.raises(InputError, match=r"holds 4 .* tokens but the images give 0"):
            engine.submit(Request(asked["input_ids"]))
        with pytest.raises(InputError, match="no question"):
            engine.submit(Request([]))
        assert engine.stats().finished == {}
