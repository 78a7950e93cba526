"""Trains eden-tiny from nothing: `python -m eden.tiny.build --seed 0 --out DIR` writes `DIR/seed-0`.

1. a tokenizer, on the world's sentences
2. a CLIP, contrastively, on pictures and their descriptions; its vision half is then frozen
3. the projector and a Phi-3, on conversations about the pictures; saved to `DIR/seed-0-conversations`, from where a
   build that was cut off goes on
4. practice of what is hardest to learn, on new pictures
5. the accuracies, measured with the weights as they are saved

`DIR/BUILD.md` is written anew from the reports of all seeds in `DIR`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import Template
from rich.console import Console
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GenerationConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    set_seed,
)

from .. import checkpoint as checkpoints, files, location
from ..assistant import Assistant
from ..backbones import LoadOptions
from ..console import progress
from ..data.collate import collate
from ..evaluate import evaluate, open_task
from ..model import MultimodalPhiConfig, MultimodalPhiForConditionalGeneration, MultimodalPhiProcessor
from .dataset import any_question
from .optimize import optimize
from .questions import KINDS, ask, describe
from .smalltalk import COMMON_WORDS, SMALL_TALK
from .tokenizer import train_tokenizer
from .tower import Pool, near_misses, to_pixels, train_tower
from .world import IMAGE_SIZE, Scene, sample_scene

PATCH_SIZE = 16
POSITION_SCALE = 0.6
"""Of the first position embeddings, about that of a patch's. At CLIP's 0.02 pixels drown them, and in so short a
training they stay drowned: the patches then tell what is there but not where."""
TAUGHT = [kind for kind in KINDS if kind != "description"] + ["colour", "place", "relation"]
"""Kinds of questions in the shares they are asked in; finding a thing by its shape or its place takes longest."""
PRACTISED = TAUGHT + 4 * ["place", "relation"]
LOOK = ("Describe the picture.", "Describe the image.", "What do you see?", "What is in the picture?")


@dataclass(frozen=True)
class BuildConfig:
    """How eden-tiny is made; lengths in optimizer steps."""

    seed: int = 0
    scenes: int = 24_000
    contrastive_steps: int = 700
    contrastive_batch: int = 128
    conversation_steps: int = 6_000
    practice_steps: int = 1_600
    conversation_batch: int = 64
    questions_per_conversation: int = 3
    description_share: float = 0.25
    small_talk_share: float = 0.05
    contrastive_learning_rate: float = 1e-3
    language_learning_rate: float = 1.5e-3
    muon_learning_rate: float = 3e-3
    practice_rate: float = 0.5
    """Learning rates of the practice, as a share of those before."""
    questions_asked: int | None = None
    """At most this many a group when the accuracies are measured."""


def build(config: BuildConfig, out: Path, console: Console) -> dict[str, Any]:
    """Trains, saves to `out` and returns the report, which is also written there.

    `out` with `-conversations` behind its name holds the model before the practice. If it is there already, the build
    goes on from it.
    """
    first = out.with_name(f"{out.name}-conversations")
    if not (first / "build_report.json").exists():
        _learn_conversations(config, first, console)
    started = time.monotonic()
    set_seed(config.seed)
    rng = random.Random(f"practice pool {config.seed}")
    checkpoint = checkpoints.load(str(first), LoadOptions(dtype="float32", device="cpu"))
    model, processor = checkpoint.core, checkpoint.processor
    model.set_attn_implementation("eager")
    pool = Pool.draw([sample_scene(rng, "train") for _ in range(config.scenes)], rng, console)
    features = encode_pool(model, processor, pool, console)
    train_language(model, processor, pool, features, config, console, practice=True)
    _save(model, processor, out)
    minutes = (time.monotonic() - started) / 60
    world = evaluate(
        Assistant(checkpoints.load(str(out))), open_task("world", limit=config.questions_asked), console=console
    ).to_dict()
    del world["model"]  # a path
    before = json.loads((first / "build_report.json").read_text())
    report = {
        "config": asdict(config),
        "parameters": model.num_parameters(),
        "contrastive_accuracy": before["contrastive_accuracy"],
        "minutes": round(before["minutes"] + minutes, 1),
        "machine": {"architecture": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "torch": torch.__version__,
        "world": world,
    }
    files.write_file(out / "build_report.json", json.dumps(report, indent=2) + "\n")
    return report


def _learn_conversations(config: BuildConfig, out: Path, console: Console) -> None:
    """Tokenizer, tower and conversations, from nothing to a saved model."""
    started = time.monotonic()
    set_seed(config.seed)
    rng = random.Random(f"pools {config.seed}")
    contrasts = Pool.draw(near_misses(config.scenes, rng), rng, console)
    pool = Pool.draw([sample_scene(rng, "train") for _ in range(config.scenes)], rng, console)
    processor = new_processor(build_tokenizer(pool, config.seed))
    model = new_model(processor)
    model.set_attn_implementation("eager")  # in bf16 on a CPU its backward pass is faster than sdpa's
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
    features = encode_pool(model, processor, pool, console)
    train_language(model, processor, pool, features, config, console)
    _save(model, processor, out)
    report = {
        "contrastive_accuracy": round(contrastive_accuracy, 4),
        "minutes": round((time.monotonic() - started) / 60, 1),
    }
    files.write_file(out / "build_report.json", json.dumps(report, indent=2) + "\n")


def _save(model: MultimodalPhiForConditionalGeneration, processor: MultimodalPhiProcessor, out: Path) -> None:
    model.to(torch.bfloat16)
    for part in (model.config.vision_config, model.config.text_config):
        part.dtype = torch.bfloat16  # a model that was loaded in fp32 still says so here
    with files.new_folder(out) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)


def new_processor(tokenizer: PreTrainedTokenizerFast) -> MultimodalPhiProcessor:
    return MultimodalPhiProcessor(
        CLIPImageProcessorPil(
            size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        ),
        tokenizer,
        num_image_tokens=(IMAGE_SIZE // PATCH_SIZE) ** 2,
    )


def build_tokenizer(pool: Pool, seed: int) -> PreTrainedTokenizerFast:
    rng = random.Random(f"tokenizer {seed}")
    sentences = [text for pair in SMALL_TALK for text in pair] * 5 + COMMON_WORDS.split() * 3
    for scene in pool.scenes[:4000]:
        question = any_question(scene, rng)
        sentences += [describe(scene), question.text, question.answer]
    return train_tokenizer(sentences)


def new_model(processor: MultimodalPhiProcessor) -> MultimodalPhiForConditionalGeneration:
    tokenizer = processor.tokenizer
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=128,
    )
    language = Phi3Config(
        vocab_size=math.ceil(len(tokenizer) / 64) * 64,  # as Phi-3.5, padded: <|image|> finds a spare row
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        partial_rotary_factor=0.5,  # half of each head looks for what a thing is, wherever it stands
        initializer_range=0.06,  # about 1 / sqrt(width), as Phi's 0.02 is for its own
        max_position_embeddings=1024,
        original_max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = MultimodalPhiForConditionalGeneration(
        MultimodalPhiConfig(
            vision_config=vision,
            text_config=language,
            vision_feature="patches",
            speech_model=location.EDEN_TINY,
            image_token_id=processor.image_token_id,
        )
    )
    torch.nn.init.normal_(
        model.model.vision_tower.vision_model.embeddings.position_embedding.weight, std=POSITION_SCALE
    )
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.convert_tokens_to_ids("<|end|>"), tokenizer.eos_token_id],
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    return model


@torch.inference_mode()
def encode_pool(
    model: MultimodalPhiForConditionalGeneration, processor: MultimodalPhiProcessor, pool: Pool, console: Console
) -> torch.Tensor:
    """Image features of all scenes, bfloat16 [n,N,Dv]; the tower is frozen from here on."""
    model.eval()
    chunks = []
    with progress(console) as bar:
        for start in bar.track(range(0, len(pool.scenes), 256), description="encoding pictures"):
            pixels = to_pixels(processor, pool.pictures[start : start + 256])
            chunks.append(model.model.encode_images(pixels).to(torch.bfloat16))
    return torch.cat(chunks)


def train_language(
    model: MultimodalPhiForConditionalGeneration,
    processor: MultimodalPhiProcessor,
    pool: Pool,
    features: torch.Tensor,
    config: BuildConfig,
    console: Console,
    *,
    practice: bool = False,
) -> None:
    """Trains projector and language model on frozen features."""
    name, kinds = ("practice", PRACTISED) if practice else ("conversations", TAUGHT)
    scale = config.practice_rate if practice else 1.0
    rng = random.Random(f"{name} {config.seed}")
    trained = torch.nn.ModuleDict(
        {"projector": model.model.projector, "language_model": model.model.language_model, "lm_head": model.lm_head}
    )
    model.train()

    def loss(step: int) -> torch.Tensor:
        examples, seen = [], []
        for index in (rng.randrange(len(pool.scenes)) for _ in range(config.conversation_batch)):
            if rng.random() < config.small_talk_share:
                examples.append(processor.encode(_turns([rng.choice(SMALL_TALK)], picture=False)))
            else:
                examples.append(processor.encode(_turns(_talk(pool.scenes[index], kinds, config, rng))))
                seen.append(index)
        batch = collate(examples, processor.tokenizer.pad_token_id)
        return model(**batch, image_features=features[seen].float(), use_cache=False).loss

    optimize(
        trained,
        loss,
        steps=config.practice_steps if practice else config.conversation_steps,
        learning_rate=scale * config.language_learning_rate,
        muon_learning_rate=scale * config.muon_learning_rate,
        name=name,
        console=console,
    )
    model.eval()


def _talk(scene: Scene, kinds: list[str], config: BuildConfig, rng: random.Random) -> list[tuple[str, str]]:
    """Questions and answers about a scene. A description never shares a conversation with questions: the model

    would read the answers from its text and stop looking.
    """
    if rng.random() < config.description_share:
        return [(rng.choice(LOOK), describe(scene))]
    asked: list[tuple[str, str]] = []
    while len(asked) < config.questions_per_conversation:
        question = ask(scene, rng.choice(kinds), rng)
        if question is not None:
            asked.append((question.text, question.answer))
    return asked


def _turns(talk: list[tuple[str, str]], picture: bool = True) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = []
    for question, answer in talk:
        image = [{"type": "image"}] if picture and not turns else []
        turns.append({"role": "user", "content": [*image, {"type": "text", "text": question}]})
        turns.append({"role": "assistant", "content": answer})
    return turns


def write_summary(folder: Path, *, out: Path | None = None, shipped: int | None = None) -> Path:
    """Writes `BUILD.md` from the reports of all seeds in the folder, to the folder or to `out`."""
    reports = [json.loads(path.read_text()) for path in sorted(folder.glob("seed-*[0-9]/build_report.json"))]
    template = Template(
        (Path(__file__).parent / "BUILD.md.jinja").read_text(), trim_blocks=True, keep_trailing_newline=True
    )
    return files.write_file((out or folder) / "BUILD.md", template.render(reports=reports, shipped=shipped))


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


def main() -> None:
    """The command line of the build."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="the folder that gets `seed-N` and `BUILD.md`")
    parser.add_argument("--ship", action="store_true", help="only put --seed of --out into the package")
    arguments = parser.parse_args()
    if arguments.ship:
        ship(arguments.out, arguments.seed)
        return
    config = BuildConfig(seed=arguments.seed)
    report = build(config, arguments.out / f"seed-{config.seed}", Console())
    write_summary(arguments.out)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
