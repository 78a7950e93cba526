"""Hundreds of requests of all kinds from many at once, and requests made up from the API's own description."""

import io
import json
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cli
import httpx
import PIL.Image
import psutil
import pytest
from hostile import CASES
from servers import QUESTION, asking, audio_part, image_part, serving, until

CLIENTS = 16
BIN = Path(sys.executable).parent
# The limits here are the usual ones, under which some are allowed; others take long to make.
ALLOWED_OR_SLOW = ("too large", "hundred thousand", "very m", "megabyte", "bomb", "minutes", "too many pixels")
SMALL = [name for name in CASES if not any(words in name for words in ALLOWED_OR_SLOW)]


RUNS_OUT_OF_MEMORY = """
import random, sys, torch
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import Phi3Model

chance = random.Random(0)

def run_out(module, args):
    if isinstance(module, Phi3Model) and chance.random() < 0.05:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

register_module_forward_pre_hook(run_out)
from eden.cli import main
main()
"""
"""`eden`, whose language model finds no memory in one of twenty readings and steps."""


@contextmanager
def serving_elsewhere(*program: str) -> Iterator[tuple[str, psutil.Process]]:
    """`eden serve` in a process of its own, so that its memory is its own."""
    command = [*(program or ("-m", "eden")), "serve", "--no-page", "--port", "0", "--json"]
    with cli.Python(*command, stderr=subprocess.DEVNULL, env=os.environ | {"EDEN_API_KEY": ""}) as server:
        assert server.stdout is not None
        yield json.loads(server.stdout.readline())["address"], psutil.Process(server.pid)
        server.terminate()
    assert server.returncode == 0


def metric(address: str, name: str) -> float:
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))


def thin_picture() -> dict[str, Any]:
    file = io.BytesIO()
    PIL.Image.new("RGB", (4000, 3), "red").save(file, "PNG")
    return image_part(file.getvalue())


QUESTIONS = ["How many objects are there?", "Describe the picture.", "What shape is the red object?"]
PLAIN = [(image_part(), question) for question in QUESTIONS] + [(thin_picture(), QUESTIONS[0]), ("hello",)]
"""What is asked without a wish for how it is answered: each time, the answer is the same."""


def good(rng: random.Random) -> dict[str, Any]:
    picture, question = image_part(), rng.choice(QUESTIONS)
    kinds: list[dict[str, Any]] = [
        *(asking(*rng.choice(PLAIN), max_tokens=64) for _ in range(2)),
        asking(picture, question, n=2, temperature=1, seed=rng.randrange(100)),
        asking(picture, audio_part()),
        asking(picture, question, logprobs=True, top_logprobs=2, stop=["blue"]),
    ]
    return rng.choice(kinds) | {"stream": rng.random() < 0.5}


def said(response: httpx.Response) -> str:
    """The words of an answer, whole or in events."""
    if not response.headers["content-type"].startswith("text/event-stream"):
        return str(response.json()["choices"][0]["message"]["content"])
    events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    return "".join(event["choices"][0]["delta"].get("content") or "" for event in events)


class Client:
    """One of many: asks well, asks badly, or hangs up."""

    def __init__(self, address: str, seed: int, answers: dict[str, str]):
        self.rng = random.Random(seed)
        self.answers = answers
        self.http = httpx.Client(base_url=address, timeout=60)
        self.outcomes: Counter[str] = Counter()

    def ask(self) -> None:
        chance = self.rng.random()
        if chance < 0.1:
            self.hang_up()
        elif chance < 0.2:
            body = CASES[self.rng.choice(SMALL)]()
            self.count("malformed", self.post(json.dumps(body) if isinstance(body, dict) else body))
        elif chance < 0.23:
            files = {"file": ("question.wav", QUESTION)}
            self.count("good", self.http.post("/v1/audio/transcriptions", files=files, data={"model": "whisper-1"}))
        else:
            body = good(self.rng)
            response = self.post(json.dumps(body))
            if response.status_code == 200 and '"error"' in response.text:  # the status had been sent
                assert '"overloaded_error"' in response.text, response.text[-300:]
                self.outcomes["good 503"] += 1
                return
            if response.status_code == 200 and body["stream"]:
                assert response.text.endswith("data: [DONE]\n\n"), response.text[-300:]
            if response.status_code == 200 and body.keys() == {
                "model",
                "messages",
                "temperature",
                "max_tokens",
                "stream",
            }:
                assert said(response) == self.answers[json.dumps(body["messages"])]
            self.count("good", response)

    def post(self, content: str | bytes) -> httpx.Response:
        return self.http.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})

    def hang_up(self) -> None:
        """In the middle of a stream, or while the whole answer is waited for."""
        try:
            with self.http.stream(
                "POST", "/v1/chat/completions", json=good(self.rng), timeout=self.rng.uniform(0.01, 0.2)
            ) as response:
                next(response.iter_raw(), None)
        except httpx.TimeoutException:
            pass
        self.outcomes["hung up"] += 1

    def count(self, kind: str, response: httpx.Response) -> None:
        if response.status_code == 503:
            assert response.headers["retry-after"]
        self.outcomes[f"{kind} {response.status_code}"] += 1


@pytest.fixture(scope="module")
def answers() -> dict[str, str]:
    """What `PLAIN` is answered, by its messages, where nobody else asks."""
    with serving() as server:
        asked = [asking(*parts, max_tokens=64) for parts in PLAIN]
        return {json.dumps(body["messages"]): said(server.post(body)) for body in asked}


@pytest.mark.parametrize(
    ("number", "program"),
    [
        (200, ()),
        pytest.param(1000, (), marks=pytest.mark.soak),
        pytest.param(1000, ("-c", RUNS_OUT_OF_MEMORY), marks=pytest.mark.soak),
    ],
    ids=["200", "1000", "1000, out of memory"],
)
def test_many_requests_leave_nothing_behind(number: int, program: tuple[str, ...], answers: dict[str, str]) -> None:
    with serving_elsewhere(*program) as (address, process):
        clients = [Client(address, seed, answers) for seed in range(CLIENTS)]
        failures: list[BaseException] = []

        def run(each: int) -> None:
            def ask(client: Client) -> None:
                try:
                    for _ in range(each):
                        client.ask()
                except BaseException as error:
                    failures.append(error)

            threads = [threading.Thread(target=ask, args=(client,)) for client in clients]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        run(100 // CLIENTS + 1)
        early, threads = process.memory_info().rss, process.num_threads()
        run((number - 100) // CLIENTS)
        assert not failures, failures[:3]
        until(lambda: metric(address, "eden_running") == metric(address, "eden_waiting") == 0)
        late = process.memory_info().rss
        outcomes = sum((client.outcomes for client in clients), Counter())
        print(f"{dict(outcomes)}; {early / 2**20:.0f} MiB after the first hundred, {late / 2**20:.0f} MiB at the end")
        assert sum(outcomes.values()) >= number - CLIENTS
        allowed = {"hung up", "good 200", "good 503", "malformed 503"}
        for outcome in set(outcomes) - allowed:
            kind, status = outcome.split()
            assert kind == "malformed" and 400 <= int(status) < 500, outcomes
        assert outcomes["good 200"] > number / 2 and (not program or outcomes["good 503"])
        assert late - early < 96 * 2**20  # buffers of the allocator, and no more of them for more requests
        assert process.num_threads() <= threads + 4
        assert httpx.get(f"{address}/health").json() == {"status": "ok"}


@pytest.mark.parametrize("examples", [10, pytest.param(40, marks=pytest.mark.soak)])
def test_what_the_api_says_of_itself_is_so(examples: int, tmp_path: Path) -> None:
    """schemathesis makes requests up from /openapi.json, fitting and unfitting ones."""
    checks = [
        "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
        "negative_data_rejection", "unsupported_method",
    ]  # fmt: skip
    with serving_elsewhere() as (address, _):
        command = [str(BIN / "schemathesis"), "run", f"{address}/openapi.json", "--checks", ",".join(checks)]
        command += ["--max-examples", str(examples), "--seed", "1"]
        result = cli.Started(command, cwd=tmp_path).finished()  # it leaves a folder
    assert result.returncode == 0, result.stdout[-4000:]
    assert "8/8" in result.stdout
