"""Requests that mean harm, or look as if they did. Each is a function of nothing, so that none is built in vain."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
from recordings import encode
from servers import QUESTION, SCENE, asking, audio_part, image_part

Body = bytes | str | dict[str, Any]


def image_url(url: str) -> dict[str, Any]:
    return asking({"type": "image_url", "image_url": {"url": url}}, "What is it?")


def image(data: bytes) -> dict[str, Any]:
    return asking(image_part(data), "What is it?")


def audio(data: bytes) -> dict[str, Any]:
    return asking(audio_part(data))


def turns(*messages: Any) -> dict[str, Any]:
    return {"model": "eden-tiny", "messages": list(messages)}


def encoded(kind: str, size: tuple[int, int] = (64, 64)) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.effect_noise(size, 90).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    """Of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, data: bytes = b"", *, extra: bytes = b"", colour: int = 2) -> bytes:
    """A PNG that claims a size; `data` is compressed, `colour` 0 is grey and 2 RGB."""
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def dot(extra: bytes) -> bytes:
    """A sound PNG of one pixel, with more chunks before it."""
    return png(1, 1, zlib.compress(bytes(4)), extra=extra)


def jpeg_with(segments: bytes) -> bytes:
    data = encoded("JPEG")
    return data[:2] + segments + data[2:]


def jpeg_of_scans(number: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again: each costs little to send, and all pixels to read."""
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (2000, 2000)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    return data[:-2] + data[data.rfind(b"\xff\xda") : -2] * number + data[-2:]


def gif_with(blocks: bytes) -> bytes:
    """A sound GIF with more blocks before its picture."""
    buffer = io.BytesIO()
    PIL.Image.new("P", (8, 8)).save(buffer, "GIF")
    data = buffer.getvalue()
    start = 13 + 3 * 2 ** (data[10] % 8 + 1)
    return data[:start] + blocks + data[start:]


def animation(frames: int) -> bytes:
    """A sound GIF of very many pictures."""
    data = gif_with(b"")
    start = 13 + 3 * 2 ** (data[10] % 8 + 1)
    return data[:-1] + data[start:-1] * frames + b";"


def bmp(width: int, height: int, pixels: bytes = b"", *, compression: int = 0) -> bytes:
    """A BMP that claims a size; compression 1 is of runs."""
    offset = 14 + 40 + 4 * 256
    form = (40, width, height, 1, 8, compression, len(pixels), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", offset + len(pixels), 0, 0, offset, *form) + bytes(4 * 256) + pixels


def exif(size: int, entries: int) -> bytes:
    """EXIF data of which every entry points at all bytes: read one by one they are `entries` times as large."""
    fields = b"".join(struct.pack(">HHII", 1000 + number, 7, size, 0) for number in range(entries))
    return (b"MM\0\x2a\0\0\0\x08" + struct.pack(">H", entries) + fields).ljust(size, b"\0")


def exif_segments(data: bytes) -> bytes:
    """As a JPEG has them, 60,000 bytes each."""
    parts = [b"Exif\0\0" + data[start : start + 60_000] for start in range(0, len(data), 60_000)]
    return b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part for part in parts)


def webp_with(exif_data: bytes) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (8, 8)).save(buffer, "WEBP", exif=exif_data)
    return buffer.getvalue()


def huge_webp() -> bytes:
    """A WebP whose canvas is said to be 16,384 squared."""
    return b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\x3f\0" * 2


def huge_jpeg() -> bytes:
    """A JPEG whose frame header says 65,500 squared."""
    data = encoded("JPEG")
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", 65_500, 65_500) + data[place + 4 :]


def speech(kind: str) -> bytes:
    """Noise of three seconds in one of the containers."""
    return encode(np.random.default_rng(0).normal(0, 0.1, 48_000).astype(np.float32), kind)


def silence(minutes: int) -> bytes:
    """FLAC, which takes next to no bytes for it."""
    return encode(np.zeros(minutes * 60 * 16_000, np.float32), "flac", rate=16_000)


def wav(*, channels: int = 1, rate: int = 16_000, size: int | None = None, bits: int = 16) -> bytes:
    """A WAV header over a little silence."""
    data = bytes(3200)
    step = channels * bits // 8 % 65536
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * step % 2**32, step, bits)
    size = len(data) if size is None else size
    return (
        b"RIFF"
        + struct.pack("<I", 36 + len(data))
        + b"WAVEfmt \x10\0\0\0"
        + form
        + b"data"
        + struct.pack("<I", size)
        + data
    )


BOMB = zlib.compress(bytes(60_000 * 1000))
URL_BASE64 = base64.urlsafe_b64encode(bytes([251] * 99)).decode()
SVG = b"<?xml version='1.0'?><!DOCTYPE s [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><svg>&x;</svg>"

CASES: dict[str, Callable[[], Body]] = {
    # Images.
    "png bomb": lambda: image(png(60_000, 60_000, BOMB)),
    "png of four billion columns": lambda: image(png(2**31 - 1, 2**31 - 1)),
    "png without pixels": lambda: image(png(100, 100)),
    "png of no size": lambda: image(png(0, 0)),
    "png with a wrong checksum": lambda: image(SCENE[:40] + b"\xff\xff" + SCENE[42:]),
    **{
        f"truncated {kind}": (lambda kind=kind: image(encoded(kind)[: len(encoded(kind)) // 2]))
        for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP")
    },
    "tiff": lambda: image(encoded("TIFF")),
    "ico": lambda: image(encoded("ICO")),
    "ppm": lambda: image(encoded("PPM")),
    "svg with an external entity": lambda: image(SVG),
    "eps": lambda: image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n"),
    "pdf": lambda: image(b"%PDF-1.7\n1 0 obj<<>>endobj\n"),
    "html before a png": lambda: image(b"<script>alert(1)</script>" + SCENE),
    "zip before a png": lambda: image(b"PK\x03\x04" + SCENE),
    "an empty image": lambda: image(b""),
    "one byte": lambda: image(b"\x89"),
    "a recording as an image": lambda: image(QUESTION),
    "too large an image": lambda: image(SCENE + bytes(3 * 2**20)),
    "gif of 65535 squared": lambda: image(b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;"),
    "jpeg bomb": lambda: image(huge_jpeg()),
    "bmp bomb": lambda: image(bmp(60_000, 60_000)),
    "bmp of a negative size": lambda: image(bmp(-5, 2**31 - 1)),
    "webp bomb": lambda: image(huge_webp()),
    "png whose profile is a bomb": lambda: image(dot(chunk(b"iCCP", b"a\0\0" + BOMB))),
    "png whose comment is a bomb": lambda: image(dot(chunk(b"zTXt", b"a\0\0" + BOMB))),
    "png of very many chunks": lambda: image(dot(chunk(b"teSt", b"") * 100_000)),
    "png whose EXIF is a bomb": lambda: image(dot(chunk(b"eXIf", exif(10**6, 60_000)))),
    "webp whose EXIF is a bomb": lambda: image(webp_with(exif(10**6, 60_000))),
    "jpeg of very many comments": lambda: image(jpeg_with(b"\xff\xfe\0\2" * 400_000)),
    "jpeg of very much padding": lambda: image(jpeg_with(b"\xff" * 10**6)),
    "jpeg of very many scans": lambda: image(jpeg_of_scans(20_000)),
    "gif of very many comments": lambda: image(gif_with(b"!\xfe\1a\0" * 300_000)),
    "gif of a comment in very many pieces": lambda: image(gif_with(b"!\xfe" + b"\1a" * 700_000 + b"\0")),
    "gif of very much junk": lambda: image(gif_with(bytes(10**6))),
    "bmp of very many runs": lambda: image(bmp(6000, 6000, b"\1\0" * 10**6, compression=1)),
    "images of too many pixels together": lambda: asking(
        *[image_part(png(6000, 6000, zlib.compress(bytes(6000 * 6001)), colour=0))] * 3
    ),
    "psd": lambda: image(b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 9, 9, 8, 3) + bytes(100)),
    "gzip of a png": lambda: image(b"\x1f\x8b\x08\0" + SCENE),
    # Where images are said to be.
    **{
        f"url {url[:40]}": (lambda url=url: image_url(url))
        for url in (
            "file:///etc/passwd", "/etc/passwd", "../../etc/passwd", "C:\\windows\\win.ini", "\\\\host\\share\\a.png",
            "http://127.0.0.1/a.png", "http://169.254.169.254/latest/meta-data/", "https://localhost/a.png",
            "https://[::1]/a.png", "https://0x7f000001/", "https://2130706433/", "ftp://example.com/a.png",
            "gopher://example.com/", "javascript:alert(1)", "blob:https://example.com/1", "data:", "data:image/png",
            "data:image/png,abc", "data:;base64,", "data:image/png;base64,@@@@", "data:image/png;base64,AAA", "",
            "https://user:password@example.com/a.png", "HTTPS://EXAMPLE.COM/a.png", "https://example.com:8443/a.png", "https://еxample.com/a.png",
            "https://example.com\\@127.0.0.1/", "https://example.com\r\nHost: localhost/", "//example.com/a.png",
            "https://[::ffff:127.0.0.1]/", "https://example.com\0.evil.example/",
            " data:image/png;base64,AAAA",
            "DATA:image/png;base64,AAAA", "data:image/png;base64 ,AAAA", "data:image/png;base64,%41%41%41%41",
            "data:image/png;base64,AA AA", "data:image/png;base64,ÄÄÄÄ", "dict://127.0.0.1:11211/",
            "data:text/html;base64,PGI+",
        )
    },
    "base64 for urls": lambda: image_url(f"data:image/png;base64,{URL_BASE64}"),
    "a header of a megabyte": lambda: image_url("data:" + "x" * 2**20 + ";base64,AAAA"),
    # Recordings.
    "wav that claims gigabytes": lambda: audio(wav(size=0x7FFF0000)),
    "wav of 65535 channels": lambda: audio(wav(channels=65_535)),
    "wav of no known codec": lambda: audio(QUESTION[:20] + b"\x77\x77" + QUESTION[22:]),
    "m4a of no known codec": lambda: audio(speech("m4a").replace(b"mp4a", b"xxxx")),
    "wav of no channels": lambda: audio(wav(channels=0)),
    "wav of ten megahertz": lambda: audio(wav(rate=10_000_000)),
    "half a wav": lambda: audio(QUESTION[: len(QUESTION) // 2]),
    "wav header alone": lambda: audio(QUESTION[:44]),
    "a play list": lambda: audio(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"),
    "concat": lambda: audio(b"ffconcat version 1.0\nfile /etc/passwd\n"),
    "text as a recording": lambda: audio(b"hello"),
    "an image as a recording": lambda: audio(SCENE),
    "silence": lambda: audio(wav()),
    "an empty recording": lambda: audio(b""),
    "five recordings": lambda: asking(*[audio_part()] * 5),
    **{
        f"half a {kind}": (lambda kind=kind: audio(speech(kind)[: len(speech(kind)) // 2]))
        for kind in ("flac", "mp3", "ogg", "m4a", "webm")
    },
    "twenty minutes of silence": lambda: audio(silence(20)),
    "a recording as a path": lambda: asking({"type": "input_audio", "input_audio": {"data": "/etc/passwd"}}),
    "a recording as a url": lambda: asking(
        {"type": "input_audio", "input_audio": {"data": "data:audio/wav;base64," + base64.b64encode(QUESTION).decode()}}
    ),
    # Bodies.
    "no json": lambda: b"hello",
    "an empty body": lambda: b"",
    "a list": lambda: b"[]",
    "half a body": lambda: json.dumps(asking("hello"))[:-5],
    "not a number": lambda: json.dumps(asking("hello", temperature=float("nan"))),
    "infinity": lambda: json.dumps(asking("hello", top_p=float("inf"))),
    "a lone surrogate": lambda: b'{"model": "eden-tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
    "invalid utf-8": lambda: b'{"model": "eden-tiny", "messages": [{"role": "user", "content": "\xff\xfe"}]}',
    "utf-16": lambda: json.dumps(asking("hello")).encode("utf-16"),
    "a hundred thousand brackets": lambda: b'{"model": "eden-tiny", "messages": ' + b"[" * 100_000,
    "deep content": lambda: b'{"model": "eden-tiny", "messages": [{"role": "user", "content": ' + b'[{"a":' * 5000,
    "a byte order mark": lambda: b"\xef\xbb\xbf" + json.dumps(asking("hello")).encode(),
    "two bodies": lambda: json.dumps(asking("hello")) * 2,
    "a zero byte": lambda: b'{"model": "eden-tiny\0"}',
    "a number beyond all": lambda: json.dumps(asking("hello")).replace('"temperature": 0', '"temperature": 1e999'),
    "a number of 5000 digits": lambda: json.dumps(asking("hello", seed=0)).replace(": 0}", ": " + "9" * 5000 + "}"),
    "deep tools": lambda: json.dumps(asking("hello", tools=0)).replace(": 0}", ": " + "[" * 150 + "]" * 150 + "}"),
    "compressed": lambda: zlib.compress(json.dumps(asking("hello")).encode()),
    "a field name of line breaks": lambda: {**asking("hello"), "a\r\nb\u2028\x1b[31m": 1},
    "a giant field name": lambda: {**asking("hello"), "x" * 2**20: 1},
    "a hundred thousand messages": lambda: turns(*[{"role": "user", "content": "a"}] * 100_000),
    "a hundred thousand wrong messages": lambda: turns(*[1] * 100_000),
    "ten megabytes of text": lambda: asking("a" * 10 * 2**20),
    "text beyond the context": lambda: asking("star " * 5000),
    "seventeen images": lambda: asking(*[image_part()] * 17),
    "a giant role": lambda: turns({"role": "user" * 10**6, "content": "hello"}),
    "a giant model": lambda: asking("hello", model="x" * 10**6),
    "a hundred thousand parts": lambda: asking(*["star "] * 100_000),
    "control tokens beyond the context": lambda: asking("<|end|>" * 20_000),
    # Fields.
    "no messages": lambda: turns(),
    "no model": lambda: {"messages": [{"role": "user", "content": "hello"}]},
    "another model": lambda: asking("hello", model="../../etc/passwd"),
    "content of nothing": lambda: turns({"role": "user", "content": None}),
    "content of no parts": lambda: turns({"role": "user", "content": []}),
    "content of spaces": lambda: turns({"role": "user", "content": "  \n "}),
    "an unknown role": lambda: turns({"role": "root", "content": "hello"}),
    "a forged role": lambda: turns({"role": "<|assistant|>", "content": "hello"}),
    "a tool's turn": lambda: turns({"role": "tool", "content": "hello", "tool_call_id": "1"}),
    "an image of the assistant's": lambda: turns(
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": [image_part()]},
        {"role": "user", "content": "b"},
    ),
    "a billion choices": lambda: asking("hello", n=10**9),
    "no choices": lambda: asking("hello", n=0),
    "an answer of nothing": lambda: asking("hello", max_tokens=0),
    "limits that differ": lambda: asking("hello", max_tokens=5, max_completion_tokens=6),
    "a cold temperature": lambda: asking("hello", temperature=-1),
    "a hot temperature": lambda: asking("hello", temperature=1e308),
    "a temperature in words": lambda: asking("hello", temperature="1"),
    "five stops": lambda: asking("hello", stop=list("abcde")),
    "an empty stop": lambda: asking("hello", stop=[""]),
    "a stop of nothing": lambda: asking("hello", stop=""),
    "a giant stop": lambda: asking("hello", stop=["a" * 10**6]),
    "a stop of numbers": lambda: asking("hello", stop=[1]),
    "a stream of words": lambda: asking("hello", stream="yes"),
    "tools that must be called": lambda: asking("hello", tools=[{"type": "function"}], tool_choice="required"),
    "a tool by name": lambda: asking("hello", tool_choice={"type": "function", "function": {"name": "rm"}}),
    "a bias": lambda: asking("hello", logit_bias={"50256": -100}),
    "stored": lambda: asking("hello", store=True),
    "spoken answers": lambda: asking("hello", modalities=["text", "audio"], audio={"voice": "alloy", "format": "wav"}),
    "a giant seed": lambda: asking("hello", seed=2**70),
    "a seed of parts": lambda: asking("hello", seed=1.5),
    "many logprobs": lambda: asking("hello", logprobs=True, top_logprobs=10**6),
    "logprobs unasked": lambda: asking("hello", top_logprobs=2),
    "options of no stream": lambda: asking("hello", stream_options={"include_usage": True}),
    "a penalty of nothing": lambda: asking("hello", repetition_penalty=0),
    "a schema": lambda: asking("hello", response_format={"type": "json_schema", "json_schema": {}}),
    "a part with more": lambda: asking({"type": "text", "text": "a", "path": "/etc/passwd"}),
    "a file part": lambda: asking({"type": "file", "file": {"file_data": "AAAA"}}),
    "an audio path": lambda: asking({"type": "input_audio", "input_audio": {"path": "/etc/passwd"}}),
}  # fmt: skip

EXPECTED = {
    "png bomb": ("image_too_large", "messages[0].content[0].image_url"),
    "jpeg bomb": ("image_too_large", "messages[0].content[0].image_url"),
    "gif of 65535 squared": ("image_too_large", "messages[0].content[0].image_url"),
    "images of too many pixels together": ("image_too_large", "messages[0].content[2].image_url"),
    "gif of very many comments": ("image_too_intricate", "messages[0].content[0].image_url"),
    "jpeg of very many scans": ("image_too_intricate", "messages[0].content[0].image_url"),
    "png whose EXIF is a bomb": ("image_too_intricate", "messages[0].content[0].image_url"),
    "bmp of very many runs": ("image_too_intricate", "messages[0].content[0].image_url"),
    "truncated PNG": ("damaged_image", "messages[0].content[0].image_url"),
    "svg with an external entity": ("not_an_image", "messages[0].content[0].image_url"),
    "tiff": ("not_an_image", "messages[0].content[0].image_url"),
    "url file:///etc/passwd": ("invalid_image_url", "messages[0].content[0].image_url"),
    "url http://127.0.0.1/a.png": ("remote_images_disabled", "messages[0].content[0].image_url"),
    "wav of no known codec": ("not_audio", "messages"),
    "half a flac": ("damaged_audio", "messages"),
    "twenty minutes of silence": ("audio_too_long", "messages"),
    "a play list": ("not_audio", "messages"),
    "no json": ("invalid_json", None),
    "a lone surrogate": ("invalid_json", None),
    "a hundred thousand brackets": ("invalid_json", None),
    "ten megabytes of text": ("context_length_exceeded", "messages"),
    "another model": ("model_not_found", "model"),
    "five stops": ("invalid_value", "stop"),
    "an empty stop": ("invalid_value", "stop[0]"),
    "a stop of nothing": ("invalid_value", "stop"),
    "a giant stop": ("invalid_value", "stop[0]"),
    "a giant seed": ("invalid_value", "seed"),
    "a tool by name": ("unsupported_parameter", "tool_choice"),
    "a schema": ("invalid_value", "response_format.json_schema.name"),
    "a bias": ("unsupported_parameter", "logit_bias"),
    "a field name of line breaks": ("unsupported_parameter", "a\r\nb\u2028\x1b[31m"),
    "a billion choices": ("invalid_value", "n"),
}
"""`code` and `param` of the refusal, where there can be no two opinions."""
