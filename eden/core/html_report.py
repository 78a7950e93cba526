"""Every HTML page of the package, from one self-contained template: no file beside it, nothing fetched."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import jinja2
import PIL.Image
from markupsafe import Markup

from .files import write_file
from .report_blocks import (
    SIDES,
    Block,
    Decided,
    Prediction,
    data_url,
    decided_table,
    decisions_blocks,
    facts_table,
    knows_blocks,
    looks_blocks,
    plot,
    predictions_table,
    trust_plots,
    twins_table,
)
from .svg import histogram

Row = Mapping[str, Any]


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
    decisions: Mapping[str, Any] | None = None,
    skipped: Sequence[str] = (),
    knows: Mapping[str, Any] | None = None,
) -> str:
    """A training run: facts, loss curves, answers before and after, what it still knows, skipped samples, the recipe.

    Args:
        title: of the page.
        facts: what is known of the run.
        log: Trainer's log rows (`step`, `loss`, `eval_loss`, `learning_rate`).
        predictions: held-out questions with the answers before and after.
        recipe: in YAML, defaults filled in.
        decisions: of the held-out samples (`eden.inference.calibration.trust`); None or empty if there are none.
        skipped: one line for each sample left out.
        knows: `eden.inference.knowledge.Change.to_dict`, if that was measured.
    """
    series = {"training": _points(log, "loss"), "evaluation": _points(log, "eval_loss")}
    blocks = [
        facts_table(facts),
        plot("Loss", "mean cross-entropy of the supervised tokens, by optimizer step", series),
        plot("Learning rate", "by optimizer step", {"learning rate": _points(log, "learning_rate")}, height=160),
    ]
    if decisions:
        note = f"Decisions about {decisions['n']:,} held-out samples, each with a temperature fitted on the others."
        blocks += [{"kind": "text", "title": "Decisions", "html": note}, *trust_plots(decisions, list(SIDES))]
    if predictions:
        blocks.append(predictions_table("Held-out questions", predictions))
    if knows is not None:
        blocks += knows_blocks(knows)
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
        pictures = [data_url(image) for image in images]
        blocks.append({"kind": "tokens", "caption": caption, "rows": rows, "images": pictures})
    return _page("What the model sees", blocks)


def data_page(report: Mapping[str, Any], twins: Sequence[Sequence[PIL.Image.Image]] = ()) -> str:
    """A checked data set.

    Args:
        report: `eden.data.validate.Report.to_dict`.
        twins: the pictures of the first pairs of twins, those that the page shows.
    """
    facts = {"records": report["samples"], "faulty": report["faulty"], **report["counts"]}
    facts |= {f"as {names}": number for names, number in report["formats"].items()}
    facts |= {f"with {word}, a control token to some models": n for word, n in report["control_words"].items()}
    blocks = [facts_table(facts)]
    if readable := sum(report["kinds"].values()):
        shares = [(f"{kind}: {number:,}", number / readable) for kind, number in report["kinds"].items()]
        blocks.append({"kind": "bars", "title": "Kinds of samples", "rows": shares})
        for name, caption in {"turns": "samples by number of turns", "characters": "samples by length of text"}.items():
            svg = Markup(histogram(report["histograms"][name], f"{name} a sample"))
            blocks.append({"kind": "plot", "title": name.capitalize(), "caption": caption, "svg": svg})
    if report["repeated"]:
        rows = [[pair["where"], pair["same_as"]] for pair in report["repeated"]]
        left = report["counts"]["repeated_samples"] - len(rows)
        title = "Repeated samples" + (f" (the first {len(rows)}; {left:,} more)" if left else "")
        blocks.append({"kind": "table", "title": title, "columns": ["sample", "same images and text as"], "rows": rows})
    if report["twins"]:
        blocks.append(twins_table(report["twins"]["pairs"], twins))
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


def evaluation_page(
    result: Mapping[str, Any],
    worst: Sequence[Prediction],
    poor: int,
    doubtful: Sequence[Decided] = (),
    misjudged: Sequence[Decided] = (),
) -> str:
    """An evaluation.

    Args:
        result: `EvaluationResult.to_dict`, with `decisions` if it decided and `against` if it was compared.
        worst: the answers that earned least, with their pictures.
        poor: how many answers of the task's own group earned less than all, those among them.
        doubtful: the decisions that are the least confident.
        misjudged: the wrong decisions whose answers are the most probable.
    """
    blocks: list[Block] = []
    if decisions := result.get("decisions"):
        blocks += decisions_blocks(decisions)
        for title, rows in {"The most doubtful": doubtful, "The most confidently wrong": misjudged}.items():
            if rows:
                blocks.append(decided_table(title, rows))
    if looks := result.get("looks") or result.get("decisions", {}).get("looks"):
        blocks += looks_blocks(looks)
    blocks += _measures(result, "Asked to write its answers" if decisions else None)
    if against := result.get("against"):
        blocks.append(_comparison(against))
    blocks += [
        {"kind": "bars", "title": f"{group.replace('_', ' ').capitalize()}, by kind of question", "rows": kinds.items()}
        for group, kinds in result["by_kind"].items()
        if _unit(group) and len(kinds) > 1
    ]
    if worst:
        title = f"The worst answers ({len(worst)} of {poor:,} that scored below 1)"
        blocks.append(predictions_table(title, worst))
    return _page(f"{result['model']} on {result['task']}", blocks)


def _measures(result: Mapping[str, Any], title: str | None) -> list[Block]:
    facts: dict[str, Any] = {}
    for name in {**result["intervals"], **result["by_kind"]}:
        fact = Markup("{}{}").format(_figure(name, result[name]), _unit(name))
        if name in result["intervals"]:
            low, high = (_figure(name, end) for end in result["intervals"][name])
            fact += Markup("<small>{} to {}</small>").format(low, high)
        facts[name.replace("cider", "CIDEr")] = fact
    facts["questions"] = result["n"]
    note = "Below each measure: its bootstrap interval at 95 % over the questions."
    return [{**facts_table(facts), "title": title}, {"kind": "text", "html": note}]


def _unit(measure: str) -> str:
    """Every measure is a share, but for CIDEr, which goes to 10."""
    return "" if measure.startswith("cider") else " %"


def _figure(measure: str, value: float, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f}" if _unit(measure) else f"{value:{sign}.3f}"


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


def _points(log: Sequence[Row], name: str) -> list[tuple[float, float]]:
    points = [(float(row["step"]), float(row[name])) for row in log if name in row and "step" in row]
    return [(x, y) for x, y in points if math.isfinite(y)]
