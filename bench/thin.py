"""Thin pictures beside square ones of as many pixels, wherever they come in: `python -m bench.thin`, some minutes.

Time and memory of `eden check --decode`, `eden ask` and a step of `eden train`, each in a process of its own; the time
of an answer over HTTP and of one on the page; and how long a question without a picture waits beside one with.
"""

import base64
import json
import statistics
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import PIL.Image
from rich.console import Console

import eden
from bench.machine import describe
from bench.table import Bar, Row, show
from bench.timing import run, timed
from eden.core.processes import run_in_thread
from eden.serve.conversation import Answers, Conversation
from eden.serve.server import Server, build_app, open_socket
from eden.serve.service import Service
from eden.serve.settings import Settings

SIZES = {"square": (2828, 2828), "wide": (16_000, 500), "tall": (500, 16_000)}
"""8 million pixels each; WebP has sides of at most 16,383."""
KINDS = ("png", "jpeg", "webp")
TIMES = 5
QUESTION = "How many objects are there?"
LEAST = Bar(2, least=False, of_ratio=True)


def main() -> None:
    """Prints a row for each number format, shape and way in."""
    print(f"machine: {describe()}")
    rows = []
    with tempfile.TemporaryDirectory() as temporary, serving() as (address, service):
        for kind in KINDS:
            found = {
                shape: measured(pictures(Path(temporary), shape, size, kind), address, service)
                for shape, size in SIZES.items()
            }
            for shape in found:
                for (what, unit), figure in found[shape].items() if shape != "square" else ():
                    square = found["square"][what, unit]
                    rows.append(Row(f"{kind}, {shape}: {what}", figure, unit, "square", square, LEAST))
    show({"thin": rows}, Console())


def pictures(folder: Path, name: str, size: tuple[int, int], kind: str) -> list[Path]:
    """Different ones of a size, for a picture seen lately is remembered; smooth, as photographs are."""
    paths = []
    for number in range(3 * TIMES):
        path = folder / f"{kind}-{name}-{number}.{kind}"
        small = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        PIL.Image.fromarray(small).resize(size).save(path)
        paths.append(path)
    return paths


def measured(paths: Sequence[Path], address: str, service: Service) -> dict[tuple[str, str], float]:
    """Each way in, with its unit."""
    found: dict[tuple[str, str], float] = {}
    for name, command in (("eden check --decode", checked), ("eden ask", asked), ("eden train, 1 step", trained)):
        process = run(command(paths))
        found |= {(name, "s"): process.seconds, (f"{name}, peak memory", "MiB"): process.peak}
    for_api, for_page, beside = (paths[at : at + TIMES] for at in range(0, 3 * TIMES, TIMES))
    found["the API", "s"] = median(lambda path: over_http(address, path), for_api)
    found["the page", "s"] = median(lambda path: on_the_page(service, path), for_page)
    found["a question without a picture beside it", "s"] = waits(address, beside)
    return found


def checked(paths: Sequence[Path]) -> list[str | Path]:
    return ["-m", "eden", "check", data(paths), "--decode"]


def asked(paths: Sequence[Path]) -> list[str | Path]:
    return ["-m", "eden", "ask", "--image", paths[0], QUESTION]


def trained(paths: Sequence[Path]) -> list[str | Path]:
    file = data(paths)
    settings = [f"data.path={file}", f"training.output_dir={file.with_suffix('')}", "training.max_steps=1"]
    others = ["data.features=live", "data.eval_fraction=0", "training.eval_strategy=no", "training.eval_steps=null"]
    return ["-m", "eden", "train", "digits", *settings, *others, "training.per_device_train_batch_size=1"]


def data(paths: Sequence[Path]) -> Path:
    """A data file of the pictures, beside them."""
    turns = [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": "Two."}]
    file = paths[0].with_suffix(".json")
    file.write_text(json.dumps([{"id": path.name, "image": path.name, "conversations": turns} for path in paths]))
    return file


def over_http(address: str, path: Path | None) -> None:
    """A question to the API, with a picture or without."""
    content: list[dict[str, object]] = [{"type": "text", "text": QUESTION}]
    if path is not None:
        url = f"data:image/{path.suffix[1:]};base64,{base64.b64encode(path.read_bytes()).decode()}"
        content.insert(0, {"type": "image_url", "image_url": {"url": url}})
    asked = {"model": "eden-tiny", "max_tokens": 1, "messages": [{"role": "user", "content": content}]}
    httpx.post(f"{address}/v1/chat/completions", json=asked, timeout=120).raise_for_status()


def on_the_page(service: Service, path: Path) -> None:
    """A question on the page, without its browser."""
    options = {"max_new_tokens": 1}
    *_, turn = Conversation().ask(service, Answers(service).write, QUESTION, [str(path)], lambda: options)
    assert not turn.failure, turn.failure


def median(work: Callable[[Path], None], paths: Sequence[Path]) -> float:
    return statistics.median(timed(lambda: work(path))[1] for path in paths)  # noqa: B023


def waits(address: str, pictures: Sequence[Path]) -> float:
    """The longest of some questions without a picture while pictures are asked about, one after the other."""
    done = threading.Event()

    def others() -> None:
        for path in pictures:
            over_http(address, path)
        done.set()

    thread = threading.Thread(target=others)
    thread.start()
    taken = [timed(lambda: over_http(address, None))[1] for _ in range(TIMES)]
    while not done.is_set():
        taken.append(timed(lambda: over_http(address, None))[1])
    thread.join()
    return max(taken)


@contextmanager
def serving() -> Iterator[tuple[str, Service]]:
    """eden-tiny behind the API, in this process."""
    service = Service(run_in_thread(lambda: eden.load("eden-tiny")), Settings())
    with open_socket("127.0.0.1", 0) as bound:
        server = Server(build_app(service, page=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{bound.getsockname()[1]}", service
        server.should_exit = True
        thread.join()


if __name__ == "__main__":
    main()
