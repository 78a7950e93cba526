"""Verbs that make a model: demo, train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.console import AS_IT_IS
from ..core.distributed import is_main, leave
from .options import Json, err, print_json


def demo(
    out: Annotated[Path, typer.Option("--out", help="Where data, artifact and report go.")] = Path("runs/demo"),
    class_folders: Annotated[
        Path | None, typer.Option(help="Only write the digits, in a folder for each class, as `decide` learns from.")
    ] = None,
    as_json: Json = False,
) -> None:
    """The tour: ask eden-tiny, fine-tune it on real handwritten digits, ask again."""
    from .demo import run_demo, write_class_folders

    if class_folders is not None:
        write_class_folders(class_folders, err)
        print(f"{class_folders}/train  to learn from\n{class_folders}/test   to be judged by")
        return
    result = run_demo(out, err)
    if as_json:
        digits = {"before": round(result.before, 4), "after": round(result.after, 4), "n": result.n}
        print_json({"digits": digits, "artifact": str(result.artifact), "report": str(result.report)})
    else:
        print(f"artifact  {result.artifact}\nreport    {result.report}")
        print(f"ask it    eden ask -m {result.artifact} --image {out}/digits/0000.png 'What digit is this?'")
        print(f"serve it  eden serve {result.artifact}")


def report(run: Annotated[Path, typer.Argument(help="The folder of a finished run.")], as_json: Json = False) -> None:
    """Make the report of a finished run again."""
    from ..training.train import report as make_report

    page = make_report(run, err)
    if as_json:
        print_json({"report": str(page)})
    else:
        print(page)


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes, as key.name=value.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    as_json: Json = False,
) -> None:
    """Train a recipe: align the projector, or fine-tune with LoRA."""
    from ..recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    from ..training.train import train as run_training

    result = run_training(loaded, resume=resume, console=err)
    leave()
    if not is_main():
        return
    page = str(result.report) if result.report.exists() else None  # else it was told why, and how to make it
    if as_json:
        final = {name: row[name] for row in result.log for name in ("train_loss", "eval_loss") if name in row}
        knows = {"knows": result.knows.to_dict()} if result.knows is not None else {}
        done = {"artifact": str(result.artifact), "report": page, "skipped": result.skipped}
        print_json(done | final | knows)
    else:
        print(f"artifact  {result.artifact}" + (f"\nreport    {page}" if page else ""), flush=True)
    if result.knows is not None and result.knows.has_forgotten:
        err.print(f"warning: {result.knows.said}", **AS_IT_IS)
