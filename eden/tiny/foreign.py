"""Pictures that are not of the world: photographs, text, noise and textures. eden-tiny says that it does not know them.

The families of the two splits have nothing in common: other photographs, other textures, other words.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import PIL.ImageOps

from ..media.images import open_image
from .world import IMAGE_SIZE

PHOTOGRAPHS = Path(__file__).parent / "photographs"
"""Those eden-tiny is judged on; `README.md` beside them says whose they are."""
KINDS = ("photograph", "texture", "text", "noise")
WORDS = {
    "train": "the of and to in is that for was with picture number water house 12 374 2026",
    "test": "Invoice total due Wednesday please sign here 1,095.50 EXIT Bahnhof rue menu",
}
"""Those of the pictures of text."""
Pixels: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"
_Maker: TypeAlias = Callable[[random.Random], PIL.Image.Image]


def open_photographs(paths: Sequence[Path]) -> list[PIL.Image.Image]:
    """Photographs in RGB, by file."""
    return [open_image(path) for path in paths]


def foreign_picture(
    kind: str, split: Literal["train", "test"], photographs: Sequence[PIL.Image.Image], rng: random.Random
) -> PIL.Image.Image:
    """A random RGB picture of a kind of `KINDS`, 96x96 pixels."""
    if kind == "photograph":
        return _crop(rng.choice(photographs), rng)
    return rng.choice(_FAMILIES[split][kind])(rng)


def _crop(photograph: PIL.Image.Image, rng: random.Random) -> PIL.Image.Image:
    """A square of the photograph, at least a third of it wide, sometimes mirrored, grey, or lighter."""
    side = int(min(photograph.size) * rng.uniform(0.34, 1))
    left, top = (rng.randint(0, length - side) for length in photograph.size)
    picture = photograph.resize((IMAGE_SIZE,) * 2, box=(left, top, left + side, top + side))
    if rng.random() < 0.5:
        picture = PIL.ImageOps.mirror(picture)
    if rng.random() < 0.15:
        picture = PIL.ImageOps.grayscale(picture).convert("RGB")
    brightness = rng.uniform(0.7, 1.3)
    return picture.point([min(255, int(level * brightness)) for level in range(256)] * 3)


def _colours(rng: random.Random, number: int) -> Pixels:
    """Random colours [number,3]."""
    return np.array([[rng.uniform(0, 255) for _ in range(3)] for _ in range(number)])


def _picture(pixels: Pixels) -> PIL.Image.Image:
    return PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _blend(weights: Pixels, rng: random.Random) -> PIL.Image.Image:
    """Weights [96,96] from 0 to 1 between two random colours."""
    first, second = _colours(rng, 2)
    return _picture(first + weights[..., None] * (second - first))


def _grid() -> tuple[Pixels, Pixels]:
    """Rows and columns of pixels, each [96,96]."""
    rows, columns = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE].astype(np.float64)
    return rows, columns


def _turned(rng: random.Random) -> Pixels:
    """How far each pixel lies along a random direction."""
    rows, columns = _grid()
    angle = rng.uniform(0, np.pi)
    turned: Pixels = rows * np.sin(angle) + columns * np.cos(angle)
    return turned


def _stripes(rng: random.Random) -> PIL.Image.Image:
    return _blend((np.sin(_turned(rng) / rng.uniform(0.8, 6)) > rng.uniform(-0.5, 0.5)).astype(float), rng)


def _checks(rng: random.Random) -> PIL.Image.Image:
    rows, columns = _grid()
    width = rng.randint(3, 24)
    return _blend(((rows // width + columns // width) % 2), rng)


def _gradient(rng: random.Random) -> PIL.Image.Image:
    along = _turned(rng)
    return _blend((along - along.min()) / np.ptp(along), rng)


def _clouds(rng: random.Random) -> PIL.Image.Image:
    """Noise of several scales in colours."""
    chance = np.random.default_rng(rng.getrandbits(32))
    total = np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3))
    for cells in (3, 6, 12, 24):
        coarse = PIL.Image.fromarray(chance.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += np.asarray(coarse.resize((IMAGE_SIZE,) * 2, PIL.Image.Resampling.BICUBIC)) * rng.uniform(0, 0.6)
    return _picture(total)


def _blank(rng: random.Random) -> PIL.Image.Image:
    return PIL.Image.new("RGB", (IMAGE_SIZE,) * 2, tuple(int(level) for level in _colours(rng, 1)[0]))


def _lines(rng: random.Random) -> PIL.Image.Image:
    """A scribble of thin lines."""
    paper, ink = (tuple(int(level) for level in colour) for colour in _colours(rng, 2))
    picture = PIL.Image.new("RGB", (IMAGE_SIZE,) * 2, paper)
    draw = PIL.ImageDraw.Draw(picture)
    for _ in range(rng.randint(4, 20)):
        ends = [rng.randint(0, IMAGE_SIZE) for _ in range(4)]
        draw.line(ends, fill=ink, width=rng.randint(1, 3))
    return picture


def _rings(rng: random.Random) -> PIL.Image.Image:
    rows, columns = _grid()
    centre = rng.uniform(0, IMAGE_SIZE), rng.uniform(0, IMAGE_SIZE)
    distance = np.hypot(rows - centre[0], columns - centre[1])
    return _blend((np.sin(distance / rng.uniform(0.8, 4)) + 1) / 2, rng)


def _weave(rng: random.Random) -> PIL.Image.Image:
    crossed = np.sin(_turned(rng) / rng.uniform(0.8, 4)) * np.sin(_turned(rng) / rng.uniform(0.8, 4))
    return _blend((crossed + 1) / 2, rng)


def _mosaic(rng: random.Random) -> PIL.Image.Image:
    """Many small tiles, each of its own colour."""
    cells = rng.randint(8, 32)
    tiles = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    return PIL.Image.fromarray(tiles).resize((IMAGE_SIZE,) * 2, PIL.Image.Resampling.NEAREST)


def _white_noise(rng: random.Random) -> PIL.Image.Image:
    chance = np.random.default_rng(rng.getrandbits(32))
    spread = rng.uniform(30, 120)
    channels = rng.choice((1, 3))
    return _picture(
        rng.uniform(60, 200) + spread * chance.standard_normal((IMAGE_SIZE, IMAGE_SIZE, channels)) * np.ones(3)
    )


def _salt_and_pepper(rng: random.Random) -> PIL.Image.Image:
    chance = np.random.default_rng(rng.getrandbits(32))
    return _blend((chance.random((IMAGE_SIZE, IMAGE_SIZE)) < rng.uniform(0.1, 0.9)).astype(float), rng)


def _text(vocabulary: str) -> _Maker:
    words = vocabulary.split()

    def page(rng: random.Random) -> PIL.Image.Image:
        """Lines of words, dark on light or light on dark."""
        dark, light = rng.randint(0, 80), rng.randint(190, 255)
        ink, paper = (dark, light) if rng.random() < 0.75 else (light, dark)
        picture = PIL.Image.new("RGB", (IMAGE_SIZE,) * 2, (paper,) * 3)
        draw = PIL.ImageDraw.Draw(picture)
        size = rng.randint(7, 28)
        font = PIL.ImageFont.load_default(size)
        for y in range(rng.randint(0, 6), IMAGE_SIZE, size + rng.randint(1, 8)):
            line = " ".join(rng.choice(words) for _ in range(12))
            draw.text((rng.randint(-20, 6), y), line, fill=(ink,) * 3, font=font)
        return picture

    return page


_FAMILIES: dict[str, dict[str, tuple[_Maker, ...]]] = {
    "train": {
        "texture": (_stripes, _checks, _gradient, _clouds, _blank, _lines),
        "text": (_text(WORDS["train"]),),
        "noise": (_white_noise,),
    },
    "test": {
        "texture": (_rings, _weave, _mosaic),
        "text": (_text(WORDS["test"]),),
        "noise": (_salt_and_pepper,),
    },
}
