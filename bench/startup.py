"""How long one waits: `import eden`, and `eden ask` from a cold start, each beside what it is built on."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from eden.tiny.world import scenes

RUNS = 5


def main() -> None:
    """Prints medians in seconds, and ratios to the peer measured in between."""
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "scene.png"
        next(scenes(0, "test"))[1].save(picture)
        question = ["-m", "eden", "ask", "--image", str(picture), "How many objects are there?"]
        commands = {
            "import eden": ["-c", "import eden"],
            "import nothing": ["-c", ""],
            "eden ask, cold": question,
            "import torch, transformers": ["-c", "import torch, transformers; transformers.Phi3ForCausalLM"],
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(RUNS):
            for name, arguments in commands.items():
                started = time.perf_counter()
                subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, peer in (("import eden", "import nothing"), ("eden ask, cold", "import torch, transformers")):
        ratio = medians[name] / medians[peer]
        print(f"{name}: {medians[name]:.2f} s ({peer}: {medians[peer]:.2f} s, ratio {ratio:.1f})")


if __name__ == "__main__":
    main()
