"""A real server in this process, on a free port, and what the tests ask it with."""

from __future__ import annotations

import base64
import math
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from openai import OpenAI

import eden
from eden.core.processes import run_in_thread
from eden.inference.request import Generation
from eden.serve.server import Server, build_app, open_socket
from eden.serve.service import Service
from eden.serve.settings import Settings

EXAMPLES = Path(__file__).parent.parent / "examples"
SCENE = (EXAMPLES / "scene.png").read_bytes()
QUESTION = (EXAMPLES / "question.wav").read_bytes()


@dataclass
class Running:
    """A server that runs: where it is, and its inside, to be looked at."""

    url: str
    service: Service
    server: Server

    @property
    def running(self) -> int:
        return self.service.engine.stats().running

    def post(self, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=60, **options)

    def client(self, **options: Any) -> OpenAI:
        """The official client, which asks once."""
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, **options)

    def wanted(self) -> list[Generation]:
        """The answers being written that have neither been cancelled nor taken too long."""
        rows = tuple(self.service.engine._rows)
        return [row.generation for row in rows if row.generation.unwanted(time.monotonic()) is None]

    @contextmanager
    def held(self, forwards: int) -> Iterator[Gate]:
        """The language model stops before the forward behind so many, so that an answer can be met half written."""
        gate = Gate(forwards)
        handle = self.service.assistant.checkpoint.core.model.language_model.register_forward_pre_hook(gate)
        try:
            yield gate
        finally:
            gate.open()
            handle.remove()


class Gate:
    """Lets so many forwards of a model pass, and more once it is told to."""

    def __init__(self, forwards: int):
        self.reached = threading.Event()
        self._left: float = forwards
        self._changed = threading.Condition()

    def __call__(self, *_: Any) -> None:
        with self._changed:
            if not self._left:
                self.reached.set()
            assert self._changed.wait_for(lambda: self._left, 60), "nobody opened the gate"
            self._left -= 1

    def let(self, forwards: float) -> None:
        with self._changed:
            self._left += forwards
            self._changed.notify_all()

    def open(self) -> None:
        self.let(math.inf)


@contextmanager
def serving(settings: Settings | None = None, *, page: bool = False, model: str = "eden-tiny") -> Iterator[Running]:
    service = Service(run_in_thread(lambda: eden.load(model)), settings)
    with open_socket("127.0.0.1", 0) as bound:
        server = Server(build_app(service, page=page))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        until(lambda: server.started)
        try:
            yield Running(f"http://127.0.0.1:{bound.getsockname()[1]}", service, server)
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


def self_signed(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate for a name, and its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", key, "-out", certificate, "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


@contextmanager
def nginx(
    folder: Path, *servers: Running, path: str = "/", passed_on: bool = False, tls: bool = False
) -> Iterator[str]:
    """nginx with the file of docs/serving.md before servers; its address. Without nginx the test is skipped.

    Args:
        folder: for its files.
        servers: what it is a proxy of.
        path: that it knows them by.
        passed_on: it leaves that path on, rather than take it off.
        tls: it speaks HTTPS.
    """
    program = shutil.which("nginx") or pytest.skip("no nginx: apt-get install nginx")
    documented = (Path(__file__).parent.parent / "docs" / "serving.md").read_text()
    http = re.search(r"```nginx\n(.*?)```", documented, re.DOTALL)
    assert http is not None
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    upstream = " ".join(f"server {urlsplit(server.url).netloc};" for server in servers)
    listen = f"listen 127.0.0.1:{port};"
    if tls:
        certificate, key = self_signed(folder, "127.0.0.1")
        listen = f"listen 127.0.0.1:{port} ssl; ssl_certificate {certificate}; ssl_certificate_key {key};"
    text = re.sub(r"server 10\.[^}]*;", upstream, http[1]).replace("listen 80;", listen)
    text = text.replace("location / {", f"location {path} {{")
    text = text.replace("http://eden;", "http://eden;" if passed_on else "http://eden/;")
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in TEMPORARY)
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; pid {folder}/pid; error_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n{temporary}{text}}}\n"
    )
    with subprocess.Popen([program, "-p", folder, "-c", config, "-e", "stderr"]) as process:
        try:
            until(lambda: not socket.socket().connect_ex(("127.0.0.1", port)))
            yield f"{'https' if tls else 'http'}://127.0.0.1:{port}{path.rstrip('/')}"
        finally:
            process.terminate()


TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def until(true: Callable[[], Any], seconds: float = 120.0) -> None:
    """Waits until something is so; that it takes too long is a failure."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.005)


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image_part(data: bytes = SCENE) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(data)}}


def audio_part(data: bytes = QUESTION) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"}}


def user(*content: Any) -> dict[str, Any]:
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    return {"role": "user", "content": parts}


def asking(*content: Any, **more: Any) -> dict[str, Any]:
    """A request's body."""
    return {"model": "eden-tiny", "messages": [user(*content)], "temperature": 0, **more}
