"""Verbs about a data set: check, xray, cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..errors import InputError
from .shared import Json, Model, err, print_json


def check(
    data: Annotated[Path, typer.Argument(help="LLaVA JSON or JSONL, or messages JSONL.")],
    images: Annotated[
        Path | None, typer.Option(help="The folder of the images; the data file's own if not given.")
    ] = None,
    audio: Annotated[
        Path | None, typer.Option(help="The folder of the recordings; the data file's own if not given.")
    ] = None,
    decode: Annotated[bool, typer.Option(help="Decode every image in full, not only its header.")] = True,
    html: Annotated[Path | None, typer.Option(help="Write the report as a page, too.")] = None,
    as_json: Json = False,
) -> None:
    """Validate a data set: counts, and every fault with its line and the cure."""
    from ..console import progress
    from ..data.validate import check as check_data

    with progress(err) as bar:
        task = bar.add_task(f"checking {data}", total=None)
        report, _ = check_data(
            data,
            images,
            audio,
            decode=decode,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if html is not None:
        from ..report import data_page, write_page

        write_page(html, data_page(report.to_dict()))
    if as_json:
        print_json(report.to_dict())
    else:
        for fault in report.faults:
            print(f"{fault.where}: {fault.message}. {fault.cure}")
        print(f"{report.samples:,} samples, {report.faulty:,} faulty" + ("" if report.faulty else ": all good"))
        for name, count in report.counts.items():
            print(f"  {name.replace('_', ' ')}: {count:,}")
    if not report.ok:
        raise typer.Exit(InputError.exit_code)


def xray(
    data: Annotated[Path, typer.Argument(help="LLaVA JSON or JSONL, or messages JSONL.")],
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
    from ..speech import Transcriber
    from ..xray import print_xray, xray as xray_samples

    samples: list[Sample] = []
    for item in itertools.islice(read_samples(data, images, audio), n):
        if not isinstance(item, Sample):
            raise item
        samples.append(item)
    if any(message.audio for sample in samples for message in sample.messages):
        samples, _ = transcribe_samples(samples, TranscriptStore(Transcriber(speech_model(model))))
    rendered = xray_samples(samples, load_processor(model))
    if html is not None:
        from ..report import write_page, xray_page

        write_page(html, xray_page([(sample.caption, sample.tokens, sample.images) for sample in rendered]))
    if as_json:
        print_json({"samples": [sample.to_dict() for sample in rendered]})
    else:
        print_xray(Console(), rendered)


def cache(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes, as key.name=value.")] = None,
    as_json: Json = False,
) -> None:
    """Compute once what a run needs of its data: the transcripts of its recordings. Goes on where it was stopped."""
    from ..recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    from ..prepare import read_data

    trained, held_out, skipped = read_data(loaded, err)
    for line in skipped:
        err.print(f"skipped {line}", highlight=False)
    if as_json:
        print_json({"samples": len(trained) + len(held_out), "skipped": skipped})
    else:
        print(f"{len(trained) + len(held_out):,} samples ready, {len(skipped):,} skipped")
