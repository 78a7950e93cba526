"""What every request passes before anything else sees it: who asks, by which name, how much, and how it ended.

A plain ASGI middleware, because Starlette's base class would hide it from the answers when somebody hangs up.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import logging
import time
import uuid
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .schema import RequestError
from .service import Service

log = logging.getLogger("eden.serve")

OPEN_PATHS = frozenset({"/health"})


class RequestMiddleware:
    """Checks host name, key, method and size; numbers, counts and logs requests; turns errors into OpenAI's shape.

    Args:
        app: what is guarded.
        service: its settings and metrics.
        methods: the API's paths, each with its methods; other paths are the page's.
    """

    def __init__(self, app: ASGIApp, service: Service, methods: Mapping[str, frozenset[str]]):
        self._app = app
        self._service = service
        self._settings = service.settings
        self._methods = methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # nothing here speaks it
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method, root, path = scope["method"], self._settings.root_path, scope["path"]
        if path == root or path.startswith(f"{root}/"):  # a proxy may take the path off that it knows us by, or not
            path = path[len(root) :] or "/"
        label = self._label(path)
        if method == "HEAD" and label != "page":  # uvicorn knows what was asked, and sends no body
            scope = {**scope, "method": "GET"}
        scope = {**scope, "root_path": root, "path": root + path}
        started, status = time.monotonic(), 0
        number = uuid.uuid4().hex[:12]

        async def numbered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = number
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            self._check(scope, path)
            await self._app(scope, self._limited(scope, receive), numbered)
        except RequestError as error:
            if not status:
                await error_response(error)(scope, receive, numbered)
        except ClientDisconnect:  # amid its own body: nobody is left to tell
            status = status or 499
        except Exception:
            log.exception("request %s failed", number)
            if not status:
                failure = RequestError(
                    f"the server failed; its log has request {number}", status=500, code="internal_error"
                )
                await error_response(failure)(scope, receive, numbered)
        finally:
            self._service.metrics.count_request(label, status)
            if label != "page":
                log.info("%s %s %s %d %.2f s", number, method, label, status, time.monotonic() - started)

    def _label(self, path: str) -> str:
        """A request's path among the API's few; whatever people invent must not become a metric each."""
        if path in self._methods:
            return path
        return "/v1/..." if path.startswith("/v1/") else "page"

    def _check(self, scope: Scope, path: str) -> None:
        headers = Headers(scope=scope)
        names = self._settings.host_names
        if names is not None and _host(headers.get("host", "")) not in names:
            # A page of another site may let its own name point here: https://en.wikipedia.org/wiki/DNS_rebinding
            raise RequestError("this server is not called by that name", code="unknown_host", status=421)
        allowed = self._methods.get(path)
        if allowed is not None and scope["method"] not in allowed:
            raise RequestError(
                f"use {' or '.join(sorted(allowed))} here",
                code="method_not_allowed",
                status=405,
                headers={"Allow": ", ".join(sorted(allowed))},
            )
        if self._settings.api_key is not None and path not in OPEN_PATHS:
            self._check_key(headers.get("authorization", ""), browser=not path.startswith("/v1/"))
        length = headers.get("content-length", "0")
        if (
            not (length.isascii() and length.isdigit())
            or len(length) > 20
            or int(length) > self._settings.limits.body_bytes
        ):
            raise self._too_large()

    def _check_key(self, authorization: str, *, browser: bool) -> None:
        """The key as `Bearer`, or as the password that a browser asks for (`Basic`, any user)."""
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                given = ""
        elif scheme.lower() != "bearer":
            given = ""
        # Digests: the comparison takes equally long whatever is given, and however long that is.
        digests = [
            hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
            for text in (given, self._settings.api_key or "")
        ]
        if not hmac.compare_digest(*digests):
            raise RequestError(
                "the API key is wrong" if given else "an API key is needed: Authorization: Bearer KEY",
                code="invalid_api_key",
                status=401,
                headers={"WWW-Authenticate": 'Basic realm="Eden", charset="UTF-8"' if browser else "Bearer"},
            )

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """Counts a body while it comes, and does not wait for it for ever."""
        limits = self._settings.limits
        taken, complete = 0, False
        deadline = asyncio.get_running_loop().time() + limits.body_seconds

        async def limited() -> Message:
            nonlocal taken, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise RequestError("the request did not come in time", code="timeout", status=408) from None
            taken += len(message.get("body", b""))
            if taken > limits.body_bytes:
                raise self._too_large()
            complete = not message.get("more_body", False)
            return message

        return limited

    def _too_large(self) -> RequestError:
        limit = self._settings.limits.body_bytes
        return RequestError(f"the request has more than {limit:,} bytes", code="request_too_large", status=413)


def error_response(error: RequestError) -> Response:
    """An error in OpenAI's shape, with the headers its status asks for."""
    return JSONResponse(error.to_dict(), status_code=error.status, headers=error.headers)


def _host(header: str) -> str:
    """The name in a `Host` header, without its port."""
    return header.rpartition("]")[0] + "]" if header.startswith("[") else header.partition(":")[0]
