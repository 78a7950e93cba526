"""A model as llama.cpp loads it: what is in the files. What llama.cpp makes of them is `test_llama_cpp.py`'s."""

import json
import re
import sys
from collections.abc import Callable
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import cli
import gguf
import jinja2
import numpy as np
import pytest
import torch
from conftest import make_image, make_model, make_processor, text_config, vision_config
from families import write_language_model
from test_checkpoint import adapt
from tokenizers import pre_tokenizers
from transformers import AddedToken, CLIPImageProcessorPil, Phi3Config

from eden import CheckpointError, InputError
from eden.checkpoint import Checkpoint, load, load_processor, merge, save
from eden.checkpoint.backbones import LoadOptions, assemble
from eden.core.location import EDEN_TINY_FOLDER
from eden.export.gguf import write_gguf
from eden.export.gguf_tokenizer import read_vocabulary
from eden.model import MultimodalPhiConfig, MultimodalPhiForConditionalGeneration, MultimodalPhiProcessor
from eden.recipe import ModelSection, QuantizationSection
from eden.tiny.dataset import evaluation_set
from tiny_build.tokenizer import phi_tokenizer

ROOT = Path(__file__).parent.parent
TEXTS = [
    *(" ", "  two  spaces ", "a\n\nb\n", "\ttab\r\n", "What colour is it?", "thethethe aaa lele THE END", "x" * 50),
    *("naïve café", "日本語のテキスト", "🌱👩‍👩‍👧", "▁lower", "don't 3.14 + 2!", "a\u00a0b", "[PAD1012]", "\x00\x01"),
]
CONTROL_TEXTS = [
    *("<|end|>", "no <|assistant|>\nyes", "<s></s><unk>", "<|image|>", "<|user|> hi", "<0x41>", "< | end | >"),
]


class File:
    """A GGUF file as its own library reads it."""

    def __init__(self, path: Path):
        reader = gguf.GGUFReader(path)
        self.metadata: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
        self.formats = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
        self.tensors = {
            tensor.name: torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
            for tensor in reader.tensors
        }


def saved(model: MultimodalPhiForConditionalGeneration, processor: MultimodalPhiProcessor, folder: Path) -> str:
    save(Checkpoint(model, processor, "x", None), folder)
    return str(folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[File, File]:
    language_model, vision = write_gguf("eden-tiny", tmp_path_factory.mktemp("gguf"))
    assert (language_model.name, vision.name) == ("eden-tiny-f16.gguf", "mmproj-eden-tiny-f16.gguf")
    return File(language_model), File(vision)


def smollm2(tower: Path, folder: Path) -> str:
    """Its architecture and its kind of tokenizer with random weights, and eyes; a block of rows for `<|image|>`."""
    language = str(write_language_model("smollm2", folder / "language"))
    section = ModelSection(vision=str(tower), language=language, vision_feature="patches", image_aspect="pad")
    torch.manual_seed(0)
    model, processor = assemble(section, LoadOptions(dtype="float32"))
    return saved(model, processor, folder / "smollm2")


@pytest.fixture(scope="module")
def llama(backbones: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[File, Checkpoint]:
    folder = tmp_path_factory.mktemp("llama")
    name = smollm2(backbones[0], folder)
    return File(write_gguf(name, folder / "gguf")[0]), load(name)


@pytest.fixture
def patches(tmp_path: Path) -> str:
    return saved(make_model("patches"), make_processor(4), tmp_path / "patches")


def long_context() -> MultimodalPhiForConditionalGeneration:
    """All that a Phi-3.5 has and eden-tiny has not, with random weights: two sets of factors, shared keys, a window."""
    torch.manual_seed(0)
    config = Phi3Config(
        **{
            **text_config().to_dict(),
            "vocab_size": 1024,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "sliding_window": 512,
            "max_position_embeddings": 1024,
            "original_max_position_embeddings": 256,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10_000.0,
                "partial_rotary_factor": 0.5,
                "original_max_position_embeddings": 256,
                "short_factor": [1.0, 1.1, 1.2, 1.3],
                "long_factor": [1.5, 2.0, 3.0, 4.0],
            },
        }
    )
    model = MultimodalPhiForConditionalGeneration(
        MultimodalPhiConfig(
            vision_config=vision_config(), text_config=config, vision_feature="patches", image_token_id=1011
        )
    ).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def many_merges() -> MultimodalPhiProcessor:
    """eden-tiny's pieces with every pair that joins to a piece, as tokenizers made from SentencePiece have them."""
    pieces = json.loads((EDEN_TINY_FOLDER / "tokenizer.json").read_text())["model"]
    rank = {"".join(pair): index for index, pair in enumerate(pieces["merges"])}
    pairs = [
        (piece[:cut], piece[cut:])
        for piece in sorted(rank, key=rank.__getitem__)
        for cut in range(1, len(piece))
        if piece[:cut] in pieces["vocab"] and piece[cut:] in pieces["vocab"]
    ]
    assert len(pairs) > len(rank)
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return MultimodalPhiProcessor(image_processor, phi_tokenizer(pieces["vocab"], pairs), num_image_tokens=4)


def test_the_language_model_is_the_artifacts(tiny: tuple[File, File]) -> None:
    file, _ = tiny
    state = load("eden-tiny").core.state_dict()
    expected = {
        "token_embd.weight": "model.language_model.embed_tokens.weight",
        "output_norm.weight": "model.language_model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    for layer in range(4):
        expected |= {
            f"blk.{layer}.{ours}.weight": f"model.language_model.layers.{layer}.{theirs}.weight"
            for ours, theirs in {
                "attn_norm": "input_layernorm",
                "attn_qkv": "self_attn.qkv_proj",
                "attn_output": "self_attn.o_proj",
                "ffn_norm": "post_attention_layernorm",
                "ffn_up": "mlp.gate_up_proj",
                "ffn_down": "mlp.down_proj",
            }.items()
        }
    assert set(file.tensors) == set(expected)
    for name, theirs in expected.items():
        is_norm = "norm" in name
        assert file.formats[name] == ("F32" if is_norm else "F16")
        assert file.tensors[name].equal(state[theirs] if is_norm else state[theirs].half().float()), name
    metadata = {
        "general.architecture": "phi3",
        "general.name": "eden-tiny (Phi-3)",
        "phi3.context_length": 1024,
        "phi3.embedding_length": 192,
        "phi3.feed_forward_length": 512,
        "phi3.block_count": 4,
        "phi3.attention.head_count": 6,
        "phi3.attention.head_count_kv": 6,
        "phi3.rope.dimension_count": 16,
        "phi3.rope.freq_base": 10_000.0,
        "phi3.attention.sliding_window": 0,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 1000,
        "tokenizer.ggml.eot_token_id": 1007,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 1000,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": True,
    }
    assert {name: file.metadata[name] for name in metadata} == metadata


def test_every_row_of_the_embedding_has_its_token(tiny: tuple[File, File]) -> None:
    metadata, tokenizer = tiny[0].metadata, load("eden-tiny").processor.tokenizer
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == len(metadata["tokenizer.ggml.scores"]) == 1024
    assert tokens[:1012] == tokenizer.convert_ids_to_tokens(list(range(1012)))
    assert tokens[1012:] == [f"[PAD{row}]" for row in range(1012, 1024)]
    of = gguf.TokenType
    assert types[:4] == [of.UNKNOWN, of.CONTROL, of.NORMAL, of.BYTE]
    assert types[258:260] == [of.BYTE, of.NORMAL]
    assert types[1000:] == [of.CONTROL] * 11 + [of.UNUSED] * 13  # <|image|> is for nobody to type


def sentencepiece(text: str, tokens: dict[str, int], scores: list[float]) -> list[int]:
    """The ids by SentencePiece's rule: join the pair of highest score, the first of equals; the rest falls to bytes."""
    parts = list("▁" + text.replace(" ", "▁"))
    while pairs := [(-scores[tokens[a + b]], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in tokens]:
        _, first = min(pairs)
        parts[first : first + 2] = ["".join(parts[first : first + 2])]
    names = chain.from_iterable([part] if part in tokens else map("<0x{:02X}>".format, part.encode()) for part in parts)
    return [tokens[name] for name in names]


def test_pieces_are_joined_in_the_tokenizers_order(tiny: tuple[File, File], tmp_path: Path) -> None:
    model = saved(long_context(), many_merges(), tmp_path / "long")
    asked = [question.text for *_, question in evaluation_set(200, seed=1, split="test")]
    told = [question.answer for *_, question in evaluation_set(200, seed=2, split="unseen_pairs")]
    for file, name in ((tiny[0], "eden-tiny"), (File(write_gguf(model, tmp_path / "gguf")[0]), model)):
        tokens = {token: row for row, token in enumerate(file.metadata["tokenizer.ggml.tokens"])}
        tokenizer = load(name).processor.tokenizer
        for text in [*TEXTS, *CONTROL_TEXTS, *asked, *told]:
            ids = tokenizer.encode(text, split_special_tokens=True)
            assert sentencepiece(text, tokens, file.metadata["tokenizer.ggml.scores"]) == ids, text


def test_the_chat_template_is_the_processors(tiny: tuple[File, File], llama: tuple[File, Checkpoint]) -> None:
    conversation = [{"role": role, "content": f"{role}'s words"} for role in ("system", "user", "assistant", "user")]
    for file, checkpoint in ((tiny[0], load("eden-tiny")), llama):
        template = file.metadata["tokenizer.chat_template"]
        plain = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(template)
        for messages in (conversation, conversation[1:2]):
            rendered = plain.render(messages=messages, add_generation_prompt=True)
            assert rendered == checkpoint.processor.apply_chat_template(messages, add_generation_prompt=True)


def see(file: File, pixels: torch.Tensor) -> torch.Tensor:
    """Image embeddings [N,D] as llama.cpp's LLaVA graph makes them of pixels [3,H,W], the class token first."""
    of, metadata = file.tensors, file.metadata

    def norm(states: torch.Tensor, name: str) -> torch.Tensor:
        eps = metadata["clip.vision.attention.layer_norm_epsilon"]
        return torch.nn.functional.layer_norm(states, states.shape[-1:], of[f"{name}.weight"], of[f"{name}.bias"], eps)

    def linear(states: torch.Tensor, name: str) -> torch.Tensor:
        return states @ of[f"{name}.weight"].T + of[f"{name}.bias"]

    def heads(states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (metadata["clip.vision.attention.head_count"], -1)).transpose(0, 1)

    stride = metadata["clip.vision.patch_size"]
    patches = torch.nn.functional.conv2d(pixels[None], of["v.patch_embd.weight"], stride=stride).flatten(2)[0].T
    states = torch.cat([of["v.class_embd"][None], patches + of["v.patch_embd.bias"]]) + of["v.position_embd.weight"]
    states = norm(states, "v.pre_ln")
    for layer in range(metadata["clip.vision.feature_layer"][0]):
        block = f"v.blk.{layer}"
        normed = norm(states, f"{block}.ln1")
        query, key, value = (heads(linear(normed, f"{block}.attn_{part}")) for part in "qkv")
        attended = torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(0, 1).flatten(1)
        states = states + linear(attended, f"{block}.attn_out")
        hidden = linear(norm(states, f"{block}.ln2"), f"{block}.ffn_up")
        hidden = (
            torch.nn.functional.gelu(hidden) if metadata["clip.use_gelu"] else hidden * torch.sigmoid(1.702 * hidden)
        )
        states = states + linear(hidden, f"{block}.ffn_down")
    hidden = linear(norm(states, "v.post_ln")[1:], "mm.0")
    return linear(torch.nn.functional.gelu(hidden, approximate="tanh"), "mm.2")


@pytest.mark.parametrize(("activation", "layer"), [("quick_gelu", -2), ("gelu", -1)])
def test_the_eyes_see_the_same(activation: str, layer: int, tmp_path: Path) -> None:
    model = make_model("patches")
    model.config.vision_config.hidden_act = activation
    model.config.vision_feature_layer = layer
    folder = saved(model, make_processor(4), tmp_path / "model")
    file = File(write_gguf(folder, tmp_path / "gguf")[1])
    checkpoint = load(folder)
    pixels = checkpoint.processor.image_processor(make_image("red"), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = checkpoint.core.get_image_features(pixels).pooler_output[0]
    assert file.metadata["clip.vision.block_count"] == 4 + layer
    assert not any(f"v.blk.{4 + layer}." in name for name in file.tensors)
    assert torch.allclose(see(file, pixels[0]), expected, atol=0.02), (see(file, pixels[0]) - expected).abs().max()


def test_eden_tinys_eyes(tiny: tuple[File, File]) -> None:
    file, checkpoint = tiny[1], load("eden-tiny")
    metadata = {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "clip.has_vision_encoder": True,
        "clip.projector_type": "mlp",
        "clip.vision.image_size": 96,
        "clip.vision.patch_size": 16,
        "clip.vision.projection_dim": 192,
        "clip.vision.embedding_length": 128,
        "clip.vision.feed_forward_length": 512,
        "clip.vision.block_count": 3,
        "clip.vision.feature_layer": [3],
        "clip.use_gelu": False,
    }
    assert {name: file.metadata[name] for name in metadata} == metadata
    ((_, image, _),) = evaluation_set(1, seed=3, split="test")
    pixels = checkpoint.processor.image_processor(image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = checkpoint.core.get_image_features(pixels).pooler_output[0]
    assert torch.allclose(see(file, pixels[0]), expected, atol=0.02)


def test_what_a_phi_3_5_has(tmp_path: Path) -> None:
    file = File(write_gguf(saved(long_context(), many_merges(), tmp_path / "long"), tmp_path / "gguf")[0])
    assert file.tensors["rope_factors_long.weight"].tolist() == [1.5, 2.0, 3.0, 4.0]
    assert file.tensors["rope_factors_short.weight"].tolist() == pytest.approx([1.0, 1.1, 1.2, 1.3])
    metadata = {
        "phi3.context_length": 256,  # up to where the short factors hold
        "phi3.rope.scaling.original_context_length": 256,
        "phi3.rope.scaling.attn_factor": pytest.approx((1 + np.log(4) / np.log(256)) ** 0.5),
        "phi3.rope.dimension_count": 8,
        "phi3.attention.head_count": 4,
        "phi3.attention.head_count_kv": 2,
        "phi3.attention.sliding_window": 512,
    }
    assert {name: file.metadata[name] for name in metadata} == metadata


def test_a_llama_is_the_artifacts(llama: tuple[File, Checkpoint]) -> None:
    file, state = llama[0], llama[1].core.state_dict()
    expected = {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight"}
    for layer in range(2):
        expected |= {
            f"blk.{layer}.{ours}.weight": f"layers.{layer}.{theirs}.weight"
            for ours, theirs in {
                "attn_norm": "input_layernorm",
                "attn_q": "self_attn.q_proj",
                "attn_k": "self_attn.k_proj",
                "attn_v": "self_attn.v_proj",
                "attn_output": "self_attn.o_proj",
                "ffn_norm": "post_attention_layernorm",
                "ffn_gate": "mlp.gate_proj",
                "ffn_up": "mlp.up_proj",
                "ffn_down": "mlp.down_proj",
            }.items()
        }
    assert set(file.tensors) == set(expected)  # the head is tied, and left out
    for name, theirs in expected.items():
        weight = state[f"model.language_model.{theirs}"]
        if name.endswith(("attn_q.weight", "attn_k.weight")):  # a head has 32 rows, which RoPE turns by twos
            rows = [head + row for head in range(0, len(weight), 32) for pair in range(16) for row in (pair, pair + 16)]
            weight = weight[rows]
        is_norm = "norm" in name
        assert file.formats[name] == ("F32" if is_norm else "F16")
        assert file.tensors[name].equal(weight if is_norm else weight.half().float()), name
    metadata = {
        "general.architecture": "llama",
        "general.name": "smollm2 (SmolLM2)",
        "llama.context_length": 512,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 128,
        "llama.block_count": 2,
        "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1,
        "llama.attention.key_length": 32,
        "llama.attention.value_length": 32,
        "llama.rope.dimension_count": 32,
        "llama.rope.freq_base": 100_000.0,
    }
    assert {name: file.metadata[name] for name in metadata} == metadata
    assert "llama.attention.sliding_window" not in file.metadata


def read_as_llama(file: File, ids: list[int]) -> torch.Tensor:
    """Logits [T,V] as llama.cpp's graph of a Llama makes them: neighbours of a head are turned together."""
    of, metadata = file.tensors, file.metadata
    width, counts = metadata["llama.rope.dimension_count"], metadata["llama.attention.head_count"]
    turns = metadata["llama.rope.freq_base"] ** -(torch.arange(0, width, 2) / width)
    angles = torch.arange(len(ids))[:, None] * turns  # [T,width/2]
    group = counts // metadata["llama.attention.head_count_kv"]

    def norm(states: torch.Tensor, name: str) -> torch.Tensor:
        eps = metadata["llama.attention.layer_norm_rms_epsilon"]
        return torch.nn.functional.rms_norm(states, states.shape[-1:], of[f"{name}.weight"], eps)

    def heads(states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (-1, width)).transpose(0, 1)

    def turned(states: torch.Tensor) -> torch.Tensor:
        first, second, cos, sin = states[..., ::2], states[..., 1::2], angles.cos(), angles.sin()
        return torch.stack([first * cos - second * sin, first * sin + second * cos], -1).flatten(-2)

    states = of["token_embd.weight"][ids]
    for layer in range(metadata["llama.block_count"]):
        weight = {part: of[f"blk.{layer}.{part}.weight"].T for part in ("ffn_gate", "ffn_up", "ffn_down")}
        weight |= {part: of[f"blk.{layer}.attn_{part}.weight"].T for part in ("q", "k", "v", "output")}
        normed = norm(states, f"blk.{layer}.attn_norm")
        query, key, value = (heads(normed @ weight[part]) for part in "qkv")
        key, value = (each.repeat_interleave(group, 0) for each in (turned(key), value))
        attended = torch.nn.functional.scaled_dot_product_attention(turned(query), key, value, is_causal=True)
        states = states + attended.transpose(0, 1).flatten(1) @ weight["output"]
        normed = norm(states, f"blk.{layer}.ffn_norm")
        gated = torch.nn.functional.silu(normed @ weight["ffn_gate"]) * (normed @ weight["ffn_up"])
        states = states + gated @ weight["ffn_down"]
    return norm(states, "output_norm") @ of["token_embd.weight"].T


def test_a_llama_reads_the_same(llama: tuple[File, Checkpoint]) -> None:
    file, checkpoint = llama
    ids = checkpoint.processor.encode([{"role": "user", "content": TEXTS[4]}], add_generation_prompt=True)["input_ids"]
    with torch.no_grad():
        expected = checkpoint.core(input_ids=torch.tensor([ids])).logits[0]
    assert len(ids) > 30
    assert torch.allclose(read_as_llama(file, ids), expected, atol=0.01 * float(expected.abs().max()))


def test_a_llamas_tokenizer_is_bytes_and_merges(llama: tuple[File, Checkpoint]) -> None:
    metadata, processor = llama[0].metadata, load_processor(llama[1].name)
    tokenizer, model = processor.tokenizer, json.loads(processor.tokenizer.backend_tokenizer.to_str())["model"]
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == llama[1].config.text_config.vocab_size == 320 and len(tokenizer) == 306
    assert tokens[:306] == tokenizer.convert_ids_to_tokens(list(range(306)))
    assert tokens[305] == "<|image|>" and tokens[306:] == [f"[PAD{row}]" for row in range(306, 320)]
    of = gguf.TokenType
    assert types == [of.NORMAL] * 300 + [of.CONTROL] * 5 + [of.UNUSED] * 15
    assert metadata["tokenizer.ggml.merges"] == [f"{left} {right}" for left, right in model["merges"]]
    expected = {
        "model": "gpt2",
        "pre": "smollm",
        "eos_token_id": tokens.index("<|im_end|>"),
        "eot_token_id": tokens.index("<|im_end|>"),
        "padding_token_id": tokens.index("<|im_end|>"),
        "add_bos_token": False,
        "add_eos_token": False,
        "add_space_prefix": False,
    }
    assert {name: metadata[f"tokenizer.ggml.{name}"] for name in expected} == expected
    assert "tokenizer.ggml.scores" not in metadata
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    vocabulary = read_vocabulary(processor, llama[1].config, "gpt2")
    assert vocabulary.cut == "gpt-2" and list(vocabulary.tokens) == tokens


def test_a_tied_head_is_written_once(tmp_path: Path) -> None:
    model = make_model("patches")
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    model.lm_head.weight = model.get_input_embeddings().weight
    file = File(write_gguf(saved(model, make_processor(4), tmp_path / "tied"), tmp_path / "gguf")[0])
    assert "token_embd.weight" in file.tensors and "output.weight" not in file.tensors


@pytest.mark.parametrize(("outtype", "error"), [("bf16", 2**-8), ("q8_0", 2**-7)])
def test_other_number_formats(outtype: str, error: float, patches: str, tmp_path: Path) -> None:
    paths = write_gguf(patches, tmp_path / "gguf", outtype)
    assert [path.name for path in paths] == [f"patches-{outtype}.gguf", "mmproj-patches-f16.gguf"]
    file, weight = File(paths[0]), load(patches).core.lm_head.weight
    assert file.formats["output.weight"] == outtype.upper() and file.formats["output_norm.weight"] == "F32"
    off = (file.tensors["output.weight"] - weight).abs().max() / weight.abs().max()
    assert 0 < off < error


def test_a_matrix_too_large_for_f16_is_f32(tmp_path: Path) -> None:
    model = make_model("patches")
    model.lm_head.weight.data[0, 0] = model.model.projector.linear_1.weight.data[0, 0] = 1e5
    files = [File(path) for path in write_gguf(saved(model, make_processor(4), tmp_path / "model"), tmp_path / "gguf")]
    for file, name in zip(files, ("output.weight", "mm.0.weight"), strict=True):
        assert file.formats[name] == "F32" and file.tensors[name][0, 0] == 1e5
        assert list(file.formats.values()).count("F16") > 4


def test_an_adapter_is_merged_and_rounded_once(patches: str, tmp_path: Path) -> None:
    """Of a base that is stored in bf16, whatever this machine computes in."""
    save(load(patches, LoadOptions(dtype="bfloat16")), tmp_path / "base")
    adapt(tmp_path / "base", tmp_path / "run")
    language_model, vision = write_gguf(str(tmp_path / "run"), tmp_path / "gguf")
    state = merge(load(str(tmp_path / "run"), LoadOptions(dtype="float32"))).core.state_dict()
    qkv = File(language_model).tensors["blk.0.attn_qkv.weight"]
    weight = state["model.language_model.layers.0.self_attn.qkv_proj.weight"]
    assert not weight.equal(weight.bfloat16().float()) and qkv.equal(weight.half().float())
    assert File(vision).tensors["mm.0.weight"].equal(state["model.projector.linear_1.weight"].half().float())


def other_epsilon(model: MultimodalPhiForConditionalGeneration, processor: MultimodalPhiProcessor) -> None:
    model.config.vision_config.layer_norm_eps = 1e-6


def other_activation(model: MultimodalPhiForConditionalGeneration, processor: MultimodalPhiProcessor) -> None:
    model.config.projector_hidden_act = "relu"


def other_tokenizer(model: MultimodalPhiForConditionalGeneration, processor: MultimodalPhiProcessor) -> None:
    processor.tokenizer.backend_tokenizer.normalizer = None


def other_control_token(model: MultimodalPhiForConditionalGeneration, processor: MultimodalPhiProcessor) -> None:
    processor.tokenizer.add_tokens([AddedToken("<|tool|>", special=True, rstrip=False)], special_tokens=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            other_epsilon,
            "cannot see as it does: the tower's norms have an epsilon of 1e-06, the projector's 1e-05. Use",
        ),
        (other_activation, "the projector's activation is relu. Use --to hf."),
        (other_tokenizer, "its tokenizer is not of Phi-3's kind. Export a Phi-3, Phi-3.5 or SmolLM2, or use --to hf."),
        (other_control_token, "its tokenizer is not of Phi-3's kind."),
    ],
)
def test_what_llama_cpp_cannot_do_is_refused(change: Callable[..., None], message: str, tmp_path: Path) -> None:
    model, processor = make_model("patches"), make_processor(4)
    change(model, processor)
    folder = saved(model, processor, tmp_path / "model")
    Path(folder, "model.safetensors").unlink()  # weights are not asked for
    with pytest.raises(InputError) as error:
        write_gguf(folder, tmp_path / "gguf")
    assert message in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def llama3_rope(config: dict[str, Any], tokenizer: dict[str, Any]) -> None:
    scaled = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 256}
    config["text_config"]["rope_parameters"] |= {"rope_type": "llama3", **scaled}


def another_activation(config: dict[str, Any], tokenizer: dict[str, Any]) -> None:
    config["text_config"]["hidden_act"] = "gelu"


def other_words(config: dict[str, Any], tokenizer: dict[str, Any]) -> None:
    tokenizer["pre_tokenizer"]["pretokenizers"].pop()


def swallowed_space(config: dict[str, Any], tokenizer: dict[str, Any]) -> None:
    tokenizer["added_tokens"][0]["rstrip"] = True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (llama3_rope, "no GGUF file is written of a SmolLM2 with RoPE of type 'llama3'. Use --to hf."),
        (another_activation, "no GGUF file is written of a language model with the activation gelu. Use --to hf."),
        (other_words, "its tokenizer is not of SmolLM2's kind. Export a Phi-3, Phi-3.5 or SmolLM2, or use --to hf."),
        (swallowed_space, "its tokenizer is not of SmolLM2's kind."),
    ],
)
def test_what_llama_cpp_cannot_do_with_a_llama_is_refused(
    change: Callable[..., None], message: str, llama: tuple[File, Checkpoint], tmp_path: Path
) -> None:
    folder = tmp_path / "model"  # without weights
    llama[1].config.save_pretrained(folder)
    llama[1].processor.save_pretrained(folder)
    files = {name: folder / f"{name}.json" for name in ("config", "tokenizer")}
    contents = {name: json.loads(path.read_text()) for name, path in files.items()}
    change(**contents)
    for name, path in files.items():
        path.write_text(json.dumps(contents[name]))
    with pytest.raises(CheckpointError, match=re.escape(message)):
        write_gguf(str(folder), tmp_path / "gguf")
    assert not (tmp_path / "gguf").exists()


def test_a_name_does_not_make_a_phi_3(llama: tuple[File, Checkpoint], tmp_path: Path) -> None:
    """By it, llama.cpp would look for tokens that a SmolLM2 has not."""
    save(llama[1], tmp_path / "no-phi3")
    path = write_gguf(str(tmp_path / "no-phi3"), tmp_path / "gguf")[0]
    assert path.name == "no-phi3-f16.gguf" and File(path).metadata["general.name"] == "no-Phi 3 (SmolLM2)"


def test_a_pooled_model_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "pooled"
    make_model("pooled").config.save_pretrained(folder)
    done = cli.eden("export", folder, "--to", "gguf", tmp_path / "gguf")
    assert done.returncode == 2 and done.stdout == ""
    assert "llama.cpp cannot see with one pooled embedding an image. Train with model.vision_feature=patches" in (
        " ".join(done.stderr.split())
    )
    assert [path.name for path in tmp_path.iterdir()] == ["pooled"]


def test_weights_in_four_bits_are_refused(patches: str, tmp_path: Path) -> None:
    checkpoint = load(patches, LoadOptions(quantization=QuantizationSection(), dtype="bfloat16"))
    checkpoint.model.save_pretrained(tmp_path / "nf4")
    checkpoint.processor.save_pretrained(tmp_path / "nf4")
    with pytest.raises(CheckpointError, match="the weights are quantized"):
        write_gguf(str(tmp_path / "nf4"), tmp_path / "gguf")


def test_other_models_and_formats_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"no number format 'q4_0'. Use one of f16, bf16, q8_0."):
        write_gguf("eden-tiny", tmp_path / "gguf", "q4_0")
    text_config().save_pretrained(tmp_path / "phi")
    with pytest.raises(CheckpointError, match="cannot see"):
        write_gguf(str(tmp_path / "phi"), tmp_path / "gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r"writing GGUF needs gguf. pip install 'eden-multimodal\[export\]'"):
        write_gguf("eden-tiny", tmp_path / "gguf")


def test_the_command_names_both_files(patches: str, tmp_path: Path) -> None:
    done = cli.eden("export", patches, tmp_path / "out", "--to", "gguf", "--json")
    assert done.returncode == 0, done.stderr
    files = ["patches-f16.gguf", "mmproj-patches-f16.gguf"]
    assert json.loads(done.stdout) == {"folder": str(tmp_path / "out"), "files": files}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(files)
