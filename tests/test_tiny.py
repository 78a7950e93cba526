"""eden-tiny as it ships: small, as good as its report says, and built by the code beside it."""

import json
import re
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file

import eden
from eden.checkpoint import load
from eden.evaluate import evaluate, open_task
from eden.tiny.build import BuildConfig, build, write_summary
from eden.tiny.world import scenes

WEIGHTS = Path(eden.__file__).parent / "tiny" / "weights"
GROUPS = {"accuracy": "unseen scenes", "accuracy_unseen_pairs": "unseen pairs", "accuracy_blind": "shuffled pictures"}
LEAST = {"accuracy": 0.95, "accuracy_unseen_pairs": 0.80}
BLIND = 0.45
"""What a model reaches that does not look."""


@pytest.fixture(scope="module")
def assistant() -> eden.Assistant:
    return eden.load("eden-tiny")


def test_the_weights_are_small_safe_and_carry_no_copy_of_the_code() -> None:
    shipped = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in shipped) < 12e6
    assert {path.suffix for path in shipped} <= {".json", ".jinja", ".md", ".safetensors"}


def test_the_build_report_tells_of_these_weights() -> None:
    report = json.loads((WEIGHTS / "build_report.json").read_text())
    saved = sum(tensor.numel() for tensor in load_file(WEIGHTS / "model.safetensors").values())
    assert saved == report["parameters"]
    page = (WEIGHTS / "BUILD.md").read_text()
    for group in GROUPS:
        assert f"{report['world'][group]:.3f}" in page


def test_it_answers_as_well_as_the_report_says(assistant: eden.Assistant) -> None:
    promised = json.loads((WEIGHTS / "build_report.json").read_text())["world"]
    result = evaluate(assistant, open_task("world"), console=Console(quiet=True))
    for group in GROUPS:
        assert result.accuracy(group) == pytest.approx(promised[group], abs=0.02), result.to_dict()
    assert all(result.accuracy(group) >= least for group, least in LEAST.items()), result.to_dict()
    assert result.accuracy("accuracy_blind") <= BLIND


def test_two_seeds_of_the_build_reached_what_is_asked_of_it() -> None:
    page = (WEIGHTS / "BUILD.md").read_text()
    reached = {
        group: [float(cell) for cell in re.findall(rf"^\| {name} \|(.*)\|$", page, re.MULTILINE)[0].split("|")]
        for group, name in GROUPS.items()
    }
    assert all(len(row) == 2 for row in reached.values())
    assert all(value >= least for group, least in LEAST.items() for value in reached[group])
    assert max(reached["accuracy_blind"]) <= BLIND


def test_a_description_streams_in_several_pieces(assistant: eden.Assistant) -> None:
    picture = next(image for scene, image in scenes(5, "test") if len(scene.objects) == 3)
    pieces = list(assistant.stream("Describe the picture.", images=[picture]))
    assert len(pieces) > 5
    assert "".join(pieces) == assistant.ask("Describe the picture.", images=[picture])


def test_it_talks_without_a_picture(assistant: eden.Assistant) -> None:
    assert "eden-tiny" in assistant.ask("Who are you?")


def test_the_build_runs_from_nothing_to_an_artifact(tmp_path: Path) -> None:
    config = BuildConfig(
        seed=3, scenes=128, contrastive_steps=2, contrastive_batch=16, conversation_steps=2, practice_steps=2,
        conversation_batch=4, questions_asked=9,
    )  # fmt: skip
    report = build(config, tmp_path / "seed-3", Console(quiet=True))
    assert report["config"]["seed"] == 3 and report["world"]["n"] == 27
    assert load(str(tmp_path / "seed-3")).processor.num_image_tokens == 36
    assert "| | seed 3 |" in write_summary(tmp_path).read_text()
    before_practice = (tmp_path / "seed-3-conversations" / "model.safetensors").stat().st_mtime_ns
    resumed = build(config, tmp_path / "seed-3", Console(quiet=True))
    assert resumed["world"]["by_kind"] == report["world"]["by_kind"]
    assert (tmp_path / "seed-3-conversations" / "model.safetensors").stat().st_mtime_ns == before_practice
