"""Speech from end to end: a recording of 20 minutes, and the digits learned by voice beside in writing.

Each run is a command in a process of its own, as a user would start it. `python -m bench.spoken`.
"""

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console

from bench.machine import describe
from eden.cli.demo import QUESTION, write_digits
from eden.media.audio import SAMPLE_RATE, to_wav
from eden.media.speech_synthesis import random_voice, speak

MINUTES = 20
SENTENCES = (
    "What colour is the large star?",
    "How many circles are there?",
    "Is the cross above the square?",
    "Where is the yellow triangle?",
    "The small red circle is at the top left.",
)


def main() -> None:
    """Prints what `eden transcribe` says of the recording, and the four accuracies."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        said = write_monologue(folder / "monologue.wav")
        heard = json.loads(eden("transcribe", folder / "monologue.wav", "--json").stdout)["transcripts"][0]
        segments = [segment["text"] for segment in heard["segments"]]
        wrong = len(set(enumerate(said)) ^ set(enumerate(segments))) // 2
        print(f"{len(said)} sentences said, {len(segments)} segments heard, {wrong} of them otherwise than said")
        learn_digits(folder)


def write_monologue(path: Path) -> list[str]:
    """Twenty minutes of sentences with pauses, in voices that eden-tiny's Whisper never heard."""
    rng = random.Random(1)
    said: list[str] = []
    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < MINUTES * 60 * SAMPLE_RATE:
        said.append(rng.choice(SENTENCES))
        pause = np.zeros(int(rng.uniform(0.7, 2.0) * SAMPLE_RATE), dtype=np.float32)
        parts += [speak(said[-1], random_voice(rng, "test")), pause]
    path.write_bytes(to_wav(np.concatenate(parts)))
    return said


def learn_digits(folder: Path) -> None:
    """Trains the demo's recipe twice, on typed and on spoken questions, and asks each both ways."""
    files = dict(zip(("train", "test"), write_digits(folder / "digits", Console(quiet=True)), strict=True))
    rng = random.Random(0)
    data = {"typed": files, "spoken": {name: speak_questions(path, rng) for name, path in files.items()}}
    for way, of in data.items():
        out = folder / way
        eden("train", "digits", f"data.path={of['train']}", f"training.output_dir={out}", "--json")
        for asked, task in data.items():
            result = json.loads(eden("evaluate", out, task["test"], "--json").stdout)
            print(f"digits learned {way}, asked {asked}: accuracy {result['accuracy']:.4f} of {result['n']}")


def speak_questions(path: Path, rng: random.Random) -> Path:
    """The data file with every question as a recording."""
    records = json.loads(path.read_text())
    for record in records:
        record["audio"] = Path(record["image"]).with_suffix(".wav").name
        (path.parent / record["audio"]).write_bytes(to_wav(speak(QUESTION, random_voice(rng, "test"))))
        record["conversations"][0]["value"] = "<image>\n<audio>"
    spoken = path.with_name(f"spoken-{path.name}")
    spoken.write_text(json.dumps(records))
    return spoken


def eden(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A command of Eden's; its last words on stderr are shown."""
    command = [sys.executable, "-m", "eden", *map(str, arguments)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    if arguments[0] == "transcribe":
        print(result.stderr.strip().splitlines()[-1])
    return result


if __name__ == "__main__":
    print(f"machine: {describe()}")
    main()
