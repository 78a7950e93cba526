"""From logits to tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ..errors import InputError
from .sampling import Sampling


@dataclass(frozen=True, slots=True)
class Token:
    """A token of an answer.

    Attributes:
        id: in the tokenizer's vocabulary.
        logprob: natural logarithm of its probability, if asked for.
        top: the likeliest tokens at its place, the first the likeliest: `(id, logprob)`.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Samples the tokens of one answer. They depend on its own logits, ids and seed, and on no other answer's.

    The steps and their order are those of transformers' `generate`, whose classes do them: penalty, temperature,
    top_k, top_p, then one sample. With a seed the tokens are those of `generate` after `torch.manual_seed`.
    What a grammar forbids is gone before all of them.
    """

    def __init__(self, sampling: Sampling, device: torch.device):
        self.sampling = sampling
        self.constraint = None if sampling.grammar is None else sampling.grammar.start()
        self._processors = LogitsProcessorList()
        if sampling.repetition_penalty != 1:
            self._processors.append(RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty)))
        if not sampling.is_greedy:
            if sampling.temperature != 1:
                self._processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
            if sampling.top_k > 0:
                self._processors.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self._processors.append(TopPLogitsWarper(float(sampling.top_p)))
            self._generator = torch.Generator(device)
            if sampling.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(sampling.seed)
        self.is_argmax = sampling.is_greedy and not self._processors

    def sample(self, logits: torch.Tensor, ids: Sequence[int]) -> int:
        """One token.

        Args:
            logits: float32 [V].
            ids: question and answer so far.

        Raises:
            RuntimeError: the logits hold no distribution (infinite or not a number).
        """
        so_far = torch.tensor([ids], device=logits.device)
        scores = self._processors(so_far, logits.unsqueeze(0))
        if self.sampling.is_greedy:
            return int(scores.argmax(-1))
        return int(torch.multinomial(scores.softmax(-1), num_samples=1, generator=self._generator))


def sample_tokens(
    logits: torch.Tensor, samplers: Sequence[Sampler], ids: Sequence[Sequence[int]]
) -> list[Token | Exception]:
    """One token for each row, or why it could not be sampled.

    Args:
        logits: float32 [B,V].
        samplers: B of them.
        ids: for each row, question and answer so far.
    """
    allowed, failed = _constrained(logits, samplers)
    likeliest: list[int] = allowed.argmax(-1).tolist()  # every greedy row in one call and one wait for the device
    tokens: list[Token | Exception] = []
    for row, sampler in enumerate(samplers):
        if row in failed:
            tokens.append(failed[row])
            continue
        try:
            token_id = likeliest[row] if sampler.is_argmax else sampler.sample(allowed[row], ids[row])
            tokens.append(_with_logprobs(token_id, logits[row], sampler.sampling.logprobs))
            if sampler.constraint is not None:
                sampler.constraint.advance(token_id)
        except RuntimeError as error:
            tokens.append(error)
    return tokens


def _constrained(logits: torch.Tensor, samplers: Sequence[Sampler]) -> tuple[torch.Tensor, dict[int, InputError]]:
    """The logits [B,V] without what the rows' grammars forbid, and the rows where following one takes too much."""
    constraints = {row: of.constraint for row, of in enumerate(samplers) if of.constraint is not None}
    if not constraints:
        return logits, {}
    allowed, failed = logits.clone(), dict[int, InputError]()
    for row, constraint in constraints.items():
        try:
            allowed[row].masked_fill_(constraint.forbidden().to(logits.device), -torch.inf)
        except InputError as error:
            failed[row] = error
    return allowed, failed


def _with_logprobs(token_id: int, logits: torch.Tensor, top: int | None) -> Token:
    if top is None:
        return Token(token_id)
    logprobs = logits.log_softmax(-1)
    best = logprobs.topk(top)
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return Token(token_id, float(logprobs[token_id]), tuple(pairs))
