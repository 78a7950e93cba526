"""The page, driven by a real Chromium. Its photographs are kept in `runs/screenshots`."""

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import SECONDS, Person, chromium, tour
from playwright.sync_api import Browser, expect
from servers import EXAMPLES, SCENE, Running, serving, until

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
    tour(browser, server.url, "page")


def test_the_answer_grows_and_stop_ends_it(person: Person, server: Running) -> None:
    def cancelled() -> int:
        return server.service.engine.stats().finished.get("cancelled", 0)

    before = cancelled()
    with server.slow(0.15):
        person.ask("Describe the picture.", EXAMPLES / "scene.png")
        expect(person.answers.last).to_have_text(re.compile("^A large"), timeout=60 * SECONDS)
        early = person.answers.last.inner_text()
        expect(person.answers.last).to_have_text(re.compile(f"^{re.escape(early)}.+"), timeout=60 * SECONDS)
        person.photograph("page-desktop-writing")
        person.stop_button.click()
        until(lambda: cancelled() == before + 1 and server.running == 0, seconds=5)
    person.waits()
    stopped = person.answers.last.inner_text()
    assert stopped.startswith("A large") and not stopped.endswith(".")
    person.ask("How many objects are there?")
    person.sees("Four.")


def test_who_closes_the_page_frees_the_slot(browser: Browser, server: Running) -> None:
    person = Person(browser, server.url)
    with server.slow(0.3):
        person.ask("Describe the picture.", EXAMPLES / "scene.png")
        until(lambda: server.running == 1)
        person.close()
        until(lambda: server.running == 0, seconds=6)


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
    person.page.wait_for_timeout(1500)  # of recorded sound: the made-up microphone beeps
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
    (tmp_path / "silent.wav").write_bytes(EXAMPLES.joinpath("question.wav").read_bytes()[:44] + bytes(32000))
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
        person.close()


def test_a_words_markup_stays_words(person: Person, server: Running) -> None:
    from eden.decoding import Piece
    from eden.generation import Generation

    markup = (
        "a < b & <c> &amp; <img src=http://203.0.113.1/a.png onerror=alert(1)> ![x](http://203.0.113.1/b.png) **bold** "
    )
    original = Generation.add
    Generation.add = lambda self, piece: original(self, Piece(markup, piece.tokens) if not self.text else piece)  # type: ignore[method-assign]
    try:
        person.ask("How many objects are there?", EXAMPLES / "scene.png")
        person.sees(re.compile(re.escape(markup)))
    finally:
        Generation.add = original  # type: ignore[method-assign]
    assert not [url for url in person.requests if "203.0.113.1" in url]


@pytest.mark.parametrize("field", ["message", "history"])
def test_only_what_was_uploaded_is_read(server: Running, tmp_path: Path, field: str) -> None:
    """A forged call of the page's own queue, with the path of a file that nobody uploaded."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(SCENE)
    config = httpx.get(f"{server.url}/config").json()
    file = {"path": str(secret), "meta": {"_type": "gradio.FileData"}, "mime_type": "image/png"}
    answered: list[Any] = []
    for dependency in config["dependencies"]:
        data: list[Any] = []
        for number in dependency["inputs"]:
            kind = next(part["type"] for part in config["components"] if part["id"] == number)
            if kind == "multimodaltextbox":
                data.append({"text": "How many objects are there?", "files": [file] if field == "message" else []})
            elif kind == "chatbot":
                turn = {"role": "user", "content": [{"type": "file", "file": file}], "metadata": None, "options": None}
                data.append([turn] if field == "history" else [])
            else:
                data.append(None)
        body = {"data": data, "fn_index": dependency["id"], "session_hash": "forger", "event_data": None}
        httpx.post(f"{server.url}/gradio_api/queue/join", json=body, timeout=30)
        direct = httpx.post(f"{server.url}/gradio_api/run/predict", json=body, timeout=30)
        answered.append(direct.text)
        events = httpx.get(f"{server.url}/gradio_api/queue/data?session_hash=forger", timeout=30)
        answered.append(events.text)
    assert answered and not any("Four" in text for text in answered)
    served = httpx.get(f"{server.url}/gradio_api/file={secret}")
    assert served.status_code in (403, 404)
