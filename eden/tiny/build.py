"""Trains eden-tiny from nothing: `python -m eden.tiny.build --seed 0 --out DIR` writes `DIR/seed-0`.

1. a tokenizer, on the world's sentences
2. a CLIP, contrastively, on pictures and their descriptions; its vision half is then frozen
3. the projector and a Phi-3, on questions about the pictures; saved to `DIR/seed-0-questions`
4. practice of what is hardest to learn, on new pictures; saved to `DIR/seed-0-practice`
5. conversations in any order, with pictures in any place, among them pictures that are not of the world
6. the accuracies, measured with the weights as they are saved

A build that was cut off goes on from the last stage that was saved. The photographs of stage 5 are those that installed
packages carry (`pip install scikit-image gradio`), or those of `--photographs`.

`DIR/BUILD.md` is written anew from the reports of all seeds in `DIR`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jinja2 import Template
from rich.console import Console
from transformers import set_seed

from .. import checkpoint as checkpoints, files, location
from ..assistant import Assistant
from ..backbones import LoadOptions
from ..console import progress
from ..core.numeric_format import Machine, numeric_format
from ..data.collate import collate_flat
from ..evaluate import evaluate, open_task
from ..messages import to_chat
from ..model import MultimodalPhiForConditionalGeneration, MultimodalPhiProcessor
from ..model.attention import PACKED_SDPA
from .conversations import CONTEXTS, SYSTEM, Turn, about, converse, small_talk, to_messages
from .foreign import open_photographs
from .optimize import optimize
from .questions import KINDS
from .tower import Pool, near_misses, to_pixels, train_tower
from .untrained import build_tokenizer, new_model, new_processor
from .world import sample_scene

TAUGHT = [kind for kind in KINDS if kind != "description"] + ["colour", "place", "relation"]
"""Kinds of questions in the shares they are asked in; finding a thing by its shape or its place takes longest."""
PRACTISED = TAUGHT + 4 * ["place", "relation"]
TALKED_ABOUT = [*PRACTISED, "size", *5 * ["description"]]
Example: TypeAlias = tuple[dict[str, Any], list[int]]
"""An encoded conversation, and the numbers of its pictures in the pool."""
JUDGED_ON = {"chelsea", "rocket"}
"""Those of scikit-image's pictures that are in `photographs/`."""


@dataclass(frozen=True)
class BuildConfig:
    """How eden-tiny is made; lengths in optimizer steps."""

    seed: int = 0
    scenes: int = 24_000
    contrastive_steps: int = 700
    contrastive_batch: int = 128
    question_steps: int = 6_000
    practice_steps: int = 1_600
    question_batch: int = 64
    questions_per_picture: int = 3
    description_share: float = 0.25
    small_talk_share: float = 0.05
    contrastive_learning_rate: float = 1e-3
    language_learning_rate: float = 1.5e-3
    muon_learning_rate: float = 3e-3
    practice_rate: float = 0.5
    """Learning rates of the practice, as a share of those before."""
    foreign_pictures: int = 6_000
    conversation_steps: int = 4_600
    conversation_batch: int = 32
    conversation_rate: float = 0.5
    questions_asked: int | None = None
    """At most this many a group when the accuracies are measured."""


def build(config: BuildConfig, out: Path, console: Console, photographs: Sequence[Path] = ()) -> dict[str, Any]:
    """Trains, saves to `out` and returns the report, which is also written there.

    Args:
        config: the numbers of the build.
        out: the folder of the model. Those of the stages before are beside it, `-questions` and `-practice` behind
            their names; what is there already is not done again.
        console: where progress is shown.
        photographs: pictures that are not of the world, to be declined.
    """
    questions, practice = (out.with_name(f"{out.name}-{stage}") for stage in ("questions", "practice"))
    if not (practice / "build_report.json").exists():
        if not (questions / "build_report.json").exists():
            _learn_questions(config, questions, console)
        _practise(config, questions, practice, console)
    started = time.monotonic()
    model, processor = _load(config, practice)
    rng = random.Random(f"conversation pool {config.seed}")
    pool = Pool.draw([sample_scene(rng, "train") for _ in range(config.scenes)], rng, console)
    pool = pool.with_foreign(config.foreign_pictures, open_photographs(photographs), rng)
    features = encode_pool(model, processor, pool, console)
    rng = random.Random(f"conversations {config.seed}")
    train_language(
        model,
        features,
        lambda: _conversation(pool, processor, rng),
        config,
        console,
        name="conversations",
        steps=config.conversation_steps,
        batch=config.conversation_batch,
        rate=config.conversation_rate,
    )
    trained = _effort("5", started)
    _save(model, processor, out)
    world = evaluate(
        Assistant(checkpoints.load(str(out))), open_task("world", limit=config.questions_asked), console=console
    ).to_dict()
    del world["model"]  # a path
    before = json.loads((practice / "build_report.json").read_text())
    report = {
        "config": asdict(config),
        "parameters": model.num_parameters(),
        "contrastive_accuracy": before["contrastive_accuracy"],
        "stages": [*before["stages"], trained],
        "torch": torch.__version__,
        "photographs": sorted(path.name for path in photographs),
        "world": world,
    }
    _write_report(out, report)
    return report


def _learn_questions(config: BuildConfig, out: Path, console: Console) -> None:
    """Tokenizer, tower and questions, from nothing to a saved model."""
    started = time.monotonic()
    set_seed(config.seed)
    rng = random.Random(f"pools {config.seed}")
    contrasts = Pool.draw(near_misses(config.scenes, rng), rng, console)
    pool = Pool.draw([sample_scene(rng, "train") for _ in range(config.scenes)], rng, console)
    processor = new_processor(build_tokenizer(pool, config.seed))
    model = new_model(processor)
    model.set_attn_implementation(PACKED_SDPA)
    contrastive_accuracy = train_tower(
        model,
        processor,
        contrasts,
        steps=config.contrastive_steps,
        batch=config.contrastive_batch,
        learning_rate=config.contrastive_learning_rate,
        seed=config.seed,
        console=console,
    )
    _answer_questions(model, processor, pool, config, console)
    _save(model, processor, out)
    report = {"contrastive_accuracy": round(contrastive_accuracy, 4), "stages": [_effort("1 to 3", started)]}
    _write_report(out, report)


def _practise(config: BuildConfig, first: Path, out: Path, console: Console) -> None:
    """More questions of the kinds that are hardest to learn, about new pictures."""
    started = time.monotonic()
    model, processor = _load(config, first)
    rng = random.Random(f"practice pool {config.seed}")
    pool = Pool.draw([sample_scene(rng, "train") for _ in range(config.scenes)], rng, console)
    _answer_questions(model, processor, pool, config, console, practice=True)
    _save(model, processor, out)
    report = json.loads((first / "build_report.json").read_text())
    report["stages"].append(_effort("4", started))
    _write_report(out, report)


def _load(config: BuildConfig, folder: Path) -> tuple[MultimodalPhiForConditionalGeneration, MultimodalPhiProcessor]:
    """A stage's model, to be trained on."""
    set_seed(config.seed)
    checkpoint = checkpoints.load(str(folder), LoadOptions(dtype="float32", device="cpu"))
    checkpoint.core.set_attn_implementation(PACKED_SDPA)
    return checkpoint.core, checkpoint.processor


def _effort(stages: str, started: float) -> dict[str, Any]:
    """What stages took that end now, and on what."""
    return {
        "stages": stages,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "format": numeric_format(Machine.here("cpu")).name,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


def _write_report(folder: Path, report: dict[str, Any]) -> None:
    files.write_file(folder / "build_report.json", json.dumps(report, indent=2) + "\n")


def _save(model: MultimodalPhiForConditionalGeneration, processor: MultimodalPhiProcessor, out: Path) -> None:
    model.to(torch.bfloat16)
    for part in (model.config.vision_config, model.config.text_config):
        part.dtype = torch.bfloat16  # a model that was loaded in fp32 still says so here
    with files.new_folder(out) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)


@torch.inference_mode()
def encode_pool(
    model: MultimodalPhiForConditionalGeneration, processor: MultimodalPhiProcessor, pool: Pool, console: Console
) -> torch.Tensor:
    """Image features of all scenes, bfloat16 [n,N,Dv]; the tower is frozen from here on."""
    model.eval()
    chunks = []
    with progress(console) as bar:
        for start in bar.track(range(0, len(pool.pictures), 256), description="encoding pictures"):
            pixels = to_pixels(processor, pool.pictures[start : start + 256])
            chunks.append(model.model.encode_images(pixels).to(torch.bfloat16))
    return torch.cat(chunks)


def train_language(
    model: MultimodalPhiForConditionalGeneration,
    features: torch.Tensor,
    draw: Callable[[], Example],
    config: BuildConfig,
    console: Console,
    *,
    name: str,
    steps: int,
    batch: int,
    rate: float,
) -> None:
    """Trains projector and language model on frozen features.

    Args:
        model: trained in place.
        features: of the pool, [n,N,Dv].
        draw: makes an encoded conversation, and the numbers of its pictures in the pool.
        config: the learning rates.
        console: where progress is shown.
        name: of the stage.
        steps: optimizer steps.
        batch: conversations a step.
        rate: the learning rates as a share of the configuration's.
    """
    trained = torch.nn.ModuleDict(
        {"projector": model.model.projector, "language_model": model.model.language_model, "lm_head": model.lm_head}
    )
    model.train()

    def loss(step: int) -> torch.Tensor:
        drawn = [draw() for _ in range(batch)]
        seen = [index for _, pictures in drawn for index in pictures]
        row = collate_flat([example for example, _ in drawn])
        return model(**row, image_features=features[seen].float(), use_cache=False).loss

    optimize(
        trained,
        loss,
        steps=steps,
        learning_rate=rate * config.language_learning_rate,
        muon_learning_rate=rate * config.muon_learning_rate,
        name=name,
        console=console,
    )
    model.eval()


def _answer_questions(
    model: MultimodalPhiForConditionalGeneration,
    processor: MultimodalPhiProcessor,
    pool: Pool,
    config: BuildConfig,
    console: Console,
    *,
    practice: bool = False,
) -> None:
    """Trains on questions about one picture, which stands before the first of them."""
    name, kinds = ("practice", PRACTISED) if practice else ("questions", TAUGHT)
    rng = random.Random(f"{name} {config.seed}")

    def draw() -> Example:
        index = rng.randrange(len(pool.scenes))
        if rng.random() < config.small_talk_share:
            return _encode(processor, [Turn(small_talk(rng))], rng), []
        scene = pool.scenes[index]
        # A description shares no conversation with questions yet: the model would read the answers from its text
        # before it has learned to look.
        if rng.random() < config.description_share:
            asked = [about(scene, ["description"], rng)]
        else:
            asked = [about(scene, kinds, rng) for _ in range(config.questions_per_picture)]
        turns = [Turn(question, None if number else 0) for number, question in enumerate(asked)]
        return _encode(processor, turns, rng), [index]

    train_language(
        model,
        encode_pool(model, processor, pool, console),
        draw,
        config,
        console,
        name=name,
        steps=config.practice_steps if practice else config.question_steps,
        batch=config.question_batch,
        rate=config.practice_rate if practice else 1.0,
    )


def _conversation(pool: Pool, processor: MultimodalPhiProcessor, rng: random.Random) -> Example:
    """A conversation about none, one or two of the pool's pictures, one picture in eight not of the world."""
    scenes = len(pool.scenes)
    world, foreign = range(scenes), range(scenes, len(pool.pictures))
    number = rng.choices((0, 1, 2), weights=(6, 69, 25))[0]
    seen = [rng.choice(foreign if rng.random() < 0.125 else world) for _ in range(number)]
    shown = [pool.scenes[index] if index < scenes else None for index in seen]
    turns = converse(shown, TALKED_ABOUT, rng)
    return _encode(processor, turns, rng, rng.choice(SYSTEM) if rng.random() < 0.2 else None), seen


def _encode(
    processor: MultimodalPhiProcessor, turns: Sequence[Turn], rng: random.Random, system: str | None = None
) -> dict[str, Any]:
    """Ids and labels; the pictures' features come from the pool."""
    pictures = [Path(str(number)) for number in range(len(turns))]
    return processor.encode(to_chat(to_messages(turns, pictures, rng, system)))


def write_summary(folder: Path, *, out: Path | None = None, shipped: int | None = None) -> Path:
    """Writes `BUILD.md` from the reports of all seeds in the folder, to the folder or to `out`."""
    reports = [json.loads(path.read_text()) for path in sorted(folder.glob("seed-*[0-9]/build_report.json"))]
    template = Template(
        (Path(__file__).parent / "BUILD.md.jinja").read_text(), trim_blocks=True, keep_trailing_newline=True
    )
    page = template.render(reports=reports, contexts=CONTEXTS, shipped=shipped)
    return files.write_file((out or folder) / "BUILD.md", page)


def ship(folder: Path, seed: int) -> None:
    """Puts a seed of the folder into the package, without the copies of Eden's own code that an artifact carries."""
    with files.new_folder(location.EDEN_TINY_FOLDER) as shipped:
        for path in (folder / f"seed-{seed}").iterdir():
            if path.suffix == ".json":
                settings = json.loads(path.read_text())
                for name in ("auto_map", "is_local", "local_files_only"):
                    settings.pop(name, None)
                files.write_file(shipped / path.name, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
            elif path.suffix != ".py":
                shutil.copy(path, shipped)
        write_summary(folder, out=shipped, shipped=seed)


def installed_photographs() -> list[Path]:
    """Pictures that installed packages carry, without those eden-tiny is judged on."""
    found: list[Path] = []
    for package, folder in (("skimage", "data"), ("gradio", "media_assets/images")):
        if (spec := importlib.util.find_spec(package)) is not None and spec.origin is not None:
            found += (Path(spec.origin).parent / folder).iterdir()
    return [path for path in sorted(found) if path.suffix in (".png", ".jpg", ".jpeg") and path.stem not in JUDGED_ON]


def main() -> None:
    """The command line of the build."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="the folder that gets `seed-N` and `BUILD.md`")
    parser.add_argument(
        "--photographs", type=Path, nargs="*", help="pictures to be declined; by default those of installed packages"
    )
    parser.add_argument("--ship", action="store_true", help="only put --seed of --out into the package")
    arguments = parser.parse_args()
    if arguments.ship:
        ship(arguments.out, arguments.seed)
        return
    config = BuildConfig(seed=arguments.seed)
    photographs = installed_photographs() if arguments.photographs is None else arguments.photographs
    report = build(config, arguments.out / f"seed-{config.seed}", Console(), photographs)
    write_summary(arguments.out)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
