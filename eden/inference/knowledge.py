"""What a model knows without a picture: its perplexity on a page of plain English, and its answers to plain questions.

Teaching a language model to see may cost it what it knew; the training loss does not show that, so it is measured.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import Checkpoint
from ..messages import Message
from .assistant import Assistant

ENGLISH = Path(__file__).parent / "english"
"""The page, the questions, and other plain questions that a model may rehearse with; all written for Eden."""
WORDS_ALONE = 2.14
"""Bits that a character of English takes if only the frequencies of its words are known (C. E. Shannon, Prediction and
Entropy of Printed English, 1951, https://doi.org/10.1002/j.1538-7305.1951.tb01366.x): a model that needs more for a
byte is no language model of English."""
BOUND = 0.03
"""How far perplexity may grow before a run says that it has."""
ANSWER_TOKENS = 32
"""The longest answer to a plain question."""


@dataclass(frozen=True)
class Knowledge:
    """What was measured of a model.

    Attributes:
        perplexity: of a token of the page; only models with the same tokenizer compare.
        bits_per_byte: of the page; all models compare.
        answers: greedy ones, by question; empty if it was not asked.
    """

    perplexity: float
    bits_per_byte: float
    answers: dict[str, str] = field(default_factory=dict)

    @property
    def is_english(self) -> bool:
        """Whether the model is a language model of English, so that there is something to lose."""
        return self.bits_per_byte <= WORDS_ALONE


@dataclass(frozen=True)
class Change:
    """What training has changed of it."""

    before: Knowledge
    after: Knowledge

    @property
    def growth(self) -> float:
        """By which share perplexity has grown."""
        return self.after.perplexity / self.before.perplexity - 1

    @property
    def has_forgotten(self) -> bool:
        return self.before.is_english and not self.growth <= BOUND  # nor is it a number

    @property
    def said(self) -> str:
        """In a sentence."""
        before, after = self.before, self.after
        if not before.is_english:
            return (
                f"Before training the model took {before.bits_per_byte:.2f} bits for a byte of English, more than "
                f"word frequencies alone need ({WORDS_ALONE}): it is no language model of English, and has none to lose"
            )
        same = sum(before.answers[question] == answer for question, answer in after.answers.items())
        numbers = (
            f"perplexity on plain English {before.perplexity:.2f} before training, {after.perplexity:.2f} after "
            f"({self.growth:+.1%}), and {same} of {len(after.answers)} plain questions answered as before"
        )
        if self.has_forgotten:
            return f"the model has forgotten some of what it knew: {numbers}. data.rehearsal is the cure"
        return numbers[0].upper() + numbers[1:]

    def to_dict(self) -> dict[str, Any]:
        """Both sides, and what is said of them; for JSON and the report."""
        return {"before": asdict(self.before), "after": asdict(self.after), "said": self.said}


def measure(checkpoint: Checkpoint, *, ask: bool | None = None) -> Knowledge:
    """Reads the page, and asks the questions.

    Args:
        checkpoint: the model, in evaluation mode.
        ask: whether the questions are asked; None asks only a language model of English.
    """
    text = (ENGLISH / "page.txt").read_text(encoding="utf-8").strip()
    nats, tokens = _log_loss(checkpoint, text)
    found = Knowledge(math.exp(nats / tokens), nats / math.log(2) / len(text.encode()))
    if not (found.is_english if ask is None else ask):
        return found
    questions = read_lines("questions.txt")
    answers = Assistant(checkpoint).answer_all(
        [[Message.user(question)] for question in questions], max_new_tokens=ANSWER_TOKENS
    )
    return Knowledge(found.perplexity, found.bits_per_byte, dict(zip(questions, answers, strict=True)))


def read_lines(name: str) -> list[str]:
    """Lines of a file of `ENGLISH`."""
    return (ENGLISH / name).read_text(encoding="utf-8").splitlines()


@torch.no_grad()
def _log_loss(checkpoint: Checkpoint, text: str) -> tuple[float, int]:
    """The negative logarithmic likelihood of a text, in nats, and its tokens; it is read in parts that fit."""
    tokenizer, core = checkpoint.processor.tokenizer, checkpoint.core
    begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    ids = tokenizer.encode(text, add_special_tokens=False)
    total, room = 0.0, checkpoint.context_length - 1
    for start in range(0, len(ids), room):
        window = torch.tensor([[begin, *ids[start : start + room]]], device=core.device)  # [1,T]
        loss = core(input_ids=window, labels=window, return_logits=False).loss  # the mean over all but the first
        total += float(loss) * (window.shape[1] - 1)
    return total, len(ids)
