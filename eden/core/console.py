"""What people see of long work and large numbers: one style of progress bar on stderr, one way to write sizes."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

AS_IT_IS: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}
"""How a line with somebody's data in it is printed: its brackets are no markup, and it stays one line in a file."""


class RateColumn(ProgressColumn):
    """Steps, samples or questions per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "", style="progress.data.speed")


def progress(console: Console) -> Progress:
    """A bar with count, rate, time passed and time left; where nobody watches (a file, a pipe) there is none."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def written_size(size: float) -> str:
    """Bytes for people: `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB" if size < 100 else f"{size:,.0f} GiB"
