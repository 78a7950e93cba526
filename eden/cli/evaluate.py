"""The verb that judges a model: evaluate."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.processes import cores
from ..errors import InputError
from .options import FourBit, Json, err, load_assistant, print_json

if TYPE_CHECKING:
    from ..evaluate import DecisionResult, EvaluationResult, Predictions, Task, Transcription
    from ..inference.assistant import Assistant

TASKS = "world, pope, vqav2, gqa, textvqa, scienceqa, captions"
Out = Annotated[
    Path | None,
    typer.Option(help="Keep result, answers and page in this folder; the same command goes on where it was stopped."),
]
Against = Annotated[Path | None, typer.Option(help="Compare with an earlier run: its --out folder or its result.json.")]
Calibrate = Annotated[
    bool,
    typer.Option("--calibrate", help="Fit temperatures on this data file, which must be held out, and keep them."),
]
MaxError = Annotated[
    float | None,
    typer.Option(help="Keep the threshold from which on at most this share of decisions is wrong.", min=0, max=1),
]
Blind = Annotated[
    bool, typer.Option("--blind/--no-blind", help="Ask again with other pictures: does the model look? Twice the work.")
]

Knows = Annotated[
    bool,
    typer.Option("--knows", help="In the place of a task: what it knows of English and the world, without a picture."),
]


def evaluate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A folder, a hub id, or eden-tiny.")],
    task: Annotated[str | None, typer.Argument(help=f"A data file, or one of {TASKS}.")] = None,
    questions: Annotated[Path | None, typer.Option(help="The benchmark's official file of questions.")] = None,
    annotations: Annotated[Path | None, typer.Option(help="VQAv2's official file of answers.")] = None,
    images: Annotated[Path | None, typer.Option(help="The folder of the file's images.")] = None,
    audio: Annotated[Path | None, typer.Option(help="The folder of a data file's recordings.")] = None,
    split: Annotated[str | None, typer.Option(help="ScienceQA's split; test unless given.")] = None,
    instruction: Annotated[str | None, typer.Option(help="Words that tell how to answer, not the usual ones.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most this many questions a group.", min=1)] = None,
    batch_size: Annotated[int, typer.Option(help="Questions asked at once.", min=1)] = 64,
    max_new_tokens: Annotated[int, typer.Option(help="The longest answer, in tokens.", min=1)] = 96,
    spoken: Annotated[bool, typer.Option("--spoken", help="Ask by voice, too, and count the words misheard.")] = False,
    noise_db: Annotated[float | None, typer.Option(help="Speak in white noise this many dB below the voice.")] = None,
    out: Out = None,
    against: Against = None,
    html: Annotated[Path | None, typer.Option(help="Write the result as a page, too.")] = None,
    calibrate: Calibrate = False,
    max_error: MaxError = None,
    blind: Blind = True,
    knows: Knows = False,
    four_bit: FourBit = False,
    as_json: Json = False,
) -> None:
    """Ask every question of a task and measure the answers, with 95 % intervals."""
    if task is None or knows:
        _measure_knowledge(context, model, four_bit, as_json)
        return
    from ..evaluate import compare, evaluate as run_evaluation, read_earlier, with_blind_groups

    _check_voice(spoken, noise_db, questions)
    files: dict[str, Any] = {"questions": questions, "annotations": annotations, "images": images, "audio": audio}
    opened = _open(task, **files, split=split, instruction=instruction, limit=limit)
    _check_decisions(model, opened, calibrate or max_error is not None)
    earlier = read_earlier(against, opened) if against is not None else None
    assistant = load_assistant(model, four_bit, say_format=True)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "spoken": spoken, "noise_db": noise_db}
    if spoken:
        options["speech_model"] = assistant.checkpoint.config.speech_model
    options |= {name: str(files[name].resolve()) for name in ("images", "audio") if files[name] is not None}
    kept = _keep(out, assistant, opened, options)
    decided = _decide(assistant, opened, calibrate, max_error, blind)
    opened, transcription = _speak(opened, assistant, noise_db) if spoken else (opened, None)
    result = run_evaluation(
        assistant,
        with_blind_groups(opened, assistant) if blind and decided is None else opened,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        transcription=transcription,
        predictions=kept,
    )
    summary = result.to_dict() | ({} if decided is None else {"decisions": decided.to_dict()})
    summary |= {} if earlier is None else {"against": compare(result, earlier)}
    _write(result, summary, decided, out, html)
    if as_json:
        print_json(summary)
    else:
        _print(summary, result.seconds)


def _measure_knowledge(context: typer.Context, model: str, four_bit: bool, as_json: bool) -> None:
    if not context.params["knows"]:
        raise InputError("nothing to ask", hint=f"Give a data file, or one of {TASKS}; or --knows.")
    for name in context.params.keys() - {"model", "knows", "four_bit", "as_json"}:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise InputError(f"{name.replace('_', '-')} says nothing beside --knows", hint="Leave out either.")
    from ..inference.knowledge import WORDS_ALONE, measure

    found = measure(load_assistant(model, four_bit, say_format=True).checkpoint, ask=True)
    if as_json:
        print_json({"model": model, "is_english": found.is_english, **asdict(found)})
        return
    print(f"perplexity of a token    {found.perplexity:,.2f}\nbits for a byte          {found.bits_per_byte:.3f}")
    if not found.is_english:
        print(f"no language model of English: word frequencies alone need {WORDS_ALONE} bits")
    for question, answer in found.answers.items():
        print(f"{question:<42} {answer}")


def _open(name: str, **options: Any) -> Task:
    from ..core.console import progress
    from ..evaluate import open_task

    with progress(err) as bar:
        shown = bar.add_task(f"checking {name}", total=None)
        return open_task(
            name,
            **options,
            on_progress=lambda done, total: bar.update(shown, completed=done, total=total or None),
        )


def _check_decisions(model: str, task: Task, keeps: bool) -> None:
    """What is to be kept needs decisions, and a folder to be kept in."""
    if keeps and not any(question.answers for question in next(iter(task.groups.values()))):
        what, hint = f"no question of {task.name} has a closed set of answers", "Leave out --calibrate and --max-error."
        raise InputError(what, hint=hint)
    if keeps and not Path(model).is_dir():
        raise InputError("a calibration is kept in the model's folder", where=model, hint="Give a folder.")


def _decide(
    assistant: Assistant, task: Task, calibrate: bool, max_error: float | None, blind: bool
) -> DecisionResult | None:
    """The decisions of a task; what is fitted is kept with the model."""
    from ..evaluate import decide_task

    decided = decide_task(assistant, task, calibrate=calibrate, max_error=max_error, blind=blind, console=err)
    if decided is not None and (calibrate or max_error is not None):
        decided.calibration.write(Path(assistant.checkpoint.name))
    return decided


def _check_voice(spoken: bool, noise_db: float | None, questions: Path | None) -> None:
    if noise_db is not None and not spoken:
        raise InputError("--noise-db without --spoken", hint="Add --spoken.")
    if spoken and questions is not None:
        raise InputError("benchmarks are not asked by voice", hint="Leave out --spoken.")


def _write(
    result: EvaluationResult,
    summary: Mapping[str, Any],
    decided: DecisionResult | None,
    out: Path | None,
    html: Path | None,
) -> None:
    from ..core.files import write_file
    from ..evaluate import REPORT, RESULT, write_report

    if out is not None:
        write_file(out / RESULT, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
        write_report(out / REPORT, result, summary, decided)
    if html is not None:
        write_report(html, result, summary, decided)


def _speak(task: Task, assistant: Assistant, noise_db: float | None) -> tuple[Task, Transcription]:
    from ..evaluate import speak_task
    from ..media.speech import Transcriber

    transcriber = Transcriber(assistant.checkpoint.config.speech_model, workers=cores())
    return speak_task(task, transcriber, noise_db=noise_db, console=err)


def _keep(out: Path | None, assistant: Assistant, task: Task, options: Mapping[str, Any]) -> Predictions | None:
    from ..checkpoint import model_fingerprint
    from ..evaluate import Predictions, task_fingerprint

    if out is None:
        return None
    settings = {
        "task": task.name,
        "questions": task_fingerprint(task),
        "weights": model_fingerprint(assistant.checkpoint),
        **options,
    }
    return Predictions(out, settings)


def _print(summary: Mapping[str, Any], seconds: float) -> None:
    shown = {**summary["intervals"], **summary["by_kind"]}
    for name in shown:
        interval = summary["intervals"].get(name)
        print(f"{name:<24} {summary[name]:.3f}" + (f"  [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""))
        kinds = summary["by_kind"].get(name, {})
        for kind, number in kinds.items() if len(kinds) > 1 else ():
            print(f"  {kind:<22} {number:.3f}")
    if compared := summary.get("against"):
        print(f"against {compared['model']}, {compared['shared']:,} questions shared")
        for name, of in compared["differences"].items():
            print(f"  {name:<22} {of['difference']:+.3f}  [{of['interval'][0]:+.3f}, {of['interval'][1]:+.3f}]")
    decisions = summary.get("decisions", {})
    if decisions:
        _print_decisions(decisions)
    if looking := summary.get("looks") or decisions.get("looks"):
        _print_looks(looking)
    print(f"{summary['n']:,} questions in {seconds:.1f} s")


def _print_looks(looking: Mapping[str, Any]) -> None:
    print(f"does it look? {looking['score']:.3f} with the right pictures, {looking['n']:,} questions; without them:")
    for name, of in looking["gaps"].items():
        low, high = of["interval"]
        print(f"  {name + ' picture':<22} {of['score']:.3f}   {of['gap']:+.3f}  [{low:+.3f}, {high:+.3f}]")
    print(f"  {looking['said']}")


def _print_decisions(decisions: Mapping[str, Any]) -> None:
    from ..checkpoint.calibration import FEW_SAMPLES

    sides = [name for name in ("before", "after") if name in decisions]
    how = "as the model has it, and calibrated" if "after" in decisions else "not calibrated"
    print(f"decisions, {decisions['n']:,} ({how})")
    for name in decisions["before"]:
        cells = [decisions[side][name] for side in sides]
        print(
            f"  {name:<22} "
            + "   ".join(f"{c['value']:.4f} [{c['interval'][0]:.4f}, {c['interval'][1]:.4f}]" for c in cells)
        )
    chance = decisions[sides[-1]]["ece"]["by_chance"]
    print(f"  of so many questions ece is about {chance:.4f} by chance, where every probability is right")
    for row in decisions["risk_coverage"]:
        print(f"  answers {row['coverage']:.1%} with {row['error']:.1%} wrong (at most {row['max_error']:.1%})")
    if decisions["n"] < FEW_SAMPLES:
        print(f"  {decisions['n']} questions are few: the intervals are wide")
