"""A person at the page, in a real Chromium. The same hands serve for `eden serve` and for an exported Space."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, Locator, Page, Request, expect, sync_playwright
from servers import EXAMPLES

SCREENSHOTS = Path(__file__).parent.parent / "runs" / "screenshots"
DESKTOP, PHONE = (1280, 900), (390, 844)
DEVICES = {"desktop": (DESKTOP, False), "phone": (PHONE, True)}
"""Their windows, and whether dark colours are preferred."""
SECONDS = 1000.0
NO_BROWSER = (
    "no Chromium: apt-get install chromium, or .venv/bin/playwright install --with-deps chromium-headless-shell"
)


@contextmanager
def chromium(*, said: Path | None = None) -> Iterator[Browser]:
    """The system's Chromium or else Playwright's own, with a camera and a microphone that are made up.

    Where there is neither, the test is skipped; with CI=true it fails.

    Args:
        said: a WAV file that the microphone hears once; None is beeps.
    """
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    arguments = ["--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    if said is not None:
        arguments.append(f"--use-file-for-fake-audio-capture={said}%noloop")
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=arguments)
        except Error:
            if path:
                raise
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(NO_BROWSER)
        yield browser
        browser.close()


class Person:
    """Somebody who looks at the page and uses it.

    Args:
        browser: theirs.
        url: of the page.
        size: of the window, in pixels.
        dark: prefers dark colours.
        password: the API key, where the server asks for one.
    """

    def __init__(
        self,
        browser: Browser,
        url: str,
        size: tuple[int, int] = DESKTOP,
        *,
        dark: bool = False,
        password: str | None = None,
    ):
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if dark else "light",
            http_credentials={"username": "me", "password": password} if password else None,
            permissions=["clipboard-read", "clipboard-write", "camera", "microphone"],
            ignore_https_errors=True,  # no authority vouches for a test's own certificate
        )
        self.page: Page = context.new_page()
        self.requests: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.streams: set[Request] = set()
        """Of the page's events, which Gradio closes once all of them have ended."""
        self.page.on("request", lambda request: "/queue/data" in request.url and self.streams.add(request))
        for end in ("requestfinished", "requestfailed"):
            self.page.on(end, lambda request: self.streams.discard(request))
        self.url = url
        self.open()

    @property
    def box(self) -> Locator:
        return self.page.locator("#eden-box textarea")

    @property
    def answers(self) -> Locator:
        return self.page.locator("#eden-chat .bot .message-content")

    @property
    def stop_button(self) -> Locator:
        return self.page.locator("#eden-box .stop-button")

    def open(self) -> None:
        self.page.goto(self.url)
        expect(self.box).to_be_editable(timeout=60 * SECONDS)

    def attach(self, *paths: Path) -> None:
        before = self.attached.count()
        with self.page.expect_file_chooser() as chooser:  # the page forgets the file chosen last when it asks for one
            self.page.get_by_label("Upload a file").click()
        chooser.value.set_files(paths)
        expect(self.attached).to_have_count(before + len(paths), timeout=20 * SECONDS)

    @property
    def attached(self) -> Locator:
        return self.page.locator("#eden-box .thumbnail-item")

    def ask(self, question: str, *files: Path) -> None:
        if files:
            self.attach(*files)
        self.box.fill(question)
        self.box.press("Enter")

    def sees(self, text: str | re.Pattern[str]) -> None:
        """The newest answer is this."""
        expect(self.answers.last).to_have_text(text, timeout=60 * SECONDS)

    def waits(self) -> None:
        """Until the answer has ended and the next question may be asked."""
        expect(self.stop_button).to_have_count(0, timeout=60 * SECONDS)
        expect(self.box).to_be_editable(timeout=60 * SECONDS)
        self.lets_it_draw()

    def lets_it_draw(self) -> None:
        """Until all events have ended and what they changed is on the screen."""
        while self.streams:
            self.page.wait_for_timeout(20)  # in which it hears of an end
        self.page.evaluate("() => new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))")

    def photograph(self, name: str) -> Path:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        path = SCREENSHOTS / f"{name}.png"
        self.page.screenshot(path=path, animations="disabled")  # what the page itself says slides in
        return path

    def close(self) -> None:
        self.page.context.close()


def tour(browser: Browser, url: str, name: str, devices: Collection[str] = DEVICES) -> dict[str, list[str]]:
    """What every page of Eden must do, wherever it runs: a picture, a question by voice, a reload.

    Returns:
        The texts on the screen at the end, the page's own words among them, by device.
    """
    seen = {}
    for device in devices:
        size, dark = DEVICES[device]
        person = Person(browser, url, size, dark=dark)
        person.photograph(f"{name}-{device}-empty")
        person.ask("Describe the picture.", EXAMPLES / "scene.png")
        person.sees(re.compile("A large red square at the top left, .* orange cross at the bottom left."))
        person.waits()
        person.photograph(f"{name}-{device}-answer")
        assert person.page.evaluate("document.documentElement.scrollWidth") <= size[0]
        person.open()
        expect(person.answers).to_have_count(0)
        person.ask("", EXAMPLES / "scene.png", EXAMPLES / "question.wav")
        expect(person.page.locator("#eden-chat")).to_contain_text("How many objects are there?", timeout=60 * SECONDS)
        person.sees("Four.")
        person.waits()
        person.ask("What shape is the red object?")
        person.sees("Square.")
        person.waits()
        person.photograph(f"{name}-{device}-heard")
        elsewhere = [url for url in person.requests if not url.startswith((person.url, "data:", "blob:"))]
        assert elsewhere == []
        seen[device] = person.answers.all_inner_texts()
        person.close()
    return seen
