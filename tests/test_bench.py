"""The benchmarks' table, which must agree with itself, and the rehearsal of what needs a GPU."""

import io
import re
import subprocess
from itertools import islice
from pathlib import Path
from typing import get_args

import cli
import numpy as np
import pytest
import torch
from rich.console import Console

from bench.__main__ import BENCHES, PAGE
from bench.features import photographs
from bench.gpu import COLUMNS, PARTS, TINY, alone, eden_checkpoint, recipe_of
from bench.machine import CpuKind
from bench.sight import SIDE, SPECK, pictures_of_specks
from bench.table import BEGIN, END, HEADINGS, Bar, Row, between_marks, number, show, to_markdown
from eden.checkpoint import count_parameters
from eden.plan.shapes import shapes_of
from eden.tiny.world import COLOURS

KINDS: tuple[CpuKind, ...] = get_args(CpuKind)
FIGURE = r"([\d.,]+)(?: (.+))?"
ROWS = {
    "first": [
        Row("speed", 57.3, "images/s", "a loop", 19.1, Bar(3, of_ratio=True)),
        Row("time", 15.0, "s", "a loop", 2.4, Bar(15, least=False)),
    ],
    "second": [Row("share", 0.9704, bar=Bar(0.97)), Row("memory", 5421.6, "MiB", "a peer", 0.05124)],
}


def table(block: str) -> list[list[str]]:
    """The cells of a Markdown table, without its head."""
    lines = [line for line in block.splitlines() if line.startswith("|")]
    assert lines[0] == "| bench | " + " | ".join(HEADINGS) + " |"
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def value(text: str) -> float:
    return float(text.replace(",", ""))


def half_a_digit(text: str) -> float:
    """How far the number may be from what was measured, as a share of it: half of its last digit."""
    places = len(text.partition(".")[2])
    return 0.5 * 10**-places / value(text) if places else 0.005


@pytest.mark.parametrize(
    ("measured", "digits", "shown"),
    [
        (0.05124, 3, "0.0512"),
        (5421.6, 3, "5,420"),
        (2.9961, 3, "3.00"),
        (0.999961, 5, "0.99996"),
        (192, 3, "192"),
        (0, 3, "0"),
    ],
)
def test_numbers_are_shown_to_their_digits(measured: float, digits: int, shown: str) -> None:
    assert number(measured, digits) == shown


def test_a_bar_is_held_against_what_is_shown() -> None:
    bars = {name: [row.cells()[4] for row in rows] for name, rows in ROWS.items()}
    assert bars == {
        "first": ["ratio >= 3: reached", "< 15 s: **missed**"],
        "second": [">= 0.97: reached", ""],
    }
    assert [row.reached for row in ROWS["first"]] == [True, False]


def test_the_terminal_says_what_was_missed() -> None:
    console = Console(file=io.StringIO(), width=160)
    show(ROWS, console)
    printed = console.file.getvalue()
    assert "< 15 s: missed" in printed and "57.3 images/s" in printed and "a loop: 19.1 images/s" in printed


def test_only_what_is_between_the_marks_changes() -> None:
    before, after = "# A page\n\n\tby hand  \n", "\n| a | table | by hand |\r\nlast line, no end"
    marks = [(BEGIN.format(kind), END.format(kind)) for kind in KINDS]
    blocks = [f"{begin}\nold\n{end}\n" for begin, end in marks]
    page = before + "between\n".join(blocks) + after
    for kind, (begin, end), other in zip(KINDS, marks, reversed(blocks), strict=True):
        new = between_marks(page, to_markdown(ROWS), kind)
        assert f"{begin}\n{to_markdown(ROWS)}\n{end}\n" in new and other in new
        assert between_marks(new, to_markdown(ROWS), kind) == new
        assert between_marks(new, "old", kind) == page
    assert [[name, *row.cells()] for name, rows in ROWS.items() for row in rows] == table(to_markdown(ROWS))


@pytest.mark.parametrize("page", ["", f"{BEGIN}\n", f"{END}\n{BEGIN}\n", f"{BEGIN}\n{END}\n{BEGIN}\n{END}\n"])
def test_a_page_without_both_marks_is_refused(page: str) -> None:
    page = page.replace("{}", KINDS[0])
    for kind in KINDS:
        with pytest.raises(ValueError, match="needs the lines"):
            between_marks(page, "new", kind)


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_agrees_with_itself(kind: CpuKind) -> None:
    """Every bench has rows; ratios are those of their figures; each bar is reached or missed as the figures say."""
    page = PAGE.read_text(encoding="utf-8")
    block = page.partition(BEGIN.format(kind))[2].partition(END.format(kind))[0]
    if "not measured" in block.lower():
        pytest.skip(f"not measured on a CPU {kind}")
    rows = table(block)
    assert list(dict.fromkeys(row[0] for row in rows)) == list(BENCHES)
    bars = 0
    for _, what, figure, peer, ratio, bar in rows:
        shown, unit = re.fullmatch(FIGURE, figure).groups()
        if peer:
            other, other_unit = re.fullmatch(FIGURE, peer.rpartition(": ")[2]).groups()
            assert other_unit == unit, what
            slack = half_a_digit(shown) + half_a_digit(other) + half_a_digit(ratio)
            assert value(ratio) == pytest.approx(value(shown) / value(other), rel=1.1 * slack), what
        if bar:
            bars += 1
            of, sign, limit, _, verdict = re.fullmatch(rf"(ratio )?(>=|<) {FIGURE}: (\S+)", bar).groups()
            measured = value(ratio if of else shown)
            reached = measured >= value(limit) if sign == ">=" else measured < value(limit)
            assert verdict == ("reached" if reached else "**missed**"), what
    assert bars >= 7


def test_the_command_runs_a_bench_and_leaves_the_page_alone() -> None:
    before = PAGE.read_bytes()
    printed = cli.Python("-m", "bench", "packing", cwd=cli.ROOT).finished().stdout
    assert printed.startswith("machine: ") and "reached" in printed and "missed" not in printed
    assert PAGE.read_bytes() == before


def test_the_bench_of_sight_draws_one_shape_of_four_pixels() -> None:
    for image, question, answer in islice(pictures_of_specks("test"), 20):
        pixels = np.asarray(image).astype(int)
        differs = np.abs(pixels - pixels[0, 0]).max(axis=-1) > 40
        extents = [int(np.ptp(places)) + 1 for places in np.nonzero(differs)]
        assert image.size == (SIDE, SIDE) and all(abs(extent - SPECK) <= 1 for extent in extents)
        assert answer.rstrip(".").lower() in COLOURS and "colo" in question.lower()


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_the_bench_of_data_runs_on_a_few_records() -> None:
    printed = cli.Python("-m", "bench.data", "--records", "300", cwd=cli.ROOT).finished()
    assert printed.returncode == 0 and "first step" in printed.stdout, printed.stderr


def gpu(*arguments: str) -> subprocess.CompletedProcess[str]:
    return cli.Python("-m", "bench.gpu", *arguments, cwd=cli.ROOT).finished()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_without_a_gpu_the_gpu_bench_says_so_in_one_line() -> None:
    refused = gpu()
    assert (refused.returncode, refused.stdout) == (2, "")
    assert re.fullmatch(r"bench\.gpu: .* CUDA .* --tiny .*\n", refused.stderr)


def test_the_gpu_bench_rehearses_at_toy_sizes() -> None:
    printed = gpu("--tiny", "peer").stdout.splitlines()
    assert "the figures mean nothing" in printed[0]
    (row,) = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed[3:]]
    assert row[0] == PARTS["peer"].what
    found = dict(zip(COLUMNS, row[1:], strict=True))
    assert 0 < value(found["supervised"]) < value(found["tokens/s"]) and value(found["steps"]) == 1


@pytest.mark.parametrize("name", ["seed", "fastest"])
def test_the_gpu_bench_trains_what_eden_trains(name: str, tmp_path: Path) -> None:
    photographs(tmp_path, TINY.pictures)
    found = alone(name, tmp_path, tiny=True)
    assert 0 < found["supervised"] < found["tokens"] and found["steps"] == 1 and found["plan"] > 0


@pytest.mark.parametrize("name", ["seed", "fastest"])
def test_the_gpu_bench_builds_the_model_of_the_recipe(name: str, tmp_path: Path) -> None:
    recipe = recipe_of(PARTS[name], tmp_path, tiny=True)
    shapes = shapes_of(recipe)
    checkpoint = eden_checkpoint(recipe, shapes)
    assert count_parameters(checkpoint) == shapes.counts
    assert checkpoint.config.text_config.num_hidden_layers == shapes.config.text_config.num_hidden_layers == 2
