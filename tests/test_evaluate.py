"""Evaluation as a user meets it: official files in, numbers, answers and a page out; stopped, resumed and compared."""

import dataclasses
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cli
import pytest
import torch
from conftest import make_image
from rich.console import Console

import eden
from eden.checkpoint import model_fingerprint
from eden.cli.evaluate import TASKS
from eden.cli.main import main
from eden.errors import InputError
from eden.evaluate import (
    EvaluationResult,
    Predictions,
    Task,
    compare,
    evaluate,
    open_task,
    read_earlier,
    scoring,
    task_fingerprint,
    with_blind_groups,
    write_report,
)
from eden.evaluate.benchmarks import BENCHMARKS
from eden.evaluate.predictions import row
from eden.media.audio import to_wav
from eden.media.speech_synthesis import Voice, speak
from eden.tiny.world import scenes
from tiny_build.dataset import write_dataset

QUIET = Console(quiet=True)
NUMBERS = (42, 393225, 131089)
SHAPES = Path(__file__).parent.parent / "examples" / "shapes"
NAMES = [f"COCO_val2014_{number:012d}.jpg" for number in NUMBERS]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return cli.eden("evaluate", "eden-tiny", *arguments)


def run_here(*arguments: str | Path) -> int | str | None:
    """The same without a process of its own; its exit code."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["eden", "evaluate", "eden-tiny", *map(str, arguments)])
        main()
    return ended.value.code


@pytest.fixture(scope="module")
def assistant() -> Iterator[eden.Assistant]:
    """On one thread: for so small a model two only wait for each other where other tests run beside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield eden.load()
    torch.set_num_threads(threads)


def people(*answers: str) -> list[dict[str, Any]]:
    """Ten annotators, the last answer given by all that are left."""
    all_ten = [*answers, *[answers[-1]] * (10 - len(answers))]
    return [
        {"answer": answer, "answer_confidence": "yes", "answer_id": place} for place, answer in enumerate(all_ten, 1)
    ]


POPE = [
    {"question_id": 1, "image": NAMES[0], "text": "Is there a circle in the image?", "label": "yes"},
    {"question_id": 2, "image": NAMES[0], "text": "Is there a dog in the image?", "label": "no"},
    {"question_id": 3, "image": NAMES[1], "text": "Is there a square in the image?", "label": "yes"},
]
VQA_QUESTIONS = {
    "info": {"version": "2.0"},
    "task_type": "Open-Ended",
    "data_type": "mscoco",
    "data_subtype": "val2014",
    "license": {},
    "questions": [
        {"image_id": 42, "question": "What color is the circle?", "question_id": 42000},
        {"image_id": 393225, "question": "Is there a cross?", "question_id": 393225001},
    ],
}
VQA_ANNOTATIONS = {
    "info": {},
    "license": {},
    "data_subtype": "val2014",
    "annotations": [
        {
            "question_type": "is there a",
            "multiple_choice_answer": "no",
            "answers": people("yes", "no"),
            "image_id": 393225,
            "answer_type": "yes/no",
            "question_id": 393225001,
        },
        {
            "question_type": "what color is the",
            "multiple_choice_answer": "red",
            "answers": people("red", "red", "dark red", "t-shirt", "blue"),
            "image_id": 42,
            "answer_type": "other",
            "question_id": 42000,
        },
    ],
}
GQA = {
    "201307251": {
        "imageId": "n161313",
        "question": "Is it overcast?",
        "answer": "no",
        "fullAnswer": "No, it is clear.",
        "isBalanced": True,
        "types": {"semantic": "global", "structural": "verify", "detailed": "weatherVerify"},
    },
    "201640614": {
        "imageId": "n161313",
        "question": "Who is wearing the dress?",
        "answer": "woman",
        "isBalanced": False,
        "types": {"semantic": "rel", "structural": "query"},
    },
}
TEXTVQA = {
    "dataset_type": "val",
    "dataset_name": "textvqa",
    "dataset_version": "0.5.1",
    "data": [
        {
            "question": "what is the brand of this camera?",
            "image_id": "003a8ae2ef43b901",
            "image_classes": ["Camera"],
            "image_width": 1024,
            "image_height": 664,
            "answers": ["nous les gosses", *["dakota"] * 8, "dakota digital"],
            "question_tokens": ["what", "is"],
            "question_id": 34602,
            "set_name": "val",
        }
    ],
}
PROBLEM = {
    "question": "Which figure is shown?",
    "choices": ["a circle", "a square", "a star"],
    "answer": 1,
    "hint": "",
    "image": "image.png",
    "task": "closed choice",
    "grade": "grade2",
    "subject": "natural science",
    "split": "test",
    "lecture": "",
    "solution": "",
}
SCIENCEQA = {
    "1": {**PROBLEM, "split": "train"},
    "4": PROBLEM,
    "5": {**PROBLEM, "image": None},
    "11": {**PROBLEM, "hint": "Look at the picture.", "subject": "language science", "answer": 0},
}
CAPTIONS = {
    "info": {},
    "licenses": [],
    "images": [
        {"id": number, "file_name": name, "height": 96, "width": 96}
        for number, name in zip(NUMBERS, NAMES, strict=True)
    ],
    "annotations": [
        {"image_id": number, "id": 10 * number + turn, "caption": f"A {colour} {figure} on a white page, seen {turn}."}
        for number, colour, figure in zip(NUMBERS, ("red", "blue", "green"), ("circle", "star", "cross"), strict=True)
        for turn in range(5)
    ],
}


@pytest.fixture(scope="module")
def benchmark_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of each benchmark in its published form, and the pictures each of them names."""
    folder = tmp_path_factory.mktemp("benchmark_files")
    pictures = [image for _, (_, image) in zip(range(3), scenes(seed=5, split="test"), strict=False)]
    for name, picture in zip(NAMES, pictures, strict=True):
        (folder / "val2014").mkdir(exist_ok=True)
        picture.save(folder / "val2014" / name)
    for name in ("n161313", "003a8ae2ef43b901"):
        pictures[0].save(folder / f"{name}.jpg")
    for number in ("4", "11"):
        (folder / "images" / "test" / number).mkdir(parents=True)
        pictures[1].save(folder / "images" / "test" / number / "image.png")
    (folder / "pope.json").write_text("".join(json.dumps(record) + "\n" for record in POPE))
    contents = {
        "vqa_questions": VQA_QUESTIONS,
        "vqa_annotations": VQA_ANNOTATIONS,
        "gqa": GQA,
        "textvqa": TEXTVQA,
        "problems": SCIENCEQA,
        "captions": CAPTIONS,
    }
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def open_benchmark(name: str, folder: Path) -> Task:
    file = {"vqav2": "vqa_questions", "scienceqa": "problems"}.get(name, name)
    return open_task(
        name,
        questions=folder / f"{file}.json",
        annotations=folder / "vqa_annotations.json" if name == "vqav2" else None,
        images=folder / {"gqa": ".", "textvqa": ".", "scienceqa": "images"}.get(name, "val2014"),
    )


SHORT = "\nAnswer the question using a single word or phrase."
ASKED = {
    "pope": (3, f"Is there a circle in the image?{SHORT}", "yes", "all", f"val2014/{NAMES[0]}"),
    "vqav2": (2, f"What color is the circle?{SHORT}", "blue ×6, red ×2", "other", f"val2014/{NAMES[0]}"),
    "gqa": (1, f"Is it overcast?{SHORT}", "no", "verify", "n161313.jpg"),
    "textvqa": (1, f"what is the brand of this camera?{SHORT}", "dakota ×8", "all", "003a8ae2ef43b901.jpg"),
    "scienceqa": (
        2,
        "Context: N/A\nQuestion: Which figure is shown?\nOptions: (A) a circle (B) a square (C) a star\n"
        "Answer with the option's letter from the given choices directly.",
        "B. a square",
        "natural science",
        "images/test/4/image.png",
    ),
    "captions": (
        3,
        "Provide a one-sentence caption for the provided image.",
        "A red circle on a white page, seen 0.",
        "all",
        f"val2014/{NAMES[0]}",
    ),
}


@pytest.mark.parametrize("name", ASKED)
def test_an_official_file_becomes_questions(name: str, benchmark_files: Path) -> None:
    number, text, expected, kind, image = ASKED[name]
    (questions,) = open_benchmark(name, benchmark_files).groups.values()
    first = questions[0]
    assert len(questions) == number
    assert first.messages[-1].text == text and first.expected.startswith(expected) and first.kind == kind
    assert [part.source for part in first.messages[-1].images] == [benchmark_files / image]


def test_an_instruction_takes_the_place_of_the_usual_words(benchmark_files: Path) -> None:
    def words(name: str, file: str, instruction: str) -> str:
        options = {
            "questions": benchmark_files / file,
            "images": benchmark_files / "val2014",
            "instruction": instruction,
        }
        (questions,) = open_task(name, **options).groups.values()
        return questions[0].messages[-1].text

    assert words("pope", "pope.json", "Say yes or no.") == "Is there a circle in the image?\nSay yes or no."
    assert words("pope", "pope.json", "") == "Is there a circle in the image?"
    assert words("captions", "captions.json", "Describe the picture.") == "Describe the picture."


BEST = {
    "pope": ["Yes", "No, there is not.", "yes"],
    "vqav2": ["Blue.", "no"],
    "gqa": ["No."],
    "textvqa": ["Dakota"],
    "scienceqa": ["B", "The answer is A."],
}


@pytest.mark.parametrize("name", BEST)
def test_right_answers_earn_all_and_wrong_ones_nothing(name: str, benchmark_files: Path) -> None:
    task = open_benchmark(name, benchmark_files)
    references = [question.reference for questions in task.groups.values() for question in questions]
    best, worst = task.score(references, BEST[name]), task.score(references, ["no and yes"] * len(references))
    assert [next(iter(score.values())) for score in best] == pytest.approx([1] * len(references))
    assert sum(next(iter(score.values())) for score in worst) <= len(references) / 2


def test_captions_are_judged_over_all_images(benchmark_files: Path) -> None:
    task = open_benchmark("captions", benchmark_files)
    references = [question.reference for question in task.groups["cider"]]
    right = task.score(references, [captions[0] for captions in references])
    swapped = task.score(references, [captions[0] for captions in references[1:] + references[:1]])
    assert all(score["cider"] > 4 for score in right) and all(score["cider"] < 1 for score in swapped)


def test_pope_on_the_command_line_leaves_all_in_a_folder(benchmark_files: Path, tmp_path: Path) -> None:
    files = ["--questions", benchmark_files / "pope.json", "--images", benchmark_files / "val2014"]
    result = run("pope", *files, "--out", tmp_path / "out", "--json")
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    assert printed == json.loads((tmp_path / "out" / "result.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    groups = ["accuracy", "accuracy_another", "accuracy_blank"]
    assert [(line["group"], line["id"]) for line in lines] == [(group, id_) for group in groups for id_ in "123"]
    lines = lines[:3]
    assert printed["n"] == printed["looks"]["n"] == 3 and set(printed["looks"]["gaps"]) == {"another", "blank"}
    said = [scoring.says_yes(line["answer"]) for line in lines]
    assert printed["accuracy"] == pytest.approx(sum(line["score"] for line in lines) / 3, abs=1e-4)
    assert [line["score"] for line in lines] == [
        float(yes == wanted) for yes, wanted in zip(said, (1, 0, 1), strict=True)
    ]
    assert printed["yes_ratio"] == pytest.approx(sum(said) / 3, abs=1e-4)
    measures = {"accuracy", "precision", "recall", "f1", "yes_ratio"}
    assert measures == set(printed["intervals"]) and measures < set(printed)
    for name, (low, high) in printed["intervals"].items():
        assert 0 <= low <= printed[name] <= high <= 1
    assert "eden-tiny on pope" in (tmp_path / "out" / "report.html").read_text()


def test_the_page_shows_the_worst_answers_with_their_pictures(benchmark_files: Path, assistant: eden.Assistant) -> None:
    result = evaluate(assistant, open_benchmark("vqav2", benchmark_files), console=QUIET)
    poor = [answer for answer in result.answers if answer.score < 1]
    assert poor, "eden-tiny says Blue. or whole sentences; people said several things"
    page = write_report(benchmark_files / "page.html", result).read_text()
    assert page.count("data:image/png") == len(poor) and "red ×2" in page and "95 %" in page
    assert f"{len(poor)} of {len(poor)} that scored below 1" in page and SHORT.strip() not in page


WRONG_KIND = {
    "pope": ("vqa_questions.json", r"`questions` of image_id, question, question_id.*Expected JSON lines.*of vqav2"),
    "vqav2": ("pope.json", r"a list of question_id, image, text, label.*list `questions`.*of pope"),
    "gqa": ("problems.json", r"question, choices.*testdev_balanced_questions.json.*of scienceqa"),
    "textvqa": ("captions.json", r"`images` of id, file_name.*list `data`.*of captions"),
    "scienceqa": ("gqa.json", r"imageId, question.*problems.json.*of gqa"),
    "captions": ("textvqa.json", r"`data` of question.*captions_val2014.json.*of textvqa"),
}


@pytest.mark.parametrize("name", WRONG_KIND)
def test_a_file_of_another_kind_is_named_with_what_is_expected(name: str, benchmark_files: Path) -> None:
    file, message = WRONG_KIND[name]
    with pytest.raises(eden.DataError, match=f"{file}: not a file of {name}: found .*{message}") as caught:
        open_task(name, questions=benchmark_files / file)
    assert "\n" not in str(caught.value)


FAULTS: dict[str, tuple[str, object]] = {
    "no such data file": ("pope", None),
    "the file is empty": ("pope", "\n"),
    r"file.json line 1 column \d+: not valid JSON .*cut off": ("pope", '{"question_id": 1,'),
    r"file.json line 2: not valid JSON": ("pope", json.dumps(POPE[0]) + '\n{"question_id": 2, "im'),
    r"file.json line 1 column \d+: not valid JSON": ("gqa", json.dumps(GQA)[:-40]),
    r"file.json: not valid JSON \(Exceeds": ("pope", f'[{{"question_id": {"9" * 5000}}}]'),
    "record 2: it lacks `question_id`": ("pope", [POPE[0], {"image": "x"}]),
    "question 2: it lacks `label`": ("pope", [POPE[0], {"question_id": 2, "image": "x", "text": "y"}]),
    "question 1: it is faulty .*neither yes nor no": ("pope", [{**POPE[0], "label": "maybe"}]),
    "question 1: two questions have this id": ("pope", [POPE[0], POPE[0]]),
    rf"question 1: .*{NAMES[0]}: no such image file \(2 of 2 images .*--images": ("pope", POPE),
    "vqav2 needs the annotators' answers": ("vqav2", VQA_QUESTIONS),
    "question 7: it lacks `imageId`": ("gqa", {**GQA, "7": {"question": "What?", "answer": "dog"}}),
    "question 34602: it is faulty .nobody answered": ("textvqa", {"data": [{**TEXTVQA["data"][0], "answers": []}]}),
    "question 4: it is faulty": ("scienceqa", {"4": {**PROBLEM, "answer": 3}}),
    "no question to ask": ("scienceqa", {"5": SCIENCEQA["5"]}),
    "2 images with captions are not listed, the first is 393225": (
        "captions",
        {**CAPTIONS, "images": CAPTIONS["images"][:1]},
    ),
    "question 42: it is faulty .the image has no caption": (
        "captions",
        {**CAPTIONS, "annotations": CAPTIONS["annotations"][5:]},
    ),
}


@pytest.mark.parametrize("message", FAULTS)
def test_a_fault_of_a_file_is_one_line_with_its_place(message: str, tmp_path: Path) -> None:
    name, content = FAULTS[message]
    file = tmp_path / "file.json"
    if content is not None:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=message) as caught:
        open_task(name, questions=file)
    assert "\n" not in str(caught.value) and caught.value.fault.hint


def test_files_that_do_not_belong_together_are_named(benchmark_files: Path, tmp_path: Path) -> None:
    def refused(message: str, questions: object, annotations: object, name: str = "vqav2", **options: Any) -> None:
        files = tmp_path / "questions.json", tmp_path / "annotations.json"
        for file, content in zip(files, (questions, annotations), strict=True):
            file.write_text(json.dumps(content))
        options |= {"annotations": files[1]} if name == "vqav2" else {}
        with pytest.raises(InputError, match=message):
            open_task(name, questions=files[0], images=benchmark_files / "val2014", **options)

    few = {**VQA_QUESTIONS, "questions": VQA_QUESTIONS["questions"][:1]}
    one = {**VQA_ANNOTATIONS, "annotations": VQA_ANNOTATIONS["annotations"][:1]}
    twice = {**VQA_ANNOTATIONS, "annotations": VQA_ANNOTATIONS["annotations"] * 2}
    refused("not VQAv2's annotations: found a list", VQA_QUESTIONS, POPE)
    refused("questions.json question 42000: it has no answers in .*annotations.json", VQA_QUESTIONS, one)
    refused(r"annotations.json question 393225001: 1 annotations are of no question .*--limit", few, VQA_ANNOTATIONS)
    refused("annotations.json question 393225001: it is annotated twice", VQA_QUESTIONS, twice)
    refused("no split 'dev'. --split takes one of these: train, test", SCIENCEQA, {}, "scienceqa", split="dev")
    (tmp_path / "pid_splits.json").write_text(json.dumps({"test": ["4", "99"]}))
    refused("pid_splits.json problem 99: it is not in questions.json", SCIENCEQA, {}, "scienceqa")


def test_options_of_another_task_are_refused(benchmark_files: Path) -> None:
    with pytest.raises(InputError, match="--split is not for the task gqa"):
        open_task("gqa", questions=benchmark_files / "gqa.json", split="test")
    with pytest.raises(InputError, match=r"textvqa needs its official file.*TextVQA_0.5.1_val.json"):
        open_task("textvqa")
    with pytest.raises(InputError, match="--questions is not for the task world"):
        open_task("world", questions=benchmark_files / "pope.json")
    assert TASKS.split(", ") == ["world", *BENCHMARKS]


def test_the_command_refuses_bad_input_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "[/b]" / "pope.json"  # not markup
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(POPE))
    assert run_here("pope", "--questions", file, "--json") == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert f"{file} question 1" in printed.err and "--images" in printed.err


def test_what_cannot_be_asked_is_named_before_anything_is_asked(assistant: eden.Assistant, tmp_path: Path) -> None:
    def record(number: int, words: int, **more: Any) -> dict[str, Any]:
        turns = [{"from": "human", "value": "word " * words}, {"from": "gpt", "value": "Yes."}]
        return {"id": f"q{number}", "conversations": turns, **more}

    file = tmp_path / "data.json"
    file.write_text(json.dumps([record(1, 5), record(2, 2000), record(3, 300), record(4, 2000)]))
    with pytest.raises(eden.ContextError, match=r"data.json record 2 \(id q2\): .* has [\d,]+ tokens .*1,024 \(1 more"):
        evaluate(assistant, open_task(str(file)), predictions=Predictions(tmp_path, settings()), console=QUIET)
    assert not (tmp_path / "predictions.jsonl").exists()
    assert len(evaluate(assistant, open_task(str(file), limit=1), max_new_tokens=1000, console=QUIET).answers) == 1
    (tmp_path / "half.png").write_bytes((SHAPES / "1.png").read_bytes()[:200])
    damaged = record(7, 2, image="half.png")
    damaged["conversations"][0]["value"] += "<image>"
    file.write_text(json.dumps([record(1, 5), damaged]))
    with pytest.raises(eden.DataError, match=r"record 2 \(id q7\): .*half.png: the image is damaged .*1 of 1 images"):
        open_task(str(file))
    assert len(open_task(str(file), limit=1).groups["accuracy"]) == 1, "what is not asked is not decoded"
    damaged["image"] = "gone.png"
    file.write_text(json.dumps([damaged]))
    with pytest.raises(
        eden.DataError, match=r"gone.png: no such image file \(1 of 1 records are faulty\)\. .*--images"
    ):
        open_task(str(file))


def test_an_image_that_is_lost_while_one_asks_is_named_with_its_question(
    benchmark_files: Path, assistant: eden.Assistant, tmp_path: Path
) -> None:
    for name in NAMES:
        (tmp_path / name).write_bytes((benchmark_files / "val2014" / name).read_bytes())
    task = open_task("pope", questions=benchmark_files / "pope.json", images=tmp_path)
    (tmp_path / NAMES[1]).unlink()
    with pytest.raises(eden.ImageError, match=rf"pope.json question 3: .*{NAMES[1]}: no such image file"):
        evaluate(assistant, task, console=QUIET)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def settings(**changes: Any) -> Mapping[str, Any]:
    return {"task": "world", "questions": "q", "weights": "w", "max_new_tokens": 96} | changes


def keep(task: Task, assistant: eden.Assistant, folder: Path) -> EvaluationResult:
    """A run as `--out` leaves it."""
    result = evaluate(assistant, task, predictions=Predictions(folder, settings()), console=QUIET)
    (folder / "result.json").write_text(json.dumps(result.to_dict()))
    return result


def test_a_killed_run_goes_on_and_ends_as_an_undisturbed_one(
    assistant: eden.Assistant, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_dataset(tmp_path / "data", 20, seed=8, turns=1)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    undisturbed = keep(with_blind_groups(open_task(str(data)), assistant), assistant, whole)
    kept = killed / "predictions.jsonl"
    command = [str(data), "--batch-size", "1", "--out", str(killed)]
    kept_once = ("eden.evaluate.predictions", "Predictions.add", 1)
    with cli.Python("-m", "eden", "evaluate", "eden-tiny", *command, stop=kept_once) as process:
        process.wait_until_stopped()
        process.kill()
    assert process.returncode == -signal.SIGKILL and 0 < kept.read_text().count("\n") < 20
    with kept.open("a") as file:
        file.write('{"group": "accur')  # what a write that was cut off leaves
    assert run_here(*command, "--against", whole) == 0
    assert kept.read_bytes() == (whole / "predictions.jsonl").read_bytes()
    result = json.loads((killed / "result.json").read_text())
    assert result.pop("against")["shared"] == 20 and result == undisturbed.to_dict()
    shown = r"against eden-tiny, 20 questions shared\n  accuracy +\+0\.000  \[\+0\.000, \+0\.000\]\n"
    printed = capsys.readouterr().out
    assert re.search(shown, printed) and re.search(r"\n20 questions in \d+\.\d s\n$", printed)


def test_what_was_answered_is_not_asked_again(assistant: eden.Assistant, tmp_path: Path) -> None:
    """Kept by kind, as a run writes them; of the last line a part was cut off."""
    world = open_task("world", limit=10)
    task = dataclasses.replace(world, groups={"accuracy": world.groups["accuracy"]})
    kept = [row("accuracy", place, question, "kept") for place, question in enumerate(task.groups["accuracy"])]
    order = sorted(range(10), key=lambda index: kept[index]["kind"])[:8]
    Predictions(tmp_path, settings()).add(kept[index] for index in order)
    file = tmp_path / "predictions.jsonl"
    file.write_text(file.read_text()[:-9])
    result = evaluate(assistant, task, batch_size=1, predictions=Predictions(tmp_path, settings()), console=QUIET)
    texts = [answer.text for answer in result.answers]
    assert {index for index in range(10) if texts[index] == "kept"} == set(order[:7])
    assert [line["answer"] for line in lines_of(tmp_path)] == texts


def test_answers_are_the_same_in_batches_of_any_size(assistant: eden.Assistant, tmp_path: Path) -> None:
    task = open_task("world", limit=4)
    for size in (1, 4, 64):
        evaluate(assistant, task, batch_size=size, predictions=Predictions(tmp_path / f"{size}", {}), console=QUIET)
    first, *others = [(tmp_path / f"{size}" / "predictions.jsonl").read_bytes() for size in (1, 4, 64)]
    assert others == [first, first]


def test_a_limit_asks_the_first_of_the_same_questions(benchmark_files: Path) -> None:
    few, more = open_task("world", limit=3), open_task("world", limit=9)
    for group, questions in few.groups.items():
        for question, same in zip(questions, more.groups[group], strict=False):
            assert question.text == same.text
            for message, other in zip(question.messages, same.messages, strict=True):
                assert message.text == other.text
                pictures = [[image.source.tobytes() for image in one.images] for one in (message, other)]
                assert pictures[0] == pictures[1]


def test_answers_of_another_run_are_refused(assistant: eden.Assistant, tmp_path: Path) -> None:
    Predictions(tmp_path, settings())
    for change, message in (
        ({"weights": "v"}, "another model"),
        ({"questions": "p"}, "other questions"),
        ({"max_new_tokens": 9}, "max new tokens 96, now 9"),
        ({"images": "x"}, "images None, now x"),
    ):
        with pytest.raises(InputError, match=f"answers of another run: {message}.*--out"):
            Predictions(tmp_path, settings(**change))
    (tmp_path / "settings.json").unlink()
    (tmp_path / "predictions.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match=r"no readable settings.json"):
        Predictions(tmp_path, settings())
    before = model_fingerprint(assistant.checkpoint)
    weight = assistant.checkpoint.core.lm_head.weight
    with torch.no_grad():
        weight.add_(1)
        changed = model_fingerprint(assistant.checkpoint)
        weight.sub_(1)
    assert changed != before
    config = assistant.checkpoint.config
    config.vision_feature_layer -= 1
    assert model_fingerprint(assistant.checkpoint) != before, "the same weights used in another way are another model"
    config.vision_feature_layer += 1
    assert model_fingerprint(assistant.checkpoint) == before


def test_questions_are_known_by_all_that_is_asked(benchmark_files: Path) -> None:
    task = open_benchmark("pope", benchmark_files)
    (question, *others) = task.groups["accuracy"]

    def known(**changes: Any) -> str:
        groups = {"accuracy": [dataclasses.replace(question, **changes), *others]}
        return task_fingerprint(dataclasses.replace(task, groups=groups))

    (message,) = question.messages
    asked_otherwise = dataclasses.replace(message, content=(message.content[0], eden.Message.user("Or?").content[0]))
    of_another_image = dataclasses.replace(message, content=(*others[-1].messages[0].images, *message.content[1:]))
    changes = ({}, {"expected": "no"}, {"messages": (asked_otherwise,)}, {"messages": (of_another_image,)})
    assert len({known(**change) for change in changes}) == 4 and known() == task_fingerprint(task)
    before, picture = known(), Path(str(message.images[0].source))
    content = picture.read_bytes()
    try:
        make_image("navy").save(picture, "PNG")
        assert known() != before, "another picture by the same name"
    finally:
        picture.write_bytes(content)
    assert known() == before


def test_another_recording_by_the_same_name_is_another_question(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"audio": "q.wav", "question": "<audio>", "answer": "Four."}
    (tmp_path / "data.json").write_text(json.dumps([record]))
    first, second = (to_wav(speak(f"How many {what} are there?", Voice())) for what in ("objects", "circles"))
    kept = []
    for recording, ends in ((first, 0), (second, 2), (first, 0)):
        (tmp_path / "q.wav").write_bytes(recording)
        assert run_here(tmp_path / "data.json", "--out", tmp_path / "out") == ends
        assert ("answers of another run: other questions" in capsys.readouterr().err) == (ends == 2)
        kept.append((tmp_path / "out" / "predictions.jsonl").read_bytes())
    assert kept[0] == kept[1] == kept[2]


def test_two_runs_are_compared_over_the_questions_they_share(assistant: eden.Assistant, tmp_path: Path) -> None:
    out = tmp_path / "first"
    keep(open_task("world", limit=6), assistant, out)
    lines = lines_of(out)
    lines[0]["answer"] = "Nonsense."  # the earlier run got this one wrong
    (out / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = open_task("world", limit=5)  # of the same questions fewer
    against = compare(evaluate(assistant, task, console=QUIET), read_earlier(out / "result.json", task))
    assert against["model"] == "eden-tiny" and against["shared"] == 5 * len(task.groups)
    accuracy = against["differences"]["accuracy"]
    assert accuracy["shared"] == 5 and accuracy["difference"] == pytest.approx(0.2)
    assert accuracy["interval"][0] == 0 and accuracy["interval"][1] > 0.2
    assert against["differences"]["accuracy_unseen_pairs"] == {"difference": 0, "interval": [0, 0], "shared": 5}
    lines[1]["question"] += " Really?"
    (out / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match=r"first/result.json: it was asked other questions: it shares 4 of 5 with"):
        read_earlier(out, task)


def test_what_cannot_be_compared_is_refused(benchmark_files: Path, assistant: eden.Assistant, tmp_path: Path) -> None:
    world, pope = open_task("world", limit=2), open_benchmark("pope", benchmark_files)
    with pytest.raises(InputError, match="no result here"):
        read_earlier(tmp_path, world)
    (tmp_path / "result.json").write_text("[1]")
    with pytest.raises(InputError, match="not the result of an evaluation"):
        read_earlier(tmp_path, world)
    result = keep(pope, assistant, tmp_path / "pope")
    with pytest.raises(InputError, match="a result of pope, not of world"):
        read_earlier(tmp_path / "pope", world)
    assert compare(result, read_earlier(tmp_path / "pope", pope))["differences"]["f1"]["difference"] == 0
    others = [{**record, "text": record["text"].replace("image", "picture")} for record in POPE]
    (benchmark_files / "others.json").write_text(json.dumps(others))
    with pytest.raises(InputError, match="asked other questions: it shares 0 of 3"):
        read_earlier(
            tmp_path / "pope",
            open_task("pope", questions=benchmark_files / "others.json", images=benchmark_files / "val2014"),
        )


def test_a_data_file_is_measured_by_exact_match_and_token_f1(assistant: eden.Assistant) -> None:
    task = open_task(str(SHAPES.with_suffix(".json")))
    result = evaluate(assistant, task, console=QUIET)
    printed = result.to_dict()
    for name, score in (("accuracy", scoring.exact_match), ("token_f1", scoring.token_f1)):
        scores = [score(answer.question.expected, answer.text) for answer in result.answers]
        assert printed[name] == pytest.approx(sum(scores) / len(scores), abs=1e-4)
    assert printed["token_f1"] >= printed["accuracy"] > 0
