"""`eden serve`: API and page on one port, from the first line it prints to a clean end."""

from __future__ import annotations

import gc
import ipaddress
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from ..core.private_api import end_streams
from ..errors import InputError
from .api import create_app
from .service import Service
from .settings import Settings
from .sort import LABELS

LAST_SECONDS = 30
"""What running answers get to end in once the server is told to stop."""
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


def check_exposure(host: str, settings: Settings, *, is_open: bool) -> None:
    """Refuses to listen to other machines without a key, unless that is said to be meant.

    Raises:
        InputError: there is no key.
    """
    if is_loopback(host) or settings.api_key is not None:
        return
    if settings.sort_folder is not None:
        raise InputError(
            f"everybody who reaches {host} could look at the pictures of --sort and label them",
            hint="Set EDEN_API_KEY.",
        )
    if not is_open:
        raise InputError(
            f"{host} is reachable by other machines, and there is no API key",
            hint="Set EDEN_API_KEY, or give --open if everybody may use the model.",
        )


def checked_key(key: str) -> str | None:
    """The key as clients can give it, without the line break that a file of secrets ends with; None for none.

    Raises:
        InputError: no header can carry it.
    """
    if key and not (key.strip() and key.strip().isascii() and key.strip().isprintable()):
        raise InputError("EDEN_API_KEY is blank or has other characters than ASCII's", hint="Set another.")
    return key.strip() or None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def open_socket(host: str, port: int) -> socket.socket:
    """A bound socket, before the seconds it takes to load a model.

    Raises:
        InputError: the port is taken, or the address is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot listen on {host}:{port} ({why})", hint="Give another --port, or 0 for any free one."
        ) from None
    return bound


def build_app(service: Service, *, page: bool = True) -> FastAPI:
    """API and, if wanted, page."""
    app = create_app(service)
    if page:
        from .page import mount_page

        app = mount_page(app, service)
    return app


class Server(uvicorn.Server):
    """uvicorn that ends the page's open event streams when it is told to stop, and does not wait for them.

    Args:
        app: what it serves.
        on_started: called once it answers.
    """

    def __init__(self, app: FastAPI, on_started: Callable[[], None] | None = None):
        super().__init__(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                timeout_graceful_shutdown=LAST_SECONDS,
                server_header=False,
                ws="none",  # whatever library is installed: who asks for a web socket is answered, and not waited for
            )
        )
        self._app = app
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # What is loaded by now stays: without this, Python's collector looks through all of torch every
        # few thousand requests, and every running answer stands still for a fifth of a second.
        gc.collect()
        gc.freeze()
        await super().startup(sockets)
        if self.started and self._on_started is not None:
            self._on_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal lets running answers end, the second does not; neither is a failure."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        end_streams(self._app)
        await super().shutdown(sockets)


def greeting(service: Service, address: str, *, page: bool) -> str:
    """What somebody needs who has just started a server."""
    settings = service.settings
    key = "the value of EDEN_API_KEY" if settings.api_key else "none is asked for"
    folder = settings.sort_folder
    sorting = f"sort      {folder}, the labels go to {folder / LABELS}\n" if folder is not None else ""
    header = ' \\\n  -H "Authorization: Bearer $EDEN_API_KEY"' if settings.api_key else ""
    key_in_python = 'os.environ["EDEN_API_KEY"]' if settings.api_key else '"none"'
    return f"""\
page      {address if page else "off"}
API       {address}/v1
model     {service.name} (context of {service.assistant.context_length:,} tokens)
key       {key}
at once   {settings.max_running} answers, {settings.max_waiting} more wait; there is memory for {service.fits:,}
limits    {settings.limits.in_words()}
{sorting}
curl {address}/v1/chat/completions{header} \\
  -H "Content-Type: application/json" \\
  -d '{{"model": "{service.name}", "messages": [{{"role": "user", "content": "What can you do?"}}]}}'

from openai import OpenAI
client = OpenAI(base_url="{address}/v1", api_key={key_in_python})
print(client.chat.completions.create(
    model="{service.name}", messages=[{{"role": "user", "content": "What can you do?"}}]
).choices[0].message.content)
"""
