"""Decisions beside what one would take instead, on the same pictures: `python -m bench.decide [FOLDER]`, some minutes.
With `--shuffled` the training pictures are dealt out to the classes anew first, and it is said whether the model looks.

scikit-learn's handwritten digits in a folder for each class, 360 of them held back. Eden is trained by the recipe
`decide`. Beside it logistic regression on the same frozen features of the tower, calibrated by the same temperature
fit on the same held-out samples; and the trained model asked to write its answer, which gives no probability.
"""

import json
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import eden
from bench.machine import describe
from bench.table import Bar, Row, show
from bench.timing import timed
from eden.checkpoint import load
from eden.checkpoint.vision_encoder import VisionEncoder
from eden.cli.demo import write_class_folders
from eden.core.answers import AnswerSet
from eden.data.prepare import read_data
from eden.data.store import Samples
from eden.data.validate import load_samples
from eden.evaluate import decide_task, open_task
from eden.evaluate.calibration import Calibrated, risk_coverage
from eden.inference.calibration import fit
from eden.inference.decisions import Decision, DecisionQuestion
from eden.media.images import open_image
from eden.recipe import load_recipe
from eden.training.train import train

PEER = "logistic regression on the same features"
MOST_ERROR = 0.01
SHUFFLES = 5
COLOURS, SHAPES = ("red", "blue", "green", "yellow"), ("circle", "square", "star", "triangle")
ASKED = (
    ("Is there a red {}?", None, SHAPES),
    ("What colour is the {}?", ["Red.", "Blue.", "Green.", "Yellow."], SHAPES),
    ("What size is the {}?", ["Small.", "Large."], SHAPES),
    ("What shape is the {} object?", ["Circle.", "Square.", "Star.", "Triangle."], COLOURS),
    ("How many {} objects are there?", ["One.", "Two.", "Three."], COLOURS),
)
"""Questions, their answers (None is yes and no), and what to ask them of."""


def main() -> None:
    """Makes the folders and the model in a folder, or measures the model that is there already."""
    console = Console()
    folders = [argument for argument in sys.argv[1:] if argument != "--shuffled"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(folders[0] if folders else temporary)
        if "--shuffled" in sys.argv:
            console.print(learn_nothing(folder, console), highlight=False)
        else:
            show({"decide": measure(folder, console)}, console)


def learn_nothing(folder: Path, console: Console) -> str:
    """What is said of models that were trained with each picture under the class of any other."""
    photos = class_folders(folder, console)
    places = sorted((photos / "train").glob("*/*"))
    contents = [place.read_bytes() for place in places]
    looks = []
    for seed in range(SHUFFLES):
        random.Random(seed).shuffle(contents)
        for place, content in zip(places, contents, strict=True):
            place.write_bytes(content)
        changes = [f"data.path={photos}", f"training.output_dir={folder / f'shuffled-{seed}'}"]
        assistant = eden.load(str(train(load_recipe("decide", changes), console=console).artifact))
        found = decide_task(assistant, open_task(str(photos)), blind=True, console=console)
        assert found is not None and found.looks is not None
        looks.append(found.looks)
    return json.dumps(looks, indent=1)


def measure(folder: Path, console: Console) -> list[Row]:
    """Quality and speed of Eden and of its peers."""
    photos = class_folders(folder, console)
    recipe = load_recipe("decide", [f"data.path={photos}", f"training.output_dir={folder / 'model'}"])
    seconds = float("nan")
    if not (folder / "model" / "config.json").exists():
        _, seconds = timed(lambda: train(recipe, console=console))
    trained, held_out, _ = read_data(recipe, console)
    test, _ = load_samples(photos / "test")
    assistant = eden.load(str(folder / "model"))
    answers = test[0].answers
    assert answers is not None
    truth = [sample.messages[-1].text for sample in test]
    questions = [sample.messages[:-1] for sample in test]
    decisions, deciding = timed(lambda: assistant.decide_all(questions, [answers] * len(test)))
    written, writing = timed(lambda: assistant.answer_all(questions, max_new_tokens=8))
    mine = Calibrated(decisions, truth)
    theirs, fitting = timed(lambda: regression(answers, trained, held_out, test))
    rows = [
        Row(
            f"accuracy on {len(test)} unseen digits",
            value(mine, "accuracy"),
            "",
            PEER,
            value(theirs, "accuracy"),
            Bar(0.97),
            4,
        ),
        Row(
            "NLL, calibrated",
            value(mine, "nll"),
            "",
            PEER,
            value(theirs, "nll"),
            Bar(0.8, least=False, of_ratio=True),
            4,
        ),
        Row("ECE, calibrated", value(mine, "ece"), "", PEER, value(theirs, "ece"), Bar(0.015, least=False), 4),
        Row(f"answered with at most {MOST_ERROR:.0%} wrong", covered(mine), "", PEER, covered(theirs), Bar(0.95), 4),
        Row(
            "accuracy by deciding",
            value(mine, "accuracy"),
            peer="the same model writes, its text compared",
            peer_figure=float(np.mean([text == right for text, right in zip(written, truth, strict=True)])),
            digits=4,
        ),
        Row("pictures decided", len(test) / deciding, "pictures/s", "the same model writes", len(test) / writing),
        about_one_picture([question[-1].images[0].source for question in questions[:60]]),
        Row("training", seconds, "s", PEER, fitting),
    ]
    low, high = mine.measures()["ece"][1]
    console.print(f"95 % interval of Eden's ECE: {low:.4f} to {high:.4f}", highlight=False)
    return rows


def class_folders(folder: Path, console: Console) -> Path:
    """The digits in a folder for each class, unless they are there already."""
    photos = folder / "photos"
    if not photos.exists():
        write_class_folders(photos, console)
    return photos


def about_one_picture(pictures: Sequence[Path]) -> Row:
    """Many questions about a picture and one about another, in turns; of eden-tiny's world, with their answers."""
    assistant = eden.load()
    questions = [
        DecisionQuestion(ask.format(of), AnswerSet.of(answers)) for ask, answers, things in ASKED for of in things
    ]
    many, one = [], []
    for number, (picture, other) in enumerate(zip(pictures[::2], pictures[1::2], strict=False)):
        single = questions[number % len(questions)]
        many.append(timed(lambda: assistant.decide_each(questions, [picture]))[1])  # noqa: B023
        one.append(timed(lambda: assistant.decide_each([single], [other]))[1])  # noqa: B023
    return Row(
        f"{len(questions)} questions about one picture, eden-tiny",
        statistics.median(many) * 1000,
        "ms",
        "one question",
        statistics.median(one) * 1000,
        Bar(3, least=False, of_ratio=True),
    )


def regression(answers: AnswerSet, trained: Samples, held_out: Samples, test: Samples) -> Calibrated:
    """scikit-learn's, on scaled features and with its own defaults but for the number of iterations."""
    encoder = VisionEncoder.of(load())
    learn, tune, ask = (features(encoder, samples) for samples in (trained, held_out, test))
    labels = [
        [answers.answers.index(sample.messages[-1].text) for sample in part] for part in (trained, held_out, test)
    ]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(learn, labels[0])
    fitted = fit([answers] * len(tune), model.predict_log_proba(tune).tolist(), labels[1])
    decisions = [
        Decision.of(answers, logs, None, fitted[answers.key]) for logs in model.predict_log_proba(ask).tolist()
    ]
    return Calibrated(decisions, [answers.answers[place] for place in labels[2]])


def features(encoder: VisionEncoder, samples: Samples) -> np.ndarray:
    """The tower's features of each sample's picture, all of its tokens in one row."""
    pictures = [open_image(sample.messages[-2].images[0].source) for sample in samples]
    parts = [
        encoder.features(encoder.image_processor(pictures[at : at + 64], return_tensors="pt")["pixel_values"])
        for at in range(0, len(pictures), 64)
    ]
    return torch.cat(parts).float().flatten(1).numpy()


def value(found: Calibrated, measure: str) -> float:
    return found.measures()[measure][0]


def covered(found: Calibrated) -> float:
    return next(row["coverage"] for row in risk_coverage(found) if row["max_error"] == MOST_ERROR)


if __name__ == "__main__":
    print(f"machine: {describe()}")
    main()
