"""Class folders, CSV and JSON lines as decision samples."""

import json
from pathlib import Path

import cli
import pytest
from conftest import make_image

from eden import DataError
from eden.core.answers import AnswerSet
from eden.data.class_folders import CLASS_QUESTION
from eden.data.decisions import Decisions
from eden.data.validate import check, load_samples
from eden.evaluate import open_task


def pictures(folder: Path, **numbers: int) -> Path:
    for name, number in numbers.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for place in range(number):
            make_image("red", (8, 8 + place)).save(folder / name / f"{place}.png")
    return folder


def test_class_folders_are_samples_with_their_classes(tmp_path: Path) -> None:
    """Also one called as a kind of conversation; what is no picture, and what is hidden, is none."""
    folder = pictures(tmp_path / "photos", ok=3, details=2)
    (folder / "ok" / "notes.txt").write_text("no picture")
    (folder / ".cache").mkdir()
    samples, report = load_samples(folder)
    assert report.samples == 5
    decisions = Decisions(samples)
    assert [sample.messages[-1].text for sample in samples] == ["details"] * 2 + ["ok"] * 3
    for sample in samples:
        assert sample.messages[-2].text == CLASS_QUESTION and len(sample.messages[-2].images) == 1
        assert sample.answers == decisions.of(sample) == AnswerSet.of(["details", "ok"])
    (asked,) = decisions.asked()
    assert asked.counts == {"details": 2, "ok": 3} and asked.too_small == ["details", "ok"]


def test_a_new_picture_is_seen(tmp_path: Path) -> None:
    folder = pictures(tmp_path, ok=3, cracked=2)
    assert check(folder)[0].samples == 5
    pictures(folder, cracked=4)
    assert check(folder)[0].samples == 7


def test_train_and_test_are_the_two_parts(tmp_path: Path) -> None:
    pictures(tmp_path / "train", ok=12, cracked=3)
    pictures(tmp_path / "test", ok=2, cracked=1)
    assert check(tmp_path)[0].samples == 15
    questions = open_task(str(tmp_path)).groups["accuracy"]
    assert [question.expected for question in questions] == ["cracked", "ok", "ok"]
    assert all(question.answers == AnswerSet.of(["cracked", "ok"]) for question in questions)


def test_the_check_counts_by_class_and_names_those_too_small(tmp_path: Path) -> None:
    folder = pictures(tmp_path, ok=12, cracked=1)
    result = cli.eden("check", folder)
    assert result.returncode == 0, result.stderr
    assert f"decisions, choice: {CLASS_QUESTION}" in result.stdout
    assert "  cracked: 1, too few to calibrate with\n  ok: 12\n" in result.stdout
    found = json.loads(cli.eden("check", folder, "--json").stdout)["decisions"]
    assert found == [
        {
            "question": CLASS_QUESTION,
            "kind": "choice",
            "answers": {"cracked": 1, "ok": 12},
            "too_small": ["cracked"],
        }
    ]


def test_one_class_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one class only, ok"):
        check(pictures(tmp_path, ok=3))


def test_a_file_says_the_answers_or_has_them(tmp_path: Path) -> None:
    """A column of levels, yes and no whatever is asked, and a question asked often; a caption is no decision."""
    make_image("red").save(tmp_path / "0.png")
    rows = [("how bad", "slight", "none|slight|bad")]
    rows += [("is it red", "Yes.", ""), ("is it blue", "no", "")]
    rows += [("which colour", colour, "") for colour in ["red", "blue"] * 5]
    rows += [("describe it", f"a picture, number {place}", "") for place in range(10)]
    lines = ["file_name,question,answer,levels", *(f'0.png,{q},"{a}",{levels}' for q, a, levels in rows)]
    (tmp_path / "data.csv").write_text("\n".join(lines) + "\n")
    samples, _ = load_samples(tmp_path / "data.csv")
    decisions = Decisions(samples)
    found = {sample.messages[-2].text: decisions.of(sample) for sample in samples}
    assert found == {
        "how bad": AnswerSet.of(levels=["none", "slight", "bad"]),
        "is it red": AnswerSet.of(),
        "is it blue": AnswerSet.of(),
        "which colour": AnswerSet.of(["blue", "red"]),
        "describe it": None,
    }
    known = {"which colour": AnswerSet.of(["blue", "green", "red"])}
    assert Decisions(samples, known).of(samples[3]) == known["which colour"]
    counts = {asked.question: asked.counts for asked in decisions.asked()}
    assert counts["(yes or no)"] == {"yes": 1, "no": 1} and counts["how bad"] == {"none": 0, "slight": 1, "bad": 0}


@pytest.mark.parametrize(
    ("record", "what"),
    [
        ({"choices": ["ok", "ok"]}, "'ok' stands twice among the choices"),
        ({"choices": ["ok"]}, "1 choices"),
        ({"levels": [1, 2]}, "`levels` is no list of strings"),
        ({"choices": ["ok", "cracked"], "answer": "craked"}, "the answer craked is none of ok, cracked"),
    ],
)
def test_faulty_answers_are_named(tmp_path: Path, record: dict[str, object], what: str) -> None:
    make_image("red").save(tmp_path / "0.png")
    record = {"file_name": "0.png", "question": "which", "answer": "ok"} | record
    (tmp_path / "data.jsonl").write_text(json.dumps(record) + "\n")
    report, _ = check(tmp_path / "data.jsonl")
    assert [(fault.kind, fault.what) for fault in report.faults] == [("bad_answers", what)]


def test_a_missing_picture_is_a_fault_of_its_line(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("file_name,question,answer\nnot.png,which,ok\n")
    report, _ = check(tmp_path / "data.csv")
    assert [(fault.kind, fault.where) for fault in report.faults] == [("missing_image", f"{tmp_path}/data.csv line 2")]
