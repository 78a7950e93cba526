"""Trains eden-tiny's Whisper from nothing: `python -m tiny_build.build_whisper --out DIR --ship`.

1. sentences, spoken by espeak-ng in the voices of training; none of the sentences that `eden evaluate world` asks
2. a Whisper, saved to `DIR/whisper-hf`, from where a build that was cut off goes on
3. its int8 copy in CTranslate2's format, `DIR/whisper`: this is what eden-tiny hears with
4. the word error rates on the questions of `eden evaluate world --spoken`, in `DIR/whisper/BUILD.md`
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from pathlib import Path

import torch
from jinja2 import Template
from rich.console import Console
from safetensors import safe_open

from eden.checkpoint import load
from eden.core import files
from eden.evaluate import evaluate, open_task, speak_task
from eden.inference.assistant import Assistant
from eden.media.speech import EDEN_TINY_WHISPER, Transcriber, convert_whisper

from .sentences import plain_words
from .whisper import WINDOW_SECONDS, HearingConfig, train_whisper

NOISE_DB = 10.0


def build_whisper(config: HearingConfig, out: Path, console: Console) -> Path:
    """Trains, converts, measures; returns the folder to ship.

    Raises:
        StorageError: the disk is full.
    """
    trained, folder = out / "whisper-hf", out / "whisper"
    if not (trained / "minutes.json").exists():
        started = time.monotonic()
        train_whisper(config, held_out_sentences(), trained, console)
        files.write_file(trained / "minutes.json", json.dumps((time.monotonic() - started) / 60))
    convert_whisper(trained, folder, quantization="int8")
    files.write_file(folder / "BUILD.md", _report(config, trained, folder, console))
    return folder


def held_out_sentences() -> set[str]:
    """Every question that the evaluation asks as the first words of a conversation, as it sounds."""
    groups = open_task("world").groups
    asked = (*groups["accuracy"], *groups["accuracy_unseen_pairs"])
    return {plain_words(question.messages[-1].text) for question in asked}


def _report(config: HearingConfig, trained: Path, folder: Path, console: Console) -> str:
    """`BUILD.md`: what was done, and what the converted Whisper hears."""
    assistant, task = Assistant(load()), open_task("world")
    transcriber = Transcriber(str(folder), workers=os.cpu_count() or 1)
    results = {}
    for name, noise in (("in silence", None), (f"in white noise at {NOISE_DB:g} dB", NOISE_DB)):
        spoken, transcription = speak_task(task, transcriber, noise_db=noise, console=console)
        results[name] = evaluate(assistant, spoken, transcription=transcription, console=console).to_dict()
    with safe_open(trained / "model.safetensors", framework="np") as weights:
        parameters = sum(weights.get_tensor(name).size for name in weights.keys())  # noqa: SIM118
    template = Template((Path(__file__).parent / "WHISPER.md.jinja").read_text(), trim_blocks=True)
    return template.render(
        config=config,
        window=WINDOW_SECONDS,
        parameters=parameters,
        minutes=json.loads((trained / "minutes.json").read_text()),
        threads=torch.get_num_threads(),
        questions=len(transcription.said),
        results=results,
    )


def main() -> None:
    """The command line of the build."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ship", action="store_true", help="put the result into the package, too")
    arguments = parser.parse_args()
    folder = build_whisper(HearingConfig(), arguments.out, Console())
    if arguments.ship:
        with files.new_folder(EDEN_TINY_WHISPER) as shipped:
            for path in folder.iterdir():
                shutil.copy(path, shipped)
    print((folder / "BUILD.md").read_text())


if __name__ == "__main__":
    main()
