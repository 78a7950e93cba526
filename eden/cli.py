"""The command line: parse, call, print. The work is done by the modules below."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

# Models are asked for by folder or hub id; a tokenizer that forks workers would only warn about it.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import typer
from rich.console import Console

from . import __version__
from .errors import EdenError, InputError

if TYPE_CHECKING:
    from .assistant import Assistant, Chat

app = typer.Typer(
    name="eden",
    help="Give a small language model eyes and ears: train, evaluate, ask and ship it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
err = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
Model = Annotated[str, typer.Option("-m", "--model", help="A folder, a hub id, or eden-tiny.")]
FourBit = Annotated[bool, typer.Option("--4bit", help="Hold the language model in 4 bits (NF4).")]


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit()


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Where data, artifact and report go.")] = Path("runs/demo"),
    as_json: Json = False,
) -> None:
    """The tour: ask eden-tiny, fine-tune it on real handwritten digits, ask again."""
    from .demo import run_demo

    result = run_demo(out, err)
    if as_json:
        digits = {"before": round(result.before, 4), "after": round(result.after, 4), "n": result.n}
        _print_json({"digits": digits, "artifact": str(result.artifact), "report": str(result.report)})
    else:
        print(f"artifact  {result.artifact}\nreport    {result.report}")
        print(f"ask it    eden ask -m {result.artifact} --image {out}/digits/0000.png 'What digit is this?'")


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="The question, in words.")],
    image: Annotated[list[Path] | None, typer.Option("--image", help="A picture; may be given several times.")] = None,
    model: Model = "eden-tiny",
    max_new_tokens: Annotated[int, typer.Option(help="The longest answer, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy; higher draws more freely.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Makes draws repeatable.")] = None,
    four_bit: FourBit = False,
    as_json: Json = False,
) -> None:
    """Ask one question, about pictures or not; the answer streams."""
    assistant = _load(model, four_bit)
    sampling: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    pieces = assistant.stream(question, image or [], **sampling)
    if as_json:
        _print_json({"model": model, "question": question, "answer": "".join(pieces)})
        return
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


@app.command()
def chat(model: Model = "eden-tiny", four_bit: FourBit = False) -> None:
    """A conversation in the terminal. `/image FILE` shows a picture with the next question; Ctrl-D ends."""
    conversation = _load(model, four_bit).chat()
    err.print("[dim]/image FILE shows a picture with your next question, /clear starts over, Ctrl-D ends[/]")
    images: list[Path] = []
    while True:
        try:
            line = input("> ").strip() if sys.stdin.isatty() else next(sys.stdin).strip()
        except (EOFError, StopIteration, KeyboardInterrupt):
            return
        try:
            images = _chat_turn(conversation, line, images)
        except InputError as error:
            err.print(f"[red]{error}[/]", highlight=False)
            images = []


@app.command()
def check(
    data: Annotated[Path, typer.Argument(help="LLaVA JSON or JSONL, or messages JSONL.")],
    images: Annotated[
        Path | None, typer.Option(help="The folder of the images; the data file's own if not given.")
    ] = None,
    decode: Annotated[bool, typer.Option(help="Decode every image in full, not only its header.")] = True,
    html: Annotated[Path | None, typer.Option(help="Write the report as a page, too.")] = None,
    as_json: Json = False,
) -> None:
    """Validate a data set: counts, and every fault with its line and the cure."""
    from .console import progress
    from .data.validate import check as check_data

    with progress(err) as bar:
        task = bar.add_task(f"checking {data}", total=None)
        report, _ = check_data(
            data, images, decode=decode, on_progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    if html is not None:
        from .report import data_page, write_page

        write_page(html, data_page(report.to_dict()))
    if as_json:
        _print_json(report.to_dict())
    else:
        for fault in report.faults:
            print(f"{fault.where}: {fault.message}. {fault.cure}")
        print(f"{report.samples:,} samples, {report.faulty:,} faulty" + ("" if report.faulty else ": all good"))
        for name, count in report.counts.items():
            print(f"  {name.replace('_', ' ')}: {count:,}")
    if not report.ok:
        raise typer.Exit(InputError.exit_code)


@app.command()
def xray(
    data: Annotated[Path, typer.Argument(help="LLaVA JSON or JSONL, or messages JSONL.")],
    model: Model = "eden-tiny",
    n: Annotated[int, typer.Option("-n", help="How many samples.")] = 5,
    images: Annotated[Path | None, typer.Option(help="The folder of the images.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write them as a page, too.")] = None,
    as_json: Json = False,
) -> None:
    """Show samples as the model sees them, with the supervised tokens coloured."""
    import itertools

    from .checkpoint import load_processor
    from .data.formats import Sample, read_samples
    from .xray import print_xray, xray as xray_samples

    samples: list[Sample] = []
    for item in itertools.islice(read_samples(data, images), n):
        if not isinstance(item, Sample):
            raise item
        samples.append(item)
    rendered = xray_samples(samples, load_processor(model))
    if html is not None:
        from .report import write_page, xray_page

        write_page(html, xray_page([(sample.caption, sample.tokens, sample.images) for sample in rendered]))
    if as_json:
        _print_json({"samples": [sample.to_dict() for sample in rendered]})
    else:
        print_xray(Console(), rendered)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes, as key.name=value.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    as_json: Json = False,
) -> None:
    """Train a recipe: align the projector, or fine-tune with LoRA."""
    from .recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    from .train import train as run_training

    result = run_training(loaded, resume=resume, console=err)
    if as_json:
        final = {name: row[name] for row in result.log for name in ("train_loss", "eval_loss") if name in row}
        _print_json(
            {"artifact": str(result.artifact), "report": str(result.report), "skipped": result.skipped, **final}
        )
    else:
        print(f"artifact  {result.artifact}\nreport    {result.report}")


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A folder, a hub id, or eden-tiny.")],
    task: Annotated[str, typer.Argument(help="`world`, or a data file with questions and answers.")],
    images: Annotated[Path | None, typer.Option(help="The folder of the file's images.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most this many questions a group.", min=1)] = None,
    batch_size: Annotated[int, typer.Option(help="Questions asked at once.", min=1)] = 64,
    html: Annotated[Path | None, typer.Option(help="Write the result as a page, too.")] = None,
    four_bit: FourBit = False,
    as_json: Json = False,
) -> None:
    """Ask every question of a task and count the right answers."""
    from .evaluate import evaluate as run_evaluation, open_task

    opened = open_task(task, images=images, limit=limit)
    result = run_evaluation(_load(model, four_bit), opened, batch_size=batch_size, console=err)
    if html is not None:
        from .evaluate import write_report

        write_report(html, result)
    summary = result.to_dict()
    if as_json:
        _print_json(summary)
        return
    for group, kinds in summary["by_kind"].items():
        print(f"{group:<24} {summary[group]:.3f}")
        for kind, accuracy in kinds.items():
            print(f"  {kind:<22} {accuracy:.3f}")
    print(f"{summary['n']:,} questions in {summary['seconds']} s")


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="The artifact.")],
    out: Annotated[Path, typer.Argument(help="The new folder.")],
    to: Annotated[str, typer.Option("--to", help="hf: one merged model that transformers loads by itself.")] = "hf",
    as_json: Json = False,
) -> None:
    """Turn an artifact into what other tools load."""
    from . import checkpoint as checkpoints

    if to != "hf":
        raise InputError(f"cannot export to {to!r}", cure="Use --to hf.")
    merged = checkpoints.merge(_load(model, four_bit=False).checkpoint)
    checkpoints.save(merged, out)
    if as_json:
        _print_json({"folder": str(out)})
    else:
        print(out)


def _chat_turn(conversation: Chat, line: str, images: list[Path]) -> list[Path]:
    """One line of a chat; returns the pictures that wait for the next question."""
    if not line:
        return images
    if line == "/clear":
        conversation.messages.clear()
        return []
    if line.startswith("/image "):
        path = Path(line.removeprefix("/image ").strip())
        from .vision import open_image

        open_image(path)
        return [*images, path]
    for piece in conversation.stream(line, images):
        print(piece, end="", flush=True)
    print()
    return []


def _load(model: str, four_bit: bool) -> Assistant:
    from . import load

    options: dict[str, Any] = {}
    if four_bit:
        from .recipe import QuantizationSection

        options["quantization"] = QuantizationSection()
    with err.status(f"loading {model}"):
        return load(model, **options)


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False))


def main() -> None:
    """The `eden` command. Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    _quiet_libraries()
    debug = "--debug" in sys.argv
    try:
        app(args=[argument for argument in sys.argv[1:] if argument != "--debug"])
    except EdenError as error:
        if debug:
            traceback.print_exc()
        err.print(f"[bold red]error[/] {error}", highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        err.print("stopped")
        sys.exit(130)


def _quiet_libraries() -> None:
    """The libraries' own progress bars and advice would drown the one line that matters."""
    import logging
    import warnings

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)


if __name__ == "__main__":
    main()
