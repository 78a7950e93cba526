"""Tasks: where questions come from, and what counts as a right answer."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import PIL.Image

from ..data.class_folders import TEST, part_of
from ..data.decisions import Decisions
from ..data.folders import Folder
from ..data.parquet import HUB
from ..data.store import Progress
from ..data.validate import check
from ..errors import DataError, InputError
from ..messages import Message
from ..tiny import questions as world_questions
from ..tiny.conversations import about, conversation_set
from ..tiny.dataset import evaluation_set
from ..tiny.foreign import KINDS as FOREIGN_KINDS, PHOTOGRAPHS, foreign_picture, open_photographs
from ..tiny.smalltalk import DECLINED
from ..tiny.world import Scene, strips
from . import scoring
from .benchmark_files import Files, open_benchmark
from .benchmarks import ACCURACY, BENCHMARKS
from .metrics import Measure, Scores
from .task import Question, Task, check_images, one_by_one

WORLD_SEED = 2026
WORLD_QUESTIONS = {
    "accuracy": 2000,
    "accuracy_unseen_pairs": 500,
    "accuracy_in_conversation": 1008,
    "accuracy_picture_behind": 1000,
    "accuracy_wide": 360,
    "declined": 300,
    "declined_world": 500,
}


def open_task(
    name: str,
    *,
    questions: str | Path | None = None,
    annotations: str | Path | None = None,
    images: str | Path | None = None,
    audio: str | Path | None = None,
    split: str | None = None,
    instruction: str | None = None,
    limit: int | None = None,
    on_progress: Progress | None = None,
) -> Task:
    """A task by name, or a data file in any format that `eden check` reads.

    Args:
        name: `world` (the coloured shapes eden-tiny knows), a benchmark (`pope`, `vqav2`, `gqa`, `textvqa`,
            `scienceqa`, `captions`), or a data file's path.
        questions: the benchmark's official file.
        annotations: VQAv2's second file, the annotators' answers.
        images: the folder of the file's images; None is the file's own folder.
        audio: the same of a data file's recordings.
        split: of ScienceQA; None is test.
        instruction: the words after a benchmark's question that say how to answer, or those that ask for a caption;
            None is what is usual.
        limit: at most this many questions a group.
        on_progress: called with (done, total) as records are read (out of 0), and as images are checked.

    Raises:
        DataError: a file is missing, faulty or of another kind, or an image cannot be used.
        InputError: there is no such task, or an option is missing or not of this task.
    """
    given = {"questions": questions, "annotations": annotations, "images": images, "audio": audio}
    given |= {"split": split, "instruction": instruction}
    _check_options(name, {option for option, value in given.items() if value is not None})
    if name == "world":
        return _world(limit)
    if name in BENCHMARKS and questions is not None:
        path = Path(questions)
        answers = Path(annotations) if annotations is not None else None
        folder = Folder(path.parent if images is None else images)
        files = Files(path, answers, folder, split, instruction)
        return open_benchmark(name, BENCHMARKS, files, limit, on_progress)
    return _data_file(name, images, audio, limit, on_progress)


def _check_options(name: str, given: set[str]) -> None:
    """An option that would be ignored is refused."""
    if name in BENCHMARKS:
        benchmark = BENCHMARKS[name]
        if "questions" not in given:
            raise InputError(f"{name} needs its official file", hint=f"Give --questions FILE: {benchmark.file}.")
        takes = {"questions", "images", "instruction"} | benchmark.takes
    elif name == "world":
        takes = set()
    elif name.startswith(HUB) or Path(name).exists():
        takes = {"images", "audio"}
    else:
        raise InputError(
            f"no task and no file named {name!r}",
            hint=f"Give world, {', '.join(BENCHMARKS)} or the path of a data file.",
        )
    for option in sorted(given - takes):
        raise InputError(f"--{option} is not for the task {name}", hint="Leave it out.")


REPLY_MEASURES = {"accuracy": Measure(("right",)), "token_f1": Measure(("f1",))}


def _data_file(
    path: str, images: str | Path | None, audio: str | Path | None, limit: int | None, on_progress: Progress | None
) -> Task:
    """Each conversation's last answer is the reference; all before it is asked."""
    given = path if path.startswith(HUB) else str(part_of(Path(path), TEST))
    report, samples = check(given, images, audio, look="listed", on_progress=on_progress)
    if report.faulty:
        fault = report.faults[0]
        what = f"{fault.what} ({report.faulty:,} of {report.samples:,} records are faulty)"
        missing = fault.kind == "missing_image"
        hint = "Give the folder of the images with --images." if missing else f"{fault.hint} `eden check` lists all."
        raise DataError(replace(fault, what=what, hint=hint))
    decisions = Decisions(samples)
    questions = [
        Question(
            id=sample.id,
            messages=sample.messages[:-1],
            text=sample.messages[-2].text,
            expected=sample.messages[-1].text,
            kind="all",
            reference=sample.messages[-1].text,
            where=sample.where,
            answers=decisions.of(sample),
        )
        for sample in samples[:limit]
    ]
    check_images(questions, on_progress)
    return Task(Path(path).stem, {"accuracy": questions}, one_by_one(scoring.reply), REPLY_MEASURES)


def _world(limit: int | None) -> Task:
    """The coloured shapes; `docs/evaluation.md` tells what each group asks. A limit changes no question."""
    sizes = {group: min(size, limit or size) for group, size in WORLD_QUESTIONS.items()}
    test = evaluation_set(sizes["accuracy"], seed=WORLD_SEED, split="test")
    pairs = evaluation_set(sizes["accuracy_unseen_pairs"], seed=WORLD_SEED, split="unseen_pairs")
    wide = evaluation_set(sizes["accuracy_wide"], seed=WORLD_SEED, split="test", draw=strips)
    more = evaluation_set(sizes["declined_world"], seed=WORLD_SEED + 1, split="test")
    declined = [(scene, image, replace(question, kind="declined", answer=DECLINED)) for scene, image, question in more]
    groups = {
        "accuracy": _alone(test[: sizes["accuracy"]]),
        "accuracy_unseen_pairs": _alone(pairs),
        "accuracy_in_conversation": _in_conversation(sizes["accuracy_in_conversation"]),
        "accuracy_picture_behind": _alone(test[: sizes["accuracy_picture_behind"]], behind=True),
        "accuracy_wide": _alone(wide),
        "declined": _not_of_the_world(sizes["declined"]),
        "declined_world": _alone(declined),
    }
    return Task("world", groups, one_by_one(_score_world), ACCURACY)


def _alone(
    items: Iterable[tuple[Scene, PIL.Image.Image, world_questions.Question]], behind: bool = False
) -> list[Question]:
    """Questions that are the first words of a conversation, about a picture before or behind them."""
    asked: list[Question] = []
    for scene, image, question in items:
        message = Message.user(question.text, [image])
        if behind:
            message = replace(message, content=message.content[::-1])
        asked.append(_world_question(len(asked), (message,), question, scene))
    return asked


def _in_conversation(n: int) -> list[Question]:
    """Questions about unseen scenes after other turns."""
    drawn = conversation_set(n, seed=WORLD_SEED + 2)
    return [
        replace(_world_question(place, messages, question, scene), context=context)
        for place, (context, messages, scene, question) in enumerate(drawn)
    ]


def _not_of_the_world(n: int) -> list[Question]:
    """Questions about photographs, textures, text and noise that no training saw, each to be declined."""
    rng = random.Random(f"foreign {WORLD_SEED}")
    photographs = open_photographs(sorted(PHOTOGRAPHS.glob("*.jpg")))
    asked = []
    for place in range(n):
        kind = FOREIGN_KINDS[place % len(FOREIGN_KINDS)]
        picture = foreign_picture(kind, "test", photographs, rng)
        question = about(None, world_questions.KINDS, rng)
        message = Message.user(question.text, [picture])
        asked.append(replace(_world_question(place, (message,), question, Scene(())), kind=kind))
    return asked


def _world_question(
    place: int, messages: tuple[Message, ...], question: world_questions.Question, scene: Scene
) -> Question:
    return Question(
        id=str(place + 1),
        messages=messages,
        text=question.text,
        expected=question.answer,
        kind=question.kind,
        reference=(question, scene),
        where=f"world question {place + 1}",
    )


def _score_world(reference: tuple[world_questions.Question, Scene], answer: str) -> Scores:
    return {"right": world_questions.is_correct(*reference, answer)}
