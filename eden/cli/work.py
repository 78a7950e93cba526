"""Verbs that make or judge a model: demo, train, evaluate."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from ..ranks import is_main, leave
from .shared import FourBit, Json, err, load_assistant, print_json


def demo(
    out: Annotated[Path, typer.Option("--out", help="Where data, artifact and report go.")] = Path("runs/demo"),
    as_json: Json = False,
) -> None:
    """The tour: ask eden-tiny, fine-tune it on real handwritten digits, ask again."""
    from ..demo import run_demo

    result = run_demo(out, err)
    if as_json:
        digits = {"before": round(result.before, 4), "after": round(result.after, 4), "n": result.n}
        print_json({"digits": digits, "artifact": str(result.artifact), "report": str(result.report)})
    else:
        print(f"artifact  {result.artifact}\nreport    {result.report}")
        print(f"ask it    eden ask -m {result.artifact} --image {out}/digits/0000.png 'What digit is this?'")
        print(f"serve it  eden serve {result.artifact}")


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes, as key.name=value.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    as_json: Json = False,
) -> None:
    """Train a recipe: align the projector, or fine-tune with LoRA."""
    from ..recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    from ..train import train as run_training

    result = run_training(loaded, resume=resume, console=err)
    leave()
    if not is_main():
        return
    if as_json:
        final = {name: row[name] for row in result.log for name in ("train_loss", "eval_loss") if name in row}
        print_json({"artifact": str(result.artifact), "report": str(result.report), "skipped": result.skipped, **final})
    else:
        print(f"artifact  {result.artifact}\nreport    {result.report}")


def evaluate(
    model: Annotated[str, typer.Argument(help="A folder, a hub id, or eden-tiny.")],
    task: Annotated[str, typer.Argument(help="`world`, or a data file with questions and answers.")],
    images: Annotated[Path | None, typer.Option(help="The folder of the file's images.")] = None,
    audio: Annotated[Path | None, typer.Option(help="The folder of the file's recordings.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most this many questions a group.", min=1)] = None,
    batch_size: Annotated[int, typer.Option(help="Questions asked at once.", min=1)] = 64,
    spoken: Annotated[bool, typer.Option("--spoken", help="Ask by voice, too, and count the words misheard.")] = False,
    noise_db: Annotated[
        float | None, typer.Option(help="Speak in white noise at this signal-to-noise ratio, in dB.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write the result as a page, too.")] = None,
    four_bit: FourBit = False,
    as_json: Json = False,
) -> None:
    """Ask every question of a task and count the right answers."""
    from ..evaluate import evaluate as run_evaluation, open_task, speak_task
    from ..speech import Transcriber

    if noise_db is not None and not spoken:
        raise InputError("--noise-db without --spoken", cure="Add --spoken.")
    opened, hearing = open_task(task, images=images, audio=audio, limit=limit), None
    assistant = load_assistant(model, four_bit)
    if spoken:
        ears = Transcriber(assistant.checkpoint.config.speech_model, workers=os.cpu_count() or 1)
        opened, hearing = speak_task(opened, ears, noise_db=noise_db, console=err)
    result = run_evaluation(assistant, opened, batch_size=batch_size, hearing=hearing, console=err)
    if html is not None:
        from ..evaluate import write_report

        write_report(html, result)
    summary = result.to_dict()
    if as_json:
        print_json(summary)
        return
    for group, kinds in summary["by_kind"].items():
        print(f"{group:<24} {summary[group]:.3f}")
        for kind, accuracy in kinds.items():
            print(f"  {kind:<22} {accuracy:.3f}")
    print(f"{summary['n']:,} questions in {summary['seconds']} s")
