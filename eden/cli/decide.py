"""The verb that decides: how likely each answer of a closed set is, for pictures or a folder of them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.answers import AnswerSet
from ..errors import InputError, Interrupted
from .options import FourBit, Json, Model, err, load_assistant, print_json, print_transcript

if TYPE_CHECKING:
    from ..inference.assistant import Assistant
    from ..inference.decisions import Decision


def decide(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FOLDER] [QUESTION]", help="A folder of pictures, if there is one, and the question."),
    ] = None,
    image: Annotated[list[Path] | None, typer.Option("--image", help="A picture; may be given several times.")] = None,
    audio: Annotated[
        list[Path] | None, typer.Option("--audio", help="A recording: the question itself, or context beside one.")
    ] = None,
    choices: Annotated[str | None, typer.Option(help="The answers there are, as ok,cracked. Else yes and no.")] = None,
    levels: Annotated[str | None, typer.Option(help="The same in order, from the lowest, as none,slight,bad.")] = None,
    out: Annotated[Path | None, typer.Option(help="Of a folder: the table to write, as labels.csv.")] = None,
    model: Model = "eden-tiny",
    four_bit: FourBit = False,
    as_json: Json = False,
) -> None:
    """Decide between a closed set of answers, with a probability for each; of a folder, the doubtful ones first."""
    given = list(words or [])
    folder = Path(given.pop(0)) if given and Path(given[0]).is_dir() else None
    if len(given) > 1:
        raise InputError(f"more than one question: {given[1]!r}", hint="Put the question in quotes.")
    question = given[0] if given else ""
    if folder is None and out is not None:
        raise InputError(
            "--out without a folder of pictures", hint="Name the folder first: eden decide DIR --out FILE."
        )
    if folder is not None and (image or audio):
        raise InputError("a folder and --image or --audio", hint="Give one of them.")
    if out is not None and out.exists():
        raise InputError("the file is there already", where=str(out), hint="Choose another --out, or remove it.")
    wanted = None if choices is None and levels is None else AnswerSet.of(_listed(choices), _listed(levels))
    pictures = _pictures(folder) if folder is not None else []
    assistant = load_assistant(model, four_bit)
    question, answers = _question(assistant, question, wanted, is_spoken=bool(audio))
    if folder is not None:
        _decide_folder(assistant, folder, pictures, question, answers, out, as_json)
        return
    from ..messages import Message

    messages = assistant.transcribe_messages([Message.user(question, image or [], audio or [])], print_transcript)
    (decision,) = assistant.decide_all([messages], [answers], where=["the question"])
    if as_json:
        print_json({"model": model, "question": messages[0].text, **decision.to_dict()})
    else:
        _print(decision)


def _listed(text: str | None) -> list[str] | None:
    return None if text is None else text.split(",")


def _pictures(folder: Path) -> list[Path]:
    from ..data.class_folders import pictures_in

    if not (found := pictures_in(folder)):
        raise InputError("no picture in the folder", where=str(folder), hint="Give one with JPEG or PNG files, say.")
    return found


def _question(assistant: Assistant, question: str, wanted: AnswerSet | None, is_spoken: bool) -> tuple[str, AnswerSet]:
    """What was asked for, with what the model was trained to decide in the place of what was not."""
    from ..data.class_folders import CLASS_QUESTION

    calibration = assistant.checkpoint.calibration
    known = dict(calibration.questions) if calibration is not None else {}
    if question or is_spoken:
        return question, wanted or known.get(question) or AnswerSet.of()
    fitting = [(text, of) for text, of in known.items() if wanted is None or set(wanted.answers) == set(of.answers)]
    if len(fitting) == 1:
        return fitting[0][0], wanted or fitting[0][1]
    if wanted is None:
        hint = f"Ask one: {', '.join(list(known)[:3])}." if known else "Write it in quotes."
        raise InputError("no question, and the model knows of more than one" if known else "no question", hint=hint)
    return CLASS_QUESTION, wanted


def _decide_folder(
    assistant: Assistant,
    folder: Path,
    pictures: list[Path],
    question: str,
    answers: AnswerSet,
    out: Path | None,
    as_json: bool,
) -> None:
    from ..checkpoint import model_fingerprint
    from ..core.console import progress
    from ..inference.folder_decisions import Labels, decide_folder, to_csv

    calibration = assistant.checkpoint.calibration
    fitted = calibration.fitted.get(answers.key) if calibration is not None else None
    settings = {
        "weights": model_fingerprint(assistant.checkpoint),
        "fitted": asdict(fitted) if fitted is not None else None,
        "question": question,
        **answers.to_dict(),
    }
    labels = Labels(out, settings)
    err.print(f"asking {question!r} of {len(pictures):,} pictures", highlight=False, markup=False)
    with progress(err) as bar:
        shown = bar.add_task("deciding", total=len(pictures), completed=len(labels.rows))
        try:
            rows = decide_folder(
                assistant, folder, pictures, question, answers, labels, lambda done: bar.update(shown, completed=done)
            )
        except KeyboardInterrupt:
            if out is None:
                raise
            raise Interrupted("stopped", where=str(out), hint="Run the same command again to go on.") from None
    if as_json:
        result: dict[str, Any] = {"question": question, **answers.to_dict(), "decisions": rows}
        print_json(result | ({"out": str(out)} if out is not None else {}))
    elif out is None:
        print(to_csv(rows, answers), end="")
    else:
        failed = sum("error" in row for row in rows)
        print(
            f"{out}: {len(rows):,} pictures, the doubtful first"
            + (f", {failed:,} could not be opened" if failed else "")
        )


def _print(decision: Decision) -> None:
    for answer, probability in sorted(decision.probabilities.items(), key=lambda item: -item[1]):
        print(f"{answer:<24} {probability:.4f}")
    if decision.score is not None:
        print(f"mean level               {decision.score:.2f} of {len(decision.probabilities)}")
    how = "calibrated" if decision.calibrated else "not calibrated"
    refused = "; below the model's threshold" if decision.refused else ""
    err.print(f"confidence {decision.confidence:.3f}, {how}{refused}", highlight=False)
