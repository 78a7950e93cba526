"""Pictures as they would be with the camera held a little otherwise: more to learn from, where there are few."""

from __future__ import annotations

import math
import random

import numpy as np
import PIL.Image


def vary(image: PIL.Image.Image, amount: float, seed: str) -> PIL.Image.Image:
    """An image turned, scaled and moved at random, in its own size; nothing is mirrored, for letters and hands.

    Args:
        image: RGB.
        amount: how far at most: turned by twice as many radians, scaled by this share, moved by half of it. 0.1 is 11
            degrees, 10 % and 5 % of the sides.
        seed: chooses how far; the same gives the same.

    Returns:
        The image; what was outside of it has the median colour of its border.
    """
    rng = random.Random(seed)
    width, height = image.size
    angle, scale = rng.uniform(-2, 2) * amount, math.exp(rng.uniform(-1, 1) * amount)
    right, down = (rng.uniform(-0.5, 0.5) * amount * side for side in (width, height))
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    x, y = width / 2, height / 2
    # From a place in the new image to that in the old: about the middle, which is moved.
    matrix = (
        *(cos, sin, x - cos * (x + right) - sin * (y + down)),
        *(-sin, cos, y + sin * (x + right) - cos * (y + down)),
    )
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    fill = tuple(int(value) for value in np.median(border, axis=0))
    return image.transform(image.size, PIL.Image.Transform.AFFINE, matrix, PIL.Image.Resampling.BICUBIC, fillcolor=fill)
