"""The benchmarks: POPE, VQAv2, GQA, TextVQA, ScienceQA and COCO captions.

Each says how its file looks, what in it is a record, how a record becomes a question, how answers are scored and what
is measured.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..errors import DataError, InputError
from . import scoring
from .benchmark_files import PUBLISHED, Benchmark, Files, by_id, describe, has_list, is_list, is_table, read_json
from .cider import cider
from .metrics import Measure
from .task import Question, one_by_one, votes

# How models are asked, unless told otherwise. The words are LLaVA-1.5's; most published numbers were made with them.
SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
CAPTION = "Provide a one-sentence caption for the provided image."

Records = Iterable[tuple[str, Any]]


def _pope_records(content: Any, files: Files) -> Records:
    return by_id(content, "question_id", files.questions)


def _pope(question_id: str, record: Any, files: Files) -> Question:
    if record["label"] not in ("yes", "no"):
        raise ValueError(f"the label {record['label']!r} is neither yes nor no")
    kind, label = record.get("category", "all"), record["label"]
    return files.ask(question_id, record["text"], SHORT, record["image"], expected=label, reference=label, kind=kind)


def _vqav2_records(content: Any, files: Files) -> Records:
    """Each question with what its annotators said; the scorer refuses files that are not of the same questions."""
    if files.annotations is None:
        raise InputError("vqav2 needs the annotators' answers", hint="Give --annotations v2_..._annotations.json.")
    annotations = read_json(files.annotations)
    if not has_list(annotations, "annotations", "question_id", "answers"):
        expected = "one object with a list `annotations` of question_id, answers, answer_type"
        raise DataError(
            f"not VQAv2's annotations: found {describe(annotations)}",
            where=str(files.annotations),
            hint=f"Expected {expected}, as in v2_mscoco_val2014_annotations.json.",
        )
    answered: dict[str, Any] = {}
    for question_id, record in by_id(annotations["annotations"], "question_id", files.annotations):
        if question_id in answered:
            where = f"{files.annotations} question {question_id}"
            raise DataError("it is annotated twice", where=where, hint=PUBLISHED)
        answered[question_id] = record
    asked = list(by_id(content["questions"], "question_id", files.questions))
    hint = "Give the two files of one split; --limit asks fewer of their questions."
    for question_id, _ in asked:
        if question_id not in answered:
            what = f"it has no answers in {files.annotations}"
            raise DataError(what, where=files.place(question_id), hint=hint)
    if lost := answered.keys() - {question_id for question_id, _ in asked}:
        first = next(question_id for question_id in answered if question_id in lost)
        raise DataError(
            f"{len(lost):,} annotations are of no question in {files.questions}",
            where=f"{files.annotations} question {first}",
            hint=hint,
        )
    subset = content.get("data_subtype", "val2014")
    for question_id, record in asked:
        yield question_id, {**answered[question_id], **record, "subset": subset}


def _vqav2(question_id: str, record: Any, files: Files) -> Question:
    answers = [given["answer"] for given in record["answers"]]
    return files.ask(
        question_id,
        record["question"],
        SHORT,
        f"COCO_{record['subset']}_{record['image_id']:012d}.jpg",
        expected=votes(answers),
        reference=scoring.vqa_references(answers),
        kind=record.get("answer_type", "all"),
    )


def _gqa_records(content: Any, files: Files) -> Records:
    """The balanced questions: the official accuracy counts no other."""
    return ((number, record) for number, record in content.items() if record.get("isBalanced", True))


def _gqa(question_id: str, record: Any, files: Files) -> Question:
    kind, answer = record.get("types", {}).get("structural", "all"), record["answer"]
    image = f"{record['imageId']}.jpg"
    return files.ask(question_id, record["question"], SHORT, image, expected=answer, reference=answer, kind=kind)


def _textvqa_records(content: Any, files: Files) -> Records:
    return by_id(content["data"], "question_id", files.questions)


def _textvqa(question_id: str, record: Any, files: Files) -> Question:
    image, answers = f"{record['image_id']}.jpg", record["answers"]
    reference = scoring.textvqa_references(answers)
    return files.ask(question_id, record["question"], SHORT, image, expected=votes(answers), reference=reference)


def _scienceqa_records(content: Any, files: Files) -> Records:
    """The problems of a split that have an image."""
    split = files.split or "test"
    listed = files.questions.with_name("pid_splits.json")
    splits: Mapping[str, list[str]] = read_json(listed) if listed.exists() else _splits(content)
    if not isinstance(splits, dict) or split not in splits:
        known = ", ".join(splits) if isinstance(splits, dict) else "none"
        where = str(listed if listed.exists() else files.questions)
        raise DataError(f"no split {split!r}", where=where, hint=f"--split takes one of these: {known}.")
    for number in splits[split]:
        if number not in content:
            where = f"{listed} problem {number}"
            raise DataError(f"it is not in {files.questions.name}", where=where, hint="Give the two files of one copy.")
        if content[number].get("image"):
            yield number, content[number]


def _splits(content: Any) -> Mapping[str, list[str]]:
    splits = defaultdict(list)
    for number, record in content.items():
        splits[str(record.get("split"))].append(number)
    return splits


def _scienceqa(question_id: str, record: Any, files: Files) -> Question:
    options = tuple(record["choices"])
    letters = " ".join(f"({letter}) {option}" for letter, option in zip(scoring.LETTERS, options, strict=False))
    text = f"Context: {record.get('hint') or 'N/A'}\nQuestion: {record['question']}\nOptions: {letters}"
    # Not by `Folder`, which would take any image.png: all of these images have the same name.
    places = [files.images.root / folder / question_id / record["image"] for folder in (record["split"], "")]
    right = scoring.LETTERS[record["answer"]]
    image = next((place for place in places if place.exists()), places[0])
    expected, kind = f"{right}. {options[record['answer']]}", record.get("subject", "all")
    return files.ask(question_id, text, LETTER, image, expected=expected, reference=right, kind=kind)


def _caption_records(content: Any, files: Files) -> Iterator[tuple[str, Any]]:
    captions: dict[str, list[str]] = defaultdict(list)
    for image_id, record in by_id(content["annotations"], "image_id", files.questions):
        captions[image_id].append(record.get("caption"))
    images = dict(by_id(content["images"], "id", files.questions))
    if lost := captions.keys() - images.keys():
        first = next(image_id for image_id in captions if image_id in lost)
        raise DataError(
            f"{len(lost):,} images with captions are not listed, the first is {first}",
            where=str(files.questions),
            hint=PUBLISHED,
        )
    for image_id, record in by_id(content["images"], "id", files.questions):
        yield image_id, {**record, "captions": captions[image_id]}


def _caption(question_id: str, record: Any, files: Files) -> Question:
    captions = tuple(record["captions"])
    if not captions:
        raise ValueError("the image has no caption")
    name, expected = record["file_name"], " / ".join(caption.strip() for caption in captions)
    return files.ask(question_id, "", CAPTION, name, expected=expected, reference=captions, text=name)


ACCURACY = {"accuracy": Measure(("right",))}
SOFT_ACCURACY = {"accuracy": Measure(("score",))}

BENCHMARKS = {
    "pope": Benchmark(
        "JSON lines of question_id, image, text, label, as in coco_pope_random.json",
        lambda content: is_list(content, "question_id", "image", "text", "label"),
        _pope_records,
        _pope,
        one_by_one(scoring.pope),
        scoring.POPE_MEASURES,
    ),
    "vqav2": Benchmark(
        "one object with a list `questions` of question_id, image_id, question, as in "
        "v2_OpenEnded_mscoco_val2014_questions.json",
        lambda content: has_list(content, "questions", "question_id", "image_id", "question"),
        _vqav2_records,
        _vqav2,
        one_by_one(scoring.vqa),
        SOFT_ACCURACY,
        frozenset(("annotations",)),
    ),
    "gqa": Benchmark(
        "one object of questions by id with question, answer, imageId, as in testdev_balanced_questions.json",
        lambda content: is_table(content, "question", "answer", "imageId"),
        _gqa_records,
        _gqa,
        one_by_one(scoring.gqa),
        ACCURACY,
    ),
    "textvqa": Benchmark(
        "one object with a list `data` of question_id, question, image_id, answers, as in TextVQA_0.5.1_val.json",
        lambda content: has_list(content, "data", "question_id", "question", "image_id", "answers"),
        _textvqa_records,
        _textvqa,
        one_by_one(scoring.textvqa),
        SOFT_ACCURACY,
    ),
    "scienceqa": Benchmark(
        "one object of problems by id with question, choices, answer, image, split, as in problems.json",
        lambda content: is_table(content, "question", "choices", "answer", "image", "split"),
        _scienceqa_records,
        _scienceqa,
        one_by_one(scoring.scienceqa),
        ACCURACY,
        frozenset(("split",)),
    ),
    "captions": Benchmark(
        "one object with lists `images` of id, file_name and `annotations` of image_id, caption, as in "
        "captions_val2014.json",
        lambda content: (
            has_list(content, "annotations", "image_id", "caption") and has_list(content, "images", "id", "file_name")
        ),
        _caption_records,
        _caption,
        cider,
        {"cider": Measure(("cider",))},
    ),
}
