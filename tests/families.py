"""A tiny twin of each family of language models: its architecture, its kind of tokenizer, random weights."""

from pathlib import Path
from typing import Any

import torch
from conftest import make_tokenizer, text_config
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    SmolLM3Config,
)

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,  # of 32, the narrowest that vLLM has on a CPU
    "num_key_value_heads": 1,
    "tie_word_embeddings": True,
    "max_position_embeddings": 512,
}
PHI4 = ("<|endoftext|>", "<|endofprompt|>", "<|assistant|>", "<|end|>", "<|user|>", "<|system|>", "<|tool|>")
SMOLLM2 = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<filename>")
SMOLLM3 = ("<|begin_of_text|>", "<|end_of_text|>", "<think>", "</think>", "<|im_start|>", "<|im_end|>")
QWEN3 = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<think>", "</think>")


WORDS = ("What colour is the circle that is left of the red star? It is white, and there are 12 other ones.\n\nYes.",)


def byte_tokenizer(
    control: tuple[str, ...], eos: str, pad: str, swallowing: bool = False, words: tuple[str, ...] = ()
) -> PreTrainedTokenizerFast:
    """Bytes as tokens, as GPT-2 spells them, and parts of words, but no two digits; control tokens behind them."""
    backend = Tokenizer(models.BPE())
    digits, letters = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, letters])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(words, trainer)
    backend.add_tokens(
        [
            AddedToken(token, special="think" not in token, normalized=False, rstrip=swallowing and token != eos)
            for token in control
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, pad_token=pad)


def twin(family: str) -> tuple[PreTrainedConfig, PreTrainedTokenizerFast]:
    """A configuration and a tokenizer. As published, SmolLM2 and SmolLM3 have no spare row, and the others do."""
    if family == "phi3":
        return text_config(), make_tokenizer()
    if family == "phi4":
        tokenizer = byte_tokenizer(PHI4, "<|endoftext|>", "<|endoftext|>", swallowing=True)
        return Phi3Config(**SIZES | IDS, vocab_size=320, rope_parameters=PARTIAL), tokenizer
    if family == "smollm2":
        tokenizer = byte_tokenizer(SMOLLM2, "<|im_end|>", "<|im_end|>", words=WORDS)
        ids = IDS | dict.fromkeys(("eos_token_id", "pad_token_id"), tokenizer.eos_token_id)
        return LlamaConfig(**SIZES | ids, vocab_size=len(tokenizer), rope_parameters=WIDE), tokenizer
    if family == "smollm3":
        tokenizer = byte_tokenizer(SMOLLM3, "<|im_end|>", "<|im_end|>")
        return SmolLM3Config(**SIZES | IDS, vocab_size=262, no_rope_layer_interval=2), tokenizer
    tokenizer = byte_tokenizer(QWEN3, "<|im_end|>", "<|endoftext|>")
    return Qwen3Config(**SIZES | IDS, vocab_size=320, head_dim=32), tokenizer


IDS = {"bos_token_id": None, "eos_token_id": 256, "pad_token_id": 256}
WIDE = {"rope_type": "default", "rope_theta": 100000.0}
PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75}


def write_language_model(family: str, folder: Path) -> Path:
    """A folder as the hub has it."""
    config, tokenizer = twin(family)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim == 2:  # wide enough that the likeliest token is clear
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
