"""Hundreds of requests of all kinds from many at once, and requests made up from the API's own description."""

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
import psutil
import pytest
from hostile import CASES
from servers import QUESTION, asking, audio_part, image_part, until

CLIENTS = 16
BIN = Path(sys.executable).parent
# The limits here are the usual ones, under which some are allowed; others take long to make.
ALLOWED_OR_SLOW = ("too large", "hundred thousand", "very m", "megabyte", "bomb", "minutes", "too many pixels")
SMALL = [name for name in CASES if not any(words in name for words in ALLOWED_OR_SLOW)]


@contextmanager
def serving_elsewhere() -> Iterator[tuple[str, psutil.Process]]:
    """`eden serve` in a process of its own, so that its memory is its own."""
    command = ["-m", "eden", "serve", "--no-page", "--port", "0", "--json"]
    with cli.Python(*command, stderr=subprocess.DEVNULL, env=os.environ | {"EDEN_API_KEY": ""}) as server:
        assert server.stdout is not None
        yield json.loads(server.stdout.readline())["address"], psutil.Process(server.pid)
        server.terminate()
    assert server.returncode == 0


def metric(address: str, name: str) -> float:
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))


def good(rng: random.Random) -> dict[str, Any]:
    question = rng.choice(["How many objects are there?", "Describe the picture.", "What shape is the red object?"])
    kinds: list[dict[str, Any]] = [
        asking("hello", max_tokens=8),
        asking(image_part(), question),
        asking(image_part(), question, n=2, temperature=1, seed=rng.randrange(100)),
        asking(image_part(), audio_part()),
        asking(image_part(), question, logprobs=True, top_logprobs=2, stop=["blue"]),
    ]
    return rng.choice(kinds) | {"stream": rng.random() < 0.5}


class Client:
    """One of many: asks well, asks badly, or hangs up."""

    def __init__(self, address: str, seed: int):
        self.rng = random.Random(seed)
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
            response = self.post(json.dumps(good(self.rng)))
            if response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream"):
                assert response.text.endswith("data: [DONE]\n\n"), response.text[-300:]
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


@pytest.mark.parametrize("number", [200, pytest.param(1000, marks=pytest.mark.soak)])
def test_many_requests_leave_nothing_behind(number: int) -> None:
    with serving_elsewhere() as (address, process):
        clients = [Client(address, seed) for seed in range(CLIENTS)]
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
        assert outcomes["good 200"] > number / 2
        assert late - early < 96 * 2**20  # buffers of the allocator, and no more of them for more requests
        assert process.num_threads() <= threads + 4
        answer = httpx.post(
            f"{address}/v1/chat/completions", json=asking(image_part(), "How many objects are there?"), timeout=60
        )
        assert answer.json()["choices"][0]["message"]["content"] == "Four."


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
    assert "6/6" in result.stdout
