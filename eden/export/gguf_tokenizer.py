"""Phi-3's tokenizer in the words of llama.cpp: pieces with scores, as SentencePiece has them.

A byte-fallback BPE joins the pair whose merge was learned first, SentencePiece the pair whose piece scores highest: if
a piece's score is the rank of its merge, negated, both join the same pairs.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from ..checkpoint import Checkpoint
from ..errors import CheckpointError
from ..model.processing import IMAGE_TOKEN

SPACE = "▁"
PHI_NORMALIZER = [("Prepend", SPACE), ("Replace", SPACE)]
NEVER_SWALLOWING = ("<unk>", "<s>", "<|endoftext|>")
"""Of a model whose name says Phi-3, llama.cpp lets all control tokens but these swallow the whitespace behind them."""
NAMED_BY_LLAMA_CPP = {*NEVER_SWALLOWING, "</s>"}
"""It also looks these up, and fails to load a model called Phi-3 that lacks one."""
SPECIAL_SCORE, UNUSED_SCORE = -1000.0, -10000.0


@dataclass(frozen=True)
class Vocabulary:
    """One entry for each row of the embedding.

    Attributes:
        tokens: texts; a padding row has a name of its own.
        scores: the higher, the earlier joined.
        types: `gguf.TokenType` as numbers.
    """

    tokens: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]


def read_vocabulary(checkpoint: Checkpoint) -> Vocabulary:
    """The vocabulary of a model.

    `<|image|>` is listed as unused: llama.cpp puts an image's embeddings in place of its own marker, so that nothing a
    user types may become that token.

    Raises:
        CheckpointError: the tokenizer is not of Phi-3's kind.
    """
    from gguf import TokenType

    tokenizer = json.loads(checkpoint.processor.tokenizer.backend_tokenizer.to_str())
    if not _is_of_phi(tokenizer):
        raise CheckpointError(
            "its tokenizer is not of Phi-3's kind",
            where=checkpoint.name,
            hint="Export a Phi-3 or Phi-3.5, or use --to hf.",
        )
    model = tokenizer["model"]
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(model["merges"]):
        ranks.setdefault("".join(pair), rank)
    rows = checkpoint.config.text_config.vocab_size
    entries = [(f"[PAD{row}]", UNUSED_SCORE, TokenType.UNUSED) for row in range(rows)]
    for piece, row in model["vocab"].items():
        kind = TokenType.BYTE if re.fullmatch(r"<0x[0-9A-F]{2}>", piece) else TokenType.NORMAL
        entries[row] = (piece, -float(ranks.get(piece, 0)), kind)
    for token in tokenizer["added_tokens"]:
        kind = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
        entries[token["id"]] = (token["content"], SPECIAL_SCORE, kind)
    entries[model["vocab"]["<unk>"]] = ("<unk>", SPECIAL_SCORE, TokenType.UNKNOWN)
    entries[checkpoint.config.image_token_id] = (IMAGE_TOKEN, UNUSED_SCORE, TokenType.UNUSED)
    tokens, scores, types = zip(*entries, strict=True)
    return Vocabulary(tokens, scores, tuple(map(int, types)))


def add_vocabulary(writer: Any, vocabulary: Vocabulary, checkpoint: Checkpoint) -> None:
    """Puts it into a `gguf.GGUFWriter`, with the chat template and the tokens that begin and end things."""
    tokenizer = checkpoint.processor.tokenizer
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    for name in ("bos", "eos", "unk", "pad"):
        if (token_id := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(token_id)
    writer.add_eot_token_id(tokenizer.convert_tokens_to_ids("<|end|>"))
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(True)
    # transformers' own tags, which say what an assistant has said and print nothing; not every reader knows them.
    writer.add_chat_template(re.sub(r"\{%-? *(end)?generation *-?%\}", "", checkpoint.processor.chat_template))


def _is_of_phi(tokenizer: dict[str, Any]) -> bool:
    """Whether it reads text as llama.cpp reads a Phi-3's: pieces, bytes, spaces, and what control tokens swallow."""
    model = tokenizer["model"]
    if model["type"] != "BPE" or not model["byte_fallback"] or tokenizer["pre_tokenizer"] is not None:
        return False
    steps = (tokenizer["normalizer"] or {}).get("normalizers", [])
    if [(step["type"], step.get("prepend", step.get("content"))) for step in steps] != PHI_NORMALIZER:
        return False
    control = [token for token in tokenizer["added_tokens"] if token["content"] != IMAGE_TOKEN]
    swallowing = all(token["rstrip"] == (token["content"] not in NEVER_SWALLOWING) for token in control)
    tokens = {*model["vocab"], *(token["content"] for token in control)}
    return swallowing and not any(token["lstrip"] for token in control) and tokens >= NAMED_BY_LLAMA_CPP
