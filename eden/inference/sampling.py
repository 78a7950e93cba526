"""How an answer is sampled: the one set of options of engine, plain `generate`, command line and server."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from .grammar import Grammar

GREEDY_BELOW = 1e-6
"""A temperature under this is greedy: dividing by it would only overflow."""


@dataclass(frozen=True)
class Sampling:
    """How an answer is sampled. What cannot be is refused when the object is made.

    Attributes:
        max_new_tokens: the longest answer, in tokens.
        temperature: 0 is greedy: always the likeliest token.
        top_p: sample from the likeliest tokens that together hold this probability, one at least; 1 is off.
        seed: makes answers repeatable; None is another one each time.
        top_k: sample from this many of the likeliest tokens; 0 is off.
        repetition_penalty: above 1, what was said (question included) becomes less likely; 1 is off.
            Source: CTRL, https://arxiv.org/abs/1909.05858.
        stop: the answer ends before the first of these strings.
        logprobs: also give each token's logarithmic probability and those of this many likeliest tokens; None gives
            none. They are the model's own, before grammar, temperature, penalty and cuts.
        grammar: the answer fits this JSON schema, if there is room for all of it (`Assistant.grammar`); None is free.

    Raises:
        InputError: a value out of its range; the message names the field.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    top_k: int = 0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        _check("max_new_tokens", self.max_new_tokens, int, 1, math.inf, "a whole number from 1")
        _check("temperature", self.temperature, float, 0, 100, "a number from 0 (greedy) to 100")
        _check("top_p", self.top_p, float, 0, 1, "a number from 0 to 1 (off)")
        _check("top_k", self.top_k, int, 0, math.inf, "a whole number from 0 (off)")
        _check("repetition_penalty", self.repetition_penalty, float, 0.01, 100, "a number from 0.01 to 100, 1 is off")
        if self.seed is not None:
            _check("seed", self.seed, int, -(2**63), 2**64 - 1, "a whole number of 64 bits")
        if self.logprobs is not None:
            _check("logprobs", self.logprobs, int, 0, 20, "a whole number from 0 to 20")
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise InputError("not a sequence of strings that hold something", where="stop", hint="Use ('\\n\\n',).")
        object.__setattr__(self, "stop", tuple(self.stop))

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    def for_generate(self) -> dict[str, Any]:
        """The same for transformers' `generate`, the plain reference of the engine.

        `seed` is `torch.manual_seed`'s to set; with `stop`, `generate` also needs its `tokenizer`, and leaves the stop
        string in the answer; with `logprobs` it returns a dictionary with the `logits` of every step.

        Raises:
            InputError: there is a grammar, which `generate` knows nothing of.
        """
        if self.grammar is not None:
            raise InputError("generate follows no grammar", where="grammar", hint="Ask the engine.")
        options: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "do_sample": not self.is_greedy}
        if not self.is_greedy:
            options |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        if self.repetition_penalty != 1:
            options["repetition_penalty"] = self.repetition_penalty
        if self.stop:
            options["stop_strings"] = list(self.stop)
        if self.logprobs is not None:
            options |= {"return_dict_in_generate": True, "output_logits": True}
        return options


def _check(name: str, value: Any, kind: type, low: float, high: float, range_in_words: str) -> None:
    kinds = (int,) if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        raise InputError(f"{value!r} is not possible", where=name, hint=f"Give {range_in_words}.")
