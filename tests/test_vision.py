"""Images are decoded safely, or refused in one line."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from conftest import make_image

from eden import ImageError
from eden.media.images import MAX_PIXELS, open_image, sniff_image


def encode(image: PIL.Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_every_format_by_content(kind: str, tmp_path: Path) -> None:
    data = encode(make_image("red"), kind)
    path = tmp_path / "picture.txt"  # the name does not matter
    path.write_bytes(data)
    for source in (data, path, str(path)):
        image = open_image(source)
        assert image.mode == "RGB" and image.size == (40, 40)
        assert np.abs(np.asarray(image).astype(int) - [255, 0, 0]).max() <= 4


def test_formats_outside_the_list_stay_closed() -> None:
    with pytest.raises(ImageError, match="not an image Eden can read"):
        open_image(encode(make_image("red"), "TIFF"))


def test_transparency_lies_over_white() -> None:
    clear = PIL.Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert open_image(encode(clear, "PNG")).getpixel((0, 0)) == (255, 255, 255)
    palette = PIL.Image.new("P", (4, 4), 0)
    assert open_image(encode(palette, "PNG", transparency=0)).getpixel((0, 0)) == (255, 255, 255)


def test_exif_turns_the_picture_upright() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    assert open_image(encode(make_image("red", (40, 20)), "JPEG", exif=exif)).size == (20, 40)


def test_sixteen_bit_grey_keeps_its_shades() -> None:
    grey = PIL.Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16))
    image = open_image(encode(grey, "PNG"))
    assert [image.getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


def bomb() -> bytes:
    """A PNG whose header claims 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


WHOLE = encode(PIL.Image.effect_noise((64, 64), 50), "PNG")
BAD = {
    "empty": (b"", "not_an_image"),
    "text": (b"hello", "not_an_image"),
    "truncated": (WHOLE[: len(WHOLE) // 2], "damaged_image"),
    "bomb": (bomb(), "image_too_large"),
    "header only": (WHOLE[:20], "damaged_image"),
    "garbage after a signature": (b"\x89PNG\r\n\x1a\n" + bytes(100), "not_an_image"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_bytes_are_one_line_with_a_hint(name: str) -> None:
    data, kind = BAD[name]
    with pytest.raises(ImageError) as caught:
        open_image(data, where="upload")
    error = caught.value
    assert error.kind == kind
    assert str(error).startswith("upload: ") and "\n" not in str(error) and error.hint


def test_limits_are_checked_before_decoding(tmp_path: Path) -> None:
    path = tmp_path / "big.png"
    path.write_bytes(WHOLE)
    with pytest.raises(ImageError, match="bytes, the limit is 10"):
        open_image(path, max_bytes=10)
    with pytest.raises(ImageError, match="bytes, the limit is 10"):
        open_image(WHOLE, max_bytes=10)
    with pytest.raises(ImageError, match="64x64 pixels, the limit is 100"):
        open_image(WHOLE, max_pixels=100)
    assert MAX_PIXELS < 30_000**2


@pytest.mark.parametrize("source", ["gone.png", "", ".", "a\0b", "pipe.png", "/dev/zero"])
@pytest.mark.parametrize("look", [open_image, sniff_image])
def test_paths_that_are_no_files(
    source: str, look: Callable[[str], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe that nobody writes into is refused at once, and a device that never ends."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.png")
    with pytest.raises(ImageError) as caught:
        look(source)
    assert "\n" not in str(caught.value) and caught.value.kind == "missing_image"
