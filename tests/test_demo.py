"""The tour, cut short to a few steps: what it writes is real and can be used. `make demo` runs it in full."""

import json

import PIL.Image
import pytest
from rich.console import Console

import eden
from eden.cli.demo import UNSEEN_DIGITS, DemoResult, run_demo
from eden.data.validate import load_samples


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    folder = tmp_path_factory.mktemp("demo")
    few = ("training.max_steps=40", "training.logging_steps=10", "training.eval_steps=20", "data.row_length=384")
    return run_demo(folder, Console(quiet=True), overrides=few)


def test_it_learns_and_leaves_an_artifact_that_answers(result: DemoResult) -> None:
    assert result.n == UNSEEN_DIGITS >= 350
    assert result.before <= 0.3 and 0 <= result.after <= 1
    rows = [json.loads(line) for line in (result.artifact / "training.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 4 and losses[-1] < 0.7 * losses[0]
    picture = result.artifact.parent / "digits" / "0000.png"
    assert isinstance(eden.load(str(result.artifact)).ask("What digit is this?", images=[picture]), str)


def test_the_digits_are_pictures_and_none_is_both_learned_and_asked(result: DemoResult) -> None:
    folder = result.artifact.parent / "digits"
    learned, asked = (json.loads((folder / name).read_text()) for name in ("train.json", "test.json"))
    assert len(learned) + len(asked) == 1797 and len(asked) == UNSEEN_DIGITS
    assert not {record["image"] for record in learned} & {record["image"] for record in asked}
    samples, _ = load_samples(folder / "train.json")
    assert len(samples) == len(learned)
    assert PIL.Image.open(folder / "0000.png").size == (96, 96)


def test_the_report_shows_answers_before_and_after(result: DemoResult) -> None:
    page = result.report.read_text()
    assert "<th>Before</th><th>After</th>" in page and page.count("What digit is this?") >= 4
