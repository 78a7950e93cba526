"""What eden-tiny's language model learns from: questions about one picture, then conversations about several."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from rich.console import Console

from eden.core.console import progress
from eden.data.collate import collate_flat
from eden.messages import to_chat
from eden.model import MultimodalPhiForConditionalGeneration, MultimodalPhiProcessor
from eden.tiny.conversations import SYSTEM, Position, Turn, about, converse, small_talk, to_messages
from eden.tiny.questions import KINDS, Question, ask
from eden.tiny.world import Scene

from .optimize import optimize
from .tower import Pool, to_pixels

TAUGHT = [kind for kind in KINDS if kind != "description"] + ["colour", "place", "relation"]
"""Kinds of questions in the shares they are asked in; finding a thing by its shape or its place takes longest."""
PRACTISED = TAUGHT + 4 * ["place", "relation"]
TALKED_ABOUT = [*PRACTISED, "size", *5 * ["description"]]
FOUND_BY_COLOUR = [*6 * ["shape"], *2 * ["existence"], *2 * ["place"]]
"""What a model has to look for by a colour that was named before the picture came. Mixed with other questions this is
not learned in 6,000 steps; alone, about pictures of several objects, in 300."""
BESIDE_COMPARED = [*3 * ["relation"], *2 * ["shape"], "count", "existence"]
"""What is asked beside comparisons of colours, so that what was learned before stays."""
ASKED_FIRST = [*TAUGHT, *TAUGHT, *3 * ["relation"], *2 * ["place"], "count"]
Example: TypeAlias = tuple[dict[str, Any], list[int]]
"""An encoded conversation, and the numbers of its pictures in the pool."""


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
    colour_steps: int = 500
    """Of each of two parts: things found by their colour, then colours compared."""
    behind_steps: int = 3_500
    behind_batch: int = 48
    behind_rate: float = 0.7
    behind_share: float = 0.75
    """Of a step's conversations, single questions most of which the picture follows."""
    compared_share: float = 0.12
    """And comparisons of colours."""
    questions_asked: int | None = None
    """At most this many a group when the accuracies are measured."""


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


def answer_questions(
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


def conversation(
    pool: Pool,
    processor: MultimodalPhiProcessor,
    kinds: Sequence[str],
    positions: Sequence[Position],
    rng: random.Random,
) -> Example:
    """A conversation about none, one or two of the pool's pictures, one picture in eight not of the world."""
    scenes = len(pool.scenes)
    world, foreign = range(scenes), range(scenes, len(pool.pictures))
    number = rng.choices((0, 1, 2), weights=(6, 69, 25))[0]
    seen = [rng.choice(foreign if rng.random() < 0.125 else world) for _ in range(number)]
    shown = [pool.scenes[index] if index < scenes else None for index in seen]
    turns = converse(shown, kinds, positions, rng)
    return _encode(processor, turns, rng, rng.choice(SYSTEM) if rng.random() < 0.2 else None), seen


def question_first(
    pool: Pool,
    processor: MultimodalPhiProcessor,
    asked: Callable[[Scene], Question | None],
    behind: float,
    rng: random.Random,
) -> Example:
    """A question about a picture, mostly of several objects; `behind` is how often the picture follows it."""
    question = None
    while question is None:
        index = rng.randrange(len(pool.scenes))
        if len(pool.scenes[index].objects) > 1 or rng.random() < 0.3:
            question = asked(pool.scenes[index])
    turns = [Turn(question, 0, "behind" if rng.random() < behind else "before")]
    return _encode(processor, turns, rng, rng.choice(SYSTEM) if rng.random() < 0.1 else None), [index]


def compare_colours(scene: Scene, rng: random.Random) -> Question | None:
    """Whether there is more of one colour than of another; as most pictures have neither, few answers of No stay."""
    question = ask(scene, "comparison", rng)
    if question is None or " more " not in question.text or " objects than " not in question.text:
        return None
    return question if question.answer == "Yes." or rng.random() < 0.4 else None


def _encode(
    processor: MultimodalPhiProcessor, turns: Sequence[Turn], rng: random.Random, system: str | None = None
) -> dict[str, Any]:
    """Ids and labels; the pictures' features come from the pool."""
    pictures = [Path(str(number)) for number in range(len(turns))]
    return processor.encode(to_chat(to_messages(turns, pictures, rng, system)))
