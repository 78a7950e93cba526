"""Questions about pictures of the world: conversations to learn from, sets to be judged on, files to train on."""

from __future__ import annotations

import json
import random
from pathlib import Path

import PIL.Image

from ..files import write_file
from .questions import KINDS, Question, ask
from .world import HELD_OUT_PAIRS, Object, Scene, Split, scenes


def any_question(scene: Scene, rng: random.Random) -> Question:
    """A question of a random kind among those that this scene allows."""
    while True:
        if (question := ask(scene, rng.choice(KINDS), rng)) is not None:
            return question


def evaluation_set(n: int, *, seed: int, split: Split) -> list[tuple[Scene, PIL.Image.Image, Question]]:
    """`n` questions, each about a picture of its own, the kinds in equal numbers.

    In the split `unseen_pairs` every question is about an object whose colour and shape were never seen together.
    """
    rng = random.Random(f"questions {seed} {split}")
    found: list[tuple[Scene, PIL.Image.Image, Question]] = []
    for scene, image in scenes(seed, split):
        if len(found) == n:
            break
        about: Object | None = None
        if split == "unseen_pairs":
            about = rng.choice([thing for thing in scene.objects if thing.pair in HELD_OUT_PAIRS])
        question = ask(scene, KINDS[len(found) % len(KINDS)], rng, about)
        if question is not None:
            found.append((scene, image, question))
    return found


def write_dataset(folder: str | Path, n: int, *, seed: int, split: Split = "train", turns: int = 2) -> Path:
    """Writes `n` pictures as PNG and a LLaVA-format JSON of conversations about them; returns the JSON's path.

    Raises:
        StorageError: the folder is not writable.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"dataset {seed} {split}")
    records = []
    for index, (scene, image) in zip(range(n), scenes(seed, split), strict=False):
        name = f"{index:06d}.png"
        image.save(folder / name)
        conversation = []
        for turn in range(turns):
            question = any_question(scene, rng)
            placeholder = "<image>\n" if turn == 0 else ""
            conversation.append({"from": "human", "value": placeholder + question.text})
            conversation.append({"from": "gpt", "value": question.answer})
        records.append({"id": f"{index:06d}", "image": name, "conversations": conversation})
    return write_file(folder / f"{split}.json", json.dumps(records, indent=1))
