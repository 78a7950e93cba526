"""Opening and checking 157,712 records: `eden check` beside `json.load` and a plain loop, in processes of their own.

The file is made first (`bench.make_llava150k`), with 81,479 small JPEGs. The plain loop does what one would write
in a minute: it looks that roles alternate, that no text is empty and that each image is there.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import make_llava150k

PLAIN = """
import json, os, sys
path, images = sys.argv[1:]
with open(path) as file:
    records = json.load(file)
faults = turns = 0
for record in records:
    said = record["conversations"]
    turns += len(said)
    whole = all(turn["from"] == ("human", "gpt")[i % 2] and turn["value"].strip() for i, turn in enumerate(said))
    faults += not (whole and os.path.exists(os.path.join(images, record["image"])))
print(len(records), turns, faults)
"""
CHECK = "import sys; sys.argv = ['eden', 'check', *sys.argv[1:]]; from eden.cli import main; main()"
OPEN = """
import sys
from eden.data.validate import load_samples
samples, report = load_samples(sys.argv[1], sys.argv[2], look="listed")
for index in range(0, len(samples), 1000):
    samples[index]
"""
PEAK = """
import atexit
from eden.machine import peak_memory_mib
atexit.register(lambda: print("peak", peak_memory_mib()))
"""


def main() -> None:
    """Prints seconds and peak memory of each way, the file and the images in the page cache."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=make_llava150k.RECORDS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path, images = Path(folder) / "llava.json", Path(folder) / "train2017"
        command = ["-m", "bench.make_llava150k", str(path), "--images", "--records", str(arguments.records)]
        subprocess.run([sys.executable, *command], check=True)
        cache = os.environ | {"EDEN_CACHE": str(Path(folder) / "cache")}
        given = [str(path), str(images)]
        ways = {
            "json.load and a plain loop": (PLAIN, given),
            "eden check, never read before": (CHECK, [given[0], "--images", given[1]]),
            "eden check, from the cache": (CHECK, [given[0], "--images", given[1]]),
            "eden check --decode, from the cache": (CHECK, [given[0], "--images", given[1], "--decode"]),
            "opened for training, from the cache": (OPEN, given),
        }
        for name, (script, parameters) in ways.items():
            seconds, peak = _measured(script, parameters, cache)
            print(f"{name:<36} {seconds:>6.1f} s {peak:>7,.0f} MiB")


def _measured(script: str, parameters: list[str], environment: dict[str, str]) -> tuple[float, float]:
    started = time.perf_counter()
    command = [sys.executable, "-c", f"{PEAK}\n{script}", *parameters]
    result = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    seconds = time.perf_counter() - started
    return seconds, float(result.stdout.rsplit("peak ", 1)[1])


if __name__ == "__main__":
    main()
