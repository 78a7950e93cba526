"""A tokenizer in the words of llama.cpp: `llama`, pieces with scores, or `gpt2`, bytes with merges in their order.

Phi-3's is a byte-fallback BPE, which joins the pair whose merge was learned first; llama.cpp reads it as SentencePiece
does, which joins the pair whose piece scores highest: if a piece's score is the rank of its merge, negated, both join
the same pairs. SmolLM2's is GPT-2's, and llama.cpp knows by a name how it cuts text into words.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from ..model import MultimodalPhiConfig, MultimodalPhiProcessor
from ..model.families import FAMILIES
from ..model.processing import IMAGE_TOKEN

SPACE = "▁"
PHI_NORMALIZER = [("Prepend", SPACE), ("Replace", SPACE)]
NEVER_SWALLOWING = ("<unk>", "<s>", "<|endoftext|>")
"""Of a model whose name says Phi-3, llama.cpp lets all control tokens but these swallow the whitespace behind them."""
NAMED_BY_LLAMA_CPP = {*NEVER_SWALLOWING, "</s>"}
"""It also looks these up, and fails to load a model called Phi-3 that lacks one."""
SPECIAL_SCORE, UNUSED_SCORE = -1000.0, -10000.0

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
CUTS = {"gpt-2": [BYTES], "smollm": [DIGITS, BYTES]}
"""How text is cut into words, by llama.cpp's names. transformers reads SmolLM2's as GPT-2's where the tokenizer's files
name that class."""

Kind = Literal["llama", "gpt2"]
"""llama.cpp's names of the two kinds."""


@dataclass(frozen=True)
class Vocabulary:
    """One entry for each row of the embedding.

    Attributes:
        kind: of the tokenizer.
        cut: llama.cpp's name of how text is cut into words.
        tokens: texts; a padding row has a name of its own.
        types: `gguf.TokenType` as numbers.
        merges: pairs of tokens, the first learned first.
    """

    kind: Kind
    cut: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[tuple[str, str], ...]

    @property
    def scores(self) -> list[float]:
        """Of the tokens: the higher, the earlier joined."""
        from gguf import TokenType

        ranks: dict[str, int] = {}
        for rank, pair in enumerate(self.merges):
            ranks.setdefault("".join(pair), rank)
        special = {TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN}
        of_kind = {TokenType.UNUSED: UNUSED_SCORE} | dict.fromkeys(special, SPECIAL_SCORE)
        typed = zip(self.tokens, self.types, strict=True)
        return [of_kind.get(TokenType(kind), -float(ranks.get(token, 0))) for token, kind in typed]


def read_vocabulary(processor: MultimodalPhiProcessor, config: MultimodalPhiConfig, kind: Kind) -> Vocabulary | None:
    """The vocabulary of a model; None if its tokenizer is not of the kind, as llama.cpp knows it.

    `<|image|>` is listed as unused: llama.cpp puts an image's embeddings in place of its own marker, so that nothing a
    user types may become that token.
    """
    from gguf import TokenType

    tokenizer = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    model, added = tokenizer["model"], [token for token in tokenizer["added_tokens"] if token["content"] != IMAGE_TOKEN]
    cut = _cut_of_pieces(tokenizer, added) if kind == "llama" else _cut_of_bytes(tokenizer, added)
    if cut is None:
        return None
    entries = [(f"[PAD{row}]", TokenType.UNUSED) for row in range(config.text_config.vocab_size)]
    for piece, row in model["vocab"].items():
        is_byte = model["byte_fallback"] and re.fullmatch(r"<0x[0-9A-F]{2}>", piece)
        entries[row] = (piece, TokenType.BYTE if is_byte else TokenType.NORMAL)
    for token in added:
        entries[token["id"]] = (token["content"], TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED)
    if kind == "llama":
        entries[model["vocab"]["<unk>"]] = ("<unk>", TokenType.UNKNOWN)
    entries[config.image_token_id] = (IMAGE_TOKEN, TokenType.UNUSED)
    tokens, types = zip(*entries, strict=True)
    return Vocabulary(kind, cut, tokens, tuple(map(int, types)), tuple(map(tuple, model["merges"])))


def add_vocabulary(writer: Any, vocabulary: Vocabulary, processor: MultimodalPhiProcessor) -> None:
    """Puts it into a `gguf.GGUFWriter`, with the chat template and the tokens that begin and end things."""
    tokenizer = processor.tokenizer
    writer.add_tokenizer_model(vocabulary.kind)
    writer.add_tokenizer_pre(vocabulary.cut)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.kind == "llama":
        writer.add_token_scores(vocabulary.scores)
    else:
        writer.add_token_merges([" ".join(pair) for pair in vocabulary.merges])
    for name in ("bos", "eos", "unk", "pad"):
        if (token_id := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(token_id)
    writer.add_eot_token_id(tokenizer.convert_tokens_to_ids(FAMILIES[processor.family].ends[0]))
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(vocabulary.kind == "llama")
    # transformers' own tags, which say what an assistant has said and print nothing; not every reader knows them.
    writer.add_chat_template(re.sub(r"\{%-? *(end)?generation *-?%\}", "", processor.chat_template))


def _cut_of_pieces(tokenizer: dict[str, Any], added: list[dict[str, Any]]) -> str | None:
    """Whether it reads text as llama.cpp reads a Phi-3's: pieces, bytes, spaces, and what control tokens swallow."""
    model = tokenizer["model"]
    if model["type"] != "BPE" or not model["byte_fallback"] or tokenizer["pre_tokenizer"] is not None:
        return None
    steps = (tokenizer["normalizer"] or {}).get("normalizers", [])
    if [(step["type"], step.get("prepend", step.get("content"))) for step in steps] != PHI_NORMALIZER:
        return None
    swallowing = all(token["rstrip"] == (token["content"] not in NEVER_SWALLOWING) for token in added)
    tokens = {*model["vocab"], *(token["content"] for token in added)}
    is_phi = swallowing and not any(token["lstrip"] for token in added) and tokens >= NAMED_BY_LLAMA_CPP
    return "default" if is_phi else None


def _cut_of_bytes(tokenizer: dict[str, Any], added: list[dict[str, Any]]) -> str | None:
    """How it cuts text, if it reads bytes as GPT-2's does and its control tokens swallow nothing."""
    model, cut = tokenizer["model"], tokenizer["pre_tokenizer"] or {}
    if model["type"] != "BPE" or model["byte_fallback"] or model["ignore_merges"] or tokenizer["normalizer"]:
        return None
    if any(token["lstrip"] or token["rstrip"] for token in added):
        return None
    steps = cut.get("pretokenizers", [cut])
    return next((name for name, known in CUTS.items() if steps == known), None)
