"""`eden decide`: one question, a folder with the doubtful pictures first, a run that is stopped and goes on."""

import csv
import json
import signal
from pathlib import Path

import cli
import pytest
from conftest import make_image

import eden
from eden.checkpoint.calibration import Calibration, Fitted
from eden.core.answers import AnswerSet
from eden.core.location import EDEN_TINY_FOLDER
from eden.inference.assistant import Assistant
from eden.tiny.world import scenes

QUESTION = "Is there a star?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight scenes and a file that is no picture."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "more").mkdir()
    drawn = scenes(seed=5, split="test")
    for number in range(8):
        _, picture = next(drawn)
        picture.save(folder / ("more" if number % 2 else ".") / f"{number}.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def assistant() -> Assistant:
    return eden.load("eden-tiny")


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_the_command_line_says_what_python_says(folder: Path, assistant: Assistant) -> None:
    picture = folder / "0.png"
    result = cli.eden("decide", "--image", picture, QUESTION, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {
        "model": "eden-tiny",
        "question": QUESTION,
        **assistant.decide(QUESTION, [picture]).to_dict(),
    }
    text = cli.eden("decide", "--image", picture, "How many objects are there?", "--levels", "One.,Two.,Three.").stdout
    found = assistant.decide("How many objects are there?", [picture], levels=["One.", "Two.", "Three."])
    assert text.splitlines()[0].split() == [found.answer, f"{found.probability:.4f}"]
    assert text.splitlines()[-1].split() == ["mean", "level", f"{found.score:.2f}", "of", "3"]


def test_a_folder_in_order_of_doubt(folder: Path, assistant: Assistant, tmp_path: Path) -> None:
    out = tmp_path / "labels.csv"
    result = cli.eden("decide", folder, QUESTION, "--out", out)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{out}: 9 pictures, the doubtful first, 1 could not be opened\n"
    first, *rows = read(out)
    assert first["file"] == "broken.jpg" and "image" in first["error"] and not first["answer"]
    confidences = [float(row["confidence"]) for row in rows]
    assert len(rows) == 8 and confidences == sorted(confidences)
    for row in rows:
        found = assistant.decide(QUESTION, [folder / row["file"]])
        assert row["answer"] == found.answer
        assert float(row["p(yes)"]) == pytest.approx(found.probabilities["yes"], abs=2e-5)
    assert not list(tmp_path.glob("*.part"))
    again = cli.eden("decide", folder, QUESTION, "--out", out)
    assert again.returncode == 2 and "the file is there already" in again.stderr


def test_a_run_that_was_stopped_goes_on(folder: Path, tmp_path: Path) -> None:
    """Stopped at a picture that it had already opened, when the pictures before it were written down."""
    whole, out = tmp_path / "whole.csv", tmp_path / "labels.csv"
    assert cli.eden("decide", folder, QUESTION, "--out", whole).returncode == 0
    part = out.with_name("labels.csv.part")
    command = ("-m", "eden", "decide", folder, QUESTION, "--out", out)
    with cli.Python(*command, stop=("eden.inference.folder_decisions", "Labels.add", 1)) as process:
        process.wait_until_stopped()
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not out.exists()
    lines = part.read_text().splitlines(keepends=True)
    assert len(lines) == 10
    part.write_text("".join(lines[:5]) + lines[5][:7])  # and one was cut off
    other = cli.eden("decide", folder, "Is there a circle?", "--out", out)
    assert other.returncode == 2 and "it holds the decisions of another run" in other.stderr
    assert cli.eden("decide", folder, QUESTION, "--out", out).returncode == 0
    for one, two in zip(read(out), read(whole), strict=True):
        assert (one["file"], one["answer"]) == (two["file"], two["answer"])
    assert not part.exists()


def test_a_model_knows_what_it_was_trained_to_decide(folder: Path, tmp_path: Path) -> None:
    import shutil

    model = tmp_path / "model"
    shutil.copytree(EDEN_TINY_FOLDER, model)
    known = AnswerSet.of(["One.", "Two.", "Three."])
    fitted = {known.key: Fitted(2.5, 100, threshold=0.999999, max_error=0.01)}
    Calibration(fitted, {"How many objects are there?": known}).write(model)
    found = json.loads(cli.eden("decide", folder, "-m", model, "--json").stdout)
    assert found["question"] == "How many objects are there?" and found["answers"] == list(known.answers)
    decided = [row for row in found["decisions"] if "error" not in row]
    assert len(decided) == 8
    assert all(row["calibrated"] and row["refused"] == (row["probability"] < 0.999999) for row in decided)
    raw = eden.load("eden-tiny").decide(found["question"], [folder / decided[0]["file"]], choices=known.answers)
    warmed = {answer: p ** (1 / 2.5) for answer, p in raw.probabilities.items()}
    expected = {answer: p / sum(warmed.values()) for answer, p in warmed.items()}
    assert decided[0]["probabilities"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--choices", "ok", "which"], "1 choices"),
        (["--choices", "ok,ok", "which"], "'ok' stands twice among the choices"),
        (["--choices", "a,b", "--levels", "a,b", "which"], "both choices and levels are given"),
        (["which", "--out", "labels.csv"], "--out without a folder of pictures"),
        (["which", "one"], "more than one question: 'one'"),
        (["--image", "{folder}/0.png"], "no question"),
        (["{folder}", "which", "--image", "{folder}/0.png"], "a folder and --image or --audio"),
        (["{empty}", "which"], "no picture in the folder"),
    ],
)
def test_what_cannot_be_decided_is_one_line(arguments: list[str], what: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    given = [argument.format(folder=folder, empty=tmp_path / "empty") for argument in arguments]
    result = cli.eden("decide", *given, cwd=tmp_path)
    assert result.returncode == 2 and what in result.stderr
    assert "Traceback" not in result.stderr and not result.stdout


def test_a_folder_of_one_class_of_pictures_needs_a_question(tmp_path: Path) -> None:
    make_image("red").save(tmp_path / "0.png")
    result = cli.eden("decide", tmp_path)
    assert result.returncode == 2 and "no question" in result.stderr
