"""Bytes or a path become an RGB image, safely. The only place of the package that decodes images."""

from __future__ import annotations

import io
import os
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps

from ..core.files import check_the_path
from ..errors import ImageError, first_line
from ..messages import MediaSource

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "HEIC")
"""Formats that are opened, by content and not by file name; everything else Pillow knows stays closed."""

MAX_BYTES = 25 * 2**20
MAX_PIXELS = 64 * 10**6
THINNEST = 4
"""Of a picture whose long side is more than this many times the short one, only the middle is kept. CLIP scales the
short side to its input and looks at the square in the middle: the rest would be scaled up in vain, 100,000x12 pixels
to 2,800,000x336."""
MAX_EXIF_BYTES = 2**16
"""Pillow copies what an EXIF entry points at, and thousands of entries may point at the same bytes."""
MAX_SCANS = 100
"""Of a progressive JPEG: each visits every pixel again, and one that changes none takes a few bytes. Usual are 10."""
MAX_HEADER_READS, MAX_READS = 5_000, 1_000_000
"""Pieces that Pillow may read a file in, up to its pixels and in all."""

warnings.filterwarnings(
    "ignore", module=r"PIL\."
)  # of bombs, whose limit is Eden's own; for a while is not for threads

_SNIFFED = 64
_SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WEBP": rb"RIFF....WEBP",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM",
    "AVIF": rb"....ftyp.{0,48}?avi[fs]",  # both name the formats they are compatible with, four letters each
    "HEIC": rb"....ftyp.{0,48}?(?:hei[cxms]|hev[cxms]|mif1|msf1)",
}
"""How files of `FORMATS` begin."""


def open_image(
    source: MediaSource, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS, where: str | None = None
) -> PIL.Image.Image:
    """Decodes one image to RGB, upright (EXIF) and with transparency laid over white; a thin one's middle (`THINNEST`).

    Args:
        source: a path, encoded bytes, or a PIL image (only converted).
        max_bytes: size limit of the encoded file, in bytes; checked before reading.
        max_pixels: size limit of the picture, in pixels; checked before decoding.
        where: named in errors instead of the path.

    Raises:
        ImageError: missing, not an image, truncated, of a refused format or too large.
    """
    if isinstance(source, PIL.Image.Image):
        return source if _is_plain(source) else _to_rgb(source)
    with _opened(source, max_bytes, max_pixels, where) as image:
        image.load()
        exif = len(image.info.get("exif") or ""), len(image.info.get("Raw profile type exif", "")) // 2
        if max(exif) > MAX_EXIF_BYTES:
            raise _too_intricate("its EXIF data are too large", where or _name(source))
        return _to_rgb(image)


def image_size(source: MediaSource, *, where: str | None = None) -> tuple[int, int]:
    """Width and height of what `open_image` gives, mostly by the header alone.

    Raises:
        ImageError: as `open_image`; damage further in is not seen.
    """
    if isinstance(source, PIL.Image.Image):
        return open_image(source).size
    with _opened(source, MAX_BYTES, MAX_PIXELS, where) as image:
        left, top, right, bottom = _middle_box(*image.size)
        width, height = right - left, bottom - top
        turned = image.getexif().get(PIL.ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return (height, width) if turned else (width, height)


def sniff_image(source: str | Path | bytes, *, max_bytes: int = MAX_BYTES) -> None:
    """Looks at a file's size and first bytes only: fast enough for a hundred thousand files.

    Raises:
        ImageError: missing, empty, too large, or none of Eden's formats; damage further in is not seen.
    """
    where = _name(source)
    if isinstance(source, bytes):
        size, start = len(source), source[:_SNIFFED]
    else:
        with _reading(where), _opened_file(source) as file:
            size, start = os.fstat(file.fileno()).st_size, file.read(_SNIFFED)
    if size > max_bytes:
        raise _too_many_bytes(size, max_bytes, where)
    _format_of(start, where)


def read_image_file(
    path: str | Path, *, max_bytes: int = MAX_BYTES, where: str | None = None
) -> tuple[bytes, os.stat_result]:
    """The bytes of an image file, not looked at, and what the system says of the file.

    Raises:
        ImageError: missing, no regular file, or too large.
    """
    where = where or str(path)
    with _reading(where), _opened_file(path) as file:
        status = os.fstat(file.fileno())
        if status.st_size > max_bytes:
            raise _too_many_bytes(status.st_size, max_bytes, where)
        return io.BufferedReader(file).read(max_bytes + 1), status  # one more, for it may have grown


@contextmanager
def _opened(
    source: str | Path | bytes, max_bytes: int, max_pixels: int, where: str | None
) -> Iterator[PIL.Image.Image]:
    """An image whose header is read and within the limits; what goes wrong with it is an ImageError."""
    where = where or _name(source)
    data = source if isinstance(source, bytes) else read_image_file(source, max_bytes=max_bytes, where=where)[0]
    if len(data) > max_bytes:
        raise _too_many_bytes(len(data), max_bytes, where)
    kind = _format_of(data[:_SNIFFED], where)
    file = _BoundedFile(_tamed(data, where), where)
    try:
        with PIL.Image.open(file, formats=["HEIF" if kind == "HEIC" else kind]) as image:
            file.reads_left = MAX_READS
            width, height = image.size
            if width * height > max_pixels:
                raise _too_many_pixels(f"{width}x{height}", max_pixels, where)
            if kind == "PNG":
                _scale_transparency(image.info, data[24])
            yield image
    except ImageError:
        raise
    except PIL.Image.DecompressionBombError:  # Pillow's own limit, met before the size can be read
        raise _too_many_pixels("far too many", max_pixels, where) from None
    except PIL.UnidentifiedImageError:
        raise _damaged(f"it begins as {kind} and goes on as something else", where) from None
    except Exception as error:  # Pillow's decoders raise many kinds on broken input
        raise _damaged(first_line(error), where) from None


def _format_of(start: bytes, where: str) -> str:
    """Which of `FORMATS` a file is, by its first bytes; for HEIC, Pillow is told of the package that reads it."""
    kind = next((kind for kind, begin in _SIGNATURES.items() if re.match(begin, start, re.DOTALL)), None)
    if kind is None:
        raise _not_an_image(where)
    if kind == "HEIC":
        try:
            import pillow_heif
        except ImportError:
            hint = "pip install pillow-heif, or save it as JPEG."
            raise ImageError("reading HEIC needs pillow-heif", where=where, hint=hint, kind="not_an_image") from None
        pillow_heif.register_heif_opener(thumbnails=False)
    return kind


def _scale_transparency(info: dict[Any, Any], bits: int) -> None:
    """The transparent colour of a PNG in 8 bits, as Pillow has the pixels; it leaves the colour as it is written."""
    clear = info.get("transparency")
    if isinstance(clear, int) and bits in (2, 4):
        info["transparency"] = clear * 255 // (2**bits - 1)
    elif isinstance(clear, tuple) and bits == 16:
        info["transparency"] = tuple(value >> 8 for value in clear)


class _BoundedFile(io.BytesIO):
    """Encoded bytes that are read in a bounded number of pieces.

    Pillow reads the small parts of a file in Python, some in quadratic time, and no other thread gets on meanwhile:
    a few megabytes of empty comments would take minutes. What cameras and programs write has a few dozen parts.
    """

    def __init__(self, data: bytes, where: str):
        super().__init__(data)
        self.where = where
        self.reads_left = MAX_HEADER_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads_left -= 1
        if self.reads_left < 0:
            raise _too_intricate("it is made of too many parts", self.where)
        return super().read(size)


def _tamed(data: bytes, where: str) -> bytes:
    """A JPEG without what a few of its bytes can make arbitrarily dear; other formats have nothing of the kind."""
    if not data.startswith(b"\xff\xd8"):
        return data
    if data.count(b"\xff\xda") > MAX_SCANS:
        raise _too_intricate(f"it has more than {MAX_SCANS} scans", where)
    # Pillow joins all EXIF segments to one, of any size: those behind the first become segments nobody knows.
    head, name, rest = data.partition(b"Exif\0\0")
    return head + name + rest.replace(name, b"Exif\0\1") if name in rest else data


def _name(source: str | Path | bytes) -> str:
    return str(source) if isinstance(source, (str, Path)) else "image"


def _opened_file(path: str | Path) -> io.FileIO:
    """A regular file: a pipe may never say anything, a device never end."""
    file = io.FileIO(path, opener=_at_once)
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError("not a file")


def _at_once(path: str, flags: int) -> int:
    # Else opening a pipe waits for somebody who writes; Windows has none among its files.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """What the operating system refuses is an ImageError."""
    try:
        yield
    except FileNotFoundError as error:
        hint = check_the_path(error.filename)
        raise ImageError("no such image file", where=where, hint=hint, kind="missing_image") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or first_line(error)
        raise ImageError(
            f"cannot read the image ({why})", where=where, hint="Check the path.", kind="missing_image"
        ) from None


def _is_plain(image: PIL.Image.Image) -> bool:
    """Whether it is what this module makes already: RGB, upright and opaque. Another copy may be 100 MB."""
    orientation = image.getexif().get(PIL.ExifTags.Base.Orientation, 1)
    return image.mode == "RGB" and orientation == 1 and "transparency" not in image.info and _middle(image) is image


def _to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    image = PIL.ImageOps.exif_transpose(_middle(image))
    if image.mode.startswith("I;16"):  # convert() alone would clip 16 bits to white
        shades = np.asarray(image)
        clear = image.info.get("transparency")
        image = PIL.Image.fromarray((shades >> 8).astype(np.uint8))
        if clear is not None:
            alpha = np.where(shades == clear, 0, 255).astype(np.uint8)
            image = PIL.Image.merge("LA", (image, PIL.Image.fromarray(alpha)))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _middle(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image, or of a thin one the middle, whose centre is the whole's."""
    box = _middle_box(*image.size)
    return image if box == (0, 0, *image.size) else image.crop(box)


def _middle_box(width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the middle."""
    right = max(0, (width - THINNEST * height) // 2)
    down = max(0, (height - THINNEST * width) // 2)
    return right, down, width - right, height - down


def _not_an_image(where: str) -> ImageError:
    hint = f"Use one of {', '.join(FORMATS)}."
    return ImageError("not an image Eden can read", where=where, hint=hint, kind="not_an_image")


def _damaged(why: str, where: str) -> ImageError:
    hint = "Restore or replace the file."
    return ImageError(f"the image is damaged ({why})", where=where, hint=hint, kind="damaged_image")


def _too_many_pixels(found: str, limit: int, where: str) -> ImageError:
    return ImageError(
        f"the image has {found} pixels, the limit is {limit:,}",
        where=where,
        hint="Scale it down; the model looks at a few hundred pixels a side.",
        kind="image_too_large",
    )


def _too_many_bytes(size: int, limit: int, where: str) -> ImageError:
    return ImageError(
        f"the image file has {size:,} bytes, the limit is {limit:,}",
        where=where,
        hint="Save it smaller.",
        kind="image_too_large",
    )


def _too_intricate(what: str, where: str) -> ImageError:
    return ImageError(
        f"the image would take too long to read ({what})",
        where=where,
        hint="Save it anew, without metadata.",
        kind="image_too_intricate",
    )
