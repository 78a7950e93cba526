"""What a run does for the decisions in its data: temperatures, and how far they can be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from ..checkpoint import Checkpoint
from ..core.console import AS_IT_IS
from ..data.decisions import Decisions
from ..data.store import Samples
from ..errors import first_line
from ..inference.assistant import Assistant
from ..inference.calibration import calibrate


def calibrate_run(
    checkpoint: Checkpoint, trained: Samples, held_out: Samples, folder: Path, console: Console
) -> dict[str, Any]:
    """Fits temperatures on the held-out samples that are decisions, and keeps them in the artifact.

    Returns:
        What the report draws (`inference.calibration.trust`); empty if nothing was decided.
    """
    decisions = Decisions(Samples.joined([trained, held_out]))
    if not decisions.sets:
        return {}
    decided = [(sample, answers) for sample in held_out if (answers := decisions.of(sample))]
    checkpoint.model.eval()
    try:
        with console.status("calibrating decisions"):
            calibration, drawn = calibrate(Assistant(checkpoint), decided, decisions.sets)
        calibration.write(folder)
    except Exception as error:  # as memory that runs out: nothing here may end a run whose artifact is whole
        drawn, lines = {}, [f"warning: decisions are not calibrated ({first_line(error)}); the artifact is whole"]
    else:
        lines = calibration.lines(answers for _, answers in decided)
    for line in lines:
        console.print(line, **AS_IT_IS)
    return drawn
