"""Training in several processes, started by the launchers that users start it with, on CPUs through gloo."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cli
import pytest
import torch
from conftest import COLOURS, make_image
from rich.console import Console
from safetensors.torch import load_file
from servers import until
from test_train import losses

import eden
from eden import RecipeError
from eden.recipe import load_recipe
from eden.training.train import train

BIN = Path(sys.executable).parent
ACCELERATE = [str(BIN / "accelerate"), "launch", "--multi_gpu", "--num_processes=2", "--main_process_port=0", "-m"]
TORCHRUN = [str(BIN / "torchrun"), "--standalone", "--nproc-per-node=2", "-m"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread_each() -> Any:
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    yield
    os.environ.pop("OMP_NUM_THREADS") if before is None else os.environ.update(OMP_NUM_THREADS=before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty-two samples, and five held out, which two processes with two rows each cannot share out evenly.

    Half of the samples have no picture and are shorter: among the batches of four, which are sorted by length before
    they are dealt out, are some in which one process has no picture, and some in which neither has.
    """
    folder = tmp_path_factory.mktemp("data")

    def record(index: int, with_picture: bool) -> dict[str, Any]:
        colour = COLOURS[index % len(COLOURS)]
        make_image(colour).save(folder / f"{colour}.png")
        question = "<image>\nwhich colour does this picture have" if with_picture else "say it"
        turns = [("human", question), ("gpt", colour * (1 + index % 3))]
        return {
            "id": f"{index:02d}",
            "conversations": [{"from": who, "value": words} for who, words in turns],
        } | ({"image": f"{colour}.png"} if with_picture else {})

    (folder / "train.json").write_text(json.dumps([record(index, index % 2 == 0) for index in range(32)]))
    (folder / "held_out.json").write_text(json.dumps([record(index, index != 1) for index in range(5)]))
    return folder / "train.json"


@pytest.fixture(scope="module")
def exact(data: Path, backbones: tuple[Path, Path]) -> list[str]:
    """The seed's recipe without what differs from run to run: fp32, no dropout. An epoch and a half of eight steps."""
    return [
        "train",
        "phi3.5-mini",
        f"model.vision={backbones[0]}",
        f"model.language={backbones[1]}",
        "model.dtype=float32",
        "quantization=null",
        "lora.lora_dropout=0.0",
        f"data.path={data}",
        f"data.eval_path={data.with_name('held_out.json')}",
        "data.eval_fraction=null",
        "data.images=null",
        "training.bf16=false",
        "training.activation_checkpointing=false",
        "training.activation_checkpointing_kwargs=null",
        "training.train_sampling_strategy=group_by_length",
        "training.learning_rate=1e-3",
        "training.weight_decay=0.1",
        "training.max_steps=12",
        "training.logging_steps=1",
        "training.eval_steps=4",
        "training.save_steps=10",
    ]


def batches_of(rows: int) -> list[str]:
    return [f"training.per_device_train_batch_size={rows}", f"training.per_device_eval_batch_size={rows}"]


def run(launcher: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return cli.Started([*launcher, "eden", *arguments]).finished()


def start_two(*arguments: str, main: dict[str, str] | None = None) -> list[cli.Python]:
    """Two processes that are told of each other as torchrun would, without its start; `main` is the first's alone."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    told = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        cli.Python(*arguments, env=os.environ | told | {"RANK": rank, "LOCAL_RANK": rank} | own)
        for rank, own in (("0", main or {}), ("1", {}))
    ]


def run_two(*arguments: str) -> str:
    """Both run `eden` to its end; what they say on stderr."""
    results = [process.finished() for process in start_two("-m", "eden", *arguments)]
    said = "".join(result.stderr for result in results)
    assert [result.returncode for result in results] == [0, 0], said
    return said


@pytest.fixture(scope="module")
def alone(exact: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process, with batches of four."""
    out = tmp_path_factory.mktemp("runs") / "alone"
    result = cli.eden(*exact, *batches_of(4), f"training.output_dir={out}")
    assert result.returncode == 0, result.stderr
    return out


@pytest.fixture(scope="module")
def sharded(exact: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in two processes that hold half the weights each, with batches of two."""
    out = tmp_path_factory.mktemp("runs") / "sharded"
    run_two(*exact, *batches_of(2), "training.fsdp=true", f"training.output_dir={out}")
    return out


def assert_same_run(out: Path, alone: Path) -> None:
    """The same losses, the same folder, the same weights."""
    expected, found = losses(alone), losses(out)
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    assert [row[2] for row in found] == pytest.approx([row[2] for row in expected], abs=2e-5)
    assert {path.name for path in out.iterdir()} == {path.name for path in alone.iterdir()}
    weights, others = load_file(alone / "adapter_model.safetensors"), load_file(out / "adapter_model.safetensors")
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, atol=1e-4, rtol=0, msg=name)


def test_two_processes_give_the_losses_of_one_and_the_main_one_speaks(
    exact: list[str], alone: Path, tmp_path: Path
) -> None:
    result = run(ACCELERATE, *exact, *batches_of(2), f"training.output_dir={tmp_path / 'two'}", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["artifact"] == str(tmp_path / "two")
    assert len(re.findall(r"step +12 of 12 +loss", result.stderr)) == 1
    assert result.stderr.count("vision_tower") == 1
    assert_same_run(tmp_path / "two", alone)


def test_two_processes_with_half_the_weights_each_give_the_losses_of_one(sharded: Path, alone: Path) -> None:
    assert (sharded / "checkpoint-10" / "pytorch_model_fsdp.bin").exists()
    assert_same_run(sharded, alone)
    assert isinstance(eden.load(str(sharded)).ask("say it", max_new_tokens=4), str)


def half_done(out: Path, folder: Path) -> Path:
    """A copy of a run as it was at its checkpoint."""
    shutil.copytree(out / "checkpoint-10", folder / "checkpoint-10")
    for name in ("recipe.yaml", "run.json"):
        shutil.copy(out / name, folder)
    return folder


def test_a_run_of_one_process_goes_on_in_two(exact: list[str], alone: Path, tmp_path: Path) -> None:
    """With as many rows a step."""
    out = half_done(alone, tmp_path / "run")
    fewer = load_recipe(exact[1], [*exact[2:], *batches_of(2), f"training.output_dir={out}"])
    with pytest.raises(RecipeError, match="a step reads 2 rows, and the run began with 4"):
        train(fewer, resume=True, console=Console(quiet=True))
    said = run_two(*exact, *batches_of(2), f"training.output_dir={out}", "--resume")
    assert said.count("resuming from") == 1
    assert_same_run(out, alone)


def test_a_sharded_run_goes_on_sharded(exact: list[str], sharded: Path, alone: Path, tmp_path: Path) -> None:
    out = half_done(sharded, tmp_path / "run")
    arguments = [*exact, *batches_of(2), f"training.output_dir={out}", "--resume"]
    refused = cli.eden(*arguments)
    assert refused.returncode == 2
    assert "with FSDP" in refused.stderr and "Traceback" not in refused.stderr
    run_two(*arguments, "training.fsdp=true")
    assert_same_run(out, alone)


def errors_of(stderr: str) -> list[str]:
    """What Eden itself says; the launchers add reports of their own."""
    return [line for line in stderr.splitlines() if line.startswith("error ")]


def test_a_bad_sample_ends_all_processes_with_one_line(exact: list[str], data: Path, tmp_path: Path) -> None:
    records = json.loads(data.read_text())
    records[3] = {"id": "bad", "image": "gone.png", "conversations": records[0]["conversations"]}
    bad = data.with_name("bad.json")
    bad.write_text(json.dumps(records))
    result = run(TORCHRUN, *exact, *batches_of(2), f"data.path={bad}", f"training.output_dir={tmp_path / 'run'}")
    assert result.returncode != 0
    (line,) = errors_of(result.stderr)
    assert "record 4 (id bad)" in line and "gone.png" in line
    assert "exitcode  : 2" in result.stderr  # as torchrun reports it
    assert not (tmp_path / "run").exists()


def test_a_bad_recipe_ends_all_processes_with_one_line(exact: list[str], tmp_path: Path) -> None:
    result = run(TORCHRUN, *exact, f"training.output_dir={tmp_path / 'run'}", "lora.rank=8")
    assert result.returncode != 0
    (line,) = errors_of(result.stderr)
    assert "unknown key lora.rank" in line
    assert "exitcode  : 2" in result.stderr


def test_a_launcher_that_starts_too_few_processes_is_named(exact: list[str], tmp_path: Path) -> None:
    launcher = [str(BIN / "accelerate"), "launch", "--cpu", "--num_processes=2", "-m"]
    result = run(launcher, *exact, f"training.output_dir={tmp_path / 'run'}")
    assert result.returncode != 0
    (line,) = errors_of(result.stderr)
    assert "one process" in line and "--multi_gpu" in line
    assert not (tmp_path / "run").exists()


@contextmanager
def begun(launcher: list[str], *arguments: str, out: Path) -> Iterator[cli.Started]:
    """A run whose first step is logged, and which would go on for long."""
    with cli.Started([*launcher, "eden", *arguments]) as process:
        until(lambda: (out / "training.jsonl").exists() or process.poll() is not None, seconds=100)
        yield process


def test_a_failure_in_one_process_ends_the_other(exact: list[str], data: Path, tmp_path: Path) -> None:
    """A picture that only the second process reads is gone in the middle of the run."""
    records = json.loads(data.read_text())
    others = [record for record in records if "image" not in record]
    (tmp_path / "data").mkdir()
    make_image("red").save(tmp_path / "data" / "last.png")
    last = {"id": "last", "image": "last.png", "conversations": records[0]["conversations"]}
    (tmp_path / "data" / "train.json").write_text(json.dumps([*others[:3], last]))
    out = tmp_path / "run"
    long_run = begun(
        TORCHRUN,
        *exact,
        *batches_of(2),
        f"data.path={tmp_path / 'data' / 'train.json'}",
        "data.features=live",
        "training.train_sampling_strategy=sequential",
        "training.max_steps=100000",
        "training.eval_strategy=no",
        "training.eval_steps=null",
        "training.save_strategy=no",
        f"training.output_dir={out}",
        out=out,
    )
    with long_run as process:
        (tmp_path / "data" / "last.png").unlink()
        result = process.finished()
    assert result.returncode != 0
    (line,) = errors_of(result.stderr)
    assert "in process 1" in line and "last.png" in line


ALONE = """
import os, signal, sys, time
from datetime import timedelta
import torch.distributed
from eden.core import distributed
from eden.errors import DataError, EdenError
distributed.SILENCE, distributed.ALIVE_EVERY = timedelta(seconds=8), 0.1
torch.distributed.init_process_group("gloo")
distributed.from_main(bool)  # connects them, which would wait for a stopped one by torch's own limits
def work(what):
    if not distributed.is_main():
        return distributed.wait()
    if what == "fails":
        raise DataError("no such file", where="x.json line 3", hint="Check it.")
    if what == "stops":
        os.kill(os.getpid(), signal.SIGSTOP)
    if what == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(10)  # longer than the others would wait for one of which they hear nothing
    return what
try:
    print(getattr(distributed, sys.argv[1])(lambda: work(sys.argv[2])), flush=True)
    distributed.leave()
except EdenError as error:
    print(error, flush=True)
    os._exit(0)  # as the command does
"""
CAUSE, GONE = "x.json line 3: no such file. Check it.", "another process is gone or does not answer"


@pytest.mark.parametrize("how", ["main_first", "from_main", "together"])
def test_what_fails_in_the_main_process_alone_ends_the_others_with_its_cause(how: str) -> None:
    main, other = (process.finished().stdout.strip() for process in start_two("-c", ALONE, how, "fails"))
    assert (main, other) == (CAUSE, f"process 0 has failed: {CAUSE}")


def test_the_others_wait_as_long_as_the_main_process_is_at_work() -> None:
    results = [process.finished() for process in start_two("-c", ALONE, "from_main", "works")]
    assert [result.stdout for result in results] == ["works\n", "works\n"], results


@pytest.mark.parametrize("how", ["stops", "dies"])
def test_the_others_do_not_wait_for_a_main_process_that_is_gone(how: str) -> None:
    main, other = start_two("-c", ALONE, "from_main", how)
    assert other.finished().stdout.startswith(GONE)
    main.kill()


def test_a_main_process_without_a_cache_ends_the_other_with_its_cause(exact: list[str], tmp_path: Path) -> None:
    """Without a launcher that would end it."""
    (tmp_path / "cache").write_text("a file")
    arguments = ("-m", "eden", *exact, f"training.output_dir={tmp_path / 'run'}")
    both = start_two(*arguments, main={"EDEN_CACHE": str(tmp_path / "cache")})
    (line,), (other,) = (errors_of(process.finished().stderr) for process in both)
    assert "Not a directory" in line and line.removeprefix("error ") in other and "in process 1" in other
    assert not (tmp_path / "run").exists()


def test_ctrl_c_saves_one_checkpoint_of_both_processes_in_4_bits(
    data: Path, backbones: tuple[Path, Path], tmp_path: Path
) -> None:
    """The seed's recipe as it is: 4 bits, bfloat16, gradient checkpointing."""
    out = tmp_path / "run"
    long_run = begun(
        TORCHRUN,
        "train",
        "phi3.5-mini",
        f"model.vision={backbones[0]}",
        f"model.language={backbones[1]}",
        f"data.path={data}",
        "data.images=null",
        "training.max_steps=2000",
        "training.logging_steps=1",
        "training.save_strategy=no",
        f"training.output_dir={out}",
        out=out,
    )
    with long_run as process:
        process.send_signal(signal.SIGINT)  # torchrun hands it to its processes
        result = process.finished()
    assert result.returncode != 0
    (line,) = errors_of(result.stderr)
    assert "checkpoint written" in line and "--resume" in line
    (folder,) = out.glob("checkpoint-*")
    assert {"trainer_state.json", "rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in folder.iterdir()}
    assert all(value == value for _, _, value in losses(out))
