"""Every benchmark that needs no GPU and little time, in one table: `make bench`, or `python -m bench NAME...` for some.

Each runs in a process of its own, so that none leaves threads or memory behind for the next. When all have run, the
table of this kind of CPU in docs/benchmarks.md is replaced.
"""

import argparse
import datetime
import importlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from rich.console import Console

from bench.machine import cpu_kind, describe
from bench.table import Row, between_marks, show, to_markdown
from eden.core.files import write_file

BENCHES = ("startup", "answers", "speech", "features", "train", "packing", "data")
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def main() -> None:
    """Runs the benches that are named, or all of them, which also writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)}; without any, all run")
    names = parser.parse_args().names
    if unknown := [name for name in names if name not in BENCHES]:
        parser.error(f"no bench is called {unknown[0]!r}; there are {', '.join(BENCHES)}")
    if not names:
        between_marks(
            PAGE.read_text(encoding="utf-8"), "", cpu_kind()
        )  # what cannot be written is known before the work
    console, rows = Console(), {}
    console.print(f"machine: {describe()}", highlight=False)
    try:
        for name in names or BENCHES:
            with console.status(name):
                rows[name] = measured(name)
    finally:
        show(rows, console)
    if not names:
        write_file(PAGE, between_marks(PAGE.read_text(encoding="utf-8"), block(rows), cpu_kind()))


def measured(name: str) -> list[Row]:
    """The rows of one bench, from a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        # Not a function of this file's: what `python -m` runs has no name that another process could import it by.
        rows: list[Row] = pool.submit(importlib.import_module(f"bench.{name}").measure).result()
    return rows


def block(rows: dict[str, list[Row]]) -> str:
    """What stands between the marks: where, when and how, and the table."""
    today = datetime.datetime.now(datetime.UTC).date()
    return f"`make bench`, {today}, on {describe()}.\n\n{to_markdown(rows)}"


if __name__ == "__main__":
    main()
