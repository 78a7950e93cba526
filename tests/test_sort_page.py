"""The page's Sort tab, driven by a real Chromium. Its photographs are kept in `runs/screenshots`."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import cli
import pytest
from browser import DESKTOP, DEVICES, SECONDS, Person, chromium
from playwright.sync_api import Browser, Locator, expect
from servers import EXAMPLES, Running, serving, until

import eden
from eden.checkpoint.calibration import Calibration, Fitted
from eden.core.answers import AnswerSet
from eden.core.location import EDEN_TINY_FOLDER
from eden.data.formats import read_samples
from eden.inference.assistant import Assistant
from eden.inference.decisions import DecisionQuestion
from eden.media.speech_synthesis import Speaker
from eden.serve.settings import Settings
from eden.serve.sort import Desk, LabelFile, Pool
from eden.tiny.world import scenes

QUESTION, ANSWERS = "How many objects are there?", AnswerSet.of(["One.", "Two.", "Three.", "Four."])
PICTURES = 30


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """eden-tiny, calibrated for two questions."""
    folder = Path(shutil.copytree(EDEN_TINY_FOLDER, tmp_path_factory.mktemp("models") / "counts"))
    Calibration({ANSWERS.key: Fitted(2.5, 100)}, {QUESTION: ANSWERS, "Is there a star?": AnswerSet.of()}).write(folder)
    return folder


@pytest.fixture(scope="module")
def assistant(model: Path) -> Assistant:
    return eden.load(str(model))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Thirty scenes in two folders, a file that is no picture and a link to one outside."""
    place = tmp_path / "pictures"
    draw(place, PICTURES)
    (place / "broken.jpg").write_bytes(b"no picture")
    shutil.copy(EXAMPLES / "scene.png", tmp_path / "secret.png")
    (place / "link.png").symlink_to(tmp_path / "secret.png")
    return place


def draw(folder: Path, number: int) -> list[Path]:
    (folder / "more").mkdir(parents=True)
    drawn = scenes(seed=5, split="test")
    paths = [folder / ("more" if place % 2 else ".") / f"{place:02d}.png" for place in range(number)]
    for path in paths:
        next(drawn)[1].save(path)
    return paths


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium() as running:
        yield running


class Sorter(Person):
    """Somebody at the Sort tab."""

    @property
    def card(self) -> Locator:
        return self.page.locator("#eden-sort")

    @property
    def name(self) -> str:
        return self.card.locator("figcaption").inner_text()

    def goes_to_the_tab(self) -> None:
        self.page.get_by_role("tab", name="Sort").click()
        expect(self.card.locator("section")).to_have_count(1, timeout=30 * SECONDS)

    def starts(self) -> None:
        self.page.get_by_role("button", name="Start").click()
        expect(self.card.locator("img")).to_have_count(1, timeout=60 * SECONDS)
        self.lets_it_draw()

    def presses(self, key: str) -> str:
        """Gives the name of the picture that it was pressed for."""
        name = self.name
        with self.page.expect_response("**/run/predict"):
            self.page.keyboard.press(key)
        self.lets_it_draw()
        return name

    def has_labelled(self, number: int, of: int = PICTURES) -> None:
        expect(self.card.locator(".how-far")).to_have_text(f"{number} of {of}", timeout=30 * SECONDS)


def records(path: Path) -> dict[str, str]:
    return {record["file_name"]: record["answer"] for record in map(json.loads, path.read_text().splitlines())}


def test_thirty_pictures_by_keys(browser: Browser, model: Path, assistant: Assistant, folder: Path) -> None:
    """In order of doubt; what is undone is asked again, what is labelled stays, and the file is what training reads."""
    path = folder / "labels.jsonl"
    with serving(Settings(sort_folder=folder), page=True, model=str(model)) as server:
        person = Sorter(browser, server.url)
        person.goes_to_the_tab()
        expect(person.page.get_by_role("textbox", name="Labels")).to_have_value("One., Two., Three., Four.")
        person.starts()
        person.has_labelled(0)
        expect(person.card).to_contain_text("broken.jpg: not an image")
        expect(person.card).to_contain_text("link.png: a link that leads out of the folder")
        shown = person.card.locator(".share").evaluate_all("shares => shares.map(share => Number(share.title))")
        found = assistant.decide(QUESTION, [folder / person.name], choices=ANSWERS.answers)
        assert found.calibrated and shown == pytest.approx([*found.probabilities.values()], abs=1e-4)
        given: dict[str, str] = {}
        for place in range(20):
            given[person.presses("1234"[place % 4])] = ANSWERS.answers[place % 4]
        person.has_labelled(20)
        assert records(path) == given
        last = list(given)[-1]
        person.presses("ArrowLeft")
        assert person.name == last and last not in records(path)
        skipped = person.presses("ArrowRight")
        assert skipped == last and person.name != last
        person.open()  # as after a reload
        person.goes_to_the_tab()
        person.has_labelled(19)
        person.presses("ArrowLeft")
        assert person.name == last
        for _ in range(11):
            given[person.presses("1")] = "One."
        expect(person.card).to_contain_text(f"All {PICTURES} are labelled: labels.jsonl is beside the pictures.")
        person.close()
    decided = {name: assistant.decide(QUESTION, [folder / name], choices=ANSWERS.answers) for name in given}
    order = [decided[name].confidence for name in given if name != last]
    assert order == pytest.approx(sorted(order), abs=1e-4)
    samples = list(read_samples(path))
    assert [sample.answers for sample in samples] == [ANSWERS] * PICTURES
    assert records(path) == given
    run = path.parent.parent / "run"
    changes = ["training.max_steps=2", "training.eval_strategy=no", f"training.output_dir={run}"]
    result = cli.eden("train", "decide", f"data.path={path}", *changes)
    assert result.returncode == 0, result.stderr
    learned = Calibration.read(run)
    assert learned is not None and learned.questions == {QUESTION: ANSWERS}
