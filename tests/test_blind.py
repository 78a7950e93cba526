"""Does it look: other pictures in the place of the right ones, what that costs, and a model that never had to look."""

import json
import random
from pathlib import Path
from typing import Any

import cli
import numpy as np
import pytest
from conftest import make_image
from rich.console import Console

import eden
from eden.core.answers import AnswerSet
from eden.evaluate import Question, evaluate, open_task, with_blind_groups
from eden.evaluate.blind import looks, without_pictures
from eden.evaluate.metrics import Measure
from eden.messages import Image, Message, Text
from eden.recipe import load_recipe
from eden.tiny.world import scenes
from eden.training.train import train

QUIET = Console(quiet=True)
COLOURS = ("blue", "green", "red")


@pytest.fixture(scope="module")
def assistant() -> eden.Assistant:
    return eden.load()


def question(*messages: Message) -> Question:
    return Question("1", messages, messages[-1].text, "red", "all", "red", "here")


def test_each_picture_becomes_another_of_the_task(assistant: eden.Assistant, tmp_path: Path) -> None:
    """Never one of the same content, whatever its name; the words, their order and earlier turns stay."""
    for name, colour in {"a": "red", "copy of a": "red", "b": "blue", "c": "lime"}.items():
        make_image(colour).save(tmp_path / f"{name}.png")
    same, copy, blue, lime = (tmp_path / f"{name}.png" for name in ("a", "copy of a", "b", "c"))
    said = Message("user", (Text("Look"), Image(blue), Text("and"), Image(lime), Text("which?")))
    asked = [
        question(Message.user("One?", [same])),
        question(Message.user("Two?", [copy]), Message.assistant("Yes."), said),
        question(Message.user("No picture?")),
    ]
    found = without_pictures(asked, assistant)
    assert list(found) == ["another", "blank"]
    for others in found.values():
        assert [of.text for of in others] == ["One?", asked[1].text]
        before, after = asked[1].messages, others[1].messages
        assert [type(part) for part in after[2].content] == [type(part) for part in said.content]
        assert [message.text for message in after] == [message.text for message in before]
    shown = [source for of in asked for source in of.pictures]
    others = [source for of in found["another"] for source in of.pictures]
    assert set(others) <= set(shown)
    assert all(Path(a).read_bytes() != Path(b).read_bytes() for a, b in zip(shown, others, strict=True))
    assert list(without_pictures(asked[:1], assistant)) == ["blank"], "there is no other picture"
    assert without_pictures(asked[2:], assistant) == {}


def test_a_blank_picture_is_nothing_to_the_tower(assistant: eden.Assistant) -> None:
    asked = without_pictures([question(Message.user("One?", [make_image("red")]))], assistant)["blank"]
    pixels = assistant.encode(asked[0].messages)["pixel_values"]
    assert pixels.abs().max() < 0.01


@pytest.mark.parametrize(
    ("right", "other", "gap", "said"),
    [
        ([1] * 40, [0] * 30 + [1] * 10, 0.75, "It looks: with another question's picture it scores 0.750 less."),
        ([0] * 30 + [1] * 10, [1] * 40, -0.75, "It looks, and is misled: "),
        ([1, 0] * 20, [0, 1] * 20, 0.0, "It answers from the words alone, as far as 40 questions can tell: "),
    ],
)
def test_the_gap_is_paired_and_said_in_a_sentence(right: Any, other: Any, gap: float, said: str) -> None:
    scores = [[{"right": float(score)} for score in of] for of in (right, other)]
    found = looks(Measure(("right",)), scores[0], {"another": scores[1], "blank": scores[0]}, ["yes", "no"] * 20)
    assert found["gaps"]["another"]["gap"] == gap and found["said"].startswith(said)
    low, high = found["gaps"]["another"]["interval"]
    assert low <= gap <= high and (low <= 0 <= high) == (gap == 0)
    assert found["gaps"]["blank"] == {"score": np.mean(right), "gap": 0, "interval": [0, 0]}


@pytest.mark.parametrize(
    ("learned", "said"),
    [
        (range(10), "It looks: "),
        (range(1), "With another question's picture it may lose nothing: the difference comes from some of the 10"),
    ],
)
def test_one_answer_that_is_right_by_chance_is_no_proof_that_it_looks(learned: range, said: str) -> None:
    """What shuffled labels teach: one answer for all pictures of a kind, which for one kind of ten is the right one."""
    expected = [str(place % 10) for place in range(360)]
    right = [{"right": float(int(answer) in learned)} for answer in expected]
    found = looks(Measure(("right",)), right, {"another": [{"right": 0.0}] * 360}, expected)
    low, high = found["gaps"]["another"]["interval"]
    assert found["said"].startswith(said)
    assert (low, high) == ((1, 1) if len(learned) == 10 else (0, pytest.approx(0.3, abs=0.05)))
    few = [str(int(answer) % 3) for answer in expected]
    assert looks(Measure(("right",)), right, {"another": [{"right": 0.0}] * 360}, few)["said"].startswith("It looks: ")


def test_what_was_answered_without_the_pictures_is_kept_apart(assistant: eden.Assistant, tmp_path: Path) -> None:
    """The same folder with and without: no answer is another group's, and none is asked twice."""
    data = Path(__file__).parent.parent / "examples" / "shapes.json"
    without = cli.eden("evaluate", "eden-tiny", data, "--out", tmp_path, "--no-blind", "--json")
    kept = (tmp_path / "predictions.jsonl").read_text()
    whole = cli.eden("evaluate", "eden-tiny", data, "--out", tmp_path, "--json")
    assert "looks" not in json.loads(without.stdout) and (tmp_path / "predictions.jsonl").read_text().startswith(kept)
    result = evaluate(assistant, with_blind_groups(open_task(str(data)), assistant), console=QUIET)
    assert json.loads(whole.stdout)["looks"] == result.looks()
    page = (tmp_path / "report.html").read_text()
    assert "Does it look?" in page and "a blank picture" in page


def test_questions_share_a_picture_behind_other_words(assistant: eden.Assistant) -> None:
    """Each is read by itself, and decided as it is alone."""
    red = make_image("red")
    asked = [[Message("user", (Text(text), Image(red)))] for text in ("Is it red?", "Is it a square, or blue?")]
    yes_or_no = AnswerSet.of()
    together = assistant.decide_all(asked, [yes_or_no] * 2)
    for messages, decision in zip(asked, together, strict=True):
        assert decision.probabilities == pytest.approx(assistant.decide_all([messages], [yes_or_no])[0].probabilities)


def test_a_model_trained_with_shuffled_pictures_answers_from_the_words_alone(tmp_path: Path) -> None:
    """Scenes that eden-tiny knows, in a folder for each colour, or for any: it unlearns to look."""
    rng, drawn = random.Random(0), scenes(1, "test")
    alone = ((scene.objects[0].colour, image) for scene, image in drawn if len(scene.objects) == 1)
    pictures: dict[str, list[Any]] = {colour: [] for colour in COLOURS}
    while min(map(len, pictures.values())) < 36:
        colour, image = next(alone)
        pictures.setdefault(colour, []).append(image)
    for part, some in {"train": slice(12, 36), "test": slice(12)}.items():
        rows = [(colour, image) for colour in COLOURS for image in pictures[colour][some]]
        shown = [image for _, image in rows]
        if part == "train":
            rng.shuffle(shown)
        for place, ((colour, _), image) in enumerate(zip(rows, shown, strict=True)):
            folder = tmp_path / part / colour
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{place}.png")
    changes = ["training.max_steps=30", "training.learning_rate=6e-3", "training.eval_strategy=no"]
    result = train(
        load_recipe("decide", [f"data.path={tmp_path}", f"training.output_dir={tmp_path / 'run'}", *changes]),
        console=QUIET,
    )
    evaluated = cli.eden("evaluate", result.artifact, tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "It answers from the words alone, as far as 36 questions can tell" in evaluated.stdout
    (line,) = [line for line in evaluated.stdout.splitlines() if "another picture" in line]
    assert abs(float(line.split()[3])) < 0.1
