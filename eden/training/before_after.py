"""What a report sets side by side, before training and after: answers to held-out samples, and what the model knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from rich.console import Console

from ..checkpoint import Checkpoint
from ..core.console import AS_IT_IS
from ..core.report_blocks import Prediction
from ..data.dataset import ConversationDataset
from ..data.formats import Sample
from ..errors import first_line
from ..inference.assistant import Assistant
from ..inference.knowledge import Knowledge, measure
from ..media.images import open_image

PREDICTIONS = 8
"""Held-out samples that are answered before and after training, for the report."""


@contextmanager
def in_use(checkpoint: Checkpoint) -> Iterator[None]:
    """The model in evaluation mode; it is left in the mode it was in, and the random state as it was."""
    model, random_state = checkpoint.model, torch.get_rng_state()
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
        torch.set_rng_state(random_state)


def pick_samples(held_out: ConversationDataset) -> list[Sample]:
    """Evenly spread samples, shown in the report with the model's answers before and after."""
    spread = range(0, len(held_out), max(1, len(held_out) // PREDICTIONS))
    return [held_out.samples[index] for index in spread[:PREDICTIONS] if held_out.is_whole(index)]


def answers_to(checkpoint: Checkpoint, samples: Sequence[Sample]) -> list[str]:
    """Greedy answers."""
    if not samples:
        return []
    questions = [sample.messages[:-1] for sample in samples]
    with in_use(checkpoint):
        return Assistant(checkpoint).answer_all(questions, max_new_tokens=64, batch_size=PREDICTIONS)


def predictions(samples: Sequence[Sample], before: Sequence[str], after: Sequence[str]) -> list[Prediction]:
    """As the report shows them; what was answered before about other samples is left out."""
    before = before if len(before) == len(samples) else [""] * len(samples)
    return [_prediction(*row) for row in zip(samples, before, after, strict=True)]


def _prediction(sample: Sample, before: str, after: str) -> Prediction:
    images = [image for message in sample.messages for image in message.images]
    return Prediction(
        image=open_image(images[0].source) if images else None,
        question=sample.messages[-2].text,
        expected=sample.messages[-1].text,
        before=before,
        after=after,
    )


def knowledge_of(checkpoint: Checkpoint, console: Console, *, ask: bool | None = None) -> Knowledge | None:
    """What the model knows (`inference.knowledge.measure`); None if that cannot be measured, which ends no run."""
    try:
        with in_use(checkpoint), console.status("reading a page of English"):
            return measure(checkpoint, ask=ask)
    except Exception as error:
        what = f"warning: what the model knows of English was not measured ({first_line(error)})"
        console.print(what, **AS_IT_IS)
        return None
