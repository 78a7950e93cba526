"""Images are decoded safely, or refused in one line."""

import io
import json
import math
import os
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cli
import numpy as np
import PIL.Image
import pytest
from conftest import make_image
from rich.console import Console
from servers import SCENE, Running, asking, image_part

from eden import ImageError
from eden.checkpoint.checkpoint import load_processor
from eden.data.dataset import ConversationDataset
from eden.data.validate import load_samples
from eden.media.augment import vary
from eden.media.images import MAX_PIXELS, open_image, sniff_image
from eden.recipe import load_recipe
from eden.training.train import train


def encode(image: PIL.Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_decoding_leaves_the_warnings_of_other_threads_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    reached, released, opened = threading.Event(), threading.Event(), PIL.Image.open

    def held(*args: Any, **options: Any) -> PIL.Image.Image:
        reached.set()
        assert released.wait(60)
        return opened(*args, **options)

    monkeypatch.setattr(PIL.Image, "open", held)
    decoding = threading.Thread(target=open_image, args=(encode(make_image("red"), "PNG"),))
    with warnings.catch_warnings():
        decoding.start()
        assert reached.wait(60)
        warnings.filterwarnings("error", "one's own")
        released.set()
        decoding.join()
        with pytest.raises(UserWarning, match="one's own"):
            warnings.warn("one's own", stacklevel=1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF", "HEIF"])
def test_every_format_by_content(kind: str, tmp_path: Path) -> None:
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()  # to write it; the extra "heic" brings it
    data = encode(make_image("red"), kind)
    path = tmp_path / "picture.txt"  # the name does not matter
    path.write_bytes(data)
    for source in (data, path, str(path)):
        sniff_image(source)
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


def test_heic_without_its_package_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # what Python knows of a package that cannot be imported
    for look in (open_image, sniff_image):
        with pytest.raises(ImageError, match=r"HEIC needs pillow-heif\. pip install pillow-heif"):
            look(struct.pack(">I", 24) + b"ftypmif1" + bytes(4) + b"mif1heic")


def png(bits: int, color: int, row: bytes, clear: bytes) -> bytes:
    """A PNG of one row of three pixels with a transparent colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 1, bits, color, 0, 0, 0)) + chunk(b"tRNS", clear)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "right"),
    [
        (png(1, 0, b"\x40", b"\0\1"), [0, 255, 0]),
        (png(2, 0, b"\x1c", b"\0\3"), [0, 85, 255]),  # shades 0, 1 and 3 of 3, and 3 is clear
        (png(2, 0, b"\x1c", b"\0\1"), [0, 255, 255]),
        (png(4, 0, b"\x17\x00", b"\0\7"), [17, 255, 0]),
        (png(8, 0, b"\x00\x10\x20", b"\0\x10"), [0, 255, 32]),
        (png(16, 0, b"\x00\x00\x10\x00\x20\x00", b"\x20\x00"), [0, 16, 255]),
        (png(16, 0, b"\x00\x00\x00\x01\x20\x00", b"\x00\x01"), [0, 255, 32]),
        (png(16, 0, b"\x00\x00\x10\x00\x20\x00", b"\xff\xff"), [0, 16, 32]),
        (png(16, 2, b"\0" * 6 + b"\x10\0" * 3 + b"\x20\0" * 3, b"\x10\0" * 3), [0, 255, 32]),
    ],
)
def test_a_transparent_colour_is_white_and_no_other_is(data: bytes, right: list[int]) -> None:
    image = open_image(data)
    assert [image.getpixel((x, 0)) for x in range(3)] == [(shade,) * 3 for shade in right]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP", "AVIF"])
@pytest.mark.parametrize("turned", [1, 6])
@pytest.mark.parametrize("size", [(601, 30), (30, 600)])
def test_of_a_thin_picture_the_middle_is_kept(size: tuple[int, int], turned: int, kind: str) -> None:
    """The model sees the square in the middle, the same as of the whole."""
    width, height = size
    shades = np.add.outer(np.linspace(0, 127, height), np.linspace(0, 127, width)).astype(np.uint8)
    exif = PIL.Image.Exif()
    exif[0x0112] = turned
    image = open_image(encode(PIL.Image.fromarray(shades).convert("RGB"), kind, exif=exif))
    whole = PIL.Image.fromarray(shades if turned == 1 else np.rot90(shades, -1)).convert("RGB")
    if kind == "BMP":  # it holds no EXIF
        whole = PIL.Image.fromarray(shades).convert("RGB")
    assert max(image.size) in (120, 121) and min(image.size) == 30
    assert (image.width > image.height) == (whole.width > whole.height)
    processor = load_processor("eden-tiny").image_processor
    seen, wanted = (processor([each], return_tensors="pt")["pixel_values"] for each in (image, whole))
    assert (seen - wanted).abs().max() < 0.1
    assert open_image(whole).size == image.size


@pytest.mark.parametrize("size", [(100_000, 12), (12, 100_000), (3_000_000, 1), (1, 3_000_000)])
def test_a_thin_picture_costs_no_more_than_it_has_pixels(size: tuple[int, int]) -> None:
    image = open_image(encode(PIL.Image.new("L", size), "PNG"))
    assert max(image.size) == 4 * min(image.size) and min(image.size) == min(size)


PEAK = """
import atexit
from eden.core.processes import peak_memory_mib
before = peak_memory_mib()
atexit.register(lambda: print("peak", peak_memory_mib() - before))
from eden.cli.main import main
main()
"""
"""`eden`, which says last by how many MiB its memory grew."""


@pytest.mark.parametrize("size", [(36_000_000, 1), (100_000, 12)])
def test_a_thin_picture_is_the_same_to_check_training_asking_and_serving(
    server: Running, tmp_path: Path, size: tuple[int, int]
) -> None:
    """Its middle, as a picture of its own, and nothing that is held is much larger than its pixels."""
    width, height = size
    scene = PIL.Image.open(io.BytesIO(SCENE)).convert("L").resize((4 * height, height))
    whole = PIL.Image.new("L", size, 255)
    whole.paste(scene, ((width - 4 * height) // 2, 0))
    pictures = {"thin.png": encode(whole, "PNG"), "middle.png": encode(scene, "PNG")}
    turns = [{"from": "human", "value": "<image>\nDescribe the picture."}, {"from": "gpt", "value": "Grey."}]
    for name, data in pictures.items():
        (tmp_path / name).write_bytes(data)
    records = [{"id": name, "image": name, "conversations": turns} for name in pictures]
    (tmp_path / "data.json").write_text(json.dumps(records))
    thin, middle = (open_image(data) for data in pictures.values())
    assert thin.size == middle.size == (4 * height, height) and thin.tobytes() == middle.tobytes()

    checked = json.loads(cli.eden("check", tmp_path / "data.json", "--decode", "--json").stdout)
    assert (checked["samples"], checked["faulty"]) == (2, 0)
    samples, _ = load_samples(tmp_path / "data.json")
    examples = ConversationDataset(samples, load_processor("eden-tiny"), max_length=500)
    assert examples[0]["pixel_values"].equal(examples[1]["pixel_values"])
    settings = [
        f"data.path={tmp_path / 'data.json'}",
        "data.eval_fraction=0",
        f"training.output_dir={tmp_path / 'run'}",
    ]
    settings += ["data.features=live", "training.eval_strategy=no", "training.eval_steps=null", "training.max_steps=1"]
    result = train(load_recipe("digits", settings), console=Console(quiet=True))
    assert result.skipped == [] and math.isfinite(result.log[-1]["train_loss"])

    said = [server.post(asking(image_part(data), "Describe the picture.", max_tokens=20)) for data in pictures.values()]
    answers = [response.json()["choices"][0]["message"]["content"] for response in said]
    asked = ["ask", "--image", tmp_path / "thin.png", "--max-new-tokens", "20", "Describe the picture."]
    output = cli.Python("-c", PEAK, *asked).finished().stdout
    answer, peak = output.split("peak ")
    assert answers == [answer.strip()] * 2
    assert float(peak) < 400


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
    "garbage after a signature": (b"\x89PNG\r\n\x1a\n" + bytes(100), "damaged_image"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_bytes_are_one_line_with_a_hint(name: str) -> None:
    data, kind = BAD[name]
    with pytest.raises(ImageError) as caught:
        open_image(data, where="upload")
    error = caught.value
    assert error.fault.kind == kind
    assert str(error).startswith("upload: ") and "\n" not in str(error) and error.fault.hint


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
    assert "\n" not in str(caught.value) and caught.value.fault.kind == "missing_image"


def test_an_image_is_varied_by_its_seed_and_not_beyond_the_amount() -> None:
    picture = PIL.Image.new("RGB", (200, 120), "white")
    picture.paste("black", (90, 50, 110, 70))
    varied = [np.asarray(vary(picture, 0.1, str(seed))) for seed in range(40)]
    assert all(image.shape == (120, 200, 3) and (image[[0, 0, -1, -1], [0, -1, 0, -1]] > 250).all() for image in varied)
    assert np.array_equal(varied[0], vary(picture, 0.1, "0")) and not np.array_equal(varied[0], varied[1])
    dark = [np.argwhere(image[..., 0] < 128) for image in varied]
    middles = np.array([places.mean(axis=0) for places in dark]) - [59.5, 99.5]
    assert (np.abs(middles) <= [6.5, 10.5]).all() and (np.abs(middles).max(axis=0) > [3, 5]).all()
    areas = np.array([len(places) for places in dark]) / 400
    assert 0.8 < areas.min() < 0.95 and 1.05 < areas.max() < 1.25
