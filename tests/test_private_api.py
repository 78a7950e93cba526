"""The private parts of libraries that Eden uses are as Eden takes them; one test for each."""

import contextvars
import importlib
import inspect
from pathlib import Path
from types import SimpleNamespace

import accelerate
import bitsandbytes
import gradio as gr
import numpy as np
import pytest
import torch
from accelerate.utils import DistributedType
from accelerate.utils.constants import FSDP_MODEL_NAME
from conftest import make_model, text_config, vision_config
from fastapi import FastAPI
from gradio import processing_utils
from gradio.context import LocalContext
from gradio.exceptions import InvalidPathError
from peft import LoraConfig, get_peft_model
from transformers import (
    BitsAndBytesConfig,
    CLIPVisionModelWithProjection,
    LlavaProcessor,
    Phi3ForCausalLM,
    Phi3Model,
    PreTrainedModel,
    Trainer,
)
from transformers.processing_utils import ProcessorMixin

from eden.core import private_api
from eden.media.speech import EDEN_TINY_WHISPER
from eden.model import MultimodalPhiForConditionalGeneration
from eden.serve.gradio_middleware import ROUTES


def four_bits() -> torch.nn.Module:
    """A 4-bit layer whose scales are quantized again."""
    layer = bitsandbytes.nn.Linear4bit(64, 128, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    return torch.nn.Sequential(layer).to("cpu")


def test_transformers_attention_of_a_config() -> None:
    model = Phi3Model(text_config())
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        assert private_api.attention_of(model.config) == name


def test_transformers_classes_of_layers() -> None:
    model = Phi3Model(text_config())
    assert private_api.layer_classes(model) == [type(model.layers[0]).__name__]


def test_transformers_commit_of_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0" * 39 + "1"
    snapshot = tmp_path / "models--a--b" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "models--a--b" / "refs").mkdir()
    (tmp_path / "models--a--b" / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert private_api.commit_of("a/b") == commit
    assert private_api.commit_of(str(snapshot)) is None


def test_transformers_marks_of_a_quantized_model(tmp_path: Path) -> None:
    """`is_quantized` is transformers' to compute; a whole model has it by what it inherits from its part."""
    part = Phi3ForCausalLM(text_config())
    assert not private_api.is_quantized(part) and not private_api.is_in_four_bits(part)
    saved = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
    part.save_pretrained(tmp_path)
    part = Phi3ForCausalLM.from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(**saved))
    whole = make_model("pooled")
    private_api.inherit_quantization(whole, part)
    assert private_api.is_in_four_bits(part) and private_api.is_in_four_bits(whole)
    assert private_api.is_quantized(part) and private_api.is_quantized(whole)
    assert 'getattr(model, "is_loaded_in_4bit", False)' in inspect.getsource(Trainer)


def test_peft_words_for_an_adapter_without_lora() -> None:
    model = torch.nn.ModuleDict({"projector": torch.nn.Linear(2, 2), "other": torch.nn.Linear(2, 2)})
    adapted = get_peft_model(model, LoraConfig(target_modules=private_api.NO_TARGETS, modules_to_save=["projector"]))
    names = [name for name, _ in adapted.named_parameters()]
    assert not any("lora_" in name for name in names)
    assert len([name for name in names if private_api.KEPT_ORIGINAL in name]) == 2  # weight and bias of the projector


def test_bitsandbytes_layers_know_whether_they_pack() -> None:
    model = four_bits()
    assert hasattr(model[0], "support_avx512bf16_for_cpu")
    assert "self.support_avx512bf16_for_cpu" in inspect.getsource(type(model[0]).forward)
    private_api.keep_unpacked(model)
    assert model[0].support_avx512bf16_for_cpu is False


def test_bitsandbytes_parameters_know_what_they_stand_for() -> None:
    parameter = four_bits()[0].weight
    assert parameter.numel() == 64 * 128 // 2 and private_api.number_of_weights(parameter) == 64 * 128
    assert len(private_api.scales_of(parameter)) == 4  # scales and code; those of the scales
    plain = torch.nn.Parameter(torch.zeros(3, 5))
    assert private_api.number_of_weights(plain) == 15 and private_api.scales_of(plain) == []


def test_accelerate_shards_where_it_sees_gpus() -> None:
    state = SimpleNamespace(distributed_type=DistributedType.MULTI_CPU)
    private_api.shard_on_cpus(state)
    assert state.distributed_type == DistributedType.MULTI_GPU
    # A state with this very attribute decides.
    assert "self.distributed_type" in inspect.getsource(accelerate.state.AcceleratorState.__init__)
    assert "distributed_type" in inspect.getsource(accelerate.PartialState)


def test_accelerate_names_of_sharded_weights() -> None:
    assert FSDP_MODEL_NAME == "pytorch_model_fsdp"  # resume.py looks for it


def test_accelerate_rest_of_the_last_batch() -> None:
    state = accelerate.state.GradientState()
    assert hasattr(state, "end_of_dataloader") and hasattr(state, "remainder")


def test_gradio_threads_of_a_page() -> None:
    blocks = gr.Blocks()
    private_api.set_threads(blocks, 7)
    assert blocks.limiter is not None and blocks.limiter.total_tokens == 7


def test_gradio_checks_uploads_of_a_page_that_was_launched(tmp_path: Path) -> None:
    stranger = tmp_path / "secret.txt"
    stranger.write_text("secret")
    with gr.Blocks() as blocks:
        component = gr.File()
    file = {"path": str(stranger), "meta": {"_type": "gradio.FileData"}}

    def read() -> None:
        LocalContext.blocks.set(blocks)
        processing_utils.move_files_to_cache(file, component, check_in_upload_folder=True)

    contextvars.copy_context().run(read)  # as before a launch
    private_api.check_uploads(blocks)
    with pytest.raises(InvalidPathError, match="was not uploaded"):
        contextvars.copy_context().run(read)


def test_gradio_streams_end() -> None:
    app = gr.mount_gradio_app(FastAPI(), gr.Blocks(), path="/")
    stops = [route.app.stop_event for route in app.routes if hasattr(getattr(route, "app", None), "stop_event")]
    private_api.end_streams(app)
    assert len(stops) == 1 and stops[0].is_set()


def test_gradio_addresses_of_a_page() -> None:
    app = gr.mount_gradio_app(FastAPI(), gr.Blocks(), path="/")
    inner = next(route.app for route in app.routes if hasattr(getattr(route, "app", None), "stop_event"))
    paths = set(inner.openapi()["paths"])
    needed = {"/config", "/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/queue/data"}
    assert needed <= paths and all(ROUTES.fullmatch(path) for path in needed)


def test_faster_whisper_encodes_a_window_of_any_length() -> None:
    model = private_api.whisper_class()(str(EDEN_TINY_WHISPER), device="cpu", compute_type="int8")
    frames = model.feature_extractor.nb_max_frames
    assert model.feature_extractor.n_samples < 30 * 16_000
    assert model.encode(np.zeros((80, 3000), dtype=np.float32)).shape[1] == frames // 2
    assert "self.encode(" in inspect.getsource(type(model).generate_segments)
    assert "en" in model.supported_languages and isinstance(model.model.is_multilingual, bool)


def test_transformers_methods_of_trainer() -> None:
    """trainer.py and parallel.py override them: their arguments, and who calls them when."""

    def arguments(name: str) -> list[str]:
        return list(inspect.signature(getattr(Trainer, name)).parameters)

    assert arguments("_prepare_inputs") == ["self", "inputs"]
    assert arguments("_get_train_sampler") == ["self", "train_dataset"]
    assert arguments("_get_eval_sampler") == ["self", "eval_dataset"]
    assert arguments("_save_checkpoint") == ["self", "model", "trial"]
    assert arguments("_save_rng_state") == ["self", "output_dir"]
    source = inspect.getsource(Trainer)
    assert "self._run_epoch(\n                model=model," in source  # by keywords
    assert "self._initial_global_step = self.state.global_step" in source
    saving = inspect.getsource(Trainer._save_checkpoint)
    assert 0 < saving.index("self._save_rng_state(") < saving.index("self.state.save_to_json(")
    assert "sampler_fn=self._get_train_sampler" in source and "sampler_fn=self._get_eval_sampler" in source
    assert "self._prepare_inputs(inputs)" in inspect.getsource(Trainer.training_step)


def test_transformers_attributes_that_a_model_class_declares() -> None:
    declared = {name for cls in MultimodalPhiForConditionalGeneration.__mro__[:2] for name in vars(cls)}
    declared = {name for name in declared if name.startswith(("_supports", "_tied", "_no_split", "_skip"))}
    assert len(declared) == 6 and all(hasattr(PreTrainedModel, name) for name in declared)
    assert callable(PreTrainedModel._from_config)


def test_transformers_asks_a_processor_how_many_tokens_an_image_takes() -> None:
    assert callable(LlavaProcessor._get_num_multimodal_tokens) and issubclass(LlavaProcessor, ProcessorMixin)


def test_transformers_parts_of_the_tower() -> None:
    vision = CLIPVisionModelWithProjection(vision_config()).eval().vision_model
    pixels = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        wanted = vision(pixels, output_hidden_states=True).hidden_states
        states = vision.pre_layrnorm(vision.embeddings(pixels))
        for layer, known in zip(vision.encoder.layers, wanted[1:], strict=True):
            states = layer(states, None)
            assert torch.equal(states, known)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("transformers.configuration_utils", "SubConfigSpec"),
        ("transformers.integrations.sdpa_attention", "sdpa_attention_forward"),
        ("transformers.masking_utils", "sdpa_mask"),
        ("transformers.modeling_utils", "slice_logits_to_keep"),
        ("transformers.cache_utils", "CacheLayerMixin"),
        ("transformers.models.whisper.english_normalizer", "EnglishTextNormalizer"),
        ("transformers.trainer_pt_utils", "LengthGroupedSampler"),
        ("transformers.trainer_utils", "EvalLoopOutput"),
        ("accelerate.utils", "parse_flag_from_env"),
        ("faster_whisper.vad", "get_speech_timestamps"),
        ("faster_whisper.utils", "download_model"),
    ],
)
def test_names_from_modules_without_documentation(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name)
