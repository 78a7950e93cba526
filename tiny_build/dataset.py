"""Files of questions about the world, to train on; tests and benches train on them, too."""

from __future__ import annotations

import json
import random
from pathlib import Path

from eden.core.files import write_file
from eden.media.audio import to_wav
from eden.media.speech_synthesis import random_voice, speak
from eden.tiny.conversations import about
from eden.tiny.questions import KINDS
from eden.tiny.world import Split, scenes


def write_dataset(
    folder: str | Path, n: int, *, seed: int, split: Split = "train", turns: int = 2, spoken: bool = False
) -> Path:
    """Writes `n` pictures as PNG and a LLaVA-format JSON of conversations about them; returns the JSON's path.

    Args:
        folder: where to write.
        n: pictures, and conversations.
        seed: of the scenes and the questions.
        split: of the scenes.
        turns: questions about each picture.
        spoken: ask by voice: the questions become WAV files, in voices that eden-tiny's Whisper never heard.

    Raises:
        StorageError: the folder is not writable.
        RunError: `spoken`, and espeak-ng is not installed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"dataset {seed} {split}")
    records = []
    for index, (scene, image) in zip(range(n), scenes(seed, split), strict=False):
        name = f"{index:06d}.png"
        image.save(folder / name)
        conversation, recordings = [], []
        for turn in range(turns):
            question = about(scene, KINDS, rng)
            asked = question.text
            if spoken:
                asked = "<audio>"
                recordings.append(f"{index:06d}-{turn}.wav")
                voice = random_voice(random.Random(f"voice {seed} {index} {turn}"), "test")
                write_file(folder / recordings[-1], to_wav(speak(question.text, voice)))
            placeholder = "<image>\n" if turn == 0 else ""
            conversation.append({"from": "human", "value": placeholder + asked})
            conversation.append({"from": "gpt", "value": question.answer})
        audio = {"audio": recordings} if spoken else {}
        records.append({"id": f"{index:06d}", "image": name, **audio, "conversations": conversation})
    return write_file(folder / f"{split}.json", json.dumps(records, indent=1))
