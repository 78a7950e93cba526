"""eden-tiny as it ships: small, as good as its report says, and built by the code beside it."""

import itertools
import json
import random
import re
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file

import eden
from eden.checkpoint import load
from eden.evaluate import evaluate, open_task
from eden.speech import Transcriber, convert_whisper
from eden.tiny.build import BuildConfig, build, write_summary
from eden.tiny.build_whisper import held_out_sentences
from eden.tiny.sentences import as_heard, plain_words, sentences
from eden.tiny.voice import speak
from eden.tiny.whisper import HearingConfig, train_whisper
from eden.tiny.world import HELD_OUT_PAIRS, scenes

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
    assert sum(path.stat().st_size for path in shipped) < 16e6
    # CTranslate2's own format is no pickle, whatever its name says.
    others = [path for path in shipped if path != WEIGHTS / "whisper" / "model.bin"]
    assert {path.suffix for path in others} <= {".json", ".jinja", ".md", ".safetensors"}


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


def test_the_whisper_is_small_and_its_report_reaches_what_is_asked_of_it() -> None:
    folder = WEIGHTS / "whisper"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 4 * 2**20
    rows = {
        cells[0]: [float(cell) for cell in cells[1:]]
        for line in (folder / "BUILD.md").read_text().splitlines()
        if len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 3 and "." in cells[1]
    }
    quiet, noisy = rows["word error rate"]
    assert quiet <= 0.05 and noisy <= 0.15
    assert rows["accuracy, asked by voice"][0] >= rows["accuracy, asked in writing"][0] - 0.05


def test_no_sentence_of_the_evaluation_and_no_held_out_pair_is_spoken_in_training() -> None:
    held_out = held_out_sentences()
    assert "describe the picture" in held_out and len(held_out) > 1000
    spoken = list(itertools.islice(sentences(random.Random(1), held_out), 4000))
    assert not held_out & {plain_words(sentence) for sentence in spoken}
    assert not any(f"{colour} {shape}" in text.lower() for text in spoken for colour, shape in HELD_OUT_PAIRS)
    words = {word for sentence in spoken for word in plain_words(sentence).split()}
    assert {word for sentence in held_out for word in sentence.split()} <= words


def test_a_transcript_is_written_as_people_write() -> None:
    assert as_heard("what color is the star") == "What colour is the star?"
    assert as_heard("Count the stars.") == "Count the stars."
    assert plain_words("What color is the star?") == plain_words("what colour is the star")


def test_the_build_of_the_whisper_runs_from_nothing_to_ears(tmp_path: Path) -> None:
    config = HearingConfig(clips=40, steps=2, batch=4, width=64, encoder_layers=1, decoder_layers=1)
    train_whisper(config, set(), tmp_path / "trained", Console(quiet=True))
    convert_whisper(tmp_path / "trained", tmp_path / "ears", quantization="int8")
    transcript = Transcriber(str(tmp_path / "ears")).transcribe(speak("How many stars are there?"))
    assert transcript.duration > 1
