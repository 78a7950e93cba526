"""The page's Sort tab, driven by a real Chromium. Its photographs are kept in `runs/screenshots`."""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import recordings
from browser import DEVICES, SECONDS, Person, chromium
from playwright.sync_api import Browser, Locator, expect
from servers import EXAMPLES, Running, serving
from typer.testing import CliRunner

import eden
from eden.checkpoint.calibration import Calibration, Fitted
from eden.cli.main import app
from eden.core.answers import AnswerSet
from eden.core.location import EDEN_TINY_FOLDER
from eden.data.formats import read_samples
from eden.errors import DataError, InputError
from eden.inference.assistant import Assistant
from eden.inference.decisions import Decision, DecisionQuestion
from eden.media.audio import SAMPLE_RATE
from eden.media.speech_synthesis import speak
from eden.serve.server import check_exposure
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
    said = tmp_path_factory.mktemp("said") / "yes.wav"
    quiet = np.zeros(SAMPLE_RATE, dtype=np.float32)
    said.write_bytes(recordings.encode(np.concatenate([quiet, speak("Yes."), quiet]), "wav"))
    with chromium(said=said) as running:
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

    def uploads(self, *paths: Path) -> None:
        with self.page.expect_file_chooser() as chooser:
            self.page.get_by_role("button", name="Add pictures").click()
        with self.page.expect_response("**/queue/join**"):
            chooser.value.set_files(list(paths))
        self.lets_it_draw()

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
    assert CliRunner().invoke(app, ["train", "decide", f"data.path={path}", *changes]).exit_code == 0
    learned = Calibration.read(run)
    assert learned is not None and learned.questions == {QUESTION: ANSWERS}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scenes."""
    place = tmp_path_factory.mktemp("few") / "pictures"
    draw(place, 6)
    return place


@pytest.fixture(scope="module")
def server(few: Path, model: Path) -> Iterator[Running]:
    with serving(Settings(sort_folder=few), page=True, model=str(model)) as running:
        yield running


@pytest.fixture
def sorter(browser: Browser, server: Running, few: Path) -> Iterator[Sorter]:
    """Somebody who sorts the few, none of which is labelled."""
    (few / "labels.jsonl").unlink(missing_ok=True)
    person = Sorter(browser, server.url)
    person.goes_to_the_tab()
    yield person
    person.close()


def asks(sorter: Sorter, question: str, labels: str) -> None:
    """Of a model that knows more than one question."""
    field = sorter.page.locator("#eden-question input")
    if field.input_value() != question:
        field.fill(question)
        with sorter.page.expect_response("**/run/predict"):
            field.press("Enter")
        sorter.lets_it_draw()
    sorter.page.get_by_role("textbox", name="Labels").fill(labels)


def test_a_label_by_voice(sorter: Sorter, few: Path) -> None:
    """The microphone hears "Yes.", which is chosen only where it is one of the labels."""
    asks(sorter, "Is there a star?", "")
    sorter.starts()
    first = sorter.name
    sorter.page.get_by_role("button", name="By voice").click()
    for labels, heard in (("", "Heard: yes."), ("star, none", "Heard “Yes.”, which is none of the labels.")):
        if labels:
            sorter.page.get_by_role("button", name="What is asked").click()
            asks(sorter, "Is there a star?", labels)
            sorter.starts()
        sorter.page.get_by_role("button", name="Record").click()
        expect(sorter.page.locator("#eden-voice")).to_contain_text(":03", timeout=20 * SECONDS)
        sorter.page.get_by_role("button", name="Stop").click()
        expect(sorter.card.locator(".note")).to_have_text(heard, timeout=30 * SECONDS)
    assert records(few / "labels.jsonl") == {first: "yes"}


def test_two_people_see_different_pictures(browser: Browser, sorter: Sorter, server: Running, few: Path) -> None:
    other = Sorter(browser, server.url)
    other.goes_to_the_tab()
    sorter.starts()
    other.starts()
    given = {}
    for _ in range(3):
        assert sorter.name != other.name
        given[sorter.presses("1")] = "One."
        given[other.presses("2")] = "Two."
    assert records(few / "labels.jsonl") == given and len(given) == 6
    other.close()


def test_a_click_and_what_is_no_key(sorter: Sorter, few: Path) -> None:
    """Nothing is chosen by who writes, by a key of the browser, or in another tab of the page."""
    asks(sorter, "Which?", "<b>a</b>, {{value}}, ${1 + 1}, " + ", ".join(f"no. {number}" for number in range(40)))
    sorter.starts()
    first = sorter.name
    names = sorter.card.locator(".answers .name").all_inner_texts()
    assert names[:3] == ["<b>a</b>", "{{value}}", "${1 + 1}"] and len(names) == 43
    keys = sorter.card.locator(".answers kbd").all_inner_texts()
    assert "".join(keys) == "123456789abcdefghijklmnopqrstuvwxyz"
    for key in ("Control+2", "!", "Escape"):
        sorter.page.keyboard.press(key)
    sorter.page.get_by_role("button", name="What is asked").click()
    sorter.page.get_by_role("textbox", name="Labels").press("2")
    sorter.page.get_by_role("tab", name="Chat").click()
    sorter.page.keyboard.press("2")
    sorter.box.press("2")
    sorter.page.get_by_role("tab", name="Sort").click()
    sorter.lets_it_draw()
    assert sorter.name == first and not (few / "labels.jsonl").exists()
    with sorter.page.expect_response("**/run/predict"):
        sorter.card.get_by_role("button", name="no. 39").click()
    assert records(few / "labels.jsonl") == {first: "no. 39"}


def test_what_is_wrong_is_said(sorter: Sorter, few: Path) -> None:
    for question, labels, what in (
        ("Which?", "one", "1 choices. Give 2 to 255 of them."),
        ("Which?", "a, a", "'a' stands twice among the choices. Name it once."),
        ("Which?", "a, <|end|>", "Leave it out of the answer."),
    ):
        asks(sorter, question, labels)
        sorter.page.get_by_role("button", name="Start").click()
        expect(sorter.card.locator(".note")).to_contain_text(what, timeout=30 * SECONDS)
        sorter.lets_it_draw()
    asks(sorter, "Which?", "a, b")
    sorter.starts()
    (few / "labels.jsonl").write_text("{no\n")
    name = sorter.presses("1")
    expect(sorter.card.locator(".note")).to_contain_text("Not valid JSON")
    assert sorter.name == name and (few / "labels.jsonl").read_text() == "{no\n"


@pytest.fixture(scope="module")
def without_folder() -> Iterator[Running]:
    with serving(page=True) as running:
        yield running


@pytest.mark.parametrize("device", DEVICES)
def test_uploads(browser: Browser, without_folder: Running, tmp_path: Path, device: str) -> None:
    """They are sorted, and the labels downloaded, which go beside the pictures; another upload joins them."""
    size, dark = DEVICES[device]
    paths = draw(tmp_path / "mine", 4)
    (tmp_path / "mine" / "broken.jpg").write_bytes(b"no picture")
    person = Sorter(browser, without_folder.url, size, dark=dark)
    person.goes_to_the_tab()
    expect(person.card).to_contain_text("No pictures yet: add some.")
    person.photograph(f"sort-{device}-empty")
    person.uploads(*paths[:3], tmp_path / "mine" / "broken.jpg")
    expect(person.card).to_contain_text("4 pictures.")
    question = person.page.locator("#eden-question input")
    question.fill("")
    person.page.get_by_role("button", name="Start").click()
    expect(person.card).to_contain_text("No question. Write what is asked of each picture.")
    person.lets_it_draw()  # until then Gradio hears no second click
    question.fill("What colour is the star?")
    person.page.get_by_role("textbox", name="Labels").fill("Red., Blue., Green.")
    with without_folder.held(1) as gate:
        person.page.get_by_role("button", name="Start").click()
        assert gate.reached.wait(60)
        gate.open()
        expect(person.card.locator("img")).to_have_count(1, timeout=60 * SECONDS)
    person.lets_it_draw()
    person.photograph(f"sort-{device}-picture")
    assert person.page.evaluate("document.documentElement.scrollWidth") <= size[0]
    given = {person.presses("1"): "Red.", person.presses("3"): "Green."}
    person.page.get_by_role("button", name="What is asked").click()
    person.uploads(paths[3])
    person.has_labelled(2, of=4)
    (tmp_path / paths[0].name).write_bytes(paths[3].read_bytes())
    person.uploads(paths[3], tmp_path / paths[0].name)
    expect(person.card.locator(".note")).to_contain_text(f"Another picture is named {paths[0].name}: it was left out.")
    person.has_labelled(2, of=4)
    person.open()
    person.goes_to_the_tab()
    person.has_labelled(2, of=4)
    expect(person.card).to_contain_text("broken.jpg: not an image")
    given[person.presses("2")] = "Blue."
    person.photograph(f"sort-{device}-later")
    with person.page.expect_download() as download:
        person.page.get_by_role("button", name="Download labels.jsonl").click()
    assert download.value.suggested_filename == "labels.jsonl"
    download.value.save_as(tmp_path / "labels.jsonl")
    assert records(tmp_path / "labels.jsonl") == given
    elsewhere = [url for url in person.requests if not url.startswith((person.url, "data:", "blob:"))]
    assert elsewhere == []
    person.close()


def test_only_what_was_uploaded_is_sorted(without_folder: Running, tmp_path: Path) -> None:
    """Somebody who speaks Gradio's protocol names a file of the server as an upload."""
    shutil.copy(EXAMPLES / "scene.png", tmp_path / "secret.png")
    url, session = without_folder.url, {"session_hash": "thief"}
    config = httpx.get(f"{url}/config").json()
    events, kinds = config["dependencies"], {part["id"]: part for part in config["components"]}
    file = {"path": str(tmp_path / "secret.png"), "meta": {"_type": "gradio.FileData"}, "orig_name": "secret.png"}
    answered = []
    values = {
        "uploadbutton": [file],
        "json": ["secret.png"],
        "audio": file,
        "textbox": "What is it?",
        "browserstate": "",
    }
    inputs = [[kinds[part] for part in event["inputs"]] for event in events]
    first = next(place for place, of in enumerate(inputs) if of and of[0]["type"] == "browserstate")
    for event, of in zip(events[first:], inputs[first:], strict=True):  # the tab's
        body = {"data": [values.get(part["type"]) for part in of], "fn_index": event["id"], **session}
        body["event_data"] = {"act": "label", "picture": "secret.png", "answer": "yes"}
        joined = httpx.post(f"{url}/gradio_api/queue/join", json=body, timeout=30)
        answered.append(joined.text)
        if joined.is_success:
            answered.append(httpx.get(f"{url}/gradio_api/queue/data", params=session, timeout=30).text)
    assert any("No pictures yet" in text for text in answered)
    assert not any("1 picture" in text or "base64" in text for text in answered)


def decided(pool: Pool, question: DecisionQuestion, **confidences: float) -> None:
    for name, likely in confidences.items():
        pool.pictures[name] = Path(name)
        pool.decided(question)[name] = Decision("choice", {"a": likely, "b": 1 - likely})


ASKED = DecisionQuestion("Which?", AnswerSet.of(["a", "b"]))


def test_many_people_at_once_lose_no_label(tmp_path: Path) -> None:
    pool = Pool()
    pool.labels = LabelFile(tmp_path / "labels.jsonl")
    decided(pool, ASKED, **{f"{number}.png": 0.5 + number / 1000 for number in range(60)})
    given: list[str] = []

    def sort() -> None:
        desk = Desk(pool)
        desk.ask(ASKED)
        desk.advance()
        while desk.current is not None:
            name = desk.current
            desk.label(name, "a")
            if not desk.note:
                given.append(name)

    with ThreadPoolExecutor(4) as threads:
        for people in [threads.submit(sort) for _ in range(4)]:
            people.result()
    assert sorted(given) == sorted(records(tmp_path / "labels.jsonl")) == sorted(pool.pictures)


def test_a_key_pressed_twice_labels_no_picture_unseen() -> None:
    pool = Pool()
    decided(pool, ASKED, x=0.9, y=0.5, z=0.6)
    desk, other = Desk(pool), Desk(pool)
    for somebody in (desk, other):
        somebody.ask(ASKED)
        somebody.advance()
    assert (desk.current, other.current) == ("y", "z")
    desk.label("y", "a")
    desk.label("y", "a")
    desk.label("x", "c")
    assert desk.current == "x" and desk.progress == (1, 3)
    other.skip("z")
    desk.label("x", "b")
    assert desk.current == other.current == "z"  # the last one: before nobody else
    other.label("z", "a")
    desk.label("z", "b")
    assert desk.note == "z was labelled a by somebody else, and stays so." and desk.current is None
    other.undo()
    other.undo()
    assert other.current == "z" and pool.labels.answer("y", ASKED) == "a"


def test_what_others_write_into_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    first = '{"file_name": "1.png",  "question": "Which?", "answer": "other"}\n{"image": "2.png", "text": "a cat"}\n'
    path.write_text(first)
    labels = LabelFile(path)
    assert labels.answer("1.png", ASKED) is None  # none of the answers there are now
    labels.add("2.png", ASKED, "a")
    path.write_text(path.read_text() + '{"file_name": "3.png", "question": "Which?", "answer": "b"}\n')
    labels.add("4.png", ASKED, "b")
    labels.remove("2.png", ASKED)
    assert path.read_text().startswith(first) and list(map(labels.answer, ("3.png", "4.png"), (ASKED, ASKED))) == [
        "b",
        "b",
    ]
    levels = DecisionQuestion("How bad?", AnswerSet.of(levels=["none", "bad"]))
    labels.add("1.png", levels, "bad")
    assert json.loads(path.read_text().splitlines()[-1])["levels"] == ["none", "bad"]


def test_a_folder_that_cannot_be_sorted_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["serve", "--port", "0", "--sort", str(tmp_path / "none")])
    assert "no such folder of pictures" in str(result.exception)
    with pytest.raises(InputError, match="no picture in the folder"):
        Pool(tmp_path)
    draw(tmp_path, 1)
    (tmp_path / "labels.jsonl").write_text("{no")
    with pytest.raises(DataError, match="line 1: not valid JSON"):
        Pool(tmp_path)
    with pytest.raises(InputError, match="could look at the pictures"):
        check_exposure("0.0.0.0", Settings(sort_folder=tmp_path), is_open=True)
