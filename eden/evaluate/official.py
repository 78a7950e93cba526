"""Benchmarks from their official files: POPE, VQAv2, GQA, TextVQA, ScienceQA and COCO captions.

Each benchmark says how its file looks, how a record becomes a question, how answers are marked and what is measured.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.formats import resolve_image
from ..errors import DataError, InputError
from ..messages import Message
from . import marking
from .captions import cider
from .measures import Measure
from .questions import Marking, Question, Task, one_by_one, votes

# How models are asked, unless told otherwise. The words are LLaVA-1.5's; most published numbers were made with them.
SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
CAPTION = "Provide a one-sentence caption for the provided image."


@dataclass(frozen=True)
class Files:
    """What the user gave.

    Attributes:
        questions: the official file.
        annotations: VQAv2's second file.
        images: the folder of the images.
        split: of ScienceQA; None is test.
        instruction: the words that say how to answer; None is the benchmark's usual.
    """

    questions: Path
    annotations: Path | None
    images: Path
    split: str | None
    instruction: str | None

    def ask(self, question: str, usual: str, image: Path) -> tuple[Message, ...]:
        """The question with the words that say how to answer on a line of their own."""
        instruction = usual if self.instruction is None else self.instruction
        return (Message.user("\n".join(filter(None, (question, instruction))), [image]),)


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        file: how its file looks, for people.
        fits: whether a parsed file looks so.
        read: the questions of a parsed file, in its order.
        mark: judges answers.
        measures: what is made of the marks; the first is the benchmark's own.
        takes: options it takes beside the questions and the images.
    """

    file: str
    fits: Callable[[Any], bool]
    read: Callable[[Any, Files], Iterator[Question]]
    mark: Marking
    measures: Mapping[str, Measure]
    takes: frozenset[str] = frozenset()


def open_benchmark(name: str, files: Files, limit: int | None) -> Task:
    """A benchmark's task.

    Args:
        name: of the benchmark, a key of `BENCHMARKS`.
        files: the official files.
        limit: at most this many questions, the first ones.

    Raises:
        DataError: a file is missing, damaged or of another kind, or images are missing.
    """
    benchmark = BENCHMARKS[name]
    content = read_json(files.questions)
    if benchmark.fits([content]):
        content = [content]  # JSON lines of one line
    if not benchmark.fits(content):
        raise _wrong_kind(name, files.questions, content)
    questions = list(itertools.islice(_guarded(benchmark.read(content, files), files.questions), limit))
    if not questions:
        raise DataError("no question to ask", where=str(files.questions), cure=f"Expected {benchmark.file}.")
    _check_images(questions)
    return Task(name, {next(iter(benchmark.measures)): questions}, benchmark.mark, benchmark.measures)


def read_json(path: Path) -> Any:
    """A JSON file, or a list of the objects of a file of JSON lines.

    Raises:
        DataError: the file is missing, or neither.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError("no such file", where=str(path), cure="Check the path.") from None
    except UnicodeDecodeError:
        raise DataError("not a text file in UTF-8", where=str(path), cure="Give a JSON file.") from None
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=str(path), cure="Check the path.") from None
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as whole:
        try:
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        except (json.JSONDecodeError, RecursionError):
            raise DataError(
                f"not valid JSON ({whole})", where=str(path), cure="The file may be cut off; copy it again."
            ) from None


def _pope(records: Any, files: Files) -> Iterator[Question]:
    for record in records:
        if record["label"] not in ("yes", "no"):
            raise ValueError(f"the label {record['label']!r} is neither yes nor no")
        yield Question(
            id=str(record["question_id"]),
            messages=files.ask(record["text"], SHORT, resolve_image(record["image"], files.images)),
            text=record["text"],
            expected=record["label"],
            kind=record.get("category", "all"),
            reference=record["label"],
        )


def _vqav2(content: Any, files: Files) -> Iterator[Question]:
    if files.annotations is None:
        raise InputError("vqav2 needs the annotators' answers", cure="Give --annotations v2_..._annotations.json.")
    annotations = read_json(files.annotations)
    if not _has_list(annotations, "annotations", "question_id", "answers"):
        expected = "one object with a list `annotations` of question_id, answers, answer_type"
        raise DataError(
            f"not VQAv2's annotations: found {_describe(annotations)}",
            where=str(files.annotations),
            cure=f"Expected {expected}, as in v2_mscoco_val2014_annotations.json.",
        )
    known = {record["question_id"]: record for record in annotations["annotations"]}
    subset = content.get("data_subtype", "val2014")
    places: dict[int, Path] = {}  # five questions to an image
    for record in content["questions"]:
        if record["question_id"] not in known:
            raise ValueError(f"question {record['question_id']} has no answers in {files.annotations}")
        annotation = known[record["question_id"]]
        answers = [given["answer"] for given in annotation["answers"]]
        number = record["image_id"]
        if number not in places:
            places[number] = resolve_image(f"COCO_{subset}_{number:012d}.jpg", files.images)
        yield Question(
            id=str(record["question_id"]),
            messages=files.ask(record["question"], SHORT, places[number]),
            text=record["question"],
            expected=votes(answers),
            kind=annotation.get("answer_type", "all"),
            reference=marking.vqa_references(answers),
        )


def _gqa(content: Any, files: Files) -> Iterator[Question]:
    for number, record in content.items():
        if not record.get("isBalanced", True):
            continue  # the official accuracy counts the balanced questions only
        yield Question(
            id=number,
            messages=files.ask(record["question"], SHORT, resolve_image(f"{record['imageId']}.jpg", files.images)),
            text=record["question"],
            expected=record["answer"],
            kind=record.get("types", {}).get("structural", "all"),
            reference=record["answer"],
        )


def _textvqa(content: Any, files: Files) -> Iterator[Question]:
    for record in content["data"]:
        yield Question(
            id=str(record["question_id"]),
            messages=files.ask(record["question"], SHORT, resolve_image(f"{record['image_id']}.jpg", files.images)),
            text=record["question"],
            expected=votes(record["answers"]),
            kind="all",
            reference=tuple(map(marking.textvqa_plain, record["answers"])),
        )


def _scienceqa(problems: Any, files: Files) -> Iterator[Question]:
    split = files.split or "test"
    listed = files.questions.with_name("pid_splits.json")
    splits = read_json(listed) if listed.exists() else defaultdict(list)
    if not listed.exists():
        for number, record in problems.items():
            splits[record["split"]].append(number)
    if split not in splits:
        raise DataError(f"no split {split!r}", where=str(files.questions), cure=f"Use one of {', '.join(splits)}.")
    for number in splits[split]:
        record = problems[number]
        if not record["image"]:
            continue
        options = tuple(record["choices"])
        letters = " ".join(f"({letter}) {option}" for letter, option in zip(marking.LETTERS, options, strict=False))
        text = f"Context: {record.get('hint') or 'N/A'}\nQuestion: {record['question']}\nOptions: {letters}"
        folders = (files.images / record["split"], files.images)
        places = [folder / number / record["image"] for folder in folders]
        yield Question(
            id=number,
            messages=files.ask(text, LETTER, next((place for place in places if place.exists()), places[0])),
            text=text,
            expected=f"{marking.LETTERS[record['answer']]}. {options[record['answer']]}",
            kind=record.get("subject", "all"),
            reference=(record["answer"], options),
        )


def _captions(content: Any, files: Files) -> Iterator[Question]:
    captions: dict[Any, list[str]] = defaultdict(list)
    for record in content["annotations"]:
        captions[record["image_id"]].append(record["caption"])
    for record in content["images"]:
        if record["id"] not in captions:
            continue
        yield Question(
            id=str(record["id"]),
            messages=files.ask("", CAPTION, resolve_image(record["file_name"], files.images)),
            text=record["file_name"],
            expected=" / ".join(caption.strip() for caption in captions[record["id"]]),
            kind="all",
            reference=tuple(captions[record["id"]]),
        )


def _guarded(questions: Iterator[Question], path: Path) -> Iterator[Question]:
    """The questions; a record that is not as its benchmark has them becomes one line with its number."""
    for number in itertools.count(1):
        try:
            yield next(questions)
        except StopIteration:
            return
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            what = f"lacks `{error.args[0]}`" if isinstance(error, KeyError) else f"is faulty ({error})"
            raise DataError(
                f"the record of question {number} {what}", where=str(path), cure="Take the file as it was published."
            ) from None


def _check_images(questions: list[Question]) -> None:
    """Missing images are one error before the model is loaded, and not the first of many after an hour."""
    places = {image.source: None for question in questions for image in question.messages[-1].images}
    missing = [place for place in places if not Path(str(place)).exists()]
    if missing:
        raise DataError(
            f"{len(missing):,} of {len(places):,} images are missing",
            where=str(missing[0]),
            cure="Give the folder they are in with --images.",
        )


def _wrong_kind(name: str, path: Path, content: Any) -> DataError:
    others = [other for other, benchmark in BENCHMARKS.items() if benchmark.fits(content)]
    cure = f"Expected {BENCHMARKS[name].file}."
    if others:
        cure += f" This looks like a file of {others[0]}."
    return DataError(f"not a file of {name}: found {_describe(content)}", where=str(path), cure=cure)


def _describe(content: Any) -> str:
    """What a parsed file is, in a few words."""
    if isinstance(content, dict):
        if content and all(isinstance(value, dict) for value in content.values()):
            return f"an object of {len(content):,} entries, the first with {_keys(next(iter(content.values())))}"
        inner = [f"`{key}` of {_keys(value[0])}" for key, value in content.items() if isinstance(value, list) and value]
        return f"an object with {', '.join(inner or [*map(str, content)][:8]) or 'nothing'}"
    if isinstance(content, list):
        return f"a list of {_keys(content[0])}" if content else "an empty list"
    return f"a {type(content).__name__}"


def _keys(record: Any) -> str:
    return ", ".join(map(str, list(record)[:8])) if isinstance(record, dict) else f"{type(record).__name__}s"


def _has(record: Any, *keys: str) -> bool:
    return isinstance(record, dict) and all(key in record for key in keys)


def _has_list(content: Any, name: str, *keys: str) -> bool:
    return isinstance(content, dict) and _is_list(content.get(name), *keys)


def _is_list(content: Any, *keys: str) -> bool:
    return isinstance(content, list) and bool(content) and _has(content[0], *keys)


def _by_id(content: Any, *keys: str) -> bool:
    return isinstance(content, dict) and bool(content) and _has(next(iter(content.values())), *keys)


ACCURACY = {"accuracy": Measure(("right",))}
SOFT_ACCURACY = {"accuracy": Measure(("score",))}

BENCHMARKS = {
    "pope": Benchmark(
        "JSON lines of question_id, image, text, label, as in coco_pope_random.json",
        lambda content: _is_list(content, "question_id", "image", "text", "label"),
        _pope,
        one_by_one(marking.pope),
        marking.POPE_MEASURES,
    ),
    "vqav2": Benchmark(
        "one object with a list `questions` of question_id, image_id, question, as in "
        "v2_OpenEnded_mscoco_val2014_questions.json",
        lambda content: _has_list(content, "questions", "question_id", "image_id", "question"),
        _vqav2,
        one_by_one(marking.vqa),
        SOFT_ACCURACY,
        frozenset(("annotations",)),
    ),
    "gqa": Benchmark(
        "one object of questions by id with question, answer, imageId, as in testdev_balanced_questions.json",
        lambda content: _by_id(content, "question", "answer", "imageId"),
        _gqa,
        one_by_one(marking.gqa),
        ACCURACY,
    ),
    "textvqa": Benchmark(
        "one object with a list `data` of question_id, question, image_id, answers, as in TextVQA_0.5.1_val.json",
        lambda content: _has_list(content, "data", "question_id", "question", "image_id", "answers"),
        _textvqa,
        one_by_one(marking.textvqa),
        SOFT_ACCURACY,
    ),
    "scienceqa": Benchmark(
        "one object of problems by id with question, choices, answer, image, split, as in problems.json",
        lambda content: _by_id(content, "question", "choices", "answer", "image", "split"),
        _scienceqa,
        one_by_one(marking.scienceqa),
        ACCURACY,
        frozenset(("split",)),
    ),
    "captions": Benchmark(
        "one object with lists `images` of id, file_name and `annotations` of image_id, caption, as in "
        "captions_val2014.json",
        lambda content: (
            _has_list(content, "annotations", "image_id", "caption") and _has_list(content, "images", "id", "file_name")
        ),
        _captions,
        cider,
        {"cider": Measure(("cider",))},
    ),
}
