"""Questions about pictures of the world: conversations to learn from, sets to be judged on."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import PIL.Image

from ..core.files import write_file
from ..messages import Message, Text
from .conversations import ANYWHERE, SYSTEM, converse, to_messages
from .foreign import KINDS as FOREIGN, foreign_picture
from .questions import KINDS, Question, ask
from .world import HELD_OUT_PAIRS, Object, Scene, Split, scenes

Scenes: TypeAlias = Iterator[tuple[Scene, PIL.Image.Image]]


def evaluation_set(
    n: int, *, seed: int, split: Split, draw: Callable[[int, Split], Scenes] = scenes
) -> list[tuple[Scene, PIL.Image.Image, Question]]:
    """`n` questions, each about a picture of its own, the kinds in equal numbers.

    In the split `unseen_pairs` every question is about an object whose colour and shape were never seen together.

    Args:
        n: how many.
        seed: of questions and pictures.
        split: of the scenes.
        draw: what draws them by seed and split, `scenes` or `strips`.
    """
    rng = random.Random(f"questions {seed} {split}")
    found: list[tuple[Scene, PIL.Image.Image, Question]] = []
    for scene, image in draw(seed, split):
        if len(found) == n:
            break
        about: Object | None = None
        if split == "unseen_pairs":
            about = rng.choice([thing for thing in scene.objects if thing.pair in HELD_OUT_PAIRS])
        question = ask(scene, KINDS[len(found) % len(KINDS)], rng, about)
        if question is not None:
            found.append((scene, image, question))
    return found


def write_conversations(folder: str | Path, n: int, *, seed: int) -> Path:
    """Writes `n` conversations as eden-tiny's last stages of training have them, and returns their LLaVA-format JSON.

    A fine-tuning that mixes some in forgets neither the world, nor to converse, nor to decline what is not of it.

    Raises:
        StorageError: the folder is not writable.
    """
    folder = Path(folder)
    rng = random.Random(f"conversations {seed} train")
    drawn = scenes(seed, "train")
    unknown = [kind for kind in FOREIGN if kind != "photograph"]
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for index in range(n):
        shown: list[Scene | None] = []
        names = []
        for number in range(rng.choices((0, 1, 2), weights=(6, 74, 20))[0]):
            of_the_world = rng.random() < 0.85
            scene, picture = next(drawn)
            if not of_the_world:
                picture = foreign_picture(rng.choice(unknown), "train", [], rng)
            names.append(f"{index:06d}-{number}.png")
            picture.save(folder / names[-1])
            shown.append(scene if of_the_world else None)
        system = rng.choice(SYSTEM) if rng.random() < 0.2 else None
        messages = to_messages(converse(shown, KINDS, ANYWHERE, rng), [folder / name for name in names], rng, system)
        conversation = [{"from": _SPEAKERS[message.role], "value": _with_placeholders(message)} for message in messages]
        records.append({"id": f"{index:06d}", "image": names, "conversations": conversation})
    return write_file(folder / "train.json", json.dumps(records, indent=1))


_SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}


def _with_placeholders(message: Message) -> str:
    return "".join(part.text if isinstance(part, Text) else "<image>" for part in message.content)
