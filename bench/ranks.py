"""One process beside two, on CPUs: the same run of eden-tiny with the same batches, in samples per second.

Each run is a command in a process of its own, as a user would start it; every process computes in one thread.
`python -m bench.ranks`.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.machine import describe
from tiny_build.dataset import write_dataset

STEPS, ROWS = 40, 32
LAUNCHERS = {1: [sys.executable, "-m"], 2: ["accelerate", "launch", "--multi_gpu", "--num_processes=2", "-m"]}


def main() -> None:
    """Prints samples per second of both, and their ratio."""
    print(f"machine: {describe()}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = write_dataset(folder / "world", 600, seed=5)
        rates = {processes: train(processes, data, folder / f"run{processes}") for processes in LAUNCHERS}
    for processes, rate in rates.items():
        print(f"{processes} process{'es' * (processes > 1)}: {rate:.1f} samples/s")
    print(f"ratio {rates[2] / rates[1]:.2f}")


def train(processes: int, data: Path, out: Path) -> float:
    """Samples per second of a run without evaluation, as Trainer logs them."""
    settings = [
        "quantization=null",
        "model.dtype=float32",
        f"data.path={data}",
        f"training.output_dir={out}",
        f"training.per_device_train_batch_size={ROWS // processes}",
        f"training.max_steps={STEPS}",
        "training.bf16=false",
        "training.eval_strategy=no",
        "training.eval_steps=null",
    ]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    command = [*LAUNCHERS[processes], "eden", "train", "digits", *settings]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    last = json.loads((out / "training.jsonl").read_text().splitlines()[-1])
    return float(last["train_samples_per_second"])


if __name__ == "__main__":
    main()
