"""Sizes of towers and language models, as their repositories publish them: no network is needed to plan."""

from __future__ import annotations

from typing import Any

from transformers import CLIPVisionConfig, LlamaConfig, Phi3Config, PreTrainedConfig, Qwen3Config, SmolLM3Config


def _sizes(width: int, inside: int, layers: int, heads: int, keys: int, rows: int, context: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": inside,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "vocab_size": rows,
        "max_position_embeddings": context,
    }


def _smollm2(width: int, inside: int, layers: int, heads: int, keys: int) -> LlamaConfig:
    sizes = _sizes(width, inside, layers, heads, keys, 49_152, 8192)
    return LlamaConfig(**sizes, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2)


def _qwen3(width: int, inside: int, layers: int, heads: int) -> Qwen3Config:
    sizes = _sizes(width, inside, layers, heads, 8, 151_936, 40_960)
    return Qwen3Config(**sizes, head_dim=128, tie_word_embeddings=True, eos_token_id=151_645)


PUBLISHED: dict[str, PreTrainedConfig] = {
    "openai/clip-vit-base-patch32": CLIPVisionConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        image_size=224,
        patch_size=32,
        projection_dim=512,
    ),
    "microsoft/Phi-3.5-mini-instruct": Phi3Config(
        **_sizes(3072, 8192, 32, 32, 32, 32_064, 4096), pad_token_id=32_000, eos_token_id=32_000, bos_token_id=1
    ),
    "microsoft/Phi-4-mini-instruct": Phi3Config(
        **_sizes(3072, 8192, 32, 24, 8, 200_064, 4096),
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.75},
        pad_token_id=199_999,
        eos_token_id=199_999,
        bos_token_id=199_999,
    ),
    "HuggingFaceTB/SmolLM2-135M-Instruct": _smollm2(576, 1536, 30, 9, 3),
    "HuggingFaceTB/SmolLM2-360M-Instruct": _smollm2(960, 2560, 32, 15, 5),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": _smollm2(2048, 8192, 24, 32, 32),
    "HuggingFaceTB/SmolLM3-3B": SmolLM3Config(**_sizes(2048, 11_008, 36, 16, 4, 128_256, 65_536)),
    "Qwen/Qwen3-0.6B": _qwen3(1024, 3072, 28, 16),
    "Qwen/Qwen3-1.7B": _qwen3(2048, 6144, 28, 16),
    "Qwen/Qwen3-4B": _qwen3(2560, 9728, 36, 32),
}
"""By hub id. A context is the one that a model was trained in, before any stretching of its rotary embedding."""

TOKENS = {name: config.vocab_size for name, config in PUBLISHED.items() if "SmolLM" in name}
"""Tokens of those whose tokenizers fill all rows, so that `<|image|>` needs a new one; the others have spare ones."""
