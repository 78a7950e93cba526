"""What stands before Gradio's own HTTP routes: the page needs a few of them, and only those are let through.

Gradio's server also fetches web addresses for whoever asks (`/file=https://…`, or an address in place of an uploaded
file), cuts videos, and calls functions of components by name. Eden fetches nothing for strangers, and a route that
nobody needs is one that nobody has to trust.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .settings import Limits

ROUTES = re.compile(
    r"/|/(login|logout|login_check|config|theme\.css|robots\.txt|manifest\.json|favicon\.ico|pwa_icon(/\d+)?)/?"
    r"|/(static|assets|svelte)/.*"
    r"|/gradio_api/(upload|upload_progress|cancel|app_id|user|token|login_check|info|startup-events|theme\.css)/?"
    r"|/gradio_api/queue/(join|data)|/gradio_api/run/predict|/gradio_api/heartbeat/[^/]+|/gradio_api/file=(?!https?:).+"
)
"""What the page asks for; everything else is not found."""

EVENTS = ("/gradio_api/queue/join", "/gradio_api/run/predict")
EVENT_BYTES = 2**20
"""The largest event: a typed question, the names of files that were uploaded before, and the settings."""

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'"
)
"""The browser asks nobody else for anything: an answer with a picture's address in it must not tell that host who reads
it. Source: https://developer.mozilla.org/docs/Web/HTTP/Reference/Headers/Content-Security-Policy."""


class GradioMiddleware:
    """Pure ASGI middleware around Gradio's app.

    Args:
        app: Gradio's.
        limits: an upload is at most a request's `body_bytes`.
    """

    def __init__(self, app: ASGIApp, limits: Limits):
        self.app = app
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/")) or "/"
        if not ROUTES.fullmatch(path):
            await PlainTextResponse("Not found.", 404)(scope, receive, send)
            return
        limit = EVENT_BYTES
        if path.startswith("/gradio_api/upload"):
            limit = self.limits.body_bytes + EVENT_BYTES  # and the form around the files
        if int(dict(scope["headers"]).get(b"content-length", b"0")) > limit:
            await _too_large(limit)(scope, receive, send)
            return
        if path in EVENTS:
            body = await _body(receive, limit)
            if body is None or _names_a_web_address(body):
                refusal = _too_large(limit) if body is None else PlainTextResponse("Only uploaded files are read.", 400)
                await refusal(scope, receive, send)
                return
            receive = _again(body, receive)
        else:
            receive = _at_most(receive, limit)
        await self.app(scope, receive, _with_policy(send))


def _too_large(limit: int) -> PlainTextResponse:
    return PlainTextResponse(f"Too large: at most {limit / 2**20:.0f} MiB at once.", 413)


async def _body(receive: Receive, limit: int) -> bytes | None:
    """The whole body, or None if it is longer than the limit."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > limit:
            return None
        if not message.get("more_body"):
            return bytes(body)


def _names_a_web_address(body: bytes) -> bool:
    """Whether an event names a web address where an uploaded file should be; Gradio would fetch it."""

    def paths(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            if isinstance(value.get("path"), str):
                yield value["path"]
            value = list(value.values())
        if isinstance(value, list):
            for inner in value:
                yield from paths(inner)

    try:
        return any("://" in path for path in paths(json.loads(body)))
    except (ValueError, RecursionError):
        return True


def _again(body: bytes, receive: Receive) -> Receive:
    """Gives a body that was read, once; then whatever else comes."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def read() -> Message:
        return messages.pop() if messages else await receive()

    return read


def _at_most(receive: Receive, limit: int) -> Receive:
    """Ends a body that is longer than its header said, as a connection that was lost would."""
    left = limit

    async def read() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        return message if left >= 0 else {"type": "http.disconnect"}

    return read


def _with_policy(send: Send) -> Send:
    async def write(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [
                *message["headers"],
                (b"content-security-policy", POLICY.encode()),
                (b"x-content-type-options", b"nosniff"),
                (b"referrer-policy", b"no-referrer"),
            ]
        await send(message)

    return write
