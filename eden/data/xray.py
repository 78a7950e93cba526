"""Samples as the model sees them: every token, which of them are supervised, and where the pictures stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import PIL.Image
from rich.console import Console
from rich.text import Text

from ..errors import DataError
from ..media.images import image_size, open_image
from ..messages import to_chat
from ..model.loss import IGNORE_INDEX
from ..model.processing import MultimodalPhiProcessor
from .formats import Sample


@dataclass(frozen=True)
class XrayToken:
    """One token, or a run of image tokens shown as one (`count` of them)."""

    text: str
    token_id: int
    supervised: bool
    is_image: bool
    count: int = 1


@dataclass(frozen=True)
class XraySample:
    """One rendered sample."""

    id: str
    tokens: list[XrayToken]
    images: list[PIL.Image.Image]

    @property
    def length(self) -> int:
        """T, in tokens."""
        return sum(token.count for token in self.tokens)

    @property
    def supervised(self) -> int:
        return sum(token.supervised for token in self.tokens)

    @property
    def caption(self) -> str:
        return f"sample {self.id}: {self.length:,} tokens, {self.supervised:,} of them supervised"

    def to_dict(self) -> dict[str, Any]:
        tokens = [vars(token) for token in self.tokens]
        return {"id": self.id, "length": self.length, "supervised": self.supervised, "tokens": tokens}


def xray(samples: Sequence[Sample], processor: MultimodalPhiProcessor) -> list[XraySample]:
    """Renders samples exactly as training does.

    Raises:
        DataError: a sample cannot be rendered; the message names it.
        ImageError: one of its images cannot be opened.
    """
    rendered = []
    for sample in samples:
        images = [open_image(image.source) for message in sample.messages for image in message.images]
        try:
            example = processor.encode(to_chat(sample.messages, image_size=image_size))
        except ValueError as error:
            raise DataError(str(error), where=sample.where, hint="Correct the sample.") from error
        rendered.append(XraySample(sample.id, _tokens(example, processor), images))
    return rendered


def print_xray(console: Console, samples: Sequence[XraySample]) -> None:
    """Prints samples, supervised tokens green, image tokens magenta."""
    legend = Text.assemble(
        ("supervised", "bold black on green"), "  ", ("image", "magenta"), "  ", ("read only", "dim")
    )
    console.print(legend)
    for sample in samples:
        console.print()
        console.print(sample.caption, style="bold", highlight=False)
        line = Text()
        for token in sample.tokens:
            style = "bold black on green" if token.supervised else "magenta" if token.is_image else "dim"
            line.append(token.text, style=style)
            if not token.supervised:
                line.append("·", style="dim")
        console.print(line)


def _tokens(example: dict[str, Any], processor: MultimodalPhiProcessor) -> list[XrayToken]:
    pieces = processor.tokenizer.convert_ids_to_tokens(example["input_ids"])
    rows = zip(example["input_ids"], pieces, example["labels"], strict=True)
    tokens = []
    for (token_id, supervised), run in groupby(rows, key=lambda row: (row[0], row[2] != IGNORE_INDEX)):
        texts = [_readable(piece) for _, piece, _ in run]
        if token_id == processor.image_token_id:
            shown = f"{texts[0]} ×{len(texts)}" if len(texts) > 1 else texts[0]
            tokens.append(XrayToken(shown, token_id, supervised, True, len(texts)))
        else:
            tokens += [XrayToken(text, token_id, supervised, False) for text in texts]
    return tokens


def _readable(piece: str) -> str:
    """A tokenizer's piece as the text it stands for, with a line break made visible."""
    return piece.replace("▁", " ").replace("<0x0A>", "⏎").replace("\n", "⏎")
