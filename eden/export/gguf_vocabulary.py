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
NAMED_BY_LLAMA_CPP = (*NEVER_SWALLOWING, "</s>")
"""It also looks these up, and fails to load a model called Phi-3 that lacks one."""
SPECIAL_SCORE, UNUSED_SCORE = -1000.0, -10000.0


@dataclass(frozen=True)
class Vocabulary:
    """One entry for each row of the embedding.

    Attributes:
        tokens: texts; a padding row has a name of its own.
        scores: the higher, the earlier joined.
        types: `gguf.TokenType` as numbers.
        swallowing: whether control tokens swallow the whitespace behind them.
    """

    tokens: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]
    swallowing: bool


def read_vocabulary(checkpoint: Checkpoint) -> Vocabulary:
    """The vocabulary of a model.

    `<|image|>` is listed as unused: llama.cpp puts an image's embeddings in place of its own marker, so that nothing a
    user types may become that token.

    Raises:
        CheckpointError: the tokenizer is not of Phi-3's kind.
    """
    from gguf import TokenType

    tokenizer = json.loads(checkpoint.processor.tokenizer.backend_tokenizer.to_str())
    model, added = tokenizer["model"], tokenizer["added_tokens"]
    _check_kind(tokenizer, checkpoint.name)
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(model["merges"]):
        ranks.setdefault("".join(pair), rank)
    rows = checkpoint.config.text_config.vocab_size
    entries = [(f"[PAD{row}]", UNUSED_SCORE, TokenType.UNUSED) for row in range(rows)]
    for piece, row in model["vocab"].items():
        kind = TokenType.BYTE if re.fullmatch(r"<0x[0-9A-F]{2}>", piece) else TokenType.NORMAL
        entries[row] = (piece, -float(ranks.get(piece, 0)), kind)
    for token in added:
        kind = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
        entries[token["id"]] = (token["content"], SPECIAL_SCORE, kind)
    unknown = model["vocab"][model["unk_token"]]
    entries[unknown] = (model["unk_token"], 0.0, TokenType.UNKNOWN)
    entries[checkpoint.config.image_token_id] = (IMAGE_TOKEN, UNUSED_SCORE, TokenType.UNUSED)
    tokens, scores, types = zip(*entries, strict=True)
    swallowing = _swallowing(added, set(tokens), checkpoint.name)
    return Vocabulary(tokens, scores, tuple(map(int, types)), swallowing)


def add_vocabulary(writer: Any, vocabulary: Vocabulary, checkpoint: Checkpoint) -> None:
    """Puts it into a `gguf.GGUFWriter`, with the chat template and the tokens that begin and end things."""
    tokenizer = checkpoint.processor.tokenizer
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_eot_token_id(tokenizer.convert_tokens_to_ids("<|end|>"))
    writer.add_unk_token_id(tokenizer.unk_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(True)
    # transformers' own tags, which say what an assistant has said and print nothing; not every reader knows them.
    writer.add_chat_template(re.sub(r"\{%-? *(end)?generation *-?%\}", "", checkpoint.processor.chat_template))


def _check_kind(tokenizer: dict[str, Any], where: str) -> None:
    steps = (tokenizer["normalizer"] or {}).get("normalizers", [])
    found = [(step["type"], step.get("prepend", step.get("content"))) for step in steps]
    model = tokenizer["model"]
    if (
        not (model["type"] == "BPE" and model["byte_fallback"] and found == PHI_NORMALIZER)
        or tokenizer["pre_tokenizer"]
    ):
        raise CheckpointError(
            "its tokenizer is not of Phi-3's kind", where=where, cure="Export a Phi-3 or Phi-3.5, or use --to hf."
        )


def _swallowing(added: list[dict[str, Any]], tokens: set[str], where: str) -> bool:
    """Whether llama.cpp must take the model for a Phi-3 to read whitespace behind control tokens as the tokenizer does.

    Raises:
        CheckpointError: it does as neither would.
    """
    found = {token["content"]: token["rstrip"] for token in added if token["content"] != IMAGE_TOKEN}
    if not any(found.values()):
        return False
    as_phi = all(swallows == (token not in NEVER_SWALLOWING) for token, swallows in found.items())
    if not as_phi or any(token["lstrip"] for token in added) or not tokens.issuperset(NAMED_BY_LLAMA_CPP):
        raise CheckpointError(
            "its control tokens treat whitespace as neither Phi-3's nor none do", where=where, cure="Use --to hf."
        )
    return True
