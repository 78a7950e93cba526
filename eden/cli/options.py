"""What several verbs share: options, where messages go, how a model is loaded and a result printed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from ..core.distributed import is_main

if TYPE_CHECKING:
    from ..inference.assistant import Assistant
    from ..media.speech import Transcript

err = Console(stderr=True, quiet=not is_main())
"""Where messages go; of several processes the main one speaks for all."""

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
Model = Annotated[str, typer.Option("-m", "--model", help="A folder, a hub id, or eden-tiny.")]
FourBit = Annotated[bool, typer.Option("--4bit", help="Hold the language model in 4 bits (NF4).")]


def load_assistant(model: str, four_bit: bool, *, say_format: bool = False) -> Assistant:
    """Loads a model; `say_format` prints what it computes in, why, and whether that is not as it was trained."""
    from .. import load
    from ..checkpoint.backbones import LoadOptions
    from ..checkpoint.four_bits import DEQUANTIZED, is_dequantized

    options: dict[str, Any] = {}
    if four_bit:
        from ..recipe import QuantizationSection

        options["quantization"] = QuantizationSection()
    with err.status(Text(f"loading {model}")):
        assistant = load(model, **options)
    if say_format:
        err.print(str(LoadOptions().numeric_format(assistant.checkpoint.config.text_config)), highlight=False)
        if is_dequantized(assistant.checkpoint.core):
            err.print(DEQUANTIZED, highlight=False)
        if not four_bit:
            say_if_trained_beside_others(model)
    return assistant


def say_if_trained_beside_others(model: str) -> None:
    """Says so where an adapter is beside the weights in full, and was trained beside those in 4 bits."""
    from ..checkpoint.artifact import RECIPE, Artifact
    from ..checkpoint.four_bits import TRAINED_BESIDE

    if Artifact.open(model, files=["*.json", RECIPE]).was_in_four_bits:  # without downloading a weight
        err.print(TRAINED_BESIDE, highlight=False)


def print_transcript(transcript: Transcript) -> None:
    err.print(f"heard  {transcript.text or '(nothing)'}", style="dim", highlight=False, markup=False, soft_wrap=True)


def print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False), flush=True)
