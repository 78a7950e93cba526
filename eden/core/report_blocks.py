"""What the pages are made of: tables of facts and answers, plots, and what is said of decisions."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import PIL.Image
from markupsafe import Markup, escape

from .answers import in_words
from .svg import lines

THUMBNAIL = 192
"""Longest side of an embedded picture, in pixels."""

Block = dict[str, Any]


@dataclass(frozen=True)
class Prediction:
    """A question with its reference answer and what a model said.

    Attributes:
        before: what it said before training; None where there is no before.
        score: what the answer earned, 1 if it is right; None where that is known from comparing it with `expected`.
    """

    image: PIL.Image.Image | None
    question: str
    expected: str
    before: str | None
    after: str
    score: float | None = None


@dataclass(frozen=True)
class Decided:
    """A question that was decided: its two likeliest answers with their probabilities."""

    image: PIL.Image.Image | None
    question: str
    expected: str
    likeliest: Sequence[tuple[str, float]]


def facts_table(facts: Mapping[str, Any]) -> Block:
    rows = [
        (name.replace("_", " "), f"{value:,}" if isinstance(value, int) else value) for name, value in facts.items()
    ]
    return {"kind": "facts", "rows": rows}


def predictions_table(title: str, predictions: Sequence[Prediction]) -> Block:
    compare = any(prediction.before is not None for prediction in predictions)
    rows = []
    for prediction in predictions:
        texts = [prediction.before or "", prediction.after] if compare else [prediction.after]
        answers = [(text, text.strip() == prediction.expected.strip()) for text in texts]
        if prediction.score is not None:
            right = prediction.score >= 1
            answers = [*((text, right) for text in texts), (f"{prediction.score:.2f}", right)]
        rows.append(
            {
                "image": data_url(prediction.image) if prediction.image else None,
                "question": prediction.question,
                "expected": prediction.expected,
                "answers": answers,
            }
        )
    columns = ["Before", "After"] if compare else ["Answer"]
    if any(prediction.score is not None for prediction in predictions):
        columns.append("Score")
    return {"kind": "predictions", "title": title, "columns": columns, "rows": rows}


def data_url(image: PIL.Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def plot(title: str, caption: str, series: Mapping[str, Sequence[tuple[float, ...]]], height: int = 280) -> Block:
    """A line plot in SVG, one line a series; a series of one point is a dot, an empty one is left out."""
    drawn = {name: points for name, points in series.items() if points}
    if not drawn:
        return {"kind": "text", "title": title, "html": "Nothing was logged."}
    return {"kind": "plot", "title": title, "caption": caption, "svg": Markup(lines(drawn, height))}


def looks_blocks(looks: Mapping[str, Any]) -> list[Block]:
    """What the right pictures are worth, and what that says of the model."""
    rows = [["the right picture", f"{looks['score']:.3f}", "", ""]]
    for name, of in looks["gaps"].items():
        low, high = of["interval"]
        shown = {"another": "another question's picture", "blank": "a blank picture"}[name]
        rows.append([shown, f"{of['score']:.3f}", f"{of['gap']:+.3f}", f"{low:+.3f} to {high:+.3f}"])
    columns = ["asked with", "score", "gap", "95 % interval, paired"]
    title = f"Does it look? ({looks['n']:,} questions with pictures)"
    return [_table(title, columns, rows), {"kind": "text", "html": escape(looks["said"])}]


def knows_blocks(knows: Mapping[str, Any]) -> list[Block]:
    """What a model knows without a picture, before training and after."""
    sides = [knows["before"], knows["after"]]
    rows = [
        ["perplexity on plain English", *(f"{side['perplexity']:,.2f}" for side in sides)],
        ["bits for a byte of it", *(f"{side['bits_per_byte']:.3f}" for side in sides)],
    ]
    rows += [[question, *(side["answers"][question] for side in sides)] for question in sides[0]["answers"]]
    return [
        _table("What it still knows, without a picture", ["", "before", "after"], rows),
        {"kind": "text", "html": escape(f"{knows['said']}.")},
    ]


MEASURES = {"accuracy": "accuracy", "nll": "NLL", "brier": "Brier score", "ece": "calibration error (ECE)"}
SIDES = {"before": "as the model has it", "after": "calibrated"}
DOT, LARGEST_DOT = 2.5, 9.0
"""Radii, in pixels, for no question and for all of them."""


def decisions_blocks(decisions: Mapping[str, Any]) -> list[Block]:
    """How good probabilities are (`eden.evaluate.DecisionResult.to_dict`), and what refusing the doubtful costs."""
    sides = {side: name for side, name in SIDES.items() if side in decisions}
    rows = [[name, *(_with_interval(decisions[side][key]) for side in sides)] for key, name in MEASURES.items()]
    title = f"Decisions ({decisions['n']:,})"
    blocks: list[Block] = [_table(title, ["measure", *sides.values()], rows)]
    notes = ["In brackets: bootstrap intervals at 95 %."]
    for key, of in decisions["fitted"].items():
        refused = "" if of["threshold"] is None else f", refused below {of['threshold']:.3f}"
        what, samples = in_words(key).capitalize(), f"{of['samples']:,} held-out samples"
        notes.append(f"{what}: temperature {of['temperature']:.2f} from {samples}{refused}.")
    if "after" not in decisions:
        notes.append("Not calibrated.")
    blocks.append({"kind": "text", "html": escape(" ".join(notes))})
    series = {side: [_dot(of, decisions["n"]) for of in decisions["reliability"][side]] for side in reversed(sides)}
    caption = "share of right answers by the probability of the likeliest; dots are larger where more questions are"
    blocks.append(plot("Reliability", caption, {**series, "ideal": [(0.0, 0.0), (1.0, 1.0)]}))
    caption = "percent wrong among the answers, by the percent of questions answered, the surest first"
    curve = [(100 * coverage, 100 * error) for coverage, error in decisions["curve"]]
    blocks.append(plot("What refusing buys", caption, {"wrong": curve}, height=220))
    rows = []
    for of in decisions["risk_coverage"]:
        least = "none is sure enough" if of["threshold"] is None else f"{of['threshold']:.3f}"
        rows.append([f"{of['max_error']:.1%}", f"{of['coverage']:.1%}", f"{of['error']:.1%}", least])
    blocks.append(_table(None, ["at most wrong", "answered", "of these wrong", "from a probability of"], rows))
    if confusion := decisions.get("confusion"):
        counts = [[(number, number / max(1, sum(row))) for number in row] for row in confusion["counts"]]
        named = list(zip(confusion["answers"], counts, strict=True))
        title = "Which are taken for which (rows: the right answer; columns: the decision)"
        blocks.append({"kind": "confusion", "title": title, "columns": confusion["answers"], "rows": named})
    return blocks


def decided_table(title: str, decisions: Sequence[Decided]) -> Block:
    rows = []
    for of in decisions:
        (answer, probability), *others = of.likeliest
        right = answer == of.expected
        answers = [(answer, right), (f"{probability:.1%}", right), *((f"{name} {p:.1%}", None) for name, p in others)]
        image = data_url(of.image) if of.image else None
        rows.append({"image": image, "question": of.question, "expected": of.expected, "answers": answers})
    return {"kind": "predictions", "title": title, "columns": ["Decision", "Probability", "Next"], "rows": rows}


def twins_table(pairs: Sequence[Mapping[str, Any]], images: Sequence[Sequence[PIL.Image.Image]]) -> Block:
    """Pairs of pictures (`eden.data.twins.Pair.to_dict`) side by side, as many as there are images of."""
    if not pairs:
        return {"kind": "text", "title": "Twins", "html": "No pictures are alike across parts or with other answers."}
    cell = Markup('<img class="thumb" src="{}" alt=""><br><b>{}</b><br>{}<br><small>{}</small>')
    rows: list[list[Any]] = []
    for pair, pictures in zip(pairs, images, strict=False):
        sides = zip(pair["pictures"], pictures, strict=True)
        cells = [cell.format(data_url(i), " / ".join(of["answers"]), of["part"], of["name"]) for of, i in sides]
        rows += [[", ".join(twin_words(pair)), ""], cells]
    shown = min(len(pairs), len(images))
    title = "Twins" + (f" (the first {shown}; {len(pairs) - shown:,} more)" if shown < len(pairs) else "")
    return {"kind": "table", "title": title, "columns": ["one", "the other"], "rows": rows}


def twin_words(pair: Mapping[str, Any]) -> tuple[str, str]:
    """How alike two pictures are, and why they are listed."""
    reasons = {"leak": pair["leak"], "different answers": pair["different_answers"]}
    why = ", ".join(reason for reason, is_so in reasons.items() if is_so)
    return "same" if pair["same"] else f"{pair['similarity']:.4f}", why


def _table(title: str | None, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Block:
    return {"kind": "table", "title": title, "columns": columns, "rows": rows, "words": True}


def _with_interval(measure: Mapping[str, Any]) -> str:
    low, high = measure["interval"]
    return f"{measure['value']:.4f} [{low:.4f}, {high:.4f}]"


def _dot(of_bin: Mapping[str, Any], n: int) -> tuple[float, float, float]:
    radius = DOT + (LARGEST_DOT - DOT) * (of_bin["n"] / n) ** 0.5
    return of_bin["probability"], of_bin["right"], radius
