"""Every HTML page of the package, from one self-contained template: no file beside it, nothing fetched."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import jinja2
import PIL.Image
from markupsafe import Markup

from .files import write_file

THUMBNAIL = 192
"""Longest side of an embedded picture, in pixels."""

Row = Mapping[str, Any]
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


class Token(Protocol):
    """What the x-ray page shows of a token."""

    @property
    def text(self) -> str: ...
    @property
    def supervised(self) -> bool: ...
    @property
    def is_image(self) -> bool: ...


def training_page(
    *,
    title: str,
    facts: Mapping[str, str | int | float],
    log: Sequence[Row],
    predictions: Sequence[Prediction],
    recipe: str,
    skipped: Sequence[str] = (),
) -> str:
    """A training run: facts, loss curves, answers before and after, skipped samples, the recipe.

    Args:
        title: of the page.
        facts: what is known of the run.
        log: Trainer's log rows (`step`, `loss`, `eval_loss`, `learning_rate`).
        predictions: held-out questions with the answers before and after.
        recipe: in YAML, defaults filled in.
        skipped: one line for each sample left out.
    """
    series = {"training": _points(log, "loss"), "evaluation": _points(log, "eval_loss")}
    blocks = [
        _facts(facts),
        _plot("Loss", "mean cross-entropy of the supervised tokens, by optimizer step", series),
        _plot("Learning rate", "by optimizer step", {"learning rate": _points(log, "learning_rate")}, height=160),
    ]
    if predictions:
        blocks.append(_predictions("Held-out questions", predictions))
    if skipped:
        blocks.append(
            {"kind": "table", "title": "Skipped samples", "columns": ["sample"], "rows": [[s] for s in skipped]}
        )
    blocks.append({"kind": "folded", "caption": "The recipe, defaults filled in", "text": recipe})
    return _page(title, blocks)


def xray_page(samples: Sequence[tuple[str, Sequence[Token], Sequence[PIL.Image.Image]]]) -> str:
    """Samples as the model sees them: (caption, tokens, images) of each."""
    legend = Markup(
        '<span class="said">supervised</span> tokens teach the model; <span class="seen">image</span> tokens are '
        "replaced by the picture's embeddings; the rest is read only."
    )
    blocks: list[Block] = [{"kind": "text", "html": legend}]
    for caption, tokens, images in samples:
        rows = [(token.text, "said" if token.supervised else "seen" if token.is_image else "") for token in tokens]
        pictures = [_data_url(image) for image in images]
        blocks.append({"kind": "tokens", "caption": caption, "rows": rows, "images": pictures})
    return _page("What the model sees", blocks)


def data_page(report: Mapping[str, Any]) -> str:
    """A checked data set (`eden.data.validate.Report.to_dict`)."""
    facts = {"records": report["samples"], "faulty": report["faulty"], **report["counts"]}
    facts |= {f"as {names}": number for names, number in report["formats"].items()}
    blocks = [_facts(facts)]
    if readable := sum(report["kinds"].values()):
        shares = [(f"{kind}: {number:,}", number / readable) for kind, number in report["kinds"].items()]
        blocks.append({"kind": "bars", "title": "Kinds of samples", "rows": shares})
        for name, caption in {"turns": "samples by number of turns", "characters": "samples by length of text"}.items():
            svg = Markup(_bars_svg(report["histograms"][name], f"{name} a sample"))
            blocks.append({"kind": "plot", "title": name.capitalize(), "caption": caption, "svg": svg})
    if report["repeated"]:
        rows = [[pair["where"], pair["same_as"]] for pair in report["repeated"]]
        left = report["counts"]["repeated_samples"] - len(rows)
        title = "Repeated samples" + (f" (the first {len(rows)}; {left:,} more)" if left else "")
        blocks.append({"kind": "table", "title": title, "columns": ["sample", "same images and text as"], "rows": rows})
    if report["faulty"]:
        kinds = [[kind.replace("_", " "), f"{number:,}"] for kind, number in report["faults_by_kind"].items()]
        blocks.append({"kind": "table", "title": "Faults by kind", "columns": ["kind", "number"], "rows": kinds})
        rows = [[fault["where"], fault["what"], fault["hint"]] for fault in report["faults"]]
        left = report["unnamed_faults"]
        title = "Faults" + (f" (the first {len(rows):,}; {left:,} more)" if left else "")
        blocks.append({"kind": "table", "title": title, "columns": ["where", "what", "hint"], "rows": rows})
    else:
        blocks.append({"kind": "text", "html": "No faults."})
    return _page("Data set", blocks, lead=str(report["path"]))


def evaluation_page(result: Mapping[str, Any], worst: Sequence[Prediction], poor: int) -> str:
    """An evaluation.

    Args:
        result: `EvaluationResult.to_dict`, with `against` if it was compared.
        worst: the answers that earned least, with their pictures.
        poor: how many answers of the task's own group earned less than all, those among them.
    """
    groups, intervals = result["by_kind"], result["intervals"]
    facts: dict[str, Any] = {}
    for name in {**intervals, **groups}:
        fact = Markup("{}{}").format(_figure(name, result[name]), _unit(name))
        if name in intervals:
            low, high = (_figure(name, end) for end in intervals[name])
            fact += Markup("<small>{} to {}</small>").format(low, high)
        facts[name.replace("cider", "CIDEr")] = fact
    facts["questions"] = result["n"]
    blocks = [
        _facts(facts),
        {"kind": "text", "html": "Below each measure: its bootstrap interval at 95 % over the questions."},
    ]
    if looks := result.get("looks") or result.get("decisions", {}).get("looks"):
        blocks += _looks(looks)
    if against := result.get("against"):
        blocks.append(_comparison(against))
    blocks += [
        {"kind": "bars", "title": f"{group.replace('_', ' ').capitalize()}, by kind of question", "rows": kinds.items()}
        for group, kinds in groups.items()
        if _unit(group) and len(kinds) > 1
    ]
    if worst:
        title = f"The worst answers ({len(worst)} of {poor:,} that scored below 1)"
        blocks.append(_predictions(title, worst))
    return _page(f"{result['model']} on {result['task']}", blocks)


def _unit(measure: str) -> str:
    """Every measure is a share, but for CIDEr, which goes to 10."""
    return "" if measure.startswith("cider") else " %"


def _figure(measure: str, value: float, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f}" if _unit(measure) else f"{value:{sign}.3f}"


def _looks(looks: Mapping[str, Any]) -> list[Block]:
    """What the right pictures are worth, and what that says of the model."""
    rows = [["the right picture", f"{looks['score']:.3f}", "", ""]]
    for name, of in looks["gaps"].items():
        low, high = of["interval"]
        shown = {"another": "another question's picture", "blank": "a blank picture"}[name]
        rows.append([shown, f"{of['score']:.3f}", f"{of['gap']:+.3f}", f"{low:+.3f} to {high:+.3f}"])
    columns = ["asked with", "score", "gap", "95 % interval, paired"]
    title = f"Does it look? ({looks['n']:,} questions with pictures)"
    table = {"kind": "table", "title": title, "columns": columns, "rows": rows, "words": True}
    return [table, {"kind": "text", "html": Markup.escape(looks["said"])}]


def _comparison(against: Mapping[str, Any]) -> Block:
    rows = []
    for name, of in against["differences"].items():
        difference, low, high = (_figure(name, number, "+") for number in (of["difference"], *of["interval"]))
        points = " points" if _unit(name) else ""
        rows.append([name.replace("_", " "), f"{difference}{points}", f"{low} to {high}", f"{of['shared']:,}"])
    columns = ["measure", "difference", "95 % interval, paired", "questions shared"]
    title = f"Against {against['model']}: this run minus that one"
    return {"kind": "table", "title": title, "columns": columns, "rows": rows, "words": True}


def write_page(path: str | Path, html: str) -> Path:
    """Writes a page, whole or not at all.

    Raises:
        StorageError: the disk is full or the place is not writable.
    """
    return write_file(path, html)


def _page(title: str, blocks: Sequence[Block], lead: str = "") -> str:
    return _template().render(title=title, lead=lead, blocks=blocks)


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(Path(__file__).with_name("report_template.html").read_text(encoding="utf-8"))


def _facts(facts: Mapping[str, Any]) -> Block:
    rows = [
        (name.replace("_", " "), f"{value:,}" if isinstance(value, int) else value) for name, value in facts.items()
    ]
    return {"kind": "facts", "rows": rows}


def _predictions(title: str, predictions: Sequence[Prediction]) -> Block:
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
                "image": _data_url(prediction.image) if prediction.image else None,
                "question": prediction.question,
                "expected": prediction.expected,
                "answers": answers,
            }
        )
    columns = ["Before", "After"] if compare else ["Answer"]
    if any(prediction.score is not None for prediction in predictions):
        columns.append("Score")
    return {"kind": "predictions", "title": title, "columns": columns, "rows": rows}


def _data_url(image: PIL.Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _points(log: Sequence[Row], name: str) -> list[tuple[float, float]]:
    points = [(float(row["step"]), float(row[name])) for row in log if name in row and "step" in row]
    return [(x, y) for x, y in points if math.isfinite(y)]


def _plot(title: str, caption: str, series: Mapping[str, Sequence[tuple[float, float]]], height: int = 280) -> Block:
    """A line plot in SVG, one line a series; a series of one point is a dot, an empty one is left out."""
    drawn = {name: points for name, points in series.items() if points}
    if not drawn:
        return {"kind": "text", "title": title, "html": "Nothing was logged."}
    return {"kind": "plot", "title": title, "caption": caption, "svg": Markup(_svg(drawn, height))}


def _svg(series: Mapping[str, Sequence[tuple[float, float]]], height: int) -> str:
    width, left, right, top, bottom = 720, 64, 16, 28, 28
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    x_ticks, y_ticks = _ticks(min(0.0, *xs), max(xs)), _ticks(min(0.0, *ys), max(ys))
    x_low, x_high, y_low, y_high = x_ticks[0], x_ticks[-1], y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = left + (x - x_low) / (x_high - x_low) * (width - left - right)
        return across, height - bottom - (y - y_low) / (y_high - y_low) * (height - top - bottom)

    out = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{", ".join(series)}">']
    for tick in y_ticks:
        _, y = place(x_low, tick)
        out.append(f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>')
        out.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
    for tick in x_ticks:
        x, _ = place(tick, y_low)
        anchor = "end" if tick == x_ticks[-1] else "middle"
        out.append(f'<text x="{x:.1f}" y="{height - 8}" text-anchor="{anchor}">{tick:,.4g}</text>')
    for index, (name, points) in enumerate(series.items(), 1):
        colour, spots = f"var(--series-{index})", [place(*point) for point in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if len(spots) <= 24:
            out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in spots]
        x = left + 130 * (index - 1)
        out.append(f'<rect x="{x}" y="6" width="14" height="4" rx="2" fill="{colour}"/>')
        out.append(f'<text x="{x + 20}" y="12">{name}</text>')
    return "".join(out) + "</svg>"


def _bars_svg(bars: Sequence[Mapping[str, int]], label: str, height: int = 220) -> str:
    """A histogram in SVG: `from`, `to` and `samples` of each bar; the bars stand side by side, whatever their width."""
    width, left, right, top, bottom = 720, 64, 16, 12, 28
    ticks = _ticks(0.0, float(max(bar["samples"] for bar in bars)))
    across, up = (width - left - right) / len(bars), (height - top - bottom) / ticks[-1]
    out = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">']
    for tick in ticks:
        y = height - bottom - tick * up
        out.append(f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>')
        out.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:,.6g}</text>')
    labelled = math.ceil(len(bars) / 7)  # so that they have room on a phone, where they are drawn larger
    for index, bar in enumerate(bars):
        x, tall = left + index * across, bar["samples"] * up
        span = f"{bar['from']:,}" if bar["from"] == bar["to"] else f"{bar['from']:,} to {bar['to']:,}"
        out.append(
            f'<rect x="{x + 1:.1f}" y="{height - bottom - tall:.1f}" width="{max(across - 2, 1):.1f}" '
            f'height="{tall:.1f}" fill="var(--series-1)"><title>{span}: {bar["samples"]:,}</title></rect>'
        )
        if index % labelled == 0:
            out.append(f'<text x="{x + across / 2:.1f}" y="{height - 8}" text-anchor="middle">{bar["from"]:,}</text>')
    return "".join(out) + "</svg>"


def _ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers that enclose low to high."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / wanted
    unit = 10 ** math.floor(math.log10(rough))
    step = unit * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * unit >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]
