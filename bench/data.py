"""157,712 records: checked, opened and trained on, in processes of their own, beside `json.load` and a plain loop.

The file is made first (`bench.make_llava150k`), with 81,479 small JPEGs. The plain loop does what one would write
in a minute: it looks that roles alternate, that no text is empty and that each image is there. Training is
`eden train` with eden-tiny, from the start of the process to the end of the first optimizer step. File and images are
in the page cache.
"""

import argparse
import tempfile
from pathlib import Path

from bench import make_llava150k
from bench.table import Bar, Row, show
from bench.timing import Finished, run

PLAIN = """
import json, os
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
OPEN = """
from eden.data.validate import load_samples
samples, report = load_samples(sys.argv[1], sys.argv[2], look="listed")
for index in range(0, len(samples), 1000):
    samples[index]
"""
BARS = {"check": Bar(15, least=False), "memory": Bar(1024, least=False), "first step": Bar(30, least=False)}


def measure(records: int = make_llava150k.RECORDS) -> list[Row]:
    """Seconds and peak memory of each way; the bars are for the whole file."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path, images = folder / "llava.json", folder / "train2017"
        run(["-m", "bench.make_llava150k", path, "--images", "--records", str(records)])
        cache = {"EDEN_CACHE": str(folder / "cache")}
        check = ["-m", "eden", "check", path, "--images", images]
        plain = run(["-c", PLAIN, path, images])
        cold, warm, decoded = (run([*check, *more], environment=cache) for more in ([], [], ["--decode"]))
        opened = run(["-c", OPEN, path, images], environment=cache)
        empty, filled = (first_step(path, images, folder, number) for number in (1, 2))
    loop, nothing = "`json.load` and a plain loop", "nothing in the cache"
    bars = BARS if records == make_llava150k.RECORDS else {}
    to_first_step = "`eden train` to the end of its first step, from the cache"
    return [
        Row(f"`eden check`, {records:,} new records", cold.seconds, "s", loop, plain.seconds, bars.get("check")),
        Row("its peak memory", cold.peak, "MiB", loop, plain.peak, bars.get("memory")),
        Row("`eden check`, from the cache", warm.seconds, "s", loop, plain.seconds),
        Row("`eden check --decode`, from the cache", decoded.seconds, "s", loop, plain.seconds),
        Row("opened for training, from the cache", opened.seconds, "s", loop, plain.seconds),
        Row("its peak memory", opened.peak, "MiB", loop, plain.peak),
        Row(to_first_step, filled.seconds, "s", nothing, empty.seconds, bars.get("first step")),
        Row("its peak memory, mapped files counted", filled.peak, "MiB", nothing, empty.peak),
    ]


def first_step(path: Path, images: Path, folder: Path, number: int) -> Finished:
    """The run `number` of eden-tiny on the file; the first finds nothing in the cache.

    Batch, rows, images, held-out share and attention are as in the recipe `phi3.5-mini`.
    """
    settings = {
        "model.attn_implementation": "null",
        "data.path": path,
        "data.images": images,
        "data.eval_fraction": 0.005,
        "data.features": "auto",
        "data.row_length": "null",
        "training.per_device_train_batch_size": 2,
        "training.output_dir": folder / f"run{number}",
        "training.max_steps": 1,
        "training.logging_steps": 1,
        "training.eval_strategy": "no",
        "training.eval_steps": "null",
    }
    command = ["-m", "eden", "train", "digits", *(f"{key}={value}" for key, value in settings.items())]
    return run(command, until="step      1 of 1", environment={"EDEN_CACHE": str(folder / "of training")})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=make_llava150k.RECORDS, help="fewer for a quick look")
    show({"data": measure(parser.parse_args().records)})
