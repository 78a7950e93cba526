"""Decisions: the exact probability of each answer of a closed set, many questions about one picture for one reading.

    prefix       <|user|> <|image|> ...              read once; its keys and values are kept
    branch 1       Is it cracked? <|assistant|>      behind it all branches in one row: a token sees the prefix and
                     yes                             what stands before it in its own branch, and nothing else
                     no
    branch 2       Which kind is it? <|assistant|>
                     hex                             an answer's score is the sum of its tokens' logarithmic
                     hex nut                         probabilities, the closing <|end|> included: no answer is another's
                                                     beginning

Tokens of a row in a tree: SpecInfer, https://arxiv.org/abs/2305.09781.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..checkpoint import Checkpoint
from ..checkpoint.calibration import Fitted
from ..core.answers import AnswerSet, Kind
from ..core.private_api import attention_of
from ..errors import ContextError, InputError
from ..model.attention import PACKED_SDPA
from ..model.loss import IGNORE_INDEX
from .prefill import ImageMemory, Prefill

BRANCH_TOKENS = 512
"""Tokens behind a prefix that are read at once; they all meet in one mask."""
BATCH_TOKENS = 8192
"""Tokens of the readings of one batch, padding included."""
MOST_READINGS = 64
"""Readings of one batch."""


@dataclass(frozen=True)
class DecisionQuestion:
    """A question with the answers it may have; `name` comes back with its decision."""

    text: str
    answers: AnswerSet
    name: str | None = None


@dataclass(frozen=True)
class Decision:
    """How likely each answer is.

    Attributes:
        kind: of the question.
        probabilities: of the answers in the order given; they sum up to 1.
        calibrated: whether a temperature fitted on held-out samples is in them.
        refused: the likeliest answer is less likely than the threshold that the model was calibrated with.
        name: of the question.
    """

    kind: Kind
    probabilities: dict[str, float]
    calibrated: bool = False
    refused: bool = False
    name: str | None = None

    @classmethod
    def of(
        cls, answers: AnswerSet, logs: Sequence[float], name: str | None = None, fitted: Fitted | None = None
    ) -> Decision:
        """From the logarithmic probabilities of the answers, normalised over them, with what was fitted if it was."""
        temperature = 1.0 if fitted is None else fitted.temperature
        highest = max(logs)
        weights = [math.exp((log - highest) / temperature) for log in logs]
        total = math.fsum(weights)  # exact: whatever the order of the answers
        probabilities = dict(zip(answers.answers, (weight / total for weight in weights), strict=True))
        threshold = None if fitted is None else fitted.threshold
        refused = threshold is not None and max(probabilities.values()) < threshold
        return cls(answers.kind, probabilities, fitted is not None, refused, name)

    @property
    def answer(self) -> str:
        """The likeliest; of equals the first."""
        return max(self.probabilities, key=self.probabilities.__getitem__)

    @property
    def probability(self) -> float:
        """Of the likeliest answer."""
        return max(self.probabilities.values())

    @property
    def confidence(self) -> float:
        """1 minus the normalised entropy: 0 where all answers are as likely, 1 where one is certain."""
        entropy = -sum(p * math.log(p) for p in self.probabilities.values() if p > 0)
        return min(1.0, max(0.0, 1 - entropy / math.log(len(self.probabilities))))

    @property
    def score(self) -> float | None:
        """Of levels the mean, the lowest being 1; None of other kinds."""
        if self.kind != "score":
            return None
        return sum(place * p for place, p in enumerate(self.probabilities.values(), 1))

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "name": self.name,
            "kind": self.kind,
            "answer": self.answer,
            "probability": round(self.probability, 6),
            "confidence": round(self.confidence, 6),
            "probabilities": {answer: round(p, 6) for answer, p in self.probabilities.items()},
            "calibrated": self.calibrated,
            "refused": self.refused,
        }
        return found if self.score is None else found | {"score": round(self.score, 6)}


@dataclass(frozen=True)
class Branch:
    """The end of a question behind a prefix, and the tokens of each answer, its closing token included."""

    ids: Sequence[int]
    answers: Sequence[Sequence[int]]

    @property
    def tokens(self) -> int:
        return len(self.ids) + sum(len(answer) - 1 for answer in self.answers)


@dataclass(frozen=True)
class Reading:
    """What is read once, with `pixels` [I,3,H,W] of the images in it, and the questions behind it."""

    prefix: Sequence[int]
    pixels: torch.Tensor | None
    branches: Sequence[Branch]

    @property
    def all_tokens(self) -> int:
        return len(self.prefix) + sum(branch.tokens for branch in self.branches)

    @property
    def tokens(self) -> int:
        """Those of them that are held at once."""
        return min(self.all_tokens, len(self.prefix) + BRANCH_TOKENS)

    def check(self, context_length: int) -> None:
        """Refuses what the model cannot read.

        Raises:
            ContextError: a question is too long.
        """
        longest = max(len(b.ids) + max(map(len, b.answers)) for b in self.branches) + len(self.prefix)
        if longest > context_length:
            what = f"this model's maximum context length is {context_length:,} tokens; question and answer have "
            raise ContextError(f"{what}{longest:,}", hint="Shorten the question.")

    def fits(self, batch: Sequence[Reading], max_tokens: int = BATCH_TOKENS) -> bool:
        """Whether it can be read beside those of a batch, padding included; the first always can."""
        widest = max(other.tokens for other in (*batch, self))
        return not batch or (len(batch) < MOST_READINGS and widest * (len(batch) + 1) <= max_tokens)

    @classmethod
    def of(
        cls, examples: Sequence[dict[str, Any]], answers: Sequence[Sequence[Sequence[int]]], image_id: int
    ) -> Reading:
        """Of questions with the same images, encoded to be answered; the first carries their pixels.

        Args:
            examples: of `MultimodalPhiProcessor.encode`.
            answers: the tokens of each question's answers.
            image_id: of `<|image|>`.

        Raises:
            InputError: an image stands behind words in which the questions differ.
        """
        prompts = [example["input_ids"] for example in examples]
        # One token of each is left: what comes next is known behind a token that is read.
        alike = itertools.takewhile(lambda ids: len(set(ids)) == 1, zip(*prompts, strict=False))
        shared = min(sum(1 for _ in alike), *(len(ids) - 1 for ids in prompts))
        branches = [Branch(ids[shared:], found) for ids, found in zip(prompts, answers, strict=True)]
        if any(image_id in branch.ids for branch in branches):
            raise InputError("an image behind the words of a question", hint="Show the images before the questions.")
        return cls(prompts[0][:shared], examples[0].get("pixel_values"), branches)


def answer_ids(checkpoint: Checkpoint, text: str) -> list[int]:
    """An answer's tokens and the closing one, as training has them.

    Raises:
        InputError: it contains a control token.
    """
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}]
    try:
        encoded = checkpoint.processor.encode(turns)
    except ValueError as error:
        raise InputError(str(error), where=repr(text), hint="Leave it out of the answer.") from error
    return [label for label in encoded["labels"] if label != IGNORE_INDEX]


def batches(checkpoint: Checkpoint, readings: Iterable[Reading]) -> Iterator[list[Reading]]:
    """Readings in order, as many at once as fit.

    Raises:
        ContextError: one is longer than the model reads.
    """
    batch: list[Reading] = []
    for reading in readings:
        reading.check(checkpoint.context_length)
        if not reading.fits(batch):
            yield batch
            batch = []
        batch.append(reading)
    if batch:
        yield batch


@torch.inference_mode()
def score(checkpoint: Checkpoint, images: ImageMemory, readings: Sequence[Reading]) -> list[list[list[float]]]:
    """The logarithmic probability of each answer, by reading and question.

    Args:
        checkpoint: the model.
        images: remembers those seen last.
        readings: of one batch.
    """
    scoring = Scoring(checkpoint, images, readings)
    while (found := scoring.advance(BATCH_TOKENS)) is None:
        pass
    return found


class Scoring:
    """The readings of one batch while they are scored, a pass at a time, so that others get their turn between two."""

    def __init__(self, checkpoint: Checkpoint, images: ImageMemory, readings: Sequence[Reading]):
        pixels = [image for reading in readings if reading.pixels is not None for image in reading.pixels]
        self._checkpoint = checkpoint
        self._prefill = Prefill(checkpoint, [reading.prefix for reading in readings], images.encode(pixels))
        self._is_read = False
        self._parts = [_parts(reading) for reading in readings]
        self._done = 0
        self._found = [[[0.0] * len(branch.answers) for branch in reading.branches] for reading in readings]

    def advance(self, max_tokens: int) -> list[list[list[float]]] | None:
        """One pass: over the prefixes, of a single one `max_tokens` at most, or over the next part behind them.

        Returns:
            What `score` does once it was the last, else None.
        """
        if not self._is_read:
            self._is_read = self._prefill.advance(max_tokens) is not None
            return None
        width, part = max(self._prefill.lengths), slice(self._done, self._done + 1)
        trees = [_Tree(length, parts[part]) for length, parts in zip(self._prefill.lengths, self._parts, strict=True)]
        logs = _read(self._checkpoint, self._prefill, trees, width)
        for found, tree, of_tree in zip(self._found, trees, logs, strict=True):
            for (branch, answer), log in zip(tree.owners, of_tree, strict=True):
                found[branch][answer] += log
        self._prefill.cache.crop(width - self._prefill.cache.get_seq_length())
        self._done += 1
        return self._found if self._done == max(map(len, self._parts)) else None


_Part = list[tuple[int, Sequence[int], dict[int, Sequence[int]]]]
"""Branches read at once: number, ids, and some of its answers by number."""


def _parts(reading: Reading) -> list[_Part]:
    """A reading's branches and answers in parts of at most `BRANCH_TOKENS`; who is cut is asked again."""
    parts: list[_Part] = [[]]
    tokens = 0
    for number, branch in enumerate(reading.branches):
        some: dict[int, Sequence[int]] = {}
        # In the order of their tokens: the order in which answers are named changes not a bit.
        for place in sorted(range(len(branch.answers)), key=lambda place: list(branch.answers[place])):
            more = len(branch.answers[place]) - 1 + (0 if some else len(branch.ids))
            if tokens and tokens + more > BRANCH_TOKENS:
                parts.append([])
                some, tokens, more = {}, 0, len(branch.answers[place]) - 1 + len(branch.ids)
            if not some:
                parts[-1].append((number, branch.ids, some))
            some[place] = branch.answers[place]
            tokens += more
    return parts


class _Tree:
    """A part of a reading as one row: its tokens, what each sees, and where the answers' tokens are foretold."""

    def __init__(self, start: int, parts: Sequence[_Part]):
        self.start = start
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.seen: list[list[int]] = []
        self.nodes: list[int] = []  # K of them, each foretells the target at its place
        self.targets: list[int] = []
        self.owners: list[tuple[int, int]] = []  # the branch and answer that a target is of
        for branch, ids, answers in (entry for part in parts for entry in part):
            question = self._add([], ids)
            for answer, tokens in answers.items():
                path = self._add(question, tokens[:-1])
                self.nodes += path[len(question) - 1 :]
                self.targets += tokens
                self.owners += [(branch, answer)] * len(tokens)

    def _add(self, path: list[int], ids: Sequence[int]) -> list[int]:
        """Adds tokens behind those of a path; returns the longer path."""
        for token in ids:
            path = [*path, len(self.ids)]
            self.ids.append(token)
            self.positions.append(self.start + len(path) - 1)
            self.seen.append(path)
        return path


def _read(checkpoint: Checkpoint, prefill: Prefill, trees: Sequence[_Tree], width: int) -> list[list[float]]:
    """The logarithmic probabilities of the trees' targets, behind prefixes that are read, `width` columns of them."""
    device = checkpoint.core.device
    ids, positions = _padded([tree.ids for tree in trees]), _padded([tree.positions for tree in trees])
    needed = [sorted(set(tree.nodes)) for tree in trees]  # many answers begin behind the same token
    visible = torch.zeros(*ids.shape[:1], 1, ids.shape[1], width + ids.shape[1], dtype=torch.bool)
    visible[..., 0] = True  # padding sees something: a row without would be not a number
    for row, tree in enumerate(trees):
        visible[row, 0, : len(tree.ids), : tree.start] = True
        for place, seen in enumerate(tree.seen):
            visible[row, 0, place, [width + other for other in seen]] = True
    if (window := getattr(checkpoint.config.text_config, "sliding_window", None)) is not None:
        columns = torch.cat([torch.arange(width).expand(len(trees), -1), positions], dim=1)
        visible &= (columns[:, None] > positions[:, :, None] - window)[:, None]
    with _masked_attention(checkpoint):
        logits = checkpoint.model(
            input_ids=ids.to(device),
            attention_mask=visible.to(device),
            position_ids=positions.to(device),
            past_key_values=prefill.cache,
            use_cache=True,
            logits_to_keep=_padded(needed).to(device),
        ).logits.float()  # [rows, nodes, V]
    totals, found = logits.logsumexp(-1), []
    for row, tree in enumerate(trees):
        kept = {node: index for index, node in enumerate(needed[row])}
        nodes = [kept[node] for node in tree.nodes]
        found.append((logits[row, nodes, tree.targets] - totals[row, nodes]).tolist())
    return found


def _padded(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Rows of numbers as a tensor, filled up with zeros."""
    width = max(1, *map(len, rows))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])


@contextmanager
def _masked_attention(checkpoint: Checkpoint) -> Iterator[None]:
    """Attention that takes a mask of every pair: flash kernels take none, and eager's is another kind of mask."""
    language, before = checkpoint.core.model.language_model, attention_of(checkpoint.config.text_config)
    if before in ("sdpa", PACKED_SDPA):
        yield
        return
    language.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        language.set_attn_implementation(before)
