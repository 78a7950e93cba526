"""eden-tiny's tokenizer: trained on the world's sentences, laid out as Phi-3.5's is.

0 <unk>  1 <s>  2 </s>  3..258 bytes  259.. pieces | <|endoftext|> <|assistant|> ... <|user|> | <|image|> | padding
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CONTROL_TOKENS = (
    "<|endoftext|>",
    "<|assistant|>",
    "<|placeholder1|>",
    "<|placeholder2|>",
    "<|placeholder3|>",
    "<|placeholder4|>",
    "<|system|>",
    "<|end|>",
    "<|placeholder5|>",
    "<|placeholder6|>",
    "<|user|>",
)
"""In the order of Phi-3.5's ids 32000 to 32010."""

FIRST_PIECES = ("<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)))
"""Ids 0 to 258."""

PRINTABLE = [chr(code) for code in range(33, 127)]
"""Every printable character is a piece of its own, so that anything typed has short ids; the rest falls to bytes."""


def train_tokenizer(sentences: Iterable[str], pieces: int = 1000) -> PreTrainedTokenizerFast:
    """A byte-fallback BPE of at most `pieces` pieces, bytes and `<unk>`, `<s>`, `</s>` included."""
    draft = Tokenizer(models.BPE(unk_token="<unk>"))
    draft.normalizer = _normalizer()
    # No piece may span two words, or a word and a sign: "star?" must be read as "star" is.
    draft.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("▁", "merged_with_next"),
            pre_tokenizers.Split(Regex(r"[^\p{L}▁]"), "isolated"),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=pieces,
        special_tokens=list(FIRST_PIECES),
        initial_alphabet=["▁", *PRINTABLE],
        min_frequency=2,
        show_progress=False,
    )
    draft.train_from_iterator(sentences, trainer)
    learned = json.loads(draft.to_str())["model"]
    return phi_tokenizer(learned["vocab"], [tuple(pair) for pair in learned["merges"]])


def phi_tokenizer(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> PreTrainedTokenizerFast:
    """A tokenizer of Phi-3.5's kind over the given pieces; the control tokens take the ids behind them."""
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = _normalizer()
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(
        [AddedToken(t, special=True, normalized=False, rstrip=t != "<|endoftext|>") for t in CONTROL_TOKENS]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )


def _normalizer() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
