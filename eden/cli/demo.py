"""The tour: ask eden-tiny in writing and by voice, teach it to read real handwritten digits, ask again."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ..checkpoint import load
from ..core.console import progress
from ..core.files import write_file
from ..core.location import EDEN_TINY
from ..evaluate import evaluate, open_task
from ..inference.assistant import Assistant
from ..inference.sampling import Sampling
from ..media.audio import to_wav
from ..media.speech_synthesis import speak
from ..messages import Message
from ..recipe import load_recipe
from ..tiny.world import scenes
from ..training.train import train

QUESTION = "What digit is this?"
SPOKEN_QUESTION = "What colour is the star?"
UNSEEN_DIGITS = 360
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
    recipe = load_recipe(
        "digits", [f"data.path={train_file}", f"training.output_dir={folder / 'artifact'}", *overrides]
    )
    result = train(recipe, console=console)

    console.rule("4. The same questions again")
    after = evaluate(Assistant(load(str(result.artifact))), task, console=console).accuracy()
    console.print(f"Digits it never saw, read right: {before:.0%} before, [bold]{after:.0%} after[/].")
    return DemoResult(before, after, UNSEEN_DIGITS, result.artifact, result.report)


def write_digits(folder: Path, console: Console) -> tuple[Path, Path]:
    """The UCI handwritten digits (shipped inside scikit-learn) as PNG files and two LLaVA-format files.

    Returns:
        The file to train on (1,437 samples) and the file of the 360 held back.

    Source: E. Alpaydin and C. Kaynak, https://doi.org/10.24432/C50P49 (CC BY 4.0).
    """
    import PIL.Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = list(range(len(digits.images)))
    random.Random(0).shuffle(order)
    records = []
    with progress(console) as bar:
        for index in bar.track(order, description="writing digits as PNG"):
            grey = (255 - digits.images[index] * (255 / 16)).astype("uint8")  # dark ink on white paper
            side = grey.shape[0] * DIGIT_SCALE
            picture = PIL.Image.fromarray(grey).resize((side, side), PIL.Image.Resampling.BICUBIC)
            name = f"{index:04d}.png"
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / name)
            records.append(
                {
                    "id": f"{index:04d}",
                    "image": name,
                    "conversations": [
                        {"from": "human", "value": f"<image>\n{QUESTION}"},
                        {"from": "gpt", "value": str(int(digits.target[index]))},
                    ],
                }
            )
    held_back, rest = records[:UNSEEN_DIGITS], records[UNSEEN_DIGITS:]
    return (
        write_file(folder / "train.json", json.dumps(rest, indent=1)),
        write_file(folder / "test.json", json.dumps(held_back, indent=1)),
    )


def _ask_about_a_picture(assistant: Assistant, path: Path, console: Console) -> None:
    _, picture = next(scenes(seed=3, split="test"))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    console.print(f"the picture: {path}")
    for question in ("Describe the picture.", "How many objects are there?"):
        console.print(f"  {question} [bold]{assistant.ask(question, images=[path])}[/]")
    recording = write_file(path.with_name("question.wav"), to_wav(speak(SPOKEN_QUESTION)))
    console.print(f"a spoken question: {recording}")
    (message,) = assistant.transcribe_messages([Message.user("", [path], [recording])])
    answer = "".join(assistant.reply([message], Sampling()))
    console.print(f'  heard "{message.text}" [bold]{answer}[/]')
