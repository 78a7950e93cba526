"""A picture as several images: all of it, then the tiles of a grid that is chosen by its shape (LLaVA-NeXT's AnyRes).

    picture -> overview / tile tile / tile tile      each of N tokens; before each row of tiles the text has a ROW_END

Source: https://llava-vl.github.io/blog/2024-01-30-llava-next/
"""

from collections.abc import Sequence
from typing import Any

import PIL.Image
import PIL.ImageOps
import torch
from transformers.image_processing_utils import select_best_resolution

ROW_END = "/"
"""Ordinary text. A line break would cost nothing and say nothing: `<|image|>` swallows the white space behind it."""


def grid_of(height: int, width: int, tiles: int, side: int) -> tuple[int, int]:
    """Rows and columns of the tiles that show a picture largest; none where the overview shows as much.

    Args:
        height: of the picture, in pixels.
        width: of the picture, in pixels.
        tiles: the most there may be.
        side: of a tile, in pixels.
    """
    grids = [(rows * side, columns * side) for rows in range(1, tiles + 1) for columns in range(1, tiles // rows + 1)]
    if not grids:
        return 0, 0
    rows, columns = (length // side for length in select_best_resolution((height, width), grids))
    return (rows, columns) if rows * columns > 1 else (0, 0)


def views_of(image: PIL.Image.Image, image_processor: Any, tiles: int) -> list[PIL.Image.Image]:
    """The picture, and its tiles in reading order, with bars of the mean colour where it does not fill the grid."""
    side = side_of(image_processor)
    rows, columns = grid_of(image.height, image.width, tiles, side)
    if not rows:
        return [image]
    colour = tuple(int(255 * mean) for mean in image_processor.image_mean)
    size = columns * side, rows * side
    whole = PIL.ImageOps.pad(image.convert("RGB"), size, PIL.Image.Resampling.BICUBIC, colour)
    corners = [(column * side, row * side) for row in range(rows) for column in range(columns)]
    return [image, *(whole.crop((x, y, x + side, y + side)) for x, y in corners)]


def pixels_of(images: Sequence[PIL.Image.Image], image_processor: Any, tiles: int) -> torch.Tensor:
    """Pixels [I,3,H,W], float32, of all views of the pictures."""
    views = [view for image in images for view in views_of(image, image_processor, tiles)]
    pixels: torch.Tensor = image_processor(views, return_tensors="pt")["pixel_values"]
    return pixels


def side_of(image_processor: Any) -> int:
    """Of the square that the tower sees, in pixels."""
    square = image_processor.crop_size if getattr(image_processor, "do_center_crop", False) else image_processor.size
    return int(square["height"])
