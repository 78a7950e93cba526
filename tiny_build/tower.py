"""eden-tiny's vision tower: half of a CLIP, trained contrastively from nothing on pictures and their descriptions.

A batch holds scenes together with their near misses. Among random scenes colours and places alone tell every picture
from the others, and the tower never learns shapes.

Source: CLIP, https://arxiv.org/abs/2103.00020; hard negatives of this kind, https://arxiv.org/abs/2210.01936.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import PIL.Image
import torch
from rich.console import Console
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig

from eden.core.console import progress
from eden.data.collate import collate
from eden.model import MultimodalPhiForConditionalGeneration, MultimodalPhiProcessor
from eden.tiny import foreign
from eden.tiny.questions import describe
from eden.tiny.world import CELLS, COLOURS, IMAGE_SIZE, SHAPES, SIZES, Scene, render, sample_scene, scenes

from .optimize import optimize

GROUP = 4
"""A scene and its near misses."""
NUMBERS = (1, 1, 2, 2, 3, 4)
"""Objects in a scene: a shape is learned sooner from a picture that shows little else."""


@dataclass(frozen=True)
class Pool:
    """Scenes with their pictures, uint8 [n,96,96,3]; pictures behind those of the scenes are not of the world."""

    scenes: list[Scene]
    pictures: np.ndarray[Any, np.dtype[np.uint8]]

    @classmethod
    def draw(cls, drawn: list[Scene], rng: random.Random, console: Console) -> Pool:
        """Draws a picture of each scene."""
        pictures = np.empty((len(drawn), IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
        with progress(console) as bar:
            for index, scene in enumerate(bar.track(drawn, description="drawing scenes")):
                pictures[index] = np.asarray(render(scene, rng))
        return cls(drawn, pictures)

    def with_foreign(self, number: int, photographs: Sequence[PIL.Image.Image], rng: random.Random) -> Pool:
        """The pool with `number` training pictures behind it that are not of the world, half of them photographs."""
        others = [kind for kind in foreign.KINDS if kind != "photograph"]
        kinds = [rng.choice(others) if not photographs or index % 2 else "photograph" for index in range(number)]
        found = [np.asarray(foreign.foreign_picture(kind, "train", photographs, rng)) for kind in kinds]
        return Pool(self.scenes, np.concatenate([self.pictures, np.stack(found)]))


def near_miss(scene: Scene, rng: random.Random) -> Scene:
    """Another scene of the same split, with one thing changed: a shape (half of the time), colour, size or place."""
    while True:
        things = list(scene.objects)
        index = rng.randrange(len(things))
        thing = things[index]
        change = rng.choice(("shape", "shape", "shape", "colour", "size", "place"))
        if change == "shape":
            things[index] = replace(thing, shape=rng.choice(SHAPES))
        elif change == "colour":
            things[index] = replace(thing, colour=rng.choice(list(COLOURS)))
        elif change == "size":
            things[index] = replace(thing, size=rng.choice(list(SIZES)))
        else:
            taken = {(other.row, other.column) for other in things}
            row, column = rng.choice([cell for cell in CELLS if cell not in taken])
            things[index] = replace(thing, row=row, column=column)
        changed = Scene(tuple(sorted(things)))
        if changed != scene and changed.split == scene.split:
            return changed


def near_misses(number: int, rng: random.Random) -> list[Scene]:
    """Training scenes in groups of `GROUP`: one, and others that differ from it in one thing."""
    found: list[Scene] = []
    for _ in range(number // GROUP):
        group = [sample_scene(rng, "train", NUMBERS)]
        while len(group) < GROUP:
            scene = near_miss(group[0], rng)
            if scene not in group:
                group.append(scene)
        found += group
    return found


def train_tower(
    model: MultimodalPhiForConditionalGeneration,
    processor: MultimodalPhiProcessor,
    pool: Pool,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    console: Console,
) -> float:
    """Trains a CLIP around the model's vision tower.

    Args:
        model: its tower is trained in place.
        processor: of the model.
        pool: scenes in groups (`near_misses`).
        steps: optimizer steps.
        batch: pictures a step, a multiple of `GROUP`.
        learning_rate: the highest of the cycle.
        seed: of the order of scenes.
        console: where progress is shown.

    Returns:
        The share of 256 unseen pictures whose own description fits them best.

    """
    clip = _clip_around(model, processor)
    rows = [_text_ids(processor, scene) for scene in pool.scenes]
    rng = random.Random(f"contrastive {seed}")

    def loss(step: int) -> torch.Tensor:
        groups = rng.sample(range(len(rows) // GROUP), batch // GROUP)
        chosen = [group * GROUP + member for group in groups for member in range(GROUP)]
        return _contrast(clip, processor, [rows[index] for index in chosen], pool.pictures[chosen]).loss

    optimize(clip, loss, steps=steps, learning_rate=learning_rate, name="contrastive", console=console)
    clip.eval()
    unseen = [item for item, _ in zip(scenes(seed, "test"), range(256), strict=False)]
    texts = [_text_ids(processor, scene) for scene, _ in unseen]
    with torch.inference_mode():
        logits = _contrast(clip, processor, texts, np.stack([np.asarray(p) for _, p in unseen])).logits_per_image
    return (logits.argmax(-1) == torch.arange(len(unseen))).float().mean().item()


def to_pixels(processor: MultimodalPhiProcessor, pictures: np.ndarray[Any, np.dtype[np.uint8]]) -> torch.Tensor:
    """What the image processor makes of 96x96 pictures, for a whole batch at once: float32 [I,3,96,96]."""
    mean = torch.tensor(processor.image_processor.image_mean).view(3, 1, 1)
    std = torch.tensor(processor.image_processor.image_std).view(3, 1, 1)
    return (torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255 - mean) / std


def _clip_around(model: MultimodalPhiForConditionalGeneration, processor: MultimodalPhiProcessor) -> CLIPModel:
    """A CLIP whose vision half is the model's own tower."""
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
    return clip


def _text_ids(processor: MultimodalPhiProcessor, scene: Scene) -> list[int]:
    tokenizer = processor.tokenizer
    ids: list[int] = tokenizer(describe(scene) + tokenizer.eos_token)["input_ids"]
    return ids


def _contrast(
    clip: CLIPModel,
    processor: MultimodalPhiProcessor,
    texts: list[list[int]],
    pictures: np.ndarray[Any, np.dtype[np.uint8]],
) -> Any:
    """CLIP's output for as many pictures as texts, `.loss` and `.logits_per_image` [B,B] among it."""
    batch = collate([{"input_ids": ids, "labels": ids} for ids in texts], processor.tokenizer.pad_token_id)
    del batch["labels"]
    return clip(**batch, pixel_values=to_pixels(processor, pictures), return_loss=True)
