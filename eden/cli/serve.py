"""The verb that serves a model."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from ..core.processes import run_in_thread
from ..errors import InputError
from .options import FourBit, Json, err, load_assistant, print_json


def serve(
    model: Annotated[str, typer.Argument(help="A folder, a hub id, or eden-tiny.")] = "eden-tiny",
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 is every one of this machine.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="0 takes any free one.", min=0, max=65535)] = 8000,
    name: Annotated[str | None, typer.Option(help="The model's name in requests.")] = None,
    max_running: Annotated[int, typer.Option(help="Answers written at once.", min=1)] = 8,
    max_waiting: Annotated[int, typer.Option(help="Questions that may wait.", min=1)] = 64,
    image_host: Annotated[
        list[str] | None, typer.Option("--image-host", help="Fetch https images from this host.")
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option("--cors-origin", help="Let scripts of this web site call.")
    ] = None,
    host_name: Annotated[
        list[str] | None, typer.Option("--host-name", help="A name that a proxy calls this server by.")
    ] = None,
    root_path: Annotated[str, typer.Option(help="The path that a proxy knows this server by, as /eden.")] = "",
    sort: Annotated[Path | None, typer.Option(help="Pictures to label on the page; the labels go there.")] = None,
    no_page: Annotated[bool, typer.Option("--no-page", help="The API alone.")] = False,
    is_open: Annotated[bool, typer.Option("--open", help="Other machines may ask without a key.")] = False,
    four_bit: FourBit = False,
    as_json: Json = False,
) -> None:
    """Serve a model: OpenAI's API and a web page. EDEN_API_KEY is the key that everybody must give."""
    from ..serve import server
    from ..serve.settings import Settings

    settings = Settings(
        name=name,
        api_key=server.checked_key(os.environ.get("EDEN_API_KEY", "")),
        image_hosts=tuple(image_host or ()),
        cors_origins=tuple(cors_origin or ()),
        host_names=(*server.LOOPBACK_NAMES, host, *(host_name or ())) if server.is_loopback(host) else None,
        root_path=f"/{root_path.strip('/')}".rstrip("/"),
        max_running=max_running,
        max_waiting=max_waiting,
        sort_folder=sort,
    )
    server.check_exposure(host, settings, is_open=is_open)
    _check_sorting(sort, no_page)
    with server.open_socket(host, port) as bound:
        from ..serve.service import Service

        service = Service(run_in_thread(lambda: load_assistant(model, four_bit, say_format=True)), settings)
        app = server.build_app(service, page=not no_page)
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{bound.getsockname()[1]}"

        def greet() -> None:
            if as_json:
                print_json({"address": address, "model": service.name})
            else:
                print(server.greeting(service, address, page=not no_page), flush=True)

        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
        logging.getLogger("eden.serve").setLevel(logging.INFO)
        server.Server(app, on_started=greet).run(sockets=[bound])
        err.print("stopped")


def _check_sorting(folder: Path | None, no_page: bool) -> None:
    """Says what is wrong with the folder to be sorted before the seconds that the model takes."""
    from ..serve.sort import Pool

    if folder is not None and no_page:
        raise InputError("--sort without the page", hint="Leave out --no-page.")
    if folder is not None:
        Pool(folder)
