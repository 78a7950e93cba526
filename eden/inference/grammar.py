"""Answers that fit a JSON schema: of each next token, which the schema still allows.

    schema -> judged in another process -> Grammar, once a schema -> Constraint, one an answer -> Sampler

llguidance (https://github.com/guidance-ai/llguidance) keeps the state of a parser and says what may follow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from cachetools import LRUCache

from ..checkpoint import Checkpoint
from ..errors import InputError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from .schema_check import Judge

REMEMBERED_GRAMMARS = 64
ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
"""The schema of `json_object`: any object."""


class Constraint:
    """What one answer may go on with."""

    def __init__(self, matcher: LLMatcher):
        self._matcher = matcher

    def forbidden(self) -> torch.Tensor:
        """Which tokens may not come next: bool [V]. The closing one may once the answer is whole, and others no more.

        Raises:
            InputError: following the schema from here on takes too much.
        """
        allowed = self._matcher.compute_logit_bias()  # a byte each, 0 is forbidden
        if self._matcher.is_error():
            raise _refusal("the schema is too complex to be followed")
        return torch.frombuffer(bytearray(allowed), dtype=torch.uint8) == 0

    def advance(self, token_id: int) -> None:
        """Goes on with a token that was not forbidden."""
        self._matcher.consume_token(token_id)


class Grammar:
    """A schema compiled for a model's tokenizer; any thread may start answers with it."""

    def __init__(self, matcher: LLMatcher):
        self._matcher = matcher

    def start(self) -> Constraint:
        return Constraint(self._matcher.deep_copy())


class Grammars:
    """Compiles schemas for one model, and keeps those that were asked for last. Any thread may."""

    def __init__(self, checkpoint: Checkpoint):
        self._checkpoint = checkpoint
        self._judge: Judge | None = None
        self._tokenizer: LLTokenizer | None = None
        self._kept: LRUCache[str, Grammar] = LRUCache(REMEMBERED_GRAMMARS)
        self._lock = Lock()

    def compile(self, schema: Mapping[str, Any]) -> Grammar:
        """A schema's grammar. A new one is first tried in another process, which takes some seconds at most.

        Raises:
            InputError: it is no JSON schema, it holds what is not supported, or nothing can fit it.
        """
        try:
            text = json.dumps(schema, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            raise _refusal("the schema is not JSON") from None
        with self._lock:
            if text not in self._kept:
                self._kept[text] = self._compiled(text)
            return self._kept[text]

    def _compiled(self, schema: str) -> Grammar:
        try:
            import llguidance
        except ImportError as error:
            raise InputError("JSON schemas need llguidance", hint="pip install 'eden-multimodal[serve]'") from error
        from .schema_check import LIMITS, TOO_COMPLEX, Judge, to_grammar

        if self._judge is None:
            self._judge = Judge()
        if fault := self._judge.fault_of(schema):
            raise _refusal(fault)
        if self._tokenizer is None:
            self._tokenizer = _tokenizer(self._checkpoint)
        matcher = llguidance.LLMatcher(self._tokenizer, to_grammar(schema), log_level=0, limits=LIMITS)
        grammar = Grammar(matcher)
        try:
            grammar.start().forbidden()
        except InputError:
            raise _refusal(TOO_COMPLEX) from None
        return grammar


def _tokenizer(checkpoint: Checkpoint) -> LLTokenizer:
    """The model's tokenizer as llguidance reads it; control tokens stand for no text, whatever they are called."""
    import llguidance

    described = json.loads(checkpoint.processor.tokenizer.backend_tokenizer.to_str())
    for token in described["added_tokens"]:
        token["special"] = True  # `</s>` of Phi-3.5 says that it is not
    closing = checkpoint.core.generation_config.eos_token_id
    return llguidance.LLTokenizer(
        json.dumps(described),
        n_vocab=checkpoint.config.text_config.vocab_size,
        eos_token=closing[0] if isinstance(closing, list) else closing,
        slices=llguidance.LLTokenizer.json_slices(),
    )


def _refusal(fault: str) -> InputError:
    return InputError(f"{fault[:1].lower()}{fault[1:200]}", where="json_schema", kind="invalid_json_schema")
