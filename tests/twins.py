"""Twins of the repositories that the recipe `phi3.5-mini` names: files, layouts and spellings of the real ones, tiny.

Weights are random and small, vocabularies short, pictures of one colour; all else is as it is published.
"""

import io
import json
from pathlib import Path
from typing import Any

import torch
from conftest import EMBEDDING_ROWS, IMAGE_SIZE, make_image, make_tokenizer, text_config, vision_config
from hub import Repository
from safetensors.torch import save
from transformers import CLIPConfig, CLIPModel, Phi3ForCausalLM
from transformers.utils import sentencepiece_model_pb2_new as sentencepiece

from eden.core.location import EDEN_TINY_FOLDER
from tiny_build.tokenizer import CONTROL_TOKENS

CLIP = "models/openai/clip-vit-base-patch32"
PHI = "models/microsoft/Phi-3.5-mini-instruct"
WHISPER = "models/Systran/faster-whisper-small"
INSTRUCT = "datasets/liuhaotian/LLaVA-Instruct-150K"

REMOTE_CODE = "import os, pathlib\npathlib.Path(os.environ['HF_HOME'], 'remote-code-ran').touch()\n"
"""Of the modules that Phi-3.5's `auto_map` names."""

LEGACY = json.loads(
    """{"bad_words_ids": null, "diversity_penalty": 0.0, "do_sample": false, "early_stopping": false,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "is_decoder": false, "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "length_penalty": 1.0, "max_length": 20, "min_length": 0, "num_beams": 1, "output_scores": false, "prefix": null,
    "pruned_heads": {}, "return_dict": true, "tie_word_embeddings": true, "tokenizer_class": null, "top_k": 50,
    "torch_dtype": null, "torchscript": false, "transformers_version": "4.16.0.dev0", "use_bfloat16": false}"""
)
"""Some of what the configurations of 2021 said of everything; CLIP's says it of each tower."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>\n' + "
    "message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + "
    "'<|end|>\n'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)


def written(content: Any) -> bytes:
    return json.dumps(content, indent=2).encode()


def clip() -> Repository:
    """Both towers in one pickle, a configuration of 2021, and the same weights for other libraries beside it."""
    vision = vision_config().to_diff_dict() | LEGACY | {"projection_dim": 24}
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= LEGACY | {"vocab_size": 99, "projection_dim": 24, "bos_token_id": 0, "eos_token_id": 2}
    text |= {"model_type": "clip_text_model"}
    config = {
        "_name_or_path": "openai/clip-vit-base-patch32",
        "architectures": ["CLIPModel"],
        "initializer_factor": 1.0,
        "logit_scale_init_value": 2.6592,
        "model_type": "clip",
        "projection_dim": 24,
        "text_config": text,
        "text_config_dict": None,
        "torch_dtype": "float32",
        "transformers_version": None,
        "vision_config": vision,
        "vision_config_dict": None,
    }
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(**{key: value for key, value in config.items() if not key.endswith("_dict")}))
    weights = dict(model.state_dict())
    for tower, places in (("text_model", 77), ("vision_model", (IMAGE_SIZE // 16) ** 2 + 1)):  # once saved, now not
        weights[f"{tower}.embeddings.position_ids"] = torch.arange(places).expand((1, -1))
    pickle = io.BytesIO()
    torch.save(weights, pickle)
    pixels = {
        "crop_size": IMAGE_SIZE,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": IMAGE_SIZE,
    }
    files = {
        "README.md": b"---\ntags:\n- vision\n---\n",
        "config.json": written(config),
        "flax_model.msgpack": b"of no use here",
        "preprocessor_config.json": written(pixels),
        "pytorch_model.bin": pickle.getvalue(),
        "tf_model.h5": b"of no use here",
        "tokenizer_config.json": written({"model_max_length": 77, "name_or_path": "openai/clip-vit-base-patch32"}),
        "vocab.json": b"{}",
        "merges.txt": b"#version: 0.2\n",
    }
    return Repository({}, files)


def phi() -> Repository:
    """Remote code that must not run, weights in two shards, long and short factors, and a tokenizer of Llama's kind."""
    shape = text_config()
    half = shape.hidden_size // shape.num_attention_heads // 2
    config = {
        "_name_or_path": "Phi-3.5-mini-instruct",
        "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_phi3.Phi3Config",
            "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
        },
        "bos_token_id": 1,
        "embd_pdrop": 0.0,
        "eos_token_id": shape.eos_token_id,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": 131072,
        "model_type": "phi3",
        "num_attention_heads": shape.num_attention_heads,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_key_value_heads": shape.num_key_value_heads,
        "original_max_position_embeddings": 4096,
        "pad_token_id": shape.pad_token_id,
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "long_factor": [1.08 + 4 * place for place in range(half)],
            "short_factor": [1.0 + 0.05 * place for place in range(half)],
            "type": "longrope",
        },
        "rope_theta": 10000.0,
        "sliding_window": 262144,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.43.3",
        "use_cache": True,
        "vocab_size": EMBEDDING_ROWS,
    }
    torch.manual_seed(0)
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in Phi3ForCausalLM(shape).state_dict().items()}
    shards: dict[str, dict[str, torch.Tensor]] = {f"model-0000{part}-of-00002.safetensors": {} for part in (1, 2)}
    for name, tensor in weights.items():
        shards[f"model-0000{2 if 'layers.1' in name or 'lm_head' in name else 1}-of-00002.safetensors"][name] = tensor
    total = sum(tensor.nbytes for tensor in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": {name: at for at in shards for name in shards[at]}}
    ids = {token: make_tokenizer().convert_tokens_to_ids(token) for token in CONTROL_TOKENS}
    generation = {"_from_model_config": True, "bos_token_id": 1, "pad_token_id": ids["<|endoftext|>"]}
    generation |= {"eos_token_id": [ids["<|end|>"], ids["<|assistant|>"], ids["<|endoftext|>"]]}
    files = {
        "README.md": b"---\nlicense: mit\npipeline_tag: text-generation\n---\n",
        "LICENSE": b"MIT\n",
        "added_tokens.json": written(ids),
        "config.json": written(config),
        "configuration_phi3.py": REMOTE_CODE.encode(),
        "generation_config.json": written(generation | {"transformers_version": "4.43.3"}),
        **{name: save(tensors, metadata={"format": "pt"}) for name, tensors in shards.items()},
        "model.safetensors.index.json": written(index),
        "modeling_phi3.py": REMOTE_CODE.encode(),
        "sample_finetune.py": REMOTE_CODE.encode(),
        **phi_tokenizer_files(ids),
    }
    return Repository({}, files)


def phi_tokenizer_files(ids: dict[str, int]) -> dict[str, bytes]:
    """`</s>` is an added token that is not special and strips to its right; so do most of the control tokens."""
    added = {0: added_token("<unk>"), 1: added_token("<s>"), 2: added_token("</s>", special=False, rstrip=True)}
    added |= {at: added_token(token, rstrip=token != "<|endoftext|>") for token, at in ids.items()}
    content = json.loads(make_tokenizer().backend_tokenizer.to_str())
    content["added_tokens"] = [{"id": at, **token} for at, token in added.items()]
    config = {
        "add_bos_token": False,
        "add_eos_token": False,
        "added_tokens_decoder": added,
        "bos_token": "<s>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "legacy": False,
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "padding_side": "left",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    }
    whole = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    names = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<unk>"}
    model = sentencepiece.ModelProto()
    model.trainer_spec.model_type, model.trainer_spec.byte_fallback = sentencepiece.TrainerSpec.BPE, True
    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3}
    for piece, at in sorted(content["model"]["vocab"].items(), key=lambda pair: pair[1]):
        kind = kinds.get(piece, 6 if piece.startswith("<0x") else 1)
        model.pieces.add(piece=piece, score=-float(at), type=kind)
    return {
        "special_tokens_map.json": written({name: {"content": token, **whole} for name, token in names.items()}),
        "tokenizer.json": written(content),
        "tokenizer.model": model.SerializeToString(),
        "tokenizer_config.json": written(config),
    }


def added_token(content: str, *, special: bool = True, rstrip: bool = False) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": rstrip, "single_word": False, "special": special}
    return {"content": content, **flags}


def whisper() -> Repository:
    """The speech model of eden-tiny, by the names that faster-whisper asks for."""
    folder = EDEN_TINY_FOLDER / "whisper"
    names = ("config.json", "model.bin", "preprocessor_config.json", "tokenizer.json", "vocabulary.json")
    return Repository({}, {"README.md": b"---\nlicense: mit\n---\n", **{n: (folder / n).read_bytes() for n in names}})


def instruct() -> Repository:
    """Conversations, descriptions and reasoning about pictures of COCO, the picture before the words or behind them."""
    records = [
        {
            "id": name,
            "image": f"{name}.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nwhich colour is it" if at % 2 else "which colour is it\n<image>"},
                {"from": "gpt", "value": colour},
                {"from": "human", "value": "say more"},
                {"from": "gpt", "value": f"it is all {colour} and nothing else"},
            ],
        }
        for at, (name, colour) in enumerate(pictures().items())
    ]
    parts = {"complex_reasoning_77k": records[1::2], "conversation_58k": records[::2], "detail_23k": []}
    files = {f"{name}.json": written(part) for name, part in (parts | {"llava_instruct_150k": records}).items()}
    return Repository({}, {"README.md": b"---\nlicense: cc-by-4.0\n---\n", **files})


def pictures() -> dict[str, str]:
    """Colours by COCO's numbers, as LLaVA-Instruct writes them."""
    colours = ["red", "lime", "blue", "white", "black", "yellow", "cyan", "magenta"]
    return {f"{33471 + at:012d}": colours[at % len(colours)] for at in range(16)}


def write_coco(folder: Path) -> None:
    """What the archives of COCO unpack to, and POPE's questions about some of it, as they are published."""
    for name in ("train2017", "val2014"):
        (folder / name).mkdir()
    questions = []
    for at, (number, colour) in enumerate(pictures().items()):
        make_image(colour, (64, 48)).save(folder / "train2017" / f"{number}.jpg")
        asked = {"question_id": at, "image": f"COCO_val2014_{number}.jpg", "image_id": int(number)}
        make_image(colour, (64, 48)).save(folder / "val2014" / asked["image"])
        questions.append(asked | {"text": "Is there a dog in the image?", "label": "no" if at % 2 else "yes"})
    lines = "".join(f"{json.dumps(question)}\n" for question in questions[:6])
    (folder / "coco_pope_random.json").write_text(lines)
