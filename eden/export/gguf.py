"""A model as llama.cpp, and whatever is built on it, loads it: the language model in one file, vision in another.

    <name>-f16.gguf  mmproj-<name>-f16.gguf

What the tensors mean is said by llama.cpp's graphs, https://github.com/ggml-org/llama.cpp: `src/models/phi3.cpp` and
`tools/mtmd/models/llava.cpp`. Names and number formats come from its library, gguf.
"""

from __future__ import annotations

from pathlib import Path

import torch

from .. import checkpoint as checkpoints
from ..checkpoint import Checkpoint
from ..checkpoint.artifact import Artifact
from ..checkpoint.backbones import LoadOptions
from ..core.files import new_folder
from ..core.private_api import is_quantized
from ..errors import CheckpointError, InputError
from ..model.families import FAMILIES
from ..model.towers import tower_of
from .gguf_tensors import FORMATS, number_format, write_tensors
from .gguf_tokenizer import Vocabulary, add_vocabulary, read_vocabulary
from .gguf_vision import check_vision, write_vision


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
    if artifact.config.vision_feature == "pooled":
        what = "llama.cpp cannot see with one pooled embedding an image"
        raise CheckpointError(what, where=model, hint="Train with model.vision_feature=patches, or use --to hf.")
    if (tower := tower_of(artifact.config.vision_config)).title != "CLIP":
        raise CheckpointError(f"no GGUF file is written of a {tower.title} tower", where=model, hint="Use --to hf.")
    if (family := FAMILIES[checkpoints.load_processor(model).family]).name != "phi3":
        hint = "Export a Phi-3 or Phi-3.5, or use --to hf."
        raise CheckpointError(f"no GGUF file is written of a {family.title}", where=model, hint=hint)
    if artifact.config.tiles:
        hint = "Train with model.tiles=0, or use --to hf."
        raise CheckpointError("llama.cpp cannot see a picture in Eden's tiles", where=model, hint=hint)
    # What is merged is rounded once, to the number format of the file.
    loaded = (
        checkpoints.load(model, LoadOptions(dtype="float32"))
        if artifact.is_adapter
        else checkpoints.load_as_stored(model)
    )
    if is_quantized(loaded.core):
        raise CheckpointError("the weights are quantized", where=model, hint="Export the model they were made of.")
    checkpoint = checkpoints.merge(loaded)
    vocabulary = read_vocabulary(checkpoint)
    check_vision(checkpoint)
    name = Path(model).resolve().name  # of a hub id, too, what follows the slash
    with new_folder(folder) as new:
        language_model, vision = new / f"{name}-{outtype}.gguf", new / f"mmproj-{name}-f16.gguf"
        _write_language_model(checkpoint, vocabulary, name, language_model, outtype)
        write_vision(checkpoint, name, vision)
    return Path(folder) / language_model.name, Path(folder) / vision.name


def _write_language_model(checkpoint: Checkpoint, vocabulary: Vocabulary, name: str, path: Path, outtype: str) -> None:
    import gguf

    config, core = checkpoint.config.text_config, checkpoint.core
    rotary, rope = core.model.language_model.rotary_emb, config.rope_parameters
    writer = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.PHI3])
    writer.add_type(gguf.GGUFType.MODEL)
    # By the name llama.cpp knows that control tokens swallow the newline behind them.
    writer.add_name(f"{name} (Phi-3)")
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{outtype.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    # A context is this long unless told otherwise; in a longer one llama.cpp takes the long factors from the start.
    writer.add_context_length(checkpoint.context_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_sliding_window(config.sliding_window or 0)
    writer.add_rope_dimension_count(2 * len(rotary.inv_freq))
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
    writer.add_rope_scaling_attn_factors(rotary.attention_scaling)
    add_vocabulary(writer, vocabulary, checkpoint)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.PHI3, config.num_hidden_layers)
    tensors = {}
    for parameter, tensor in core.model.language_model.named_parameters():
        module, kind = parameter.rsplit(".", 1)
        tensors[f"{names[f'model.{module}']}.{kind}"] = (tensor, number_format(tensor, outtype))
    for length in ("long", "short"):
        if factors := rope.get(f"{length}_factor"):
            tensors[f"rope_factors_{length}.weight"] = (torch.tensor(factors), "f32")
    head = core.lm_head.weight
    if head is not core.model.language_model.embed_tokens.weight:  # tied, llama.cpp takes the embedding
        tensors["output.weight"] = (head, number_format(head, outtype))
    write_tensors(writer, path, tensors)
