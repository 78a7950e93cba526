"""What means harm gets a clear refusal, and the server answers on."""

import json
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from hostile import CASES, Body
from servers import QUESTION, Running, asking, image_part, serving, until

from eden.serve.fetch import fetch_image
from eden.serve.schema import RequestError
from eden.serve.settings import Limits, Settings

LIMITS = Limits(image_bytes=2 * 2**20, body_bytes=24 * 2**20, body_seconds=1.5)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(Settings(limits=LIMITS, host_names=("127.0.0.1",))) as running:
        yield running


def check_refusal(response: httpx.Response) -> None:
    assert 400 <= response.status_code < 500, response.text[:500]
    assert list(response.json()) == ["error"]
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["code"]
    message = error["message"]
    assert message and len(message) < 700 and "\n" not in message
    for leak in ("/work", "/tmp", "/usr", "site-packages", "0x7f", "Traceback", "root:"):
        assert leak not in message


def check_alive(server: Running) -> None:
    answer = server.post(asking(image_part(), "How many objects are there?"))
    assert answer.json()["choices"][0]["message"]["content"] == "Four."
    stats = server.service.engine.stats()
    assert (stats.running, stats.waiting) == (0, 0)


def test_there_are_many_cases() -> None:
    assert len(CASES) >= 60


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_body(server: Running, name: str) -> None:
    body: Body = CASES[name]()
    content = json.dumps(body) if isinstance(body, dict) else body
    headers = {"Content-Type": "application/json"}
    response = httpx.post(f"{server.url}/v1/chat/completions", content=content, headers=headers, timeout=60)
    check_refusal(response)
    check_alive(server)


def raw(server: Running, request: bytes) -> bytes:
    """What the server answers to these bytes."""
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=10) as connection:
        connection.sendall(request)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
            if b"\r\n\r\n" in answer and b"}" in answer:
                break
    return answer


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (HEAD + b"Content-Length: 999999999999\r\n\r\n", b"413"),
        (HEAD + b"Content-Length: -1\r\n\r\n", b"400"),
        (HEAD + b"Content-Length: 1e3\r\n\r\n", b"400"),
        (HEAD + b"Content-Length: 100\r\n\r\n{", b"408"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
        (HEAD.replace(b"127.0.0.1", b"evil.example") + b"Content-Length: 2\r\n\r\n{}", b"421"),
        (HEAD.replace(b"application/json", b"text/plain") + b"Content-Length: 2\r\n\r\n{}", b"415"),
        (HEAD.replace(b"POST", b"DELETE") + b"Content-Length: 2\r\n\r\n{}", b"405"),
        (b"GET /v1/../../etc/passwd HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"404"),
        (b"GET /v1/models/..%2f..%2fetc/passwd HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"404"),
        (b"GET //etc/passwd HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"404"),
    ],
    ids=lambda value: value.decode().splitlines()[-1][:40] if len(value) > 3 else None,
)
def test_hostile_bytes(server: Running, request_bytes: bytes, status: bytes) -> None:
    answer = raw(server, request_bytes)
    assert answer.startswith(b"HTTP/1.1 " + status), answer[:200]
    assert b"root:" not in answer
    check_alive(server)


def test_a_body_without_an_announced_length_is_cut_off(server: Running) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(30):
            yield bytes(2**20)

    headers = {"Content-Type": "application/json"}
    response = httpx.post(f"{server.url}/v1/chat/completions", content=pieces(), headers=headers, timeout=30)
    assert response.status_code == 413
    check_alive(server)


@pytest.mark.parametrize("stream", [True, False])
def test_who_hangs_up_frees_the_slot_within_a_step(server: Running, stream: bool) -> None:
    body = json.dumps(asking(image_part(), "Describe the picture.", stream=stream)).encode()
    address = urlsplit(server.url)
    engine = server.service.engine
    with server.slow(0.2):
        connection = socket.create_connection((address.hostname or "", address.port or 0))
        connection.sendall(HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: server.running == 1 and engine.stats().steps > 0)
        cancelled, steps = engine.stats().finished.get("cancelled", 0), engine.stats().steps
        connection.close()
        until(lambda: server.running == 0, seconds=5)
    assert engine.stats().finished["cancelled"] == cancelled + 1
    # The step in which the hang-up was noticed, and one that had begun before.
    assert engine.stats().steps - steps <= 2
    check_alive(server)


def test_forms_that_mean_harm(server: Running) -> None:
    url = f"{server.url}/v1/audio/transcriptions"
    good = {"file": ("question.wav", QUESTION)}
    for files, data in (
        ({}, {"model": "eden-tiny"}),
        ({"file": ("a.wav", b"hello")}, {"model": "eden-tiny"}),
        (good, {"model": "other"}),
        (good, {"model": "eden-tiny", "prompt": "x"}),
        (good, {"model": "eden-tiny", "response_format": "vtt"}),
        (good, {"model": "eden-tiny", "language": "../../etc"}),
        (good, {"model": "x" * 100_000}),
        (good, {"model": "eden-tiny", **{f"field{number}": "" for number in range(100)}}),
    ):
        check_refusal(httpx.post(url, files=files or None, data=data, timeout=30))  # type: ignore[arg-type]
    check_refusal(httpx.post(url, content=b"x", headers={"Content-Type": "multipart/form-data"}, timeout=30))
    check_refusal(httpx.post(url, json={}, timeout=30))
    travelling = {"file": ("../../../../tmp/evil.wav", QUESTION)}
    assert httpx.post(url, files=travelling, data={"model": "eden-tiny"}, timeout=30).status_code == 200
    check_alive(server)


def fetch(url: str, *addresses: str, client: httpx.Client | None = None) -> bytes:
    return fetch_image(
        url,
        hosts=("images.example",),
        max_bytes=100_000,
        where="image_url",
        resolve=lambda host: list(addresses or ("93.184.216.34",)),
        client=None if client is None else lambda: client,
    )


@pytest.mark.parametrize(
    ("url", "addresses"),
    [
        ("https://other.example/a.png", []),
        ("https://images.example.evil.example/a.png", []),
        ("https://images.example:8443/a.png", []),
        ("https://user@images.example/a.png", []),
        ("http://images.example/a.png", []),
        ("https://images.example/a.png", ["127.0.0.1"]),
        ("https://images.example/a.png", ["10.1.2.3"]),
        ("https://images.example/a.png", ["169.254.169.254"]),
        ("https://images.example/a.png", ["::1"]),
        ("https://images.example/a.png", ["::ffff:127.0.0.1"]),
        ("https://images.example/a.png", ["fd00::1"]),
        ("https://images.example/a.png", ["93.184.216.34", "192.168.0.1"]),
    ],
)
def test_images_are_fetched_from_named_public_places_only(url: str, addresses: list[str]) -> None:
    with pytest.raises(RequestError) as refused:
        fetch(url, *addresses)
    assert refused.value.code == "image_url_not_allowed"


def test_a_fetched_image_is_pinned_to_its_address_and_bounded() -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        if request.url.path == "/moved":
            return httpx.Response(302, headers={"Location": "https://127.0.0.1/"})
        body = bytes(200_000) if request.url.path == "/large" else b"picture"
        return httpx.Response(200, stream=httpx.ByteStream(body))

    def client() -> httpx.Client:
        return httpx.Client(transport=httpx.MockTransport(answer))

    assert fetch("https://images.example/a.png?b=1", client=client()) == b"picture"
    assert asked[0].url == "https://93.184.216.34/a.png?b=1" and asked[0].headers["host"] == "images.example"
    assert asked[0].extensions["sni_hostname"] == "images.example"
    with pytest.raises(RequestError, match="answered 302"):
        fetch("https://images.example/moved", client=client())
    with pytest.raises(RequestError, match="more than 100,000 bytes"):
        fetch("https://images.example/large", client=client())
    assert len(asked) == 3


def test_the_server_asks_named_hosts_only() -> None:
    with serving(Settings(image_hosts=("localhost",))) as server:
        for url in ("https://localhost/a.png", "https://example.com/a.png"):
            response = server.post(asking({"type": "image_url", "image_url": {"url": url}}))
            check_refusal(response)
            assert response.json()["error"]["code"] == "image_url_not_allowed"


def test_many_at_once_leave_nothing_behind(server: Running) -> None:
    threads = threading.active_count()
    statuses: list[int] = []

    def ask(stream: bool) -> None:
        body = asking(image_part(), "How many objects are there?", stream=stream)
        statuses.extend(server.post(body).status_code for _ in range(5))

    clients = [threading.Thread(target=ask, args=(bool(number % 2),)) for number in range(16)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert statuses == 80 * [200]
    assert server.service._inside == 0 and threading.active_count() <= threads + 4
    check_alive(server)
