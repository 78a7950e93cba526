"""Trains eden-tiny from nothing: `python -m tiny_build.build --seed 0 --out DIR` writes `DIR/seed-0`.

1. a tokenizer, on the world's sentences
2. a CLIP, contrastively, on pictures and their descriptions; its vision half is then frozen
3. the projector and a Phi-3, on questions about the pictures; saved to `DIR/seed-0-questions`
4. practice of what is hardest to learn, on new pictures; saved to `DIR/seed-0-practice`
5. conversations in any order, with pictures in any place, among them pictures that are not of the world; saved to
   `DIR/seed-0-conversations`
6. questions that the picture follows: those that look for a colour, those that compare two, then all, and conversations
7. the accuracies, measured with the weights as they are saved

A build that was cut off goes on from the last stage that was saved. The photographs of the last stages are those that
installed packages carry (`pip install scikit-image gradio`), or those of `--photographs`.

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
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jinja2 import Template
from rich.console import Console
from transformers import set_seed

from eden import checkpoint as checkpoints
from eden.checkpoint.backbones import LoadOptions
from eden.core import files, location
from eden.core.numeric_format import Machine, numeric_format
from eden.evaluate import evaluate, open_task, with_blind_groups
from eden.inference.assistant import Assistant
from eden.model import MultimodalPhiForConditionalGeneration, MultimodalPhiProcessor
from eden.model.attention import PACKED_SDPA
from eden.tiny.conversations import ANYWHERE, CONTEXTS, about
from eden.tiny.foreign import open_photographs
from eden.tiny.world import sample_scene

from .curriculum import (
    ASKED_FIRST,
    BESIDE_COMPARED,
    FOUND_BY_COLOUR,
    TALKED_ABOUT,
    BuildConfig,
    Example,
    answer_questions,
    compare_colours,
    conversation,
    encode_pool,
    question_first,
    train_language,
)
from .tower import Pool, near_misses, train_tower
from .untrained import build_tokenizer, new_model, new_processor

REPORT = "build_report.json"
JUDGED_ON = {"chelsea", "rocket"}
"""Those of scikit-image's pictures that are in `photographs/`."""


def build(config: BuildConfig, out: Path, console: Console, photographs: Sequence[Path] = ()) -> dict[str, Any]:
    """Trains, saves to `out` and returns the report, which is also written there.

    Args:
        config: the numbers of the build.
        out: the folder of the model. Those of the stages before are beside it, `-questions`, `-practice`
            and `-conversations` behind their names; what is there already is not done again.
        console: where progress is shown.
        photographs: pictures that are not of the world, to be declined.
    """
    stages: list[tuple[str, Callable[[Path, Path], None]]] = [
        ("questions", lambda _, to: _learn_questions(config, to, console)),
        ("practice", lambda start, to: _practise(config, start, to, console)),
        ("conversations", lambda start, to: _converse(config, start, to, console, photographs)),
        ("", lambda start, to: _answer_first_words(config, start, to, console, photographs)),
    ]
    folders = [out.with_name(f"{out.name}-{name}") if name else out for name, _ in stages]
    whole = [number for number, folder in enumerate(folders) if (folder / REPORT).exists()]
    for number in range(whole[-1] + 1 if whole else 0, len(stages)):
        stages[number][1](folders[number - 1], folders[number])
    assistant = Assistant(checkpoints.load(str(out)))
    task = with_blind_groups(open_task("world", limit=config.questions_asked), assistant)
    world = evaluate(assistant, task, console=console).to_dict()
    del world["model"]  # a path
    report = {
        "config": asdict(config),
        "torch": torch.__version__,
        "photographs": sorted(path.name for path in photographs),
        "parameters": assistant.checkpoint.core.num_parameters(),
        **json.loads((out / REPORT).read_text()),
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
    answer_questions(model, processor, pool, config, console)
    _save(model, processor, out)
    report = {"contrastive_accuracy": round(contrastive_accuracy, 4), "stages": [_effort("1 to 3", started)]}
    _write_report(out, report)


def _practise(config: BuildConfig, first: Path, out: Path, console: Console) -> None:
    """More questions of the kinds that are hardest to learn, about new pictures."""
    started = time.monotonic()
    model, processor = _load(config, first)
    rng = random.Random(f"practice pool {config.seed}")
    pool = Pool.draw([sample_scene(rng, "train") for _ in range(config.scenes)], rng, console)
    answer_questions(model, processor, pool, config, console, practice=True)
    _save(model, processor, out)
    _report_stage(first, out, "4", started)


def _converse(config: BuildConfig, first: Path, out: Path, console: Console, photographs: Sequence[Path]) -> None:
    """Conversations in any order."""
    started = time.monotonic()
    model, processor = _load(config, first)
    pool, features, rng = _look_at_new_pictures(config, "conversation", model, processor, photographs, console)
    train_language(
        model,
        features,
        lambda: conversation(pool, processor, TALKED_ABOUT, ANYWHERE, rng),
        config,
        console,
        name="conversation",
        steps=config.conversation_steps,
        batch=config.conversation_batch,
        rate=config.conversation_rate,
    )
    _save(model, processor, out)
    _report_stage(first, out, "5", started)


def _answer_first_words(
    config: BuildConfig, first: Path, out: Path, console: Console, photographs: Sequence[Path]
) -> None:
    """Questions that stand before their picture, which takes longest to learn; then with conversations among them."""
    started = time.monotonic()
    model, processor = _load(config, first)
    pool, features, rng = _look_at_new_pictures(config, "behind", model, processor, photographs, console)

    def asked_first(kinds: Sequence[str], behind: float) -> Example:
        return question_first(pool, processor, lambda scene: about(scene, kinds, rng), behind, rng)

    def compared(behind: float) -> Example:
        return question_first(pool, processor, lambda scene: compare_colours(scene, rng), behind, rng)

    def any_words() -> Example:
        if rng.random() < config.compared_share:
            return compared(0.8)
        if rng.random() < config.behind_share:
            return asked_first(ASKED_FIRST, 0.7)
        return conversation(pool, processor, TALKED_ABOUT, ANYWHERE, rng)

    for name, draw, steps in (
        ("colours", lambda: asked_first(FOUND_BY_COLOUR, 1.0), config.colour_steps),
        (
            "colours compared",
            lambda: compared(1.0) if rng.random() < 0.6 else asked_first(BESIDE_COMPARED, 1.0),
            config.colour_steps,
        ),
        ("behind", any_words, config.behind_steps),
    ):
        batch, rate = config.behind_batch, config.behind_rate
        train_language(model, features, draw, config, console, name=name, steps=steps, batch=batch, rate=rate)
    _save(model, processor, out)
    _report_stage(first, out, "6", started)


def _look_at_new_pictures(
    config: BuildConfig,
    name: str,
    model: MultimodalPhiForConditionalGeneration,
    processor: MultimodalPhiProcessor,
    photographs: Sequence[Path],
    console: Console,
) -> tuple[Pool, torch.Tensor, random.Random]:
    """A stage's own pictures, some of them not of the world, with their features; and its source of chance."""
    rng = random.Random(f"{name} pool {config.seed}")
    pool = Pool.draw([sample_scene(rng, "train") for _ in range(config.scenes)], rng, console)
    pool = pool.with_foreign(config.foreign_pictures, open_photographs(photographs), rng)
    return pool, encode_pool(model, processor, pool, console), random.Random(f"{name} {config.seed}")


def _report_stage(first: Path, out: Path, stage: str, started: float) -> None:
    """The report of the stage before, and this one's."""
    report = json.loads((first / REPORT).read_text())
    report["stages"].append(_effort(stage, started))
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
    files.write_file(folder / REPORT, json.dumps(report, indent=2) + "\n")


def _save(model: MultimodalPhiForConditionalGeneration, processor: MultimodalPhiProcessor, out: Path) -> None:
    model.to(torch.bfloat16)
    for part in (model.config.vision_config, model.config.text_config):
        part.dtype = torch.bfloat16  # a model that was loaded in fp32 still says so here
    with files.new_folder(out) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)


def write_summary(folder: Path, *, out: Path | None = None, shipped: int | None = None) -> Path:
    """Writes `BUILD.md` from the reports of all seeds in the folder, to the folder or to `out`."""
    reports = [json.loads(path.read_text()) for path in sorted(folder.glob(f"seed-*[0-9]/{REPORT}"))]
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
