"""Trains eden-tiny from nothing: `python -m eden.tiny.build --seed 0 --out DIR`.

1. a tokenizer, on the world's sentences
2. a CLIP, contrastively, on pictures and their descriptions; its vision half is then frozen
3. the projector and a Phi-3: descriptions first, then questions (from the start, questions stall)
4. the bars, measured with the weights as they are saved
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    GenerationConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    set_seed,
)

from .. import files
from ..console import progress
from ..data.collate import collate
from ..model import MultimodalPhiConfig, MultimodalPhiForConditionalGeneration, MultimodalPhiProcessor
from .dataset import any_question
from .questions import describe
from .smalltalk import COMMON_WORDS, SMALL_TALK
from .tokenizer import train_tokenizer
from .world import IMAGE_SIZE, Scene, scenes

PATCH_SIZE = 16
LOOK = ("Describe the picture.", "Describe the image.", "What do you see?", "What is in the picture?")


@dataclass(frozen=True)
class BuildConfig:
    """How eden-tiny is made; lengths in optimizer steps."""

    seed: int = 0
    scenes: int = 24_000
    contrastive_steps: int = 900
    contrastive_batch: int = 128
    description_steps: int = 700
    question_steps: int = 2_800
    batch: int = 64
    questions_per_conversation: int = 4
    description_share: float = 0.25
    small_talk_share: float = 0.03
    learning_rate: float = 1e-3


@dataclass(frozen=True)
class Pool:
    """Training scenes with their pictures, uint8 [n,96,96,3]."""

    scenes: list[Scene]
    pictures: np.ndarray[Any, np.dtype[np.uint8]]


def build(config: BuildConfig, out: Path, console: Console) -> dict[str, Any]:
    """Trains, saves to `out` and returns the report, which is also written there."""
    started = time.monotonic()
    set_seed(config.seed)
    pool = draw_pool(config, console)
    tokenizer = build_tokenizer(pool, config.seed)
    processor = MultimodalPhiProcessor(
        CLIPImageProcessorPil(
            size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        ),
        tokenizer,
        num_image_tokens=(IMAGE_SIZE // PATCH_SIZE) ** 2,
    )
    model = new_model(processor)
    model.set_attn_implementation("eager")  # in bf16 on a CPU its backward pass is faster than sdpa's
    contrastive_accuracy = train_tower(model, processor, pool, config, console)
    features = encode_pool(model, processor, pool, console)
    for stage, steps in (("descriptions", config.description_steps), ("questions", config.question_steps)):
        train_language(model, processor, pool, features, config, stage, steps, console)
    model.to(torch.bfloat16)
    with files.new_folder(out) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    report = {
        "config": asdict(config),
        "parameters": model.num_parameters(),
        "contrastive_accuracy": round(contrastive_accuracy, 4),
        "minutes": round((time.monotonic() - started) / 60, 1),
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "torch": torch.__version__,
    }
    files.write_file(out / "build_report.json", json.dumps(report, indent=2) + "\n")
    return report


def draw_pool(config: BuildConfig, console: Console) -> Pool:
    drawn: list[Scene] = []
    pictures = np.empty((config.scenes, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    with progress(console) as bar:
        source = zip(range(config.scenes), scenes(config.seed, "train"), strict=False)
        for index, (scene, picture) in bar.track(source, total=config.scenes, description="drawing scenes"):
            drawn.append(scene)
            pictures[index] = np.asarray(picture)
    return Pool(drawn, pictures)


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
            image_token_id=processor.image_token_id,
        )
    )
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.convert_tokens_to_ids("<|end|>"), tokenizer.eos_token_id],
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    return model


def train_tower(
    model: MultimodalPhiForConditionalGeneration,
    processor: MultimodalPhiProcessor,
    pool: Pool,
    config: BuildConfig,
    console: Console,
) -> float:
    """Trains a CLIP around the model's vision tower; returns the share of 256 unseen pictures matched to their text."""
    tokenizer, tower = processor.tokenizer, model.model.vision_tower
    text = CLIPTextConfig(
        vocab_size=model.config.text_config.vocab_size,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=96,
        projection_dim=tower.config.projection_dim,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    clip = CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=tower.config.to_dict(), projection_dim=text.projection_dim)
    )
    clip.vision_model, clip.visual_projection = tower.vision_model, tower.visual_projection
    rows = [tokenizer(describe(scene) + tokenizer.eos_token)["input_ids"] for scene in pool.scenes]
    rng = random.Random(f"contrastive {config.seed}")

    def loss(step: int) -> torch.Tensor:
        chosen = rng.sample(range(len(rows)), config.contrastive_batch)
        return _contrast(clip, processor, [rows[i] for i in chosen], pool.pictures[chosen]).loss

    _optimize(clip, loss, config.contrastive_steps, config.learning_rate, "contrastive", console)
    clip.eval()
    unseen = [next_scene for _, next_scene in zip(range(256), scenes(config.seed, "test"), strict=False)]
    texts = [tokenizer(describe(scene) + tokenizer.eos_token)["input_ids"] for scene, _ in unseen]
    with torch.inference_mode():
        logits = _contrast(clip, processor, texts, np.stack([np.asarray(p) for _, p in unseen])).logits_per_image
    return (logits.argmax(-1) == torch.arange(len(unseen))).float().mean().item()


def _contrast(
    clip: CLIPModel,
    processor: MultimodalPhiProcessor,
    texts: list[list[int]],
    pictures: np.ndarray[Any, np.dtype[np.uint8]],
) -> Any:
    """CLIP's output for as many pictures as texts, `.loss` and `.logits_per_image` [B,B] among it."""
    batch = collate([{"input_ids": ids, "labels": ids} for ids in texts], processor.tokenizer.pad_token_id)
    del batch["labels"]
    return clip(**batch, pixel_values=_pixels(processor, pictures), return_loss=True)


@torch.inference_mode()
def encode_pool(
    model: MultimodalPhiForConditionalGeneration, processor: MultimodalPhiProcessor, pool: Pool, console: Console
) -> torch.Tensor:
    """Image features of all scenes, bfloat16 [n,N,Dv]; the tower is frozen from here on."""
    model.eval()
    chunks = []
    with progress(console) as bar:
        for start in bar.track(range(0, len(pool.scenes), 256), description="encoding pictures"):
            pixels = _pixels(processor, pool.pictures[start : start + 256])
            chunks.append(model.model.encode_images(pixels).to(torch.bfloat16))
    return torch.cat(chunks)


def train_language(
    model: MultimodalPhiForConditionalGeneration,
    processor: MultimodalPhiProcessor,
    pool: Pool,
    features: torch.Tensor,
    config: BuildConfig,
    stage: str,
    steps: int,
    console: Console,
) -> None:
    """Trains projector and language model on frozen features: descriptions alone, or questions mixed with them."""
    rng = random.Random(f"{stage} {config.seed}")
    trained = torch.nn.ModuleList([model.model.projector, model.model.language_model, model.lm_head])
    model.train()

    def loss(step: int) -> torch.Tensor:
        examples, seen = [], []
        for index in (rng.randrange(len(pool.scenes)) for _ in range(config.batch)):
            if stage == "questions" and rng.random() < config.small_talk_share:
                examples.append(processor.encode(_turns([rng.choice(SMALL_TALK)], picture=False)))
            else:
                examples.append(processor.encode(_turns(_talk(pool.scenes[index], stage, config, rng))))
                seen.append(index)
        batch = collate(examples, processor.tokenizer.pad_token_id)
        return model(**batch, image_features=features[seen].float(), use_cache=False).loss

    _optimize(trained, loss, steps, config.learning_rate, stage, console)
    model.eval()


def _talk(scene: Scene, stage: str, config: BuildConfig, rng: random.Random) -> list[tuple[str, str]]:
    """Questions and answers about a scene. A description never shares a conversation with questions: the model

    would read the answers from its text and stop looking.
    """
    if stage == "descriptions" or rng.random() < config.description_share:
        return [(rng.choice(LOOK), describe(scene))]
    asked: list[tuple[str, str]] = []
    while len(asked) < config.questions_per_conversation:
        question = any_question(scene, rng)
        if question.kind != "description":
            asked.append((question.text, question.answer))
    return asked


def _turns(talk: list[tuple[str, str]], picture: bool = True) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = []
    for question, answer in talk:
        image = [{"type": "image"}] if picture and not turns else []
        turns.append({"role": "user", "content": [*image, {"type": "text", "text": question}]})
        turns.append({"role": "assistant", "content": answer})
    return turns


def _pixels(processor: MultimodalPhiProcessor, pictures: np.ndarray[Any, np.dtype[np.uint8]]) -> torch.Tensor:
    """What the image processor makes of 96x96 pictures, for a whole batch at once: float32 [I,3,96,96]."""
    mean = torch.tensor(processor.image_processor.image_mean).view(3, 1, 1)
    std = torch.tensor(processor.image_processor.image_std).view(3, 1, 1)
    return (torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255 - mean) / std


def _optimize(
    module: torch.nn.Module,
    loss_of: Callable[[int], torch.Tensor],
    steps: int,
    learning_rate: float,
    name: str,
    console: Console,
) -> None:
    """Minimises the loss of each step with AdamW on a one-cycle schedule, in bf16 where the operations allow it."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps + 1, pct_start=0.1)
    with progress(console) as bar:
        for step in bar.track(range(steps), description=name):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = loss_of(step)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if (step + 1) % 100 == 0:
                bar.console.print(f"{name} step {step + 1} of {steps}: loss {loss.item():.4f}", highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    report = build(BuildConfig(seed=arguments.seed), arguments.out, Console())
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
