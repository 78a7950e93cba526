"""Requests that mean harm, or look as if they did. Each is a function of nothing, so that none is built in vain."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

import PIL.Image
from servers import QUESTION, SCENE, asking, audio_part, data_url, image_part

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


def png(width: int, height: int, data: bytes = b"", *, extra: bytes = b"") -> bytes:
    """A PNG that claims a size."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


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
    # Where images are said to be.
    **{
        f"url {url[:40]}": (lambda url=url: image_url(url))
        for url in (
            "file:///etc/passwd", "/etc/passwd", "../../etc/passwd", "C:\\windows\\win.ini", "\\\\host\\share\\a.png",
            "http://127.0.0.1/a.png", "http://169.254.169.254/latest/meta-data/", "https://localhost/a.png",
            "https://[::1]/a.png", "https://0x7f000001/", "https://2130706433/", "ftp://example.com/a.png",
            "gopher://example.com/", "javascript:alert(1)", "blob:https://example.com/1", "data:", "data:image/png",
            "data:image/png,abc", "data:;base64,", "data:image/png;base64,@@@@", "data:image/png;base64,AAA", "",
            "https://user:password@example.com/a.png", "HTTPS://EXAMPLE.COM/a.png", "data:text/html;base64,PGI+",
        )
    },
    "base64 with line breaks": lambda: image_url("data:image/png;base64,\n" + base64.encodebytes(SCENE).decode()),
    "base64 for urls": lambda: image_url(f"data:image/png;base64,{URL_BASE64}"),
    "a header of a megabyte": lambda: image_url("data:" + "x" * 2**20 + ";base64,AAAA"),
    # Recordings.
    "wav that claims gigabytes": lambda: audio(wav(size=0x7FFF0000)),
    "wav of 65535 channels": lambda: audio(wav(channels=65_535)),
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
    "a giant field name": lambda: {**asking("hello"), "x" * 2**20: 1},
    "a hundred thousand messages": lambda: turns(*[{"role": "user", "content": "a"}] * 100_000),
    "a hundred thousand wrong messages": lambda: turns(*[1] * 100_000),
    "ten megabytes of text": lambda: asking("a" * 10 * 2**20),
    "text beyond the context": lambda: asking("star " * 5000),
    "seventeen images": lambda: asking(*[image_part()] * 17),
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
    "the assistant first": lambda: turns({"role": "assistant", "content": "hello"}),
    "two users": lambda: turns({"role": "user", "content": "a"}, {"role": "user", "content": "b"}),
    "the assistant last": lambda: turns({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}),
    "an image of the assistant's": lambda: turns(
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": [image_part()]},
        {"role": "user", "content": "b"},
    ),
    "a billion choices": lambda: asking("hello", n=10**9),
    "no choices": lambda: asking("hello", n=0),
    "an endless answer": lambda: asking("hello", max_tokens=10**12),
    "an answer of nothing": lambda: asking("hello", max_tokens=0),
    "limits that differ": lambda: asking("hello", max_tokens=5, max_completion_tokens=6),
    "a cold temperature": lambda: asking("hello", temperature=-1),
    "a hot temperature": lambda: asking("hello", temperature=1e308),
    "a temperature in words": lambda: asking("hello", temperature="1"),
    "top_p of nothing": lambda: asking("hello", top_p=0),
    "five stops": lambda: asking("hello", stop=list("abcde")),
    "an empty stop": lambda: asking("hello", stop=[""]),
    "a giant seed": lambda: asking("hello", seed=2**70),
    "a seed of parts": lambda: asking("hello", seed=1.5),
    "many logprobs": lambda: asking("hello", logprobs=True, top_logprobs=10**6),
    "logprobs unasked": lambda: asking("hello", top_logprobs=2),
    "options of no stream": lambda: asking("hello", stream_options={"include_usage": True}),
    "a penalty of nothing": lambda: asking("hello", repetition_penalty=0),
    "a schema": lambda: asking("hello", response_format={"type": "json_schema", "json_schema": {}}),
    "an image that is text": lambda: asking({"type": "image_url", "image_url": data_url(SCENE)}),
    "a part with more": lambda: asking({"type": "text", "text": "a", "path": "/etc/passwd"}),
    "a file part": lambda: asking({"type": "file", "file": {"file_data": "AAAA"}}),
    "an audio path": lambda: asking({"type": "input_audio", "input_audio": {"path": "/etc/passwd"}}),
}  # fmt: skip
