"""One row a measurement, one table of them: in the terminal, and between two marks of docs/benchmarks.md."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from bench.machine import CpuKind

BEGIN, END = "<!-- made by `make bench` on a CPU {} -->", "<!-- end of what `make bench` makes on a CPU {} -->"
"""Between these lines, with a kind of CPU in them, the page is rewritten; everything else on it is written by hand."""
HEADINGS = ("what", "Eden", "beside it, in the same run", "ratio", "bar")

Block = Mapping[str, Sequence["Row"]]


@dataclass(frozen=True)
class Bar:
    """What a row has to reach.

    Attributes:
        limit: the number.
        least: reached at `limit` and above; else only below it.
        of_ratio: it is set for the ratio, else for Eden's figure.
    """

    limit: float
    least: bool = True
    of_ratio: bool = False


@dataclass(frozen=True)
class Row:
    """One figure of Eden's, with what it is to be read against.

    Attributes:
        what: was measured.
        figure: Eden's.
        unit: of both figures; empty for a share.
        peer: what it stands beside; empty if nothing does.
        peer_figure: of that.
        bar: to be reached, if one is set.
        digits: that are shown, and that count: a bar is held against the numbers on the page.
    """

    what: str
    figure: float
    unit: str = ""
    peer: str = ""
    peer_figure: float = math.nan
    bar: Bar | None = None
    digits: int = 3

    @property
    def ratio(self) -> float:
        """Eden's figure over the other one: of times and memory, less is better."""
        return self.figure / self.peer_figure

    @property
    def reached(self) -> bool:
        """Whether the bar is; a row without one has nothing to miss."""
        if self.bar is None:
            return True
        measured = self.ratio if self.bar.of_ratio else self.figure
        shown = float(number(measured, self.digits).replace(",", ""))
        return shown >= self.bar.limit if self.bar.least else shown < self.bar.limit

    def cells(self) -> list[str]:
        """What stands under `HEADINGS`."""
        unit = f" {self.unit}" if self.unit else ""
        cells = [self.what, f"{number(self.figure, self.digits)}{unit}", "", "", ""]
        if self.peer:
            cells[2] = f"{self.peer}: {number(self.peer_figure, self.digits)}{unit}"
            cells[3] = number(self.ratio, self.digits)
        if self.bar is not None:
            sign, of = ">=" if self.bar.least else "<", "ratio " if self.bar.of_ratio else ""
            unit = "" if self.bar.of_ratio else unit
            cells[4] = f"{of}{sign} {self.bar.limit:,}{unit}: {'reached' if self.reached else '**missed**'}"
        return cells


def number(value: float, digits: int) -> str:
    """The value to so many significant digits, whole thousands apart: 0.0512, 2.4, 5,420."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, places):,.{max(places, 0)}f}"


def show(rows: Block, console: Console | None = None) -> None:
    """Prints the rows of each bench as one table."""
    table = Table(*HEADINGS)
    for rows_of_bench in rows.values():
        for row in rows_of_bench:
            *cells, bar = row.cells()
            style = "" if row.reached else "bold red"
            table.add_row(*cells, bar.replace("*", ""), style=style)
        table.add_section()
    (console or Console()).print(table)


def to_markdown(rows: Block) -> str:
    """The rows as a Markdown table, with the name of the bench that makes them in a column of its own."""
    lines = ["| bench | " + " | ".join(HEADINGS) + " |", "|---" * (1 + len(HEADINGS)) + "|"]
    for name, rows_of_bench in rows.items():
        lines += ["| " + " | ".join([name, *row.cells()]) + " |" for row in rows_of_bench]
    return "\n".join(lines)


def between_marks(page: str, block: str, kind: CpuKind) -> str:
    """The page with `block` between the marks of a kind of CPU, and every other character as it was.

    Raises:
        ValueError: the page does not have both marks, once each and in their order.
    """
    first, last = BEGIN.format(kind), END.format(kind)
    before, begin, rest = page.partition(f"{first}\n")
    old, end, after = rest.partition(f"{last}\n")
    if not (begin and end) or first in old + after or last in before + after:
        raise ValueError(f"the page needs the lines {first} and {last}, once each")
    return f"{before}{begin}{block.strip()}\n{end}{after}"
