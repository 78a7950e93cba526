"""A data file with the shape of LLaVA-Instruct-150K, without its words: `python -m bench.make_llava150k OUT.json`.

157,712 records, about 229 MB: multi-turn conversations, detailed descriptions and reasonings in the published numbers,
over 81,479 COCO names. The words mean nothing; their lengths, the turns and the repeated images are what a reader,
a tokenizer and a packer meet in the real file. The same seed writes the same bytes.
"""

import argparse
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import PIL.Image

KINDS = {"conversation": 57_829, "detail": 23_240, "reasoning": 76_643}
RECORDS = sum(KINDS.values())
IMAGES = 81_479
PICTURES = 300
"""Distinct small pictures that `--images` writes; all names are hard links to one of them."""
REQUESTS = (
    "Describe the following image.",
    "What do you see happening in this image?",
    "Can you describe the main features of this image for me?",
    "Write a detailed description of the given image.",
    "Explain the visual content of the image in great detail.",
)
ONSETS, VOWELS = "bcdfghjklmnprstvw", ["a", "e", "i", "o", "u", "ai", "ee", "ou"]
ENDINGS = ["", "n", "r", "s", "t", "ck", "ng"]

Record = dict[str, Any]


def main() -> None:
    """Writes the file, and its pictures if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--records", type=int, default=RECORDS, help="fewer for a quick look, in the same proportions")
    parser.add_argument("--images", type=int, nargs="?", const=PICTURES, metavar="N", help="write N real JPEGs")
    parser.add_argument("--broken", type=float, default=0.0, help="share of records to break, in ten ways")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder: Path = arguments.out.parent / "train2017"
    broken: Counter[str] = Counter()
    names: set[str] = set()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("w", encoding="utf-8") as file:
        rng = random.Random(f"broken {arguments.seed}")
        for number, record in enumerate(records(arguments.records, arguments.seed)):
            names.add(record["image"])
            written: Any = record
            if rng.random() < arguments.broken:
                kind = list(BREAKS)[sum(broken.values()) % len(BREAKS)]
                written = BREAKS[kind](record)
                broken[kind] += 1
            file.write((",\n" if number else "[\n") + json.dumps(written, indent=2, ensure_ascii=False))
        file.write("\n]\n")
    if arguments.images is not None:
        write_pictures(folder, sorted(names), arguments.images, arguments.seed)
    size = arguments.out.stat().st_size
    print(f"{arguments.out}: {arguments.records:,} records, {size / 1e6:.0f} MB, {len(names):,} images named")
    for kind, number in broken.items():
        print(f"  broken, {kind}: {number:,}")


def records(number: int, seed: int) -> Iterator[Record]:
    """Records of the three kinds in a seeded order."""
    rng = random.Random(seed)
    words = _vocabulary(rng)
    weights = [1 / (rank + 5) for rank in range(len(words))]  # Zipf, as in any language
    pool = rng.choices(words, weights, k=1_000_000)
    kinds = [kind for kind, count in KINDS.items() for _ in range(round(count * number / RECORDS))]
    kinds = (kinds + ["reasoning"] * number)[:number]
    rng.shuffle(kinds)
    images = rng.sample(range(600_000), max(1, round(IMAGES * number / RECORDS)))
    images += rng.choices(images, k=number - len(images))  # each once, the rest again, as COCO's in the real file
    rng.shuffle(images)
    for kind, image in zip(kinds, images, strict=True):
        name = f"{image:012d}"
        turns = _turns(kind, rng, pool)
        speakers = ["human", "gpt"] * (len(turns) // 2)
        turns[0] = f"<image>\n{turns[0]}" if rng.random() < 0.5 else f"{turns[0]}\n<image>"
        conversations = [{"from": who, "value": text} for who, text in zip(speakers, turns, strict=True)]
        yield {"id": name, "image": f"{name}.jpg", "conversations": conversations}


def _turns(kind: str, rng: random.Random, pool: list[str]) -> list[str]:
    """Questions and answers in turn; means and spreads are in words."""

    def text(mean: float, spread: float, end: str = ".") -> str:
        length = max(3, round(rng.gauss(mean, spread)))
        start = rng.randrange(len(pool) - length)
        return " ".join(pool[start : start + length]).capitalize() + end

    if kind == "conversation":
        return [part for _ in range(rng.choice((2, 3, 4, 4, 5, 5, 6))) for part in (text(8, 2, "?"), text(16, 7))]
    if kind == "detail":
        paragraphs = [text(35, 9) for _ in range(3)]
        return [rng.choice(REQUESTS), "\n\n".join(paragraphs)]
    return [text(12, 3, "?"), "\n\n".join(text(47, 12) for _ in range(3))]


def _vocabulary(rng: random.Random) -> list[str]:
    def syllable() -> str:
        return rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(ENDINGS)

    return sorted({syllable() + "".join(syllable() for _ in range(rng.choice((0, 0, 1, 1, 2)))) for _ in range(20_000)})


def write_pictures(folder: Path, names: list[str], number: int, seed: int) -> None:
    """Small JPEGs under every name, and those that broken records name: one cut in half, one that is none."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"pictures {seed}")
    originals = []
    for index in range(number):
        tiny = PIL.Image.frombytes("RGB", (8, 6), rng.randbytes(8 * 6 * 3))
        originals.append(folder / f".picture-{index}.jpg")
        tiny.resize((96, 72), PIL.Image.Resampling.BICUBIC).save(originals[-1], quality=85)
    for name in names:
        (folder / name).unlink(missing_ok=True)
        os.link(rng.choice(originals), folder / name)
    (folder / "cut.jpg").write_bytes(originals[0].read_bytes()[:-400])
    (folder / "text.jpg").write_text("not an image")


def _with_turns(change: Callable[[list[dict[str, str]]], Any]) -> Callable[[Record], Record]:
    def broken(record: Record) -> Record:
        change(record["conversations"])
        return record

    return broken


BREAKS: dict[str, Callable[[Record], Any]] = {
    "missing_image": lambda record: record | {"image": "gone.jpg"},
    "damaged_image": lambda record: record | {"image": "cut.jpg"},
    "not_an_image": lambda record: record | {"image": "text.jpg"},
    "image_count": lambda record: record | {"image": [record["image"]] * 2},
    "turn_order": _with_turns(lambda turns: turns.insert(1, {"from": "human", "value": "Again?"})),
    "empty_answer": _with_turns(lambda turns: turns[-1].update(value=" \n")),
    "empty_message": _with_turns(lambda turns: turns.extend([{"from": "human", "value": ""}, dict(turns[1])])),
    "control_token": _with_turns(lambda turns: turns[-1].update(value="It ends.<|end|>")),
    "unknown_role": _with_turns(lambda turns: turns[-1].update({"from": "narrator"})),
    "bad_record": lambda record: {"id": record["id"], "text": record["conversations"][0]["value"]},
}
"""Ten ways to break a record, named as `eden check` names the fault. A damaged image is found when it is decoded."""


if __name__ == "__main__":
    main()
