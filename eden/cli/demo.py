"""The tour: ask eden-tiny in writing and by voice, teach it to read real handwritten digits, ask again."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
from rich.console import Console

from ..checkpoint import load
from ..core.console import progress
from ..core.files import write_file
from ..core.location import EDEN_TINY
from ..errors import InputError
from ..evaluate import evaluate, open_task
from ..inference.assistant import Assistant
from ..inference.sampling import Sampling
from ..media.audio import to_wav
from ..media.speech_synthesis import speak
from ..messages import Message
from ..recipe import load_recipe
from ..tiny.dataset import write_conversations
from ..tiny.world import scenes
from ..training.train import train

QUESTION = "What digit is this?"
SPOKEN_QUESTION = "What colour is the star?"
UNSEEN_DIGITS = 360
WORLD_CONVERSATIONS = 400
DIGIT_SCALE = 12
"""Pixels per pixel: the scans are 8x8, the pictures 96x96."""


@dataclass(frozen=True)
class DemoResult:
    """Accuracies on `n` digits never trained on, before and after fine-tuning, and where the files are."""

    before: float
    after: float
    n: int
    artifact: Path
    report: Path


def run_demo(folder: str | Path, console: Console, *, overrides: tuple[str, ...] = ()) -> DemoResult:
    """Runs the tour and leaves data, artifact and report in `folder`.

    Raises:
        RecipeError: `folder` already holds a run.
        StorageError: the disk is full.
    """
    folder = Path(folder)
    console.rule("1. eden-tiny answers questions about a picture, in writing and by voice")
    _ask_about_a_picture(Assistant(load(EDEN_TINY)), folder / "scene.png", console)

    console.rule("2. Real images: 1,797 handwritten digits")
    train_file, test_file = write_digits(folder / "digits", console)
    task = open_task(str(test_file))
    before = evaluate(Assistant(load(EDEN_TINY)), task, console=console).accuracy()
    console.print(f"eden-tiny, never shown a digit, reads {before:.0%} of {UNSEEN_DIGITS} right.")

    console.rule("3. QLoRA fine-tuning: 4-bit NF4, LoRA on the language model, the projector")
    console.print("One sample in five is a conversation about its own world, so that nothing is forgotten.")
    world_file = write_conversations(folder / "world", WORLD_CONVERSATIONS, seed=0)
    sources = [{"path": str(train_file), "weight": 4}, {"path": str(world_file), "weight": 1}]
    mix = ["data.path=null", f"data.sources={json.dumps(sources)}", f"training.output_dir={folder / 'artifact'}"]
    result = train(load_recipe("digits", [*mix, *overrides]), console=console)

    console.rule("4. The same questions again")
    assistant = Assistant(load(str(result.artifact)))
    _ask(assistant, folder / "scene.png", console)
    after = evaluate(assistant, task, console=console).accuracy()
    console.print(f"Digits it never saw, read right: {before:.0%} before, [bold]{after:.0%} after[/].")
    return DemoResult(before, after, UNSEEN_DIGITS, result.artifact, result.report)


def write_digits(folder: Path, console: Console) -> tuple[Path, Path]:
    """The digits as PNG files and two LLaVA-format files.

    Returns:
        The file to train on (1,437 samples) and the file of the 360 held back.
    """
    records = []
    for name, digit, picture in _digits(console):
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / name)
        turns = [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": digit}]
        records.append({"id": Path(name).stem, "image": name, "conversations": turns})
    held_back, rest = records[:UNSEEN_DIGITS], records[UNSEEN_DIGITS:]
    return (
        write_file(folder / "train.json", json.dumps(rest, indent=1)),
        write_file(folder / "test.json", json.dumps(held_back, indent=1)),
    )


def write_class_folders(folder: Path, console: Console) -> None:
    """The digits in a folder for each class, in `train/`, and those that `write_digits` holds back in `test/`.

    Raises:
        InputError: there is something in the folder.
    """
    if folder.exists() and any(folder.iterdir()):
        raise InputError("the folder is not empty", where=str(folder), hint="Name a new one.")
    for number, (name, digit, picture) in enumerate(_digits(console)):
        place = folder / ("test" if number < UNSEEN_DIGITS else "train") / digit
        place.mkdir(parents=True, exist_ok=True)
        picture.save(place / name)


def _digits(console: Console) -> Iterator[tuple[str, str, PIL.Image.Image]]:
    """The UCI handwritten digits (shipped inside scikit-learn), shuffled: file name, digit, picture.

    Source: E. Alpaydin and C. Kaynak, https://doi.org/10.24432/C50P49 (CC BY 4.0).
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = list(range(len(digits.images)))
    random.Random(0).shuffle(order)
    with progress(console) as bar:
        for index in bar.track(order, description="writing digits as PNG"):
            grey = (255 - digits.images[index] * (255 / 16)).astype("uint8")  # dark ink on white paper
            side = grey.shape[0] * DIGIT_SCALE
            picture = PIL.Image.fromarray(grey).resize((side, side), PIL.Image.Resampling.BICUBIC)
            yield f"{index:04d}.png", str(int(digits.target[index])), picture


def _ask_about_a_picture(assistant: Assistant, path: Path, console: Console) -> None:
    _, picture = next(scenes(seed=3, split="test"))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    console.print(f"the picture: {path}")
    _ask(assistant, path, console)
    recording = write_file(path.with_name("question.wav"), to_wav(speak(SPOKEN_QUESTION)))
    console.print(f"a spoken question: {recording}")
    (message,) = assistant.transcribe_messages([Message.user("", [path], [recording])])
    answer = "".join(assistant.reply([message], Sampling()))
    console.print(f'  heard "{message.text}" [bold]{answer}[/]')


def _ask(assistant: Assistant, path: Path, console: Console) -> None:
    for question in ("Describe the picture.", "How many objects are there?"):
        console.print(f"  {question} [bold]{assistant.ask(question, images=[path])}[/]")
