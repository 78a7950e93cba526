"""What a whole picture and its tiles show: `python -m bench.sight [FOLDER]`, under an hour on two cores.

eden-tiny, which crops and sees one view, is trained on four times, each pair for as long on the same samples: on
pictures of its world of 3:1 with objects at the ends, cropped and padded; and on pictures of 448 pixels with one small
shape in them, whole and in tiles beside, by a tower that was taught to see one. Each is asked about pictures that it
was not trained on. What is in the folder already is not made again.
"""

import functools
import json
import math
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from rich.console import Console

import eden
from bench.real import train
from bench.table import Bar, Row, show
from eden.checkpoint import load, save
from eden.checkpoint.backbones import LoadOptions, open_image_processor
from eden.checkpoint.vision_encoder import VisionEncoder
from eden.core.files import write_file
from eden.core.location import EDEN_TINY_FOLDER
from eden.evaluate import evaluate, open_task
from eden.model.modeling import run_tower
from eden.recipe import ModelSection
from eden.tiny.dataset import evaluation_set
from eden.tiny.questions import ask
from eden.tiny.world import CELL, COLOURS, Scene, Split, render, sample_scene, strips

SAMPLES, UNSEEN = 4800, 360
SIDE, SPECK = 448, 4
"""Of a picture and of the shape in it, in pixels."""
TRAINED_SPECKS = (4, 4, 6, 9, 14, 20)
"""Pixels of the shapes in training: larger ones are learned first, and lead to the small."""
TILES = 16
CHANGES = [
    "quantization=null",
    "data.row_length=null",
    "data.eval_fraction=0",
    "training.eval_strategy=no",
    "training.per_device_train_batch_size=16",
    "training.max_steps=600",
    "training.learning_rate=1e-3",
]
"""Of the recipe `digits`: every sample twice."""

TOWER_STEPS, TOWER_BATCH = 600, 32

Weights = dict[str, torch.Tensor]
Asked = Iterator[tuple[PIL.Image.Image, str, str]]
"""Pictures, a question about each, and its answer."""


def main() -> None:
    """Makes everything in a folder, or what is not there yet, and prints the table."""
    console = Console()
    with tempfile.TemporaryDirectory() as temporary:
        show({"sight": measure(Path(sys.argv[1] if len(sys.argv) > 1 else temporary), console)}, console)


def measure(folder: Path, console: Console) -> list[Row]:
    """The shares of answers that are right."""
    wide = {part: write(folder / f"wide-{part}", wide_pictures(part)) for part in ("train", "test")}
    specks = {part: write(folder / f"specks-{part}", pictures_of_specks(part)) for part in ("train", "test")}

    def right(name: str, aspect: str, tiles: int, data: dict[str, Path], *, is_sharp: bool = False) -> float:
        base = folder / f"{name}-base"
        if not base.exists():
            eden_tiny_seeing(base, aspect, tiles, sharp_tower(console) if is_sharp else None)
        artifact = train(folder, name, "digits", *CHANGES, f"model.base={base}", f"data.path={data['train']}")
        return evaluate(eden.load(str(artifact)), open_task(str(data["test"])), console=console).accuracy()

    about = f"colour of a shape of {SPECK} pixels in {SIDE}"
    return [
        Row("pictures of 3:1, cropped: right", right("crop", "crop", 0, wide), bar=Bar(0.6, least=False)),
        Row("pictures of 3:1, padded: right", right("pad", "pad", 0, wide), bar=Bar(0.93)),
        Row(
            f"{about}, one view: right", right("one view", "crop", 0, specks, is_sharp=True), bar=Bar(0.6, least=False)
        ),
        Row(f"{about}, up to {TILES} tiles: right", right("tiles", "crop", TILES, specks, is_sharp=True), bar=Bar(0.9)),
    ]


def wide_pictures(split: Split) -> Asked:
    """The world's questions about strips of it."""
    n = SAMPLES if split == "train" else UNSEEN
    for _, image, question in evaluation_set(n, seed=5, split=split, draw=strips):
        yield image, question.text, question.answer


def pictures_of_specks(split: Split) -> Asked:
    """What colour the one shape of a picture has, which is of 4 pixels to test on."""
    rng = random.Random(f"specks {split}")
    for _ in range(SAMPLES if split == "train" else UNSEEN):
        size = rng.choice(TRAINED_SPECKS) if split == "train" else SPECK
        picture, scene, _ = picture_of_speck(rng, split, SIDE, size)
        question = ask(scene, "colour", rng)
        assert question is not None
        yield picture, question.text, question.answer


def picture_of_speck(
    rng: random.Random, split: Split, side: int, size: int
) -> tuple[PIL.Image.Image, Scene, tuple[int, int]]:
    """A shape of the world, scaled down to `size` pixels, anywhere on paper of `side`; what it is, and its middle."""
    while (scene := sample_scene(rng, split, (1,))).objects[0].size != "large":
        continue
    (thing,) = scene.objects
    drawn = render(scene, rng)
    corner = thing.column * CELL, thing.row * CELL
    cell = drawn.crop((*corner, corner[0] + CELL, corner[1] + CELL))
    width = round(CELL * size / 26)  # a large shape is about 26 pixels across
    x, y = rng.randrange(side - width), rng.randrange(side - width)
    picture = PIL.Image.new("RGB", (side, side), drawn.getpixel((corner[0], corner[1])))
    picture.paste(cell.resize((width, width), PIL.Image.Resampling.BOX), (x, y))
    return picture, scene, (x + width // 2, y + width // 2)


@functools.cache
def sharp_tower(console: Console) -> Weights:
    """eden-tiny's tower, which saw large shapes only, taught to tell the colour of small ones in its patches.

    The pictures are as large as a tile of those asked about: what one view of the whole shows stays as small as it is.
    """
    torch.manual_seed(0)
    encoder = VisionEncoder.of(load("eden-tiny", LoadOptions(dtype="float32")))
    tower, config = encoder.tower.train().requires_grad_(True), encoder.tower.config
    across = config.image_size // config.patch_size
    head = torch.nn.Linear(config.hidden_size, len(COLOURS) + 1)
    weights = torch.tensor([*[1.0] * len(COLOURS), 0.1])  # the last is paper, which most patches are
    optimizer = torch.optim.AdamW([*tower.parameters(), *head.parameters()], lr=3e-4)
    rng, side, losses = random.Random("sharp tower"), SIDE // math.isqrt(TILES), []
    for step in range(TOWER_STEPS):
        labels = torch.full((TOWER_BATCH, across * across), len(COLOURS))
        pictures = []
        for row in range(TOWER_BATCH):
            picture, scene, (x, y) = picture_of_speck(rng, "train", side, rng.choice(TRAINED_SPECKS))
            labels[row, y * across // side * across + x * across // side] = list(COLOURS).index(scene.objects[0].colour)
            pictures.append(picture)
        features = run_tower(tower, encoder.pixels(pictures), encoder.feature, encoder.layer).pooler_output  # [I,N,Dv]
        loss = torch.nn.functional.cross_entropy(head(features).flatten(0, 1), labels.flatten(), weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % 100 == 99:
            console.print(
                f"tower, step {step + 1} of {TOWER_STEPS}: loss {np.mean(losses[-100:]):.3f}", highlight=False
            )
    return {name: weight.detach() for name, weight in tower.state_dict().items()}


def write(folder: Path, asked: Asked) -> Path:
    """PNGs and a LLaVA-format JSON of them, unless they are there already; the JSON's path."""
    path = folder / "data.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        records = []
        for index, (image, question, answer) in enumerate(asked):
            name = f"{index:06d}.png"
            image.save(folder / name)
            turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
            records.append({"id": name, "image": name, "conversations": turns})
        write_file(path, json.dumps(records, indent=1))
    return path


def eden_tiny_seeing(folder: Path, aspect: str, tiles: int, tower: Weights | None) -> Path:
    """eden-tiny with another look at its pictures, and with another's weights of its tower if there are any."""
    checkpoint = load("eden-tiny", LoadOptions(dtype="float32"))
    if tower is not None:
        checkpoint.core.model.vision_tower.load_state_dict(tower)
    section = ModelSection(vision=str(EDEN_TINY_FOLDER), image_aspect=aspect)
    checkpoint.processor.image_processor = open_image_processor(section)
    checkpoint.config.image_aspect = aspect
    checkpoint.config.tiles = checkpoint.processor.tiles = tiles
    return save(checkpoint, folder)


if __name__ == "__main__":
    main()
