"""The world eden-tiny knows: coloured shapes on a 3x3 grid. Pure and seeded: the same seed gives the same world.

A scene belongs to the training or the test split by a hash of what is in it, so that no test scene can ever be
trained on; scenes with one of `HELD_OUT_PAIRS` belong to neither and are kept for `unseen_pairs`.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import PIL.Image
import PIL.ImageDraw

Split: TypeAlias = Literal["train", "test", "unseen_pairs"]

IMAGE_SIZE = 96
CELL = IMAGE_SIZE // 3
OVERSAMPLING = 3
"""Shapes are drawn this many times larger and scaled down, for smooth edges."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (38, 84, 214),
    "yellow": (240, 200, 20),
    "purple": (140, 50, 180),
    "orange": (244, 126, 20),
    "pink": (240, 130, 180),
    "brown": (120, 72, 30),
    "teal": (20, 160, 160),
    "grey": (105, 105, 105),
}
"""Ten: the more colours a shape comes in, the less its look depends on one."""

SHAPES = ("circle", "square", "triangle", "star", "cross")
SIZES: dict[str, float] = {"small": 8.5, "large": 13.0}
"""Radius in pixels."""

CELLS = tuple((row, column) for row in range(3) for column in range(3))
PLACES = (
    ("top left", "top center", "top right"),
    ("middle left", "center", "middle right"),
    ("bottom left", "bottom center", "bottom right"),
)

HELD_OUT_PAIRS = frozenset({("red", "star"), ("green", "circle"), ("blue", "triangle"), ("yellow", "square")})
"""Colour and shape together never seen in any stage of training, neither drawn nor named."""

TEST_SHARE = 0.1


@dataclass(frozen=True, order=True)
class Object:
    """One thing in a scene; `row` and `column` count from the top left, 0 to 2."""

    row: int
    column: int
    colour: str
    shape: str
    size: str

    @property
    def place(self) -> str:
        return PLACES[self.row][self.column]

    @property
    def pair(self) -> tuple[str, str]:
        return self.colour, self.shape


@dataclass(frozen=True)
class Scene:
    """One to four objects in different cells, in reading order."""

    objects: tuple[Object, ...]

    @property
    def split(self) -> Split:
        if any(thing.pair in HELD_OUT_PAIRS for thing in self.objects):
            return "unseen_pairs"
        digest = hashlib.sha256(repr(self.objects).encode()).digest()
        return "test" if int.from_bytes(digest[:4], "big") < TEST_SHARE * 2**32 else "train"


def sample_scene(
    rng: random.Random, split: Split, numbers: Sequence[int] = (1, 2, 3, 4), cells: Sequence[tuple[int, int]] = CELLS
) -> Scene:
    """A random scene of the split, of as many objects as one of these numbers, in some of these cells."""
    while True:
        objects = [
            Object(row, column, rng.choice(list(COLOURS)), rng.choice(SHAPES), rng.choice(list(SIZES)))
            for row, column in rng.sample(cells, rng.choice(numbers))
        ]
        scene = Scene(tuple(sorted(objects)))
        if scene.split == split:
            return scene


def render(scene: Scene, rng: random.Random) -> PIL.Image.Image:
    """Draws a scene as an RGB image of 96x96 pixels, with everything that is not asked about left to chance.

    Place within the cell, exact size, tilt, shade and paper vary, so that the tower learns shapes and not pixels.
    """
    return _draw(scene, rng).resize((IMAGE_SIZE, IMAGE_SIZE), PIL.Image.Resampling.BOX)


def _draw(scene: Scene, rng: random.Random) -> PIL.Image.Image:
    """A scene, `OVERSAMPLING` times as large as it is shown."""
    scale, paper = OVERSAMPLING, _paper(rng)
    image = PIL.Image.new("RGB", (IMAGE_SIZE * scale,) * 2, paper)
    draw = PIL.ImageDraw.Draw(image)
    for thing in scene.objects:
        radius = SIZES[thing.size] * rng.uniform(0.9, 1.1)
        slack = max(0.0, CELL / 2 - radius - 1)
        x = (thing.column + 0.5) * CELL + rng.uniform(-slack, slack) * 0.2
        y = (thing.row + 0.5) * CELL + rng.uniform(-slack, slack) * 0.2
        points = _outline(thing.shape, radius, math.radians(rng.uniform(-6, 6)))
        red, green, blue = (min(255, max(0, channel + rng.randint(-14, 14))) for channel in COLOURS[thing.colour])
        draw.polygon([((x + dx) * scale, (y + dy) * scale) for dx, dy in points], fill=(red, green, blue))
    return image


def _paper(rng: random.Random) -> tuple[int, int, int]:
    """Mostly light, sometimes pale grey or nearly black: no shape has these colours."""
    level = rng.choice((rng.randint(225, 255), rng.randint(225, 255), rng.randint(165, 220), rng.randint(0, 50)))
    red, green, blue = (min(255, max(0, level + rng.randint(-8, 8))) for _ in range(3))
    return red, green, blue


def _outline(shape: str, radius: float, tilt: float) -> list[tuple[float, float]]:
    """The corners of a shape around the origin, in pixels."""
    if shape == "circle":
        polar = [(0.95 * radius, step * math.tau / 48) for step in range(48)]
    elif shape == "square":
        polar = [(1.15 * radius, math.pi / 4 + step * math.pi / 2) for step in range(4)]
    elif shape == "triangle":
        polar = [(1.2 * radius, -math.pi / 2 + step * math.tau / 3) for step in range(3)]
    elif shape == "star":
        polar = [((1.2 if step % 2 == 0 else 0.5) * radius, -math.pi / 2 + step * math.pi / 5) for step in range(10)]
    else:  # a cross of two bars
        arm, half = 1.1 * radius, 0.36 * radius
        corners = [(half, arm), (half, half), (arm, half), (arm, -half), (half, -half), (half, -arm)]
        corners += [(-x, -y) for x, y in corners]
        polar = [(math.hypot(x, y), math.atan2(y, x)) for x, y in corners]
    return [(length * math.cos(angle + tilt), length * math.sin(angle + tilt)) for length, angle in polar]


def scenes(seed: int, split: Split) -> Iterator[tuple[Scene, PIL.Image.Image]]:
    """Endless scenes of a split with their pictures."""
    rng = random.Random(f"scenes {seed} {split}")
    while True:
        scene = sample_scene(rng, split)
        yield scene, render(scene, rng)


def strips(seed: int, split: Split) -> Iterator[tuple[Scene, PIL.Image.Image]]:
    """Endless scenes with their pictures, in turn of 288x96 pixels and of 96x288, objects at the ends alone.

    Each is the middle row or column of a scene, drawn three times as large: with bars beside it, it is a scene again.
    """
    rng = random.Random(f"strips {seed} {split}")
    start, end = CELL * OVERSAMPLING, 2 * CELL * OVERSAMPLING
    whole = IMAGE_SIZE * OVERSAMPLING
    while True:
        for cells, box in (
            (((1, 0), (1, 2)), (0, start, whole, end)),
            (((0, 1), (2, 1)), (start, 0, end, whole)),
        ):
            scene = sample_scene(rng, split, (1, 2), cells)
            yield scene, _draw(scene, rng).crop(box)
