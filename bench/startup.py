"""How long one waits: `import eden`, and `eden ask` from a cold start, each beside what it is built on."""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.table import Row, show
from bench.timing import timed
from eden.tiny.world import scenes

RUNS = 5


def measure() -> list[Row]:
    """Medians in seconds, each peer measured in between."""
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "scene.png"
        next(scenes(0, "test"))[1].save(picture)
        commands = {
            "import": ["-c", "import eden"],
            "nothing": ["-c", ""],
            "ask": ["-m", "eden", "ask", "--image", str(picture), "How many objects are there?"],
            "libraries": ["-c", "import torch, transformers; transformers.Phi3ForCausalLM"],
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(RUNS):
            for name, arguments in commands.items():
                seconds[name].append(timed(lambda given=arguments: python(given))[1])
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return [
        Row("`import eden`", median["import"], "s", '`python -c ""`', median["nothing"], digits=2),
        Row(
            "`eden ask`, from a cold start to the answer",
            median["ask"],
            "s",
            "importing torch and transformers alone",
            median["libraries"],
        ),
    ]


def python(arguments: list[str]) -> None:
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)


if __name__ == "__main__":
    show({"startup": measure()})
