"""The verb that looks ahead: plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.console import written_size
from .options import Json, err, print_json

if TYPE_CHECKING:
    from ..plan import Plan

SOURCES = {
    "encoded": "",
    "characters": "no tokenizer here: 4 characters are taken for a token",
    "assumed": "no {missing} here: assumed as long as LLaVA-Instruct-150K's",
}


def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes, as key.name=value.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="Memory there is, as 8GiB; 6, 8, 12 and 24 GiB are asked without.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Real steps to measure on this machine; 0 measures none.", min=0)] = 2,
    as_json: Json = False,
) -> None:
    """Say what a run will take before it begins: memory, time, disk, and what to change if it does not fit."""
    from ..recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    from ..plan import forecast
    from ..plan.budget import parse_size

    result = forecast(loaded, err, budget=parse_size(budget) if budget else None, steps=steps)
    if as_json:
        print_json(result.to_dict())
    else:
        missing = [source.path for source in loaded.data.all_sources if not Path(source.path).exists()]
        _print(result, ", ".join(missing))


def _print(plan: Plan, missing: str) -> None:
    work, counts = plan.workload, plan.shapes
    _line("samples", f"{len(work.lengths):,}, {work.tokens:,} tokens, {work.supervised:,} supervised")
    if SOURCES[work.source]:
        _line("", SOURCES[work.source].format(missing=missing))
    if work.skipped:
        _line("skipped", f"{work.skipped:,} samples that are too long")
    _line("rows", f"{work.rows:,}, {work.padding:.1%} of the positions are padding")
    _line("steps", f"{work.schedule.steps:,} of {work.schedule.rows_a_step} rows: {work.schedule.epochs:.2f} epochs")
    if plan.stage:
        _line("model", f"its base is not here: planned as `eden train {plan.stage}` will leave it")
    _line("parameters", f"{counts.parameters:,}, {counts.trained:,} trained")
    positions = f"longest batch: {work.longest_positions:,} positions"
    print(f"memory, estimated for {'a GPU' if plan.gpu else 'a CPU'} ({positions})")
    for part, size in plan.memory.parts.items():
        if size:
            _line(f"  {part}", f"{written_size(size):>10}")
    _line("  in all", f"{written_size(plan.memory.total):>10}")
    _print_times(plan)
    print("disk, estimated")
    for part, size in plan.disk.items():
        if size:
            _line(f"  {part}", f"{written_size(size):>10}")
    for verdict in plan.verdicts:
        says = "enough" if verdict.fits else "enough with these changes:"
        if not verdict.possible:
            least = verdict.changes[-1].total if verdict.changes else plan.memory.total
            says = f"not enough: {written_size(least)} with all that can be changed"
        _line(written_size(verdict.budget), says)
        for change in verdict.changes if verdict.possible else []:
            without = f"  ({change.skipped:,} samples left out)" if change.skipped else ""
            _line(f"{written_size(change.total):>10}", " ".join(change.overrides) + without)


def _print_times(plan: Plan) -> None:
    measured = plan.measured
    if measured is None or plan.step_seconds is None or plan.total_seconds is None:
        _line("time", "not measured")
        return
    device = {"cpu": "CPU", "cuda": "GPU"}.get(measured.device, measured.device)
    if measured.what == "model":
        print(f"measured, on this machine's {device}: the whole model on batches of {measured.tokens:,} positions")
        assert measured.held is not None and measured.peak is not None
        _line("  weights", f"{written_size(measured.held):>10}  (estimate {written_size(plan.memory.held)})")
        _line("  most at a time", f"{written_size(measured.peak):>10}  (estimate {written_size(plan.memory.total)})")
    else:
        print(f"measured, on this machine's {device}: one layer of the real shape with random weights")
        assert measured.kept is not None and measured.kept_estimate is not None
        _line(
            "  kept for backward",
            f"{written_size(measured.kept):>10}  (estimate {written_size(measured.kept_estimate)})",
        )
    _line(
        "  longest step",
        f"{_duration(measured.seconds):>10}"
        + ("" if measured.what == "model" else f"  (one of {measured.tokens:,} tokens, counted for all layers)"),
    )
    print("time on this machine, estimated from it")
    _line("  usual step", f"{_duration(plan.step_seconds):>10}")
    _line("  all steps", f"{_duration(plan.total_seconds):>10}")


def _line(name: str, text: str) -> None:
    print(f"{name:<22} {text}")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.0f} h"
