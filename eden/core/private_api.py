"""Every use of a library's private parts, each with a test in tests/test_private_api.py.

Private is what a library may change without a word: names with a leading underscore, attributes and files that its
documentation does not name. pyproject.toml therefore bounds these libraries from above; whoever raises a bound runs the
tests, and mends here what they name.

What cannot move here, and is tested all the same:

    model/modeling.py         transformers: `_from_config`, `_attn_implementation`, what a model class declares
                              (`_supports_*`, `_tied_weights_keys`, ...), and the parts of the towers by name; PEFT:
                              the names of weights that it trains whole (tests/test_tuning.py)
    model/processing.py       transformers: `_get_num_multimodal_tokens`, which vLLM asks for; `_process_images`, which
                              is overridden (tests/test_tiles.py)
    model/, inference         transformers: names imported from modules that its documentation leaves out
    training/                 transformers: methods of Trainer that are overridden: `_prepare_inputs`, `_run_epoch`,
                              `_get_train_sampler`, `_get_eval_sampler`, `_save_checkpoint`, `_save_rng_state`; its
                              `_initial_global_step`; and that `trainer_state.json` is a checkpoint's last file;
                              accelerate: the name of the weights' file in a checkpoint with FSDP
    checkpoint/four_bits.py   bitsandbytes: `quant_state` of a weight; transformers: `hf_quantizer` of a model
    core/numeric_format.py    torch: which instructions oneDNN and this CPU have
    serve/gradio_middleware.py  Gradio: the addresses that its page asks for
    media/speech.py           faster-whisper: the window's length and the languages of a loaded model

eden/model/ travels with a checkpoint and imports nothing of Eden; an override has to stand in its class.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

NO_TARGETS = "dummy-target-modules"
"""PEFT: the target modules of an adapter that holds saved modules only."""
KEPT_ORIGINAL = "original_module"
"""PEFT: part of the names of weights as they were, kept beside those of `modules_to_save`."""


def attention_of(config: Any) -> str | None:
    """transformers: the attention implementation that a model with this configuration runs."""
    implementation: str | None = config._attn_implementation
    return implementation


def layer_classes(model: Any) -> list[str]:
    """transformers: names of the classes of a model's layers, which are moved and sharded as a whole."""
    return list(type(model)._no_split_modules)


def commit_of(name: str) -> str | None:
    """transformers: the commit that a hub id without a revision was loaded from; None for a folder."""
    from transformers.utils.hub import cached_file, extract_commit_hash

    return None if Path(name).is_dir() else extract_commit_hash(cached_file(name, "config.json"), None)


def is_in_four_bits(model: torch.nn.Module) -> bool:
    """transformers: whether a model was loaded in 4 bits."""
    return bool(getattr(model, "is_loaded_in_4bit", False))


def is_quantized(model: torch.nn.Module) -> bool:
    """transformers: whether a model was loaded in any format that is not its weights' own."""
    return bool(getattr(model, "is_quantized", False))


def mark_four_bits(model: Any) -> None:
    """transformers: makes a model with 4-bit layers known as such, to Trainer and PEFT, which look at the whole."""
    model.is_loaded_in_4bit = True


def inherit_quantization(whole: Any, part: Any) -> None:
    """transformers: makes a model known as loaded in 4 bits as its part is."""
    mark_four_bits(whole)
    whole.is_quantized = True
    whole.hf_quantizer = part.hf_quantizer
    whole.quantization_method = part.quantization_method
    whole.config.quantization_config = part.config.quantization_config


def keep_unpacked(model: Any) -> None:
    """bitsandbytes: keeps its 4-bit layers in the form that gradients come back through.

    On some CPUs it packs a layer anew when it is first asked in evaluation, into a form that answers faster and through
    which no gradient comes back: training would go on without those of the layers before it.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def number_of_weights(parameter: torch.nn.Parameter) -> int:
    """bitsandbytes: of a 4-bit parameter, how many weights it stands for; of another, how many it has."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(state.shape.numel())


def scales_of(parameter: torch.nn.Parameter) -> list[torch.Tensor]:
    """bitsandbytes: the tensors that a 4-bit parameter holds beside its codes; none for another."""
    tensors: list[torch.Tensor] = []
    state = getattr(parameter, "quant_state", None)
    while state is not None:  # scales that are quantized again have a state of their own
        tensors += [state.absmax, state.code]
        state = getattr(state, "state2", None)
    return tensors


def shard_on_cpus(state: Any) -> None:
    """accelerate: FSDP on CPUs, where it would train whole copies without a word; its code for GPUs shards as well.

    Args:
        state: `TrainingArguments.distributed_state`.
    """
    from accelerate.utils import DistributedType

    if state.distributed_type == DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.MULTI_GPU


def set_threads(blocks: Any, number: int) -> None:
    """Gradio: how many threads a page's functions share; `launch` takes the number, mounting a page does not."""
    blocks.max_threads = number
    blocks.create_limiter()


def check_uploads(blocks: Any) -> None:
    """Gradio: makes a mounted page read uploaded files only.

    It checks that a file was uploaded only once `launch` was called, and a mounted page never is: an event could name
    any file of the server, and be given a copy.
    """
    blocks.has_launched = True


def end_streams(app: Any) -> None:
    """Gradio: ends what browsers hold open of a page that is mounted in an app, so that the server can stop."""
    for route in app.routes:
        if (stop := getattr(getattr(route, "app", None), "stop_event", None)) is not None:
            stop.set()


def whisper_class() -> Any:
    """faster-whisper: its model, also for a Whisper whose window is shorter than 30 s."""
    import faster_whisper

    class WhisperModel(faster_whisper.WhisperModel):
        def encode(self, features: Any) -> Any:
            # transcribe() fills every window to 30 s
            return super().encode(features[..., : self.feature_extractor.nb_max_frames])

    return WhisperModel
