"""Training in several processes, started by the launchers that users start it with, on CPUs through gloo."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
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

ACCELERATE = ["-m", "accelerate.commands.launch", "--num_processes=2", "--main_process_port=0"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "eden"]


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


WAITS = """
import json, os, sys
with open(os.path.join(sys.argv[1], os.environ.get("RANK", "0")), "w") as file:
    json.dump(dict(os.environ), file)
print(flush=True)
sys.stdin.read()
"""


@contextmanager
def accelerate(folder: Path, *options: str, starts: int) -> Iterator[list[dict[str, str]]]:
    """The environments of the processes that `accelerate launch` has started; they wait until the block is left."""
    (folder / "waits.py").write_text(WAITS)
    command = [*ACCELERATE, *options, folder / "waits.py", folder]
    with cli.Python(*command, stdin=subprocess.PIPE) as launcher:
        assert launcher.stdout is not None
        for _ in range(starts):
            launcher.stdout.readline()
        yield [json.loads((folder / str(rank)).read_text()) for rank in range(starts)]
        assert launcher.finished("").returncode == 0


def places(main: dict[str, str] | None = None) -> list[dict[str, str]]:
    """The environments of two processes, as torchrun would set them; `main` is the first's alone."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    place = os.environ | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    first, second = ({"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1"))
    return [place | first | (main or {}), place | second]


def start_two(
    *arguments: str, main: dict[str, str] | None = None, told: list[dict[str, str]] | None = None
) -> list[cli.Python]:
    """Two processes that are told of each other as torchrun would, without its start.

    Args:
        *arguments: Python's.
        main: is the first's alone.
        told: the environments of both, if a launcher has told them.
    """
    return [cli.Python(*arguments, env=environment) for environment in told or places(main)]


@contextmanager
def two(*arguments: str, told: list[dict[str, str]] | None = None) -> Iterator[list[cli.Python]]:
    """Both run `eden`."""
    with ExitStack() as stack:
        yield [stack.enter_context(process) for process in start_two("-m", "eden", *arguments, told=told)]


def run_two(*arguments: str) -> str:
    """Both run `eden` to its end; what they say on stderr."""
    with two(*arguments) as both:
        return finished(both)[1]


def finished(both: list[cli.Python]) -> tuple[str, str]:
    """What both say on stdout, and on stderr."""
    results = [process.finished() for process in both]
    said = "".join(result.stderr for result in results)
    assert [result.returncode for result in results] == [0, 0], said
    return "".join(result.stdout for result in results), said


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
    arguments = [*exact, *batches_of(2), f"training.output_dir={tmp_path / 'two'}", "--json"]
    with accelerate(tmp_path, "--multi_gpu", starts=2) as told, two(*arguments, told=told) as both:
        printed, said = finished(both)
    assert json.loads(printed)["artifact"] == str(tmp_path / "two")
    assert len(re.findall(r"step +12 of 12 +loss", said)) == 1
    assert said.count("vision_tower") == 1
    assert_same_run(tmp_path / "two", alone)


def test_two_processes_with_half_the_weights_each_give_the_losses_of_one(sharded: Path, alone: Path) -> None:
    assert (sharded / "checkpoint-10" / "pytorch_model_fsdp.bin").exists()
    assert_same_run(sharded, alone)
    assert isinstance(eden.load(str(sharded)).ask("say it", max_new_tokens=4), str)


def test_pissa_in_two_processes_ends_as_in_one(exact: list[str], tmp_path: Path) -> None:
    """Each takes the same part out of its copy, or its half, of the base's weights."""
    arguments = [*exact, "lora.init_lora_weights=pissa", "lora.r=4"]
    result = cli.eden(*arguments, *batches_of(4), f"training.output_dir={tmp_path / 'alone'}")
    assert result.returncode == 0, result.stderr
    run_two(*arguments, *batches_of(2), "training.fsdp=true", f"training.output_dir={tmp_path / 'sharded'}")
    assert_same_run(tmp_path / "sharded", tmp_path / "alone")


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


LEAVES = """
import gc
import torch.distributed
from torch.nn.parallel import DistributedDataParallel
from eden.cli import main
destroy = torch.distributed.destroy_process_group
def watched():
    print("held", sum(isinstance(thing, DistributedDataParallel) for thing in gc.get_objects()), flush=True)
    destroy()
torch.distributed.destroy_process_group = watched
main()
"""


def test_nothing_holds_the_processes_connection_when_they_leave(exact: list[str], tmp_path: Path) -> None:
    """A DDP model that goes after it can wait for ever for a thread of gloo's that waits for Python's lock."""
    arguments = [*exact, *batches_of(2), "training.max_steps=1", f"training.output_dir={tmp_path / 'run'}"]
    printed, _ = finished(start_two("-c", LEAVES, *arguments))
    assert printed.count("held 0\n") == 2


def errors_of(stderr: str) -> list[str]:
    """What Eden itself says; the launchers add reports of their own."""
    return [line for line in stderr.splitlines() if line.startswith("error ")]


def test_a_bad_sample_ends_all_processes_with_its_line(exact: list[str], data: Path, tmp_path: Path) -> None:
    records = json.loads(data.read_text())
    records[3] = {"id": "bad", "image": "gone.png", "conversations": records[0]["conversations"]}
    bad = data.with_name("bad.json")
    bad.write_text(json.dumps(records))
    with two(*exact, *batches_of(2), f"data.path={bad}", f"training.output_dir={tmp_path / 'run'}") as both:
        results = [process.finished() for process in both]
    assert all(result.returncode != 0 for result in results)
    (line,), (other,) = (errors_of(result.stderr) for result in results)
    assert "record 4 (id bad)" in line and "gone.png" in line and line.removeprefix("error ") in other
    assert not (tmp_path / "run").exists()


def test_processes_that_compute_in_two_formats_are_refused(exact: list[str], tmp_path: Path) -> None:
    """As machines of two kinds would: here the main one is told to emulate what the other has no units for."""
    arguments = ["-m", "eden", *exact, f"training.output_dir={tmp_path / 'run'}"]
    forced = ["model.dtype=bfloat16", "model.force_format=true", "training.bf16=true"]
    first, second = places()
    with cli.Python(*arguments, *forced, env=first) as main, cli.Python(*arguments, env=second) as other:
        results = [process.finished() for process in (main, other)]
    assert all(result.returncode != 0 for result in results)
    assert "this machine computes in float32, and that of the main process in bfloat16" in results[1].stderr
    assert all(len(errors_of(result.stderr)) == 1 for result in results) and not (tmp_path / "run").exists()


def test_a_bad_recipe_ends_all_processes_with_one_line(exact: list[str], tmp_path: Path) -> None:
    """Each of them finds it, and torchrun ends the other before it speaks."""
    result = cli.Python(*TORCHRUN, *exact, f"training.output_dir={tmp_path / 'run'}", "lora.rank=8").finished()
    assert result.returncode != 0
    (line,) = errors_of(result.stderr)
    assert "unknown key lora.rank" in line
    assert "exitcode  : 2" in result.stderr  # as torchrun reports it


def test_a_launcher_that_starts_too_few_processes_is_named(exact: list[str], tmp_path: Path) -> None:
    with accelerate(tmp_path, "--cpu", starts=1) as (told,):
        result = cli.eden(*exact, f"training.output_dir={tmp_path / 'run'}", env=told)
    assert result.returncode == 1
    (line,) = errors_of(result.stderr)
    assert "one process" in line and "--multi_gpu" in line
    assert not (tmp_path / "run").exists()


def goes_on(out: Path, *processes: cli.Python) -> None:
    """Until the first step is logged of a run which would go on for long."""
    until(lambda: (out / "training.jsonl").exists() or any(process.poll() is not None for process in processes), 100)


def test_a_failure_in_one_process_ends_the_other(
    exact: list[str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture that only the second process reads is gone in the middle of the run; it alone says so."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # torchrun's, which ends the other
    records = json.loads(data.read_text())
    others = [record for record in records if "image" not in record]
    (tmp_path / "data").mkdir()
    make_image("red").save(tmp_path / "data" / "last.png")
    last = {"id": "last", "image": "last.png", "conversations": records[0]["conversations"]}
    (tmp_path / "data" / "train.json").write_text(json.dumps([*others[:3], last]))
    out = tmp_path / "run"
    arguments = [
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
    ]
    with two(*arguments) as (main, other):
        goes_on(out, main, other)
        (tmp_path / "data" / "last.png").unlink()
        result = other.finished()
        main.terminate()
        said = main.finished().stderr
    assert result.returncode == 2 and errors_of(said) == [], said
    (line,) = errors_of(result.stderr)
    assert "in process 1" in line and "last.png" in line


ALONE = """
import os, signal, sys, time
from datetime import timedelta
import torch.distributed
from eden.core import distributed
from eden.errors import DataError, EdenError
distributed.SILENCE, distributed.ALIVE_EVERY = timedelta(seconds=3), 0.1
torch.distributed.init_process_group("gloo")
def work(what):
    if not distributed.is_main():
        return distributed.wait()
    if what == "fails":
        raise DataError("no such file", where="x.json line 3", hint="Check it.")
    if what == "stops":
        os.kill(os.getpid(), signal.SIGSTOP)
    if what == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(5)  # longer than the others would wait for one of which they hear nothing
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


@contextmanager
def torchrun(*arguments: str) -> Iterator[list[cli.Python]]:
    with cli.Python(*TORCHRUN, *arguments) as launcher:
        yield [launcher]


@pytest.mark.parametrize("start", [two, pytest.param(torchrun, marks=pytest.mark.soak)])
def test_ctrl_c_saves_one_checkpoint_of_both_processes_in_4_bits(
    start: Callable[..., AbstractContextManager[list[cli.Python]]],
    data: Path,
    backbones: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    """The seed's recipe as it is: 4 bits, bfloat16, gradient checkpointing."""
    out = tmp_path / "run"
    arguments = [
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
    ]
    with start(*arguments) as processes:
        goes_on(out, *processes)
        for process in processes:
            process.send_signal(signal.SIGINT)  # torchrun hands it to those that it has started
        results = [process.finished() for process in processes]
    assert all(result.returncode != 0 for result in results)
    (line,) = errors_of("".join(result.stderr for result in results))
    assert "checkpoint written" in line and "--resume" in line
    (folder,) = out.glob("checkpoint-*")
    assert {"trainer_state.json", "rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in folder.iterdir()}
    assert all(value == value for _, _, value in losses(out))
