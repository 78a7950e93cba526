"""At moments drawn at random a command is killed, the disk is full, a folder is closed or a picture is gone.

Every file that a command opens for writing, renames, removes or makes is a moment. What was whole before is whole
afterwards, what is told is one line, and the same command run again ends as one that nothing happened to.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import cli
import pytest
from conftest import make_image
from safetensors.torch import load_file

PROGRAM = """
import errno, json, os, signal, sys
fault, at, place, picture = json.loads(os.environ["TEST_FAULT"])
own, moment = os.getpid(), 0

def changes(event, arguments):
    path = arguments[0] if arguments else None
    if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
        return False
    return event in ("open", "os.rename", "os.remove", "os.mkdir") and str(path).startswith(place)

def hook(event, arguments):
    global moment
    if os.getpid() != own or not changes(event, arguments):
        return
    moment += 1
    if fault == "none":
        os.write(2, b"a moment\\n")
    elif fault == "killed" and moment == at:
        os.kill(own, signal.SIGKILL)
    elif fault == "a picture is gone" and moment == at:
        os.unlink(picture)
    elif fault in ("the disk is full", "not permitted") and moment >= at and event != "os.remove":
        code = errno.ENOSPC if fault == "the disk is full" else errno.EACCES
        raise OSError(code, os.strerror(code), str(arguments[0]))

sys.addaudithook(hook)
from eden.cli import main
main()
"""
FAULTS = ("killed", "the disk is full", "not permitted", "a picture is gone")


@dataclass
class Place:
    """A folder with data, and the one a command writes to."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def work(self) -> Path:
        return self.folder / "work"

    def run(self, arguments: list[str], fault: str = "none", at: int = 0) -> subprocess.CompletedProcess[str]:
        picture = str(self.data / "3.png")
        setting = json.dumps([fault, at, str(self.work), picture])
        environment = os.environ | {"EDEN_CACHE": str(self.work / "cache"), "TEST_FAULT": setting}
        return cli.Python("-c", PROGRAM, *arguments, env=environment).finished()


def make_place(folder: Path) -> Place:
    place = Place(folder)
    place.data.mkdir(parents=True)
    place.work.mkdir()
    rows = []
    for number in range(8):
        make_image(["red", "green", "blue"][number % 3], (32 + number, 32)).save(place.data / f"{number}.png")
        question = {"from": "human", "value": "<image>\nWhich colour is it?"}
        answer = {"from": "gpt", "value": ["Red.", "Green.", "Blue."][number % 3]}
        rows.append({"id": str(number), "image": f"{number}.png", "conversations": [question, answer]})
    (place.data / "data.json").write_text(json.dumps(rows))
    return place


def command_of(name: str, place: Place) -> list[str]:
    data, work = place.data / "data.json", place.work
    recipe = [
        "digits", f"data.path={data}", "data.images=null", "data.eval_fraction=0.25", "data.features=cached",
        f"training.output_dir={work / 'run'}", "training.max_steps=4", "training.logging_steps=1",
        "training.save_strategy=steps", "training.save_steps=2", "training.per_device_train_batch_size=2",
    ]  # fmt: skip
    return {
        "cache": ["cache", *recipe],
        "train": ["train", *recipe],
        "evaluate": ["evaluate", "eden-tiny", str(data), "--batch-size", "2", "--out", str(work / "kept")],
        "export": ["export", str(place.folder / "model"), "--to", "hf", str(work / "exported")],
    }[name]


def outcome(name: str, place: Place) -> dict[str, object]:
    """What a command leaves, without what tells of the hour."""
    work = place.work
    if name == "cache":
        # Rounded: another run may have put other pictures together.
        chunks = [load_file(path) for path in (work / "cache").rglob("*.safetensors")]
        sums = sorted(float(row.double().sum()) for chunk in chunks for rows in chunk.values() for row in rows)
        return {"sums": [round(total, 1) for total in sums]}
    if name == "train":
        rows = [json.loads(line) for line in (work / "run" / "training.jsonl").read_text().splitlines()]
        names = {path.name for path in (work / "run").iterdir() if path.is_file()}
        return {
            "losses": {row["step"]: round(row["loss"], 4) for row in rows if "loss" in row},
            "files": sorted(names),
        }
    if name == "evaluate":
        return {"kept": (work / "kept" / "predictions.jsonl").read_bytes()}
    return {path.name: path.read_bytes() for path in (work / "exported").iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Place, int, dict[str, object]]]:
    """Each command run to its end: where, in how many moments, and what it left."""
    found = {}
    for name in ("cache", "train", "evaluate", "export"):
        place = make_place(tmp_path_factory.mktemp(name) / "place")
        if name == "export":
            trained = found["train"][0].work / "run"
            shutil.copytree(trained, place.folder / "model", ignore=shutil.ignore_patterns("checkpoint-*"))
        result = place.run(command_of(name, place))
        assert result.returncode == 0, result.stderr
        found[name] = place, result.stderr.count("a moment\n"), outcome(name, place)
    return found


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(4, 54))])
def test_what_was_whole_stays_whole_and_going_on_works(
    seed: int, undisturbed: dict[str, tuple[Place, int, dict[str, object]]]
) -> None:
    rng = random.Random(seed)
    name, fault = [*undisturbed][seed % 4], FAULTS[(seed + seed // 4) % 4]
    place, moments, expected = undisturbed[name]
    at = rng.randint(1, moments)
    print(f"{name}: {fault} at moment {at} of {moments}")
    whole = {part: snapshot(place.folder / part) for part in ("data", "model")}
    shutil.rmtree(place.work)
    place.work.mkdir()
    result = place.run(command_of(name, place), fault, at)
    if fault == "a picture is gone":
        (place.data / "3.png").write_bytes(whole["data"]["3.png"])
    assert {part: snapshot(place.folder / part) for part in whole} == whole
    if result.returncode:
        if fault == "killed":
            assert result.returncode == -signal.SIGKILL
        else:
            assert result.returncode in (1, 2) and "Traceback" not in result.stderr, result.stderr
            assert result.stderr.rstrip().splitlines()[-1].startswith("error "), result.stderr
        result = place.run(command_of(name, place))
        if result.returncode == 2 and "--resume" in result.stderr:  # it says how to go on
            result = place.run([*command_of(name, place), "--resume"])
    assert result.returncode == 0, result.stderr
    assert outcome(name, place) == expected
