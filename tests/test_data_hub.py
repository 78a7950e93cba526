"""A data set of the hub, through the hub's own client and `datasets`, from a hub on this machine."""

import io
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import cli
import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import make_image
from hub import NAMESPACE, Hub, Repository

Check: TypeAlias = Callable[..., subprocess.CompletedProcess[str]]
SET = f"hf://datasets/{NAMESPACE}/colours"


def parquet(colours: list[str]) -> bytes:
    """Rows as of HuggingFaceM4's the_cauldron: the images in them, the turns as `texts`."""
    rows = []
    for colour in colours:
        buffer = io.BytesIO()
        make_image(colour).save(buffer, "PNG")
        turn = {"user": "Which colour is it?", "assistant": colour.capitalize(), "source": "x"}
        rows.append({"images": [{"bytes": buffer.getvalue(), "path": None}], "texts": [turn]})
    buffer = io.BytesIO()
    pa.parquet.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def one_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, dict[str, str]]]:
    """It, and the environment in which it is asked."""
    with Hub() as hub:
        yield hub, hub.environment() | {"HF_HOME": str(tmp_path_factory.mktemp("home"))}
        hub.shutdown()


@pytest.fixture
def hub(one_hub: tuple[Hub, dict[str, str]]) -> Hub:
    files = {
        "README.md": b"---\nlicense: mit\n---\nColours.\n",
        "data/train-00000-of-00002.parquet": parquet(["red", "blue"]),
        "data/train-00001-of-00002.parquet": parquet(["lime"]),
        "data/validation-00000-of-00001.parquet": parquet(["orange"]),
    }
    one_hub[0].repositories[f"datasets/{NAMESPACE}/colours"] = Repository({}, files)
    return one_hub[0]


@pytest.fixture
def check(one_hub: tuple[Hub, dict[str, str]], hub: Hub, tmp_path: Path) -> Check:
    environment = os.environ | one_hub[1] | {"EDEN_CACHE": str(tmp_path)}
    return lambda path, **options: cli.eden("check", path, "--decode", "--json", env=environment, **options)


def test_its_rows_are_samples(check: Check) -> None:
    for path, number in ((SET, 3), (f"{SET}@main?split=validation", 1)):
        result = check(path)
        assert result.returncode == 0, result.stderr
        report = json.loads(result.stdout)
        assert (report["samples"], report["faulty"], report["counts"]["images"]) == (number, 0, number)


def test_a_commit_is_read_once(hub: Hub, check: Check, tmp_path: Path) -> None:
    """What the rows hold is in Eden's cache then, wherever it is asked for; only the commit is asked for."""
    first = check(SET)
    files = hub.repositories[f"datasets/{NAMESPACE}/colours"].files
    files.clear()
    again = check(SET, cwd=tmp_path)
    assert again.returncode == 0 and again.stdout == first.stdout


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (f"hf://datasets/{NAMESPACE}/none", "404"),
        (f"{SET}?split=test", r"Bad split: test"),
        (f"{SET}?colour=red", "unknown setting colour. Use data_dir, name, split."),
    ],
)
def test_what_is_not_there_is_one_line(path: str, message: str, check: Check) -> None:
    result = check(path)
    assert result.returncode == 2 and not result.stdout
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith(f"error {path}: ") and message in line
