"""The pages: whole by themselves, well formed, and safe with whatever a data set or a model says."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import PHONE, chromium
from conftest import make_image

from eden.core.html_report import data_page, evaluation_page, training_page, write_page, xray_page
from eden.core.report_blocks import Prediction
from eden.data.validate import Fault, Report, check
from eden.data.xray import XrayToken

NASTY = "</td><script>alert('x')</script> & \"so on\""
LOG = [
    {"step": 1, "loss": 2.5, "learning_rate": 1e-3},
    {"step": 2, "loss": float("nan"), "learning_rate": 5e-4},
    {"step": 3, "loss": 0.5, "learning_rate": 0.0},
    {"step": 3, "eval_loss": 0.75},
    {"train_loss": 1.0},
]


class Reader(HTMLParser):
    """Checks that tags close in the order they opened, and collects text, attributes and tag names."""

    VOID = {"meta", "img", "br", "line", "polyline", "circle", "rect"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(page: str) -> Reader:
    """Parses a page that must be well formed, run nothing and fetch nothing."""
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    names = [name for name, _ in reader.tags]
    assert "script" not in names and "link" not in names
    for _, attributes in reader.tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    return reader


def numbers(reader: Reader, name: str) -> list[list[tuple[float, float]]]:
    points = [attributes["points"] for tag, attributes in reader.tags if tag == name]
    return [[tuple(map(float, pair.split(","))) for pair in (line or "").split()] for line in points]


def test_a_training_page_plots_the_log_and_shows_the_answers() -> None:
    predictions = [
        Prediction(make_image("red"), NASTY, "Yes.", "No.", "Yes."),
        Prediction(None, "Why?", "So.", "", NASTY),
    ]
    page = training_page(
        title=NASTY,
        facts={"steps": 1200, "best": 0.5},
        log=LOG,
        predictions=predictions,
        recipe="model: x",
        skipped=[NASTY],
    )
    reader = read(page)
    assert "1,200" in reader.text and "model: x" in reader.text
    assert reader.text.count(NASTY) == 5  # the tab's title, the heading, a question, an answer, a skipped sample
    loss, evaluation, rate = numbers(reader, "polyline")
    assert len(loss) == 2 and loss[0][1] < loss[1][1], "falls to the right, the nan left out"
    assert len(evaluation) == 1 and len(rate) == 3
    styles = [attributes.get("class") for tag, attributes in reader.tags if tag == "td" and "class" in attributes]
    assert styles == ["bad", "good", "bad", "bad"]
    assert sum(tag == "img" for tag, _ in reader.tags) == 1


@pytest.mark.parametrize(
    "log",
    [
        [],
        [{"step": 1, "loss": float("inf")}],
        [{"step": 5, "loss": 0.0}],
        [{"step": 5, "loss": 1e-9}, {"step": 9, "loss": 1e9}],
    ],
)
def test_a_plot_of_little_or_odd_data_stays_inside_its_frame(log: list[dict[str, float]]) -> None:
    reader = read(training_page(title="t", facts={}, log=log, predictions=[], recipe=""))
    for line in numbers(reader, "polyline"):
        assert all(0 <= x <= 720 and 0 <= y <= 280 for x, y in line)
    if not log or log[0]["loss"] == float("inf"):
        assert "Nothing was logged." in reader.text


def test_an_xray_page_marks_what_is_learned_and_what_is_seen() -> None:
    tokens = [
        XrayToken("<|user|>", 9, False, False),
        XrayToken("<|image|> ×4", 8, False, True, 4),
        XrayToken(NASTY, 7, True, False),
    ]
    reader = read(xray_page([("sample 1", tokens, [make_image("blue")])]))
    assert NASTY in reader.text and "<|image|> ×4" in reader.text
    spans = [attributes.get("class") for tag, attributes in reader.tags if tag == "span"]
    assert spans == ["said", "seen", None, "seen", "said"]  # the legend, then the tokens


def test_a_data_page_lists_the_faults(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"id": "<b>", "conversations": [{"from": "gpt", "value": "x"}]}\n')
    report, _ = check(path)
    reader = read(data_page(report.to_dict()))
    assert "(id <b>)" in reader.text and report.faults[0].hint in reader.text


LEGIBLE = """() => {
    const lines = (node, start, end) => {
        const range = document.createRange();
        range.setStart(node, start);
        range.setEnd(node, end);
        return new Set([...range.getClientRects()].map(box => box.top)).size;
    };
    const labels = [...document.querySelectorAll("svg text")].map(label => label.getBoundingClientRect());
    const broken = [], walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
    while (walker.nextNode())
        for (const word of walker.currentNode.data.matchAll(/\\S+/g))
            if (lines(walker.currentNode, word.index, word.index + word[0].length) > 1) broken.push(word[0]);
    return {
        broken,
        across: document.documentElement.scrollWidth,
        left: Math.min(...labels.map(box => box.left)),
        height: Math.min(...labels.map(box => box.height)),
    };
}"""


def test_a_data_page_is_legible_on_a_phone(tmp_path: Path) -> None:
    report = Report("data/llava_instruct.json", samples=157_712, faulty=1)
    where, hint = "data/llava_instruct.json record 363 (id 000000442654)", "Use one of JPEG, PNG, WEBP, GIF, BMP."
    what = "data/train2017/000000442654.jpg: not an image Eden can read"
    report.faults = [Fault("not_an_image", what, where, hint, "000000442654")]
    report.faults_by_kind = {"not_an_image": 1}
    report.kinds = {"conversation": 57_669, "detail": 23_240, "reasoning": 76_643, "short answer": 160}
    bars = [{"from": 100 * n, "to": 100 * n + 99, "samples": 20_000 - 100 * n} for n in range(24)]
    report.histograms = {"turns": [{"from": 2, "to": 2, "samples": 157_712}], "characters": bars}
    page = write_page(tmp_path / "page.html", data_page(report.to_dict()))
    with chromium() as browser:
        tab = browser.new_page(viewport={"width": PHONE[0], "height": PHONE[1]})
        tab.goto(page.as_uri())
        seen = tab.evaluate(LEGIBLE)
    assert [word for word in seen["broken"] if "/" not in word] == [], "a path may be broken, a word or an id not"
    assert seen["across"] == PHONE[0], "what is wide scrolls by itself"
    assert seen["height"] >= 12 and seen["left"] >= 0


def test_an_evaluation_page_has_a_bar_for_each_kind() -> None:
    result = {
        "task": "world",
        "model": NASTY,
        "accuracy": 0.5,
        "intervals": {"accuracy": [0.47, 0.53]},
        "by_kind": {"accuracy": {"colour": 1.0, "place": 0.25}},
        "n": 2000,
    }
    page = evaluation_page(result, [Prediction(make_image("red"), "Where?", "There.", None, NASTY)], 1000)
    reader = read(page)
    assert "47.0 to 53.0" in reader.text and "1 of 1,000" in reader.text
    assert re.findall(r"width:([\d.]+)%\"></i>", page) == ["100.0", "25.0"]
    assert "50.0 %" in reader.text and "2,000" in reader.text and "Before" not in reader.text
