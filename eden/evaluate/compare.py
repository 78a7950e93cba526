"""Two runs of one task: by how much they differ, and whether that is more than chance."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, first_line
from .metrics import differences
from .predictions import PREDICTIONS, RESULT, read_predictions, shared_with
from .run import EvaluationResult
from .task import Task


@dataclass(frozen=True)
class Earlier:
    """A finished run: which model it asked, and the lines of its predictions file by group."""

    model: str
    rows: Mapping[str, Sequence[Mapping[str, Any]]]


def read_earlier(path: str | Path, task: Task) -> Earlier:
    """An earlier run of a task, to compare with.

    Args:
        path: the run's folder, or its result.json with predictions.jsonl beside it.
        task: what is going to be asked, or was.

    Raises:
        InputError: there is no such run, it is of another task, or it was asked other questions. One that was asked
            more of them, or fewer (`--limit`), is none of these.
    """
    path = Path(path)
    path = path / RESULT if path.is_dir() else path
    hint = "Give the folder or the result.json of a finished `eden evaluate ... --out FOLDER`."
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("no result here", where=str(path), hint=hint) from None
    except (OSError, ValueError) as error:
        raise InputError(f"not a result ({first_line(error)})", where=str(path), hint=hint) from None
    if not isinstance(found, dict) or not {"task", "model"} <= found.keys():
        raise InputError("not the result of an evaluation", where=str(path), hint=hint)
    if found["task"] != task.name:
        raise InputError(
            f"a result of {found['task']}, not of {task.name}", where=str(path), hint="Compare runs of one task."
        )
    rows = defaultdict(list)
    for line in read_predictions(path.with_name(PREDICTIONS)):
        rows[line["group"]].append(line)
    for group, questions in task.groups.items():
        shared, both = len(shared_with(questions, rows[group])), min(len(questions), len(rows[group]))
        if shared < both or (group == next(iter(task.groups)) and not shared):
            raise InputError(
                f"it was asked other questions: it shares {shared:,} of {both:,} with this run",
                where=str(path),
                hint="Ask both the same questions; only --limit may differ.",
            )
    return Earlier(str(found["model"]), rows)


def compare(result: EvaluationResult, earlier: Earlier) -> dict[str, Any]:
    """What a result has more than an earlier one, over the questions that both were asked.

    The earlier answers are scored anew, by the same rules and, for CIDEr, over the same images.

    Returns:
        `model` of the earlier, `shared` questions, and by measure `difference`, `interval` (95 %, paired) and `shared`.
    """
    found: dict[str, Any] = {}
    total = 0
    for group, questions in result.task.groups.items():
        theirs = shared_with(questions, earlier.rows.get(group, ()))
        if not theirs or group in result.task.blind.values():
            continue
        said = [answer.text for answer in result.answers if answer.group == group]
        references = [questions[index].reference for index in theirs]
        mine = result.task.score(references, [said[index] for index in theirs])
        before = result.task.score(references, list(theirs.values()))
        total += len(theirs)
        for name, (difference, interval) in differences(result.task.keys(group), mine, before).items():
            found[name] = {
                "difference": round(difference, 4),
                "interval": [round(end, 4) for end in interval],
                "shared": len(theirs),
            }
    return {"model": earlier.model, "shared": total, "differences": found}
