"""Decisions after training and in evaluation: what is fitted on held-out samples, kept, measured and refused."""

import json
import shutil
from pathlib import Path

import cli
import numpy as np
import pytest
from conftest import make_image
from rich.console import Console

import eden
from eden.checkpoint.calibration import CALIBRATION, Calibration
from eden.checkpoint.four_bits import TRAINED_BESIDE
from eden.core.answers import AnswerSet
from eden.core.location import EDEN_TINY_FOLDER
from eden.data.class_folders import CLASS_QUESTION
from eden.data.prepare import read_data
from eden.inference.calibration import fit
from eden.recipe import load_recipe
from eden.tiny.dataset import evaluation_set
from eden.training.train import train

CLASSES = AnswerSet.of(["blue", "lime", "red"])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seventy-two pictures in three folders."""
    folder = tmp_path_factory.mktemp("photos")
    for colour in CLASSES.answers:
        (folder / colour).mkdir()
        for number in range(24):
            make_image(colour, (24 + number, 32)).save(folder / colour / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def yes_or_no(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty questions of eden-tiny's world that are answered with yes or no."""
    folder = tmp_path_factory.mktemp("world")
    items = [item for item in evaluation_set(400, seed=3, split="test") if item[2].answer in ("Yes.", "No.")][:50]
    lines = []
    for number, (_, image, question) in enumerate(items):
        image.save(folder / f"{number}.png")
        lines.append({"file_name": f"{number}.png", "question": question.text, "answer": question.answer})
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "data.jsonl"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EDEN_TINY_FOLDER, tmp_path / "model"))


def test_training_fits_a_temperature_on_what_it_holds_out(photos: Path, tmp_path: Path) -> None:
    changes = ["training.max_steps=2", "training.eval_strategy=no", f"training.output_dir={tmp_path / 'run'}"]
    recipe = load_recipe("decide", [f"data.path={photos}", "data.eval_fraction=0.6", *changes])
    result = train(recipe, console=Console(quiet=True))
    found = Calibration.read(result.artifact)
    assert found is not None and found.questions == {CLASS_QUESTION: CLASSES}
    assert f"temperature {found.fitted['choice 3'].temperature:.2f}, from 43" in result.report.read_text()
    page = result.report.read_text()
    assert "Decisions about 43 held-out samples" in page and "Reliability" in page and "What refusing buys" in page
    drawn = json.loads((result.artifact / "facts.json").read_text())["decisions"]
    assert all(sum(of["n"] for of in drawn["reliability"][side]) == 43 for side in ("before", "after"))
    assert drawn["curve"][-1][0] == 1
    assistant = eden.load(str(result.artifact))
    _, held_out, _ = read_data(recipe, Console(quiet=True))
    assert found.fitted["choice 3"].samples == len(held_out) == 43
    logs = assistant.score_answers([sample.messages[:-1] for sample in held_out], [CLASSES] * 43)
    truth = [CLASSES.answers.index(sample.messages[-1].text) for sample in held_out]
    # In training its base is held in 4 bits, here it is not.
    again = fit([CLASSES] * 43, logs, truth)["choice 3"]
    assert np.log(again.temperature) == pytest.approx(np.log(found.fitted["choice 3"].temperature), abs=0.3)
    assert assistant.decide(CLASS_QUESTION, [photos / "red" / "0.png"], choices=CLASSES.answers).calibrated


def test_too_few_held_out_samples_are_said(photos: Path, tmp_path: Path) -> None:
    changes = ["training.max_steps=1", "training.eval_strategy=no", f"training.output_dir={tmp_path / 'run'}"]
    result = cli.eden("train", "decide", f"data.path={photos}", *changes)
    assert result.returncode == 0, result.stderr
    assert "not calibrated for 3 choices: 7 held-out samples, 30 are needed" in result.stderr
    found = Calibration.read(tmp_path / "run")
    assert found is not None and not found.fitted and found.questions == {CLASS_QUESTION: CLASSES}
    assert "Reliability" not in (tmp_path / "run" / "report.html").read_text()


def test_a_class_whose_only_picture_is_held_out_is_an_answer_all_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for colour, number in (("lime", 11), ("red", 1)):
        (folder / colour).mkdir(parents=True)
        for place in range(number):
            make_image(colour, (24 + place, 32)).save(folder / colour / f"{place}.png")
    out = tmp_path / "run"
    settings = [
        f"data.path={folder}",
        "training.max_steps=1",
        "training.eval_strategy=no",
        f"training.output_dir={out}",
    ]

    def sides(seed: int) -> list[list[str]]:
        read = read_data(load_recipe("decide", [*settings, f"data.split_seed={seed}"]), Console(quiet=True))
        return [[sample.messages[-1].text for sample in side] for side in read[:2]]

    seed = next(seed for seed in range(100) if "red" in sides(seed)[1])
    assert sides(seed) == [["lime"] * 11, ["red"]]
    trained = cli.eden("train", "decide", *settings, f"data.split_seed={seed}")
    assert trained.returncode == 0, trained.stderr
    assert "not calibrated for 2 choices: 1 held-out samples, 30 are needed" in trained.stderr
    found = Calibration.read(out)
    assert found is not None and found.questions == {CLASS_QUESTION: AnswerSet.of(["lime", "red"])}
    judged = cli.eden("evaluate", out, folder, "--json")
    assert judged.returncode == 0, judged.stderr
    assert TRAINED_BESIDE in judged.stderr
    assert TRAINED_BESIDE not in cli.eden("evaluate", out, folder, "--4bit").stderr
    assert TRAINED_BESIDE not in cli.eden("evaluate", "eden-tiny", folder).stderr
    decisions = json.loads(judged.stdout)["decisions"]
    assert decisions["n"] == 12 and sorted(map(sum, decisions["confusion"]["counts"])) == [1, 11]


def test_an_evaluation_measures_before_and_after(model: Path, yes_or_no: Path, tmp_path: Path) -> None:
    """Fits, keeps, and says the same of the next evaluation; a threshold makes the model refuse."""
    first = json.loads(cli.eden("evaluate", model, yes_or_no, "--json").stdout)["decisions"]
    assert first["n"] == 50 and "after" not in first and not (model / CALIBRATION).exists()
    assert first["looks"]["gaps"]["another"]["interval"][0] > 0, "eden-tiny looks"
    fitted = json.loads(cli.eden("evaluate", model, yes_or_no, "--calibrate", "--json").stdout)["decisions"]
    assert fitted["before"] == first["before"] and fitted["fitted_here"]
    kept = Calibration.read(model)
    assert kept is not None and kept.fitted["predicate 2"].samples == 50
    result = cli.eden("evaluate", model, yes_or_no, "--max-error", "0.02", "--json")
    assert result.returncode == 0, result.stderr
    second = json.loads(result.stdout)["decisions"]
    assert second["before"] == first["before"] and set(second["after"]) == {"accuracy", "nll", "brier", "ece"}
    kept = Calibration.read(model)
    assert kept is not None
    threshold = kept.fitted["predicate 2"].threshold
    (row,) = [row for row in second["risk_coverage"] if row["max_error"] == 0.02]
    assert threshold == pytest.approx(row["threshold"]) and row["error"] <= 0.02
    page = tmp_path / "page.html"
    shown = cli.eden("evaluate", model, yes_or_no, "--html", page).stdout
    assert "decisions, 50 (as the model has it, and calibrated)" in shown
    assert "50 questions are few: the intervals are wide" in shown
    counts, wrong = np.array(second["confusion"]["counts"]), round(50 * (1 - second["after"]["accuracy"]["value"]))
    assert counts.sum() == 50 and counts.sum() - np.trace(counts) == wrong
    assert sum(of["n"] for of in second["reliability"]["after"]) == 50 and second["curve"][-1][0] == 1
    html = page.read_text()
    written = round(50 * (1 - second["looks"]["score"]))
    assert html.count("data:image/png") == 12 + min(12, wrong) + min(24, written)
    assert all(title in html for title in ("Reliability", "What refusing buys", "The most doubtful", "Does it look?"))
    assert "refused below" in html and html.count("color-mix") == 4


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["eden-tiny", "{data}", "--calibrate"], "a calibration is kept in the model's folder"),
        (["{model}", "world", "--limit", "2", "--calibrate"], "no question of world has a closed set of answers"),
        (["{model}", "{data}", "--max-error", "0.02"], "not calibrated yet"),
        (["{model}", "{data}", "--limit", "8", "--calibrate", "--max-error", "0.02"], "not calibrated yet"),
    ],
)
def test_what_cannot_be_kept_is_one_line(arguments: list[str], what: str, model: Path, yes_or_no: Path) -> None:
    result = cli.eden("evaluate", *(argument.format(data=yes_or_no, model=model) for argument in arguments))
    assert result.returncode == 2 and what in result.stderr and "Traceback" not in result.stderr
    assert not (model / CALIBRATION).exists()
