"""A model as llama.cpp, and whatever is built on it, loads it: the language model in one file, vision in another.

    <name>-f16.gguf  mmproj-<name>-f16.gguf

What the tensors mean is said by llama.cpp's graphs, https://github.com/ggml-org/llama.cpp: `src/models/` and
`tools/mtmd/models/llava.cpp`. Names and number formats come from its library, gguf.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from .. import checkpoint as checkpoints
from ..checkpoint import Checkpoint
from ..checkpoint.artifact import Artifact
from ..checkpoint.backbones import LoadOptions
from ..core.files import new_folder
from ..core.private_api import is_quantized
from ..errors import CheckpointError, InputError
from ..model import MultimodalPhiProcessor
from ..model.families import FAMILIES
from .gguf_tensors import FORMATS, number_format, write_tensors
from .gguf_tokenizer import Kind, Vocabulary, add_vocabulary, read_vocabulary
from .gguf_vision import check_vision, write_vision


@dataclass(frozen=True)
class Language:
    """What differs in llama.cpp between families of language models; all else is the same code.

    Attributes:
        architecture: its name in the library gguf.
        tokenizer: its kind.
        rope_types: that it computes, by transformers' names.
        paired: projections whose rows RoPE turns, two and two; transformers has all the first of a head, then all the
            second, and llama.cpp each beside its other.
    """

    architecture: str
    tokenizer: Kind
    rope_types: tuple[str, ...]
    paired: tuple[str, ...] = ()


LANGUAGES = {
    "phi3": Language("PHI3", "llama", ("default", "longrope")),
    "smollm2": Language("LLAMA", "gpt2", ("default",), ("q_proj", "k_proj")),
}
"""By the names of `model.families`."""
TRY = "Export a Phi-3, Phi-3.5 or SmolLM2, or use --to hf."


def write_gguf(model: str, folder: str | Path, outtype: str = "f16") -> tuple[Path, Path]:
    """Writes a model's two files; an adapter is merged first.

    Args:
        model: `eden-tiny`, an artifact's folder or a hub id.
        folder: where to; files of the same names are replaced.
        outtype: `f16`, `bf16` or `q8_0`, of the language model's matrices. Vision is always f16.

    Returns:
        The paths of the language model and of the vision part.

    Raises:
        InputError: the library gguf is not installed, or the number format is unknown.
        CheckpointError: there is no such model, or llama.cpp has no way to compute it.
        StorageError: the disk is full or the folder is not writable.
    """
    if outtype not in FORMATS:
        raise InputError(f"no number format {outtype!r}", where="--outtype", hint=f"Use one of {', '.join(FORMATS)}.")
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise InputError("writing GGUF needs gguf", hint="pip install 'eden-multimodal[export]'") from error
    artifact = Artifact.open(model, files=["*.json"])
    check_vision(artifact.config, model)
    vocabulary = _check_language(artifact, checkpoints.load_processor(model), model)
    # What is merged is rounded once, to the number format of the file.
    loaded = (
        checkpoints.load(model, LoadOptions(dtype="float32"))
        if artifact.is_adapter
        else checkpoints.load_as_stored(model)
    )
    if is_quantized(loaded.core):
        raise CheckpointError("the weights are quantized", where=model, hint="Export the model they were made of.")
    checkpoint = checkpoints.merge(loaded)
    name = Path(model).resolve().name  # of a hub id, too, what follows the slash
    with new_folder(folder) as new:
        language_model, vision = new / f"{name}-{outtype}.gguf", new / f"mmproj-{name}-f16.gguf"
        _write_language_model(checkpoint, vocabulary, name, language_model, outtype)
        write_vision(checkpoint, name, vision)
    return Path(folder) / language_model.name, Path(folder) / vision.name


def _check_language(artifact: Artifact, processor: MultimodalPhiProcessor, name: str) -> Vocabulary:
    """The vocabulary of a model whose language model llama.cpp computes.

    Raises:
        CheckpointError: it does not.
    """
    config, family = artifact.config.text_config, FAMILIES[processor.family]
    if (language := LANGUAGES.get(family.name)) is None:
        raise CheckpointError(f"no GGUF file is written of a {family.title}", where=name, hint=TRY)
    rope, fault = config.rope_parameters["rope_type"], None
    if rope not in language.rope_types:
        fault = f"no GGUF file is written of a {family.title} with RoPE of type {rope!r}"
    elif config.hidden_act != "silu":
        fault = f"no GGUF file is written of a language model with the activation {config.hidden_act}"
    if fault is not None:
        raise CheckpointError(fault, where=name, hint="Use --to hf.")
    if (vocabulary := read_vocabulary(processor, artifact.config, language.tokenizer)) is None:
        raise CheckpointError(f"its tokenizer is not of {family.title}'s kind", where=name, hint=TRY)
    return vocabulary


def _write_language_model(checkpoint: Checkpoint, vocabulary: Vocabulary, name: str, path: Path, outtype: str) -> None:
    import gguf

    config, core, family = checkpoint.config.text_config, checkpoint.core, FAMILIES[checkpoint.processor.family]
    language, rotary, rope = LANGUAGES[family.name], core.model.language_model.rotary_emb, config.rope_parameters
    architecture = gguf.MODEL_ARCH[language.architecture]
    writer = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_type(gguf.GGUFType.MODEL)
    # By Phi-3's name, and by nothing else, llama.cpp knows that control tokens swallow the newline behind them.
    writer.add_name(f"{re.sub('(?i)phi-?3', 'Phi 3', name)} ({family.title})")
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{outtype.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    # A context is this long unless told otherwise; in a longer one llama.cpp takes the long factors from the start.
    writer.add_context_length(checkpoint.context_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(2 * len(rotary.inv_freq))
    writer.add_rope_freq_base(rope["rope_theta"])
    if hasattr(config, "sliding_window"):
        writer.add_sliding_window(config.sliding_window or 0)
    if rope["rope_type"] == "longrope":
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
        writer.add_rope_scaling_attn_factors(rotary.attention_scaling)
    add_vocabulary(writer, vocabulary, checkpoint.processor)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    tensors = {}
    for parameter, tensor in core.model.language_model.named_parameters():
        module, kind = parameter.rsplit(".", 1)
        if module.endswith(language.paired):  # in its place, so that a model is never in memory twice
            tensor.data = tensor.data.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)
        tensors[f"{names[f'model.{module}']}.{kind}"] = (tensor, number_format(tensor, outtype))
    for length in ("long", "short"):
        if factors := rope.get(f"{length}_factor"):
            tensors[f"rope_factors_{length}.weight"] = (torch.tensor(factors), "f32")
    head = core.lm_head.weight
    if head is not core.model.language_model.embed_tokens.weight:  # tied, llama.cpp takes the embedding
        tensors["output.weight"] = (head, number_format(head, outtype))
    write_tensors(writer, path, tensors)
