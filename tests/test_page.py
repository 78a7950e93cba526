"""The page, driven by a real Chromium. Its photographs are kept in `runs/screenshots`."""

import base64
import functools
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
import httpx
import pytest
from browser import SECONDS, Person, chromium, tour
from gradio.utils import get_upload_folder
from playwright.sync_api import Browser, expect
from servers import EXAMPLES, SCENE, Running, nginx, serving, until

from eden.serve import conversation
from eden.serve.conversation import Conversation, Turn
from eden.serve.page import launch_page
from eden.serve.settings import Limits, Settings


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(Settings(limits=Limits(image_pixels=10**6, images=2)), page=True) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def person(browser: Browser, server: Running) -> Iterator[Person]:
    somebody = Person(browser, server.url)
    yield somebody
    somebody.close()


def test_a_picture_a_voice_a_reload_on_desktop_and_phone(browser: Browser, server: Running) -> None:
    at_the_end = ["How many objects are there?", "Four.", "Square."]
    assert tour(browser, server.url, "page") == {"desktop": at_the_end, "phone": at_the_end}


def test_the_answer_grows_and_stop_ends_it(person: Person, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    # All that comes between two redraws is in the second, also where nothing more comes for long.
    monkeypatch.setattr(conversation, "FRAME_SECONDS", 0.5)

    def cancelled() -> int:
        return server.service.engine.stats().finished.get("cancelled", 0)

    before = cancelled()
    with server.held(4) as gate:
        person.ask("Describe the picture.", EXAMPLES / "scene.png")
        expect(person.answers.last).to_have_text(re.compile("^A( |$)"), timeout=60 * SECONDS)
        early = person.answers.last.inner_text()
        gate.let(8)
        expect(person.answers.last).to_have_text(re.compile(f"^{re.escape(early)}.+"), timeout=60 * SECONDS)
        person.photograph("page-desktop-writing")
        person.stop_button.click()
        until(lambda: not server.wanted())
        gate.open()
        until(lambda: cancelled() == before + 1 and server.running == 0)
    person.waits()
    stopped = person.answers.last.inner_text()
    assert stopped.startswith("A ") and not stopped.endswith(".")
    ask_anew(person)


def ask_anew(person: Person) -> None:
    """A new conversation goes as ever; in the old one, half a sentence would lead so small a model astray."""
    person.page.get_by_label("Clear").first.click()
    expect(person.answers).to_have_count(0)
    person.ask("How many objects are there?", EXAMPLES / "scene.png")
    person.sees("Four.")


@pytest.fixture
def last_word(person: Person, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """An answer's last word is on the screen; Gradio's own, which says all of it once more, comes when this is set."""
    released, ask = threading.Event(), Conversation.ask

    def held(self: Conversation, *arguments: Any) -> Iterator[Turn]:
        yield from ask(self, *arguments)
        assert released.wait(60)

    monkeypatch.setattr(Conversation, "ask", held)
    person.ask("How many objects are there?", EXAMPLES / "scene.png")
    person.sees("Four.")
    return released


def test_what_is_cleared_at_an_answers_end_stays_cleared(person: Person, last_word: threading.Event) -> None:
    with person.page.expect_response(re.compile("/run/predict")):
        person.page.get_by_label("Clear").first.click()
    last_word.set()
    person.waits()
    person.attach(EXAMPLES / "scene.png")
    expect(person.answers).to_have_count(0)
    expect(person.attached).to_have_count(1)


def test_what_is_attached_at_an_answers_end_stays_attached(person: Person, last_word: threading.Event) -> None:
    person.attach(EXAMPLES / "scene.png")
    last_word.set()
    person.waits()
    expect(person.attached).to_have_count(1)
    person.ask("What shape is the red object?")
    person.sees("Square.")


def test_who_closes_the_page_frees_the_slot(browser: Browser, server: Running) -> None:
    before = server.service.engine.stats().finished.get("cancelled", 0)
    person = Person(browser, server.url)
    with server.held(4) as gate:
        person.ask("Describe the picture.", EXAMPLES / "scene.png")
        assert gate.reached.wait(60)
        person.close()
        until(lambda: not server.wanted())
        gate.open()
        until(lambda: server.running == 0)
    assert server.service.engine.stats().finished["cancelled"] == before + 1


def test_retry_and_clear(person: Person) -> None:
    person.ask("How many objects are there?", EXAMPLES / "scene.png")
    person.sees("Four.")
    person.waits()
    person.page.get_by_label("Retry").click()
    expect(person.answers).to_have_count(1)
    person.sees("Four.")
    person.waits()
    person.page.get_by_label("Clear").first.click()
    expect(person.answers).to_have_count(0)


@pytest.mark.parametrize("tls", [False, True])
def test_the_page_below_a_path(browser: Browser, tmp_path: Path, tls: bool) -> None:
    with (
        serving(Settings(root_path="/eden"), page=True) as server,
        nginx(tmp_path, server, path="/eden/", tls=tls) as url,
    ):
        person = Person(browser, f"{url}/")
        person.ask("How many objects are there?", EXAMPLES / "scene.png")
        person.sees("Four.")
        shown = person.page.locator("#eden-chat .user img")
        until(lambda: shown.first.evaluate("image => image.naturalWidth") > 0)
        assert all(
            urlsplit(address).path.startswith("/eden/") for address in person.requests if address.startswith("http")
        )
        person.close()


def test_an_example_is_one_click(person: Person) -> None:
    person.page.get_by_text("Ask by voice").click()
    expect(person.page.locator("#eden-chat")).to_contain_text("How many objects are there?", timeout=60 * SECONDS)
    person.sees("Three.")


def test_the_camera_adds_a_photo(person: Person) -> None:
    person.page.get_by_text("Camera", exact=True).click()
    camera = person.page.locator("#eden-camera")
    camera.get_by_text("Click to Access Webcam").click()
    # A photo taken before the first frame has come would be none.
    person.page.wait_for_function("() => (document.querySelector('#eden-camera video') || {}).videoWidth > 0")
    camera.get_by_label("capture photo").click()
    expect(person.attached).to_have_count(1, timeout=20 * SECONDS)
    person.ask("How many objects are there?")
    person.sees(re.compile(".+"))


def test_the_microphone_records(person: Person) -> None:
    person.page.get_by_label("Record audio").click()
    person.page.get_by_label("Start recording").click()
    seconds = person.page.get_by_test_id("minimal-audio-recorder").locator(".timestamp")
    expect(seconds).to_contain_text(":01", timeout=20 * SECONDS)  # of sound: the made-up microphone beeps
    person.page.get_by_label("Stop recording").click()
    person.page.get_by_label("Attach audio").click()
    person.box.press("Enter")
    expect(person.page.locator("#eden-chat")).to_contain_text(
        re.compile("Heard|no speech was heard"), timeout=60 * SECONDS
    )


def test_a_picture_is_pasted(person: Person) -> None:
    script = """async (data) => {
        const blob = await (await fetch(`data:image/png;base64,${data}`)).blob();
        await navigator.clipboard.write([new ClipboardItem({"image/png": blob})]);
    }"""
    person.page.evaluate(script, base64.b64encode(SCENE).decode())
    person.box.press("Control+v")
    expect(person.attached).to_have_count(1, timeout=20 * SECONDS)
    person.ask("How many objects are there?")
    person.sees("Four.")


def test_what_is_too_much_is_said_and_the_conversation_goes_on(person: Person, tmp_path: Path) -> None:
    import PIL.Image

    PIL.Image.new("RGB", (1200, 1000)).save(tmp_path / "large.png")
    (tmp_path / "broken.png").write_bytes(SCENE[:300])
    person.ask("Describe it.", tmp_path / "large.png")
    log = person.page.locator("#eden-chat")
    expect(log).to_contain_text("1200x1000 pixels, the limit is 1,000,000. Scale it down", timeout=30 * SECONDS)
    person.waits()
    person.photograph("page-desktop-limit")
    person.ask("Describe it.", tmp_path / "broken.png")
    expect(log).to_contain_text("The image is damaged", timeout=30 * SECONDS)
    person.waits()
    person.ask("Compare.", *[EXAMPLES / "scene.png"] * 3)
    expect(log).to_contain_text("3 pictures, the limit is 2", timeout=30 * SECONDS)
    person.waits()
    assert "/tmp" not in log.inner_text()
    person.ask("How many objects are there?", EXAMPLES / "scene.png")  # none of those is asked along
    person.sees("Four.")


def test_the_key_opens_the_page(browser: Browser) -> None:
    with serving(Settings(api_key="sesame"), page=True) as server:
        person = Person(browser, server.url, password="sesame")
        person.ask("How many objects are there?", EXAMPLES / "scene.png")
        person.sees("Four.")
        assert person.answers.all_inner_texts() == ["Four."]
        assert httpx.get(server.url).status_code == 401
        person.close()


def test_a_words_markup_stays_words(person: Person, server: Running) -> None:
    from eden.inference.detokenizer import TextDelta
    from eden.inference.request import Generation

    markup = (
        "a < b & <c> &amp; <img src=http://203.0.113.1/a.png onerror=alert(1)> ![x](http://203.0.113.1/b.png) **bold** "
    )
    original = Generation.add
    Generation.add = lambda self, delta: original(self, TextDelta(markup, delta.tokens) if not self.text else delta)  # type: ignore[method-assign]
    try:
        person.ask("How many objects are there?", EXAMPLES / "scene.png")
        person.sees(re.compile(re.escape(markup)))
    finally:
        Generation.add = original  # type: ignore[method-assign]
    assert not [url for url in person.requests if "203.0.113.1" in url]


def test_an_empty_seed_stays_empty(person: Person) -> None:
    """Gradio's own field for numbers shows an empty one as 0, and sends that once it was seen."""
    sent: list[str] = []
    person.page.on("request", lambda request: sent.append(request.post_data or "") if "join" in request.url else None)
    person.page.get_by_text("Sampling", exact=True).click()
    expect(person.page.get_by_label("Seed")).to_have_value("")
    person.ask("Hello!")
    person.sees(re.compile("Hello!"))
    person.waits()
    assert json.loads(sent[-1])["data"][-1] == ""
    person.page.get_by_label("Seed").fill("seven")
    person.ask("Hello!")
    expect(person.page.locator("#eden-chat")).to_contain_text("The seed is not a whole number. Change it")


def test_a_page_of_its_own_stops_what_a_lent_gpu_writes(browser: Browser, server: Running) -> None:
    """As in a Space: `launch_page`, with the generator that writes in the hands of a decorator."""
    lent: list[bool] = []

    def gpu(generator: Any) -> Any:
        @functools.wraps(generator)
        def borrowed(*arguments: Any) -> Iterator[Any]:
            lent.append(True)
            yield from generator(*arguments)

        return borrowed

    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    launch_page(
        server.service, gpu=gpu, prevent_thread_lock=True, server_name="127.0.0.1", server_port=port, quiet=True
    )
    try:
        person = Person(browser, f"http://127.0.0.1:{port}")
        person.ask("How many objects are there?", EXAMPLES / "scene.png")
        person.sees("Four.")
        person.waits()
        with server.held(4) as gate:
            person.ask("Describe the picture.")
            expect(person.answers.last).to_have_text(re.compile("^A( |$)"), timeout=60 * SECONDS)
            person.stop_button.click()
            until(lambda: not server.wanted())
            gate.open()
            until(lambda: server.running == 0)
        person.waits()
        ask_anew(person)
        assert len(lent) == 3
        person.close()
    finally:
        gr.close_all()


@dataclass
class Forger:
    """Somebody who speaks Gradio's protocol without its page."""

    url: str

    def events(self, file: dict[str, Any]) -> Iterator[httpx.Response]:
        """Names the file in everything that an event of the page may hold."""
        config = httpx.get(f"{self.url}/config").json()
        kinds = {part["id"]: part["type"] for part in config["components"]}
        values: dict[str, Any] = {
            "multimodaltextbox": {"text": "How many objects are there?", "files": [file]},
            "chatbot": [
                {"role": "user", "content": [{"type": "file", "file": file}], "metadata": None, "options": None}
            ],
            "image": file,
            "slider": 1,
            "textbox": "",
        }
        for number, dependency in enumerate(config["dependencies"]):
            session = {"session_hash": f"forger{number}"}
            data = [values.get(kinds[part]) for part in dependency["inputs"]]
            body = {"data": data, "fn_index": dependency["id"], "event_data": {"index": 0, "value": None}, **session}
            yield httpx.post(f"{self.url}/gradio_api/run/predict", json=body, timeout=30)
            joined = httpx.post(f"{self.url}/gradio_api/queue/join", json=body, timeout=30)
            yield joined
            if joined.is_success:
                yield httpx.get(f"{self.url}/gradio_api/queue/data", params=session, timeout=30)


@pytest.mark.parametrize("with_meta", [True, False], ids=["as a file", "as a dictionary"])
def test_only_what_was_uploaded_is_read(server: Running, tmp_path: Path, with_meta: bool) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(SCENE + tmp_path.name.encode())  # never uploaded by another test
    file: dict[str, Any] = {"path": str(secret), "mime_type": "image/png", "orig_name": "secret.png"}
    if with_meta:
        file["meta"] = {"_type": "gradio.FileData"}
    answered = [response.text for response in Forger(server.url).events(file)]
    assert len(answered) > 6 and not any("Four" in text or "file=" in text for text in answered)
    copies = [
        path for path in Path(get_upload_folder()).rglob("secret.png") if path.read_bytes() == secret.read_bytes()
    ]
    assert copies == []
    assert httpx.get(f"{server.url}/gradio_api/file={secret}").status_code == 403


def test_the_chat_is_never_read_back(server: Running) -> None:
    """What was said is kept by the server: no event takes it from a browser, which could put anything there."""
    config = httpx.get(f"{server.url}/config").json()
    chats = {part["id"] for part in config["components"] if part["type"] == "chatbot"}
    assert chats and not any(chats & set(dependency["inputs"]) for dependency in config["dependencies"])


def test_web_addresses_are_not_fetched(server: Running) -> None:
    file = {"path": "https://example.com/a.png", "meta": {"_type": "gradio.FileData"}}
    statuses = [response.status_code for response in Forger(server.url).events(file)]
    assert 400 in statuses


@pytest.mark.parametrize(
    "path",
    [
        "file=https://example.com/a.png",
        "proxy=https://example.com/",
        "call/x",
        "runs",
        "deep_link?session_hash=x",
        "vibe-code",
    ],
)
def test_what_the_page_does_not_need_is_closed(server: Running, path: str) -> None:
    response = httpx.get(f"{server.url}/gradio_api/{path}")
    assert (response.status_code, response.text) == (404, "Not found.")


def test_events_are_small_and_the_browser_asks_nobody_else(server: Running) -> None:
    body = {"data": ["x" * 2**21], "fn_index": 0, "session_hash": "large"}
    assert httpx.post(f"{server.url}/gradio_api/queue/join", json=body).status_code == 413
    pieces = iter([b"x" * 2**20] * 3)  # without a length
    assert httpx.post(f"{server.url}/gradio_api/queue/join", content=pieces).status_code == 413
    policy = httpx.get(server.url).headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy
