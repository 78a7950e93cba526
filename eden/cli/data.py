"""Verbs about a data set: check, xray, cache."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ..core.console import AS_IT_IS
from ..errors import DataError, InputError
from .options import Json, Model, err, print_json

if TYPE_CHECKING:
    import PIL.Image

    from ..data.validate import Report


SHOWN_QUESTIONS = 8
SHOWN_TWINS, TWINS_ON_PAGE = 20, 100
"""Pairs; --json has all."""


def check(
    data: Annotated[str, typer.Argument(help="A data set: JSON, JSONL, COCO captions, image folder, Parquet.")],
    images: Annotated[
        Path | None, typer.Option(help="The folder of the images; the data file's own if not given.")
    ] = None,
    audio: Annotated[
        Path | None, typer.Option(help="The folder of the recordings; the data file's own if not given.")
    ] = None,
    decode: Annotated[bool, typer.Option(help="Decode every image in full, not only its first bytes.")] = False,
    faults: Annotated[int, typer.Option(min=0, help="How many faults to name; all are counted.")] = 1000,
    twins: Annotated[
        bool,
        typer.Option("--twins", help="Find pictures alike in two parts (training, held out), or with other answers."),
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Write the report as a page, too.")] = None,
    as_json: Json = False,
) -> None:
    """Validate a data set: counts, and every fault with its line and a hint."""
    from ..core.console import progress
    from ..data.decisions import Decisions
    from ..data.validate import check as check_data

    with progress(err) as bar:
        task = bar.add_task(f"checking {data}", total=None)
        report, samples = check_data(
            data,
            images,
            audio,
            look="decoded" if decode else "opened",
            named=faults,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total or None),
        )
    report.decisions = [asked.to_dict() for asked in Decisions(samples).asked()]
    shown: list[list[PIL.Image.Image]] = []
    if twins and len(samples):
        from ..data.twins import find_twins
        from ..media.images import open_image

        found = find_twins(data, images, audio, err)
        report.twins = found.to_dict()
        if html is not None:
            shown = [[open_image(of.source) for of in pair.pictures] for pair in found.pairs[:TWINS_ON_PAGE]]
    if html is not None:
        from ..core.html_report import data_page, write_page

        write_page(html, data_page(report.to_dict(), shown))
    if as_json:
        print_json(report.to_dict())
    else:
        _print_report(report)
    if not report.ok:
        raise typer.Exit(InputError.exit_code)


def _print_report(report: Report) -> None:
    for fault in report.faults:
        print(fault)
    if report.unnamed:
        print(f"... and {report.unnamed:,} more faults (--faults {len(report.faults) + report.unnamed} names them all)")
    print(f"{report.samples:,} samples, {report.faulty:,} faulty" + ("" if report.faulty else ": all good"))
    groups = {"": report.counts, "format, ": report.formats, "kind, ": report.kinds, "fault, ": report.faults_by_kind}
    groups["a control token to some models, "] = report.control_words
    for group, counts in groups.items():
        for name, count in counts.items():
            as_words = group in ("", "fault, ")
            print(f"  {group}{name.replace('_', ' ') if as_words else name}: {count:,}")

    _print_decisions(report)
    if report.twins is not None:
        _print_twins(report.twins)


def _print_decisions(report: Report) -> None:
    for asked in report.decisions[:SHOWN_QUESTIONS]:
        print(f"decisions, {asked['kind']}: {asked['question']}")
        for answer, number in asked["answers"].items():
            small = ", too few to calibrate with" if answer in asked["too_small"] else ""
            print(f"  {answer}: {number:,}{small}")
    if (more := len(report.decisions) - SHOWN_QUESTIONS) > 0:
        print(f"... and {more:,} more questions with a closed set of answers (--json counts them all)")


def _print_twins(twins: dict[str, Any]) -> None:
    from ..core.report_blocks import twin_words

    for line in twins["unreadable"]:
        err.print(f"skipped {line}", **AS_IT_IS)
    print(f"twins, leaks: {twins['leaks']:,}, different answers: {twins['different_answers']:,}")
    for pair in twins["pairs"][:SHOWN_TWINS]:
        alike, why = twin_words(pair)
        sides = [f"{of['name']} ({', '.join([of['part'], *of['answers']])})" for of in pair["pictures"]]
        print(f"  {alike:<7} {why:<23}  {'  '.join(sides)}")
    if (more := len(twins["pairs"]) - SHOWN_TWINS) > 0:
        print(f"... and {more:,} more pairs (--json has them all)")


def xray(
    data: Annotated[str, typer.Argument(help="A data set, as `eden check` takes it.")],
    model: Model = "eden-tiny",
    n: Annotated[int, typer.Option("-n", help="How many samples.")] = 5,
    images: Annotated[Path | None, typer.Option(help="The folder of the images.")] = None,
    audio: Annotated[Path | None, typer.Option(help="The folder of the recordings.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write them as a page, too.")] = None,
    as_json: Json = False,
) -> None:
    """Show samples as the model sees them, with the supervised tokens coloured."""
    import itertools

    from ..checkpoint import load_processor, speech_model
    from ..data.formats import Sample, read_samples
    from ..data.transcripts import TranscriptStore, transcribe_samples
    from ..data.xray import print_xray, xray as xray_samples
    from ..media.speech import Transcriber

    samples: list[Sample] = []
    for item in itertools.islice(read_samples(data, images, audio), n):
        if not isinstance(item, Sample):
            raise item
        samples.append(item)
    if any(message.audio for sample in samples for message in sample.messages):
        samples, _ = transcribe_samples(samples, TranscriptStore(Transcriber(speech_model(model))))
    rendered = xray_samples(samples, load_processor(model))
    if html is not None:
        from ..core.html_report import write_page, xray_page

        write_page(html, xray_page([(sample.caption, sample.tokens, sample.images) for sample in rendered]))
    if as_json:
        print_json({"samples": [sample.to_dict() for sample in rendered]})
    else:
        print_xray(Console(), rendered)


def cache(
    recipe: Annotated[str | None, typer.Argument(help="A recipe file, or the name of a shipped recipe.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes, as key.name=value.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that encode images.", min=1)] = 1,
    list_: Annotated[bool, typer.Option("--list", help="Show what is kept, and how large it is.")] = False,
    clear: Annotated[bool, typer.Option("--clear", help="Remove all that no process is using.")] = False,
    as_json: Json = False,
) -> None:
    """Compute once what a run needs of its data: transcripts, image features. Goes on where it was stopped."""
    if (recipe is not None) + list_ + clear != 1:
        raise InputError("neither one thing nor another", hint="Give a recipe, or --list, or --clear.")
    if recipe is None:
        _print_cache(clear, as_json)
        return
    from ..recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    from ..data.prepare import read_data

    trained, held_out, skipped = read_data(loaded, err)
    samples, images = len(trained) + len(held_out), list({**trained.images(), **held_out.images()}.values())
    ready = 0
    if images and loaded.data.features == "live":
        err.print("images are not cached: data.features is live")
    elif images:
        from ..data.feature_policy import cache_features

        store = cache_features(loaded, images, err, workers)
        faulty = [error for part in (trained, held_out) for error in store.faulty(part).values()]
        if faulty and loaded.data.on_error == "fail":
            more = f" ({len(faulty) - 1:,} more)" if len(faulty) > 1 else ""
            hint = "data.on_error=skip leaves faulty samples out."
            raise DataError(f"{faulty[0].fault.what}{more}", where=faulty[0].fault.where, hint=hint)
        skipped += dict.fromkeys(map(str, faulty))  # a mix may hold a sample more than once
        samples, ready = samples - len(faulty), len(images) - len(store.faults)
    for line in skipped:
        err.print(f"skipped {line}", **AS_IT_IS)
    if as_json:
        print_json({"samples": samples, "images": ready, "skipped": skipped})
    else:
        print(f"{samples:,} samples and {ready:,} images ready, {len(skipped):,} skipped")


def _print_cache(clear: bool, as_json: bool) -> None:
    from datetime import datetime

    from ..data.cache import entries, shrink

    found = shrink(0) if clear else entries()
    total = sum(entry.size for entry in found)
    if as_json:
        rows = [{"path": str(entry.path), "bytes": entry.size, "in_use": entry.held} for entry in found]
        print_json({"removed" if clear else "entries": rows, "bytes": total})
        return
    for entry in found:
        state = "in use" if entry.held else f"{datetime.fromtimestamp(entry.used):%Y-%m-%d}"
        print(f"{entry.size / 1e6:>12,.1f} MB  {state:<10}  {entry.path}")
    print(f"{total / 1e6:>12,.1f} MB {'removed' if clear else 'kept'}")
