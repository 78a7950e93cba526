"""Models on disk: assembled, quantized, adapted, saved, loaded, merged."""

import json
import re
import shutil
from pathlib import Path

import bitsandbytes
import huggingface_hub
import pytest
import torch
from conftest import make_image, make_model, make_processor
from peft import PeftModel

from eden import CheckpointError, InputError, Message, RecipeError, StorageError
from eden.checkpoint import (
    Checkpoint,
    add_adapters,
    count_parameters,
    load,
    load_as_stored,
    load_for_training,
    merge,
    save,
)
from eden.checkpoint.backbones import LoadOptions, assemble
from eden.checkpoint.four_bits import is_dequantized
from eden.core.files import new_file, new_folder
from eden.core.location import find_model
from eden.inference.assistant import Assistant
from eden.media.speech import find_whisper
from eden.model import MultimodalPhiForConditionalGeneration
from eden.recipe import LoraSection, ModelSection, QuantizationSection, load_recipe

LORA = LoraSection(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["o_proj", "qkv_proj", "gate_up_proj"])
QUESTIONS = [
    [Message.user("which colour", [make_image("red")])],
    [Message.user("compare", [make_image("red"), make_image("blue")])],
    [Message.user("hello")],
]


def answers(checkpoint: Checkpoint) -> list[str]:
    return Assistant(checkpoint).answer_all(QUESTIONS, max_new_tokens=12)


def shake(model: torch.nn.Module) -> None:
    """Gives whatever trains a value that shows in the output, as training would."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)


@pytest.fixture(params=["pooled", "patches"])
def whole(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A whole model's folder."""
    model = make_model(request.param)
    save(Checkpoint(model, make_processor(model.config.num_image_tokens), "x", None), tmp_path / "whole")
    return tmp_path / "whole"


def adapt(base: Path, folder: Path) -> Checkpoint:
    """A LoRA artifact on a whole model, with changed weights."""
    checkpoint = load(str(base))
    model = add_adapters(checkpoint.core, LORA)
    model.peft_config["default"].base_model_name_or_path = checkpoint.base
    shake(model)
    adapted = Checkpoint(model.eval(), checkpoint.processor, str(folder), checkpoint.base)
    save(adapted, folder)
    return adapted


def test_assembled_from_backbones_as_they_are(backbones: tuple[Path, Path]) -> None:
    from transformers import CLIPVisionModelWithProjection, Phi3ForCausalLM

    clip, phi = backbones
    model, processor = assemble(ModelSection(vision=str(clip), language=str(phi)), LoadOptions())
    tower = CLIPVisionModelWithProjection.from_pretrained(clip).state_dict()
    language = Phi3ForCausalLM.from_pretrained(phi).state_dict()
    state = model.state_dict()
    assert all(state[f"model.vision_tower.{name}"].equal(weight) for name, weight in tower.items())
    for name, weight in language.items():
        assert state[name.replace("model.", "model.language_model.", 1)].equal(weight), name
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert model.config.backbones["vision"]["id"] == str(clip)
    assert model.config.image_token_id == processor.image_token_id
    end = processor.tokenizer.convert_tokens_to_ids("<|end|>")
    assert model.generation_config.eos_token_id == [end, processor.tokenizer.eos_token_id]


@pytest.mark.parametrize("source", ["whole", "backbones"])
def test_four_bits_hold_the_language_models_linear_layers_only(
    source: str, whole: Path, backbones: tuple[Path, Path]
) -> None:
    options = LoadOptions(quantization=QuantizationSection(), dtype="bfloat16")
    if source == "whole":
        model = load(str(whole), options).core
        reference = load(str(whole), LoadOptions(dtype="bfloat16")).core
    else:
        section = ModelSection(vision=str(backbones[0]), language=str(backbones[1]))
        torch.manual_seed(0)
        model, _ = assemble(section, options)
        torch.manual_seed(0)
        reference, _ = assemble(section, LoadOptions(dtype="bfloat16"))
    quantized = {name for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"}
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert quantized == {name for name in linear if "language_model.layers" in name}
    assert len(quantized) == 2 * 4
    state = reference.state_dict()
    for name, weight in model.state_dict().items():
        if "projector" in name or "vision_tower" in name or "lm_head" in name:
            assert weight.equal(state[name]), name
    assert len(answers(Checkpoint(model, make_processor(model.config.num_image_tokens), "x", None))) == 3


def test_lora_as_the_recipe_says_and_the_projector(whole: Path) -> None:
    model = add_adapters(load(str(whole)).core, LORA)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    modules = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trained if "lora_" in name}
    assert modules == {"o_proj", "qkv_proj", "gate_up_proj"}
    assert all("language_model" in name for name in trained if "lora_" in name)
    assert sum("projector.modules_to_save" in name for name in trained) == 6
    assert all("lora_" in name or "projector" in name for name in trained)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters() if parameter.requires_grad)


def test_parameters_are_counted_by_part(whole: Path) -> None:
    core = load(str(whole)).core
    language = sum(parameter.numel() for parameter in core.model.language_model.parameters())
    projector = sum(parameter.numel() for parameter in core.model.projector.parameters())
    model = add_adapters(load(str(whole), LoadOptions(quantization=QuantizationSection())).core, LORA)
    counts = count_parameters(Checkpoint(model, make_processor(1), "x", None))
    assert counts["language_model"] == {"trained": 0, "frozen": language}
    assert counts["projector"] == {"trained": projector, "frozen": 0}
    sizes = {"qkv_proj": (64, 192), "o_proj": (64, 64), "gate_up_proj": (64, 256)}
    assert counts["lora"] == {"trained": 2 * sum(8 * (i + o) for i, o in sizes.values()), "frozen": 0}


def test_an_adapter_artifact_round_trips(whole: Path, tmp_path: Path) -> None:
    adapted = adapt(whole, tmp_path / "run")
    loaded = load(str(tmp_path / "run"))
    assert isinstance(loaded.model, PeftModel)
    before = {n: p for n, p in adapted.model.named_parameters() if p.requires_grad}
    after = dict(loaded.model.named_parameters())
    assert all(after[name].equal(parameter) for name, parameter in before.items())
    assert answers(loaded) == answers(adapted) != answers(load(str(whole)))
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "config.json", "chat_template.jinja"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)


def test_merged_equals_adapter_in_greedy_output(whole: Path, tmp_path: Path) -> None:
    adapted = adapt(whole, tmp_path / "run")
    expected = answers(adapted)
    save(merge(load(str(tmp_path / "run"))), tmp_path / "merged")
    merged = load(str(tmp_path / "merged"))
    assert not isinstance(merged.model, PeftModel)
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    assert answers(merged) == expected


def test_a_merge_rounds_once_and_keeps_the_stored_format(whole: Path, tmp_path: Path) -> None:
    """Whatever this machine would load the model in."""
    stored = load(str(whole), LoadOptions(dtype="bfloat16"))
    save(stored, tmp_path / "base")
    adapt(tmp_path / "base", tmp_path / "run")
    loaded = load_as_stored(str(tmp_path / "run"))
    wanted = {}
    for name, layer in loaded.model.named_modules():
        if hasattr(layer, "get_delta_weight") and hasattr(layer, "base_layer"):
            delta = layer.get_delta_weight("default").float()
            name = name.removeprefix("base_model.model.") + ".weight"
            wanted[name] = (layer.base_layer.weight.float() + delta).to(torch.bfloat16)
    assert len(wanted) > 4
    save(merge(loaded), tmp_path / "merged")
    merged = load(str(tmp_path / "merged"), LoadOptions(dtype="bfloat16"))
    assert merged.config.to_dict()["dtype"] in ("bfloat16", torch.bfloat16)
    for name, weight in merged.core.named_parameters():
        assert name not in wanted or weight.equal(wanted[name]), name
    assert {p.dtype for p in load_as_stored(str(tmp_path / "merged")).core.parameters()} == {torch.bfloat16}


def test_an_adapter_names_the_commit_of_its_base(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's cache stands in for the hub, where the base becomes another after the run."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--me--base"
    first, second = "a" * 40, "b" * 40
    shutil.copytree(whole, repository / "snapshots" / first)
    other = load(str(whole))
    shake(other.core)
    save(other, repository / "snapshots" / second)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(first)
    settings = ["model.base=me/base", "quantization=null", "lora.target_modules=[qkv_proj]", "data.path=x"]
    trained = load_for_training(load_recipe("digits", settings))
    save(trained, tmp_path / "run")
    (repository / "refs" / "main").write_text(second)
    again = load(str(tmp_path / "run"))
    assert (again.base, again.base_revision) == ("me/base", first)
    weight = again.core.model.language_model.embed_tokens.weight
    assert weight.equal(load(str(whole)).core.model.language_model.embed_tokens.weight)
    assert not weight.equal(load("me/base").core.model.language_model.embed_tokens.weight)
    pinned = load_for_training(load_recipe("digits", [*settings, f"model.base_revision={second}"]))
    assert pinned.model.peft_config["default"].revision == second


@pytest.mark.parametrize("name", ["runs/demo", "./demo", "~/demo", "here/demo", "a/b/c", "a\\b", "here/"])
def test_a_path_that_is_not_there_is_no_hub_id(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    for look in (load, find_whisper):
        with pytest.raises(CheckpointError, match=f"{re.escape(name)}: no such folder|holds no"):
            look(name)


@pytest.mark.parametrize("layer", [99, -99])
def test_a_layer_that_the_tower_has_not_is_refused_before_a_weight_is_loaded(
    backbones: tuple[Path, Path], tmp_path: Path, layer: int
) -> None:
    vision = tmp_path / "vision"
    shutil.copytree(backbones[0], vision)
    (vision / "model.safetensors").write_bytes(b"no weights")
    patches = ["model.vision_feature=patches", f"model.vision_feature_layer={layer}", "data.path=x"]
    recipe = load_recipe("align", [f"model.vision={vision}", f"model.language={backbones[1]}", *patches])
    with pytest.raises(RecipeError, match=rf"model\.vision_feature_layer is {layer}, and .* has \d layers"):
        load_for_training(recipe)


def test_a_folder_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine stops while files are moved to their place; whoever looks next moves the rest."""
    folder = tmp_path / "run"
    with new_folder(folder) as new:
        for name in ("a", "b", "c"):
            (new / name).write_text("first")
    (folder / "kept").write_text("kept")
    moves, move = [], Path.replace

    def stops(self: Path, target: Path) -> Path:
        moves.append(target)
        if len(moves) == 2:
            raise KeyboardInterrupt
        return move(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stops)
        with pytest.raises(KeyboardInterrupt), new_folder(folder) as new:
            for name in ("a", "b", "c"):
                (new / name).write_text("second")
    assert {path.read_text() for path in folder.glob("[abc]")} == {"first", "second"}
    with pytest.raises(CheckpointError, match="holds no config"):
        find_model(str(folder))
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "a": "second",
        "b": "second",
        "c": "second",
        "kept": "kept",
    }
    with pytest.raises(ZeroDivisionError), new_folder(folder) as new:
        (new / "a").write_text(str(1 // 0))
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b", "c", "kept"]


def test_a_source_that_cannot_be_read_is_not_a_target_that_cannot_be_written(tmp_path: Path) -> None:
    for write in (new_folder, new_file):
        with pytest.raises(InputError, match=r"gone\.txt: cannot be read"), write(tmp_path / "out") as new:
            (new if write is new_file else new / "a").write_text((tmp_path / "gone.txt").read_text())
        with pytest.raises(StorageError, match=r"out: cannot write"), write(tmp_path / "out") as new:
            (new / "x" / "a").write_text("")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"), new_folder(tmp_path / "file" / "out"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("kind", ["run", "merged"])
def test_either_artifact_loads_in_four_bits_with_the_projector_bit_for_bit(
    kind: str, whole: Path, tmp_path: Path
) -> None:
    adapt(whole, tmp_path / "run")
    save(merge(load(str(tmp_path / "run"))), tmp_path / "merged")
    full = load(str(tmp_path / kind), LoadOptions(dtype="float32"))
    quarter = load(str(tmp_path / kind), LoadOptions(quantization=QuantizationSection(), dtype="float32"))

    def projector(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
        state = checkpoint.core.model.projector.state_dict()
        return {name: weight for name, weight in state.items() if "original_module" not in name}

    assert projector(full).keys() == projector(quarter).keys()
    assert all(weight.equal(projector(full)[name]) for name, weight in projector(quarter).items())
    assert len(answers(quarter)) == 3


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("source", ["whole", "backbones"])
def test_a_cpu_that_computes_in_fp32_holds_four_bits_as_the_numbers_they_are(
    source: str, double: bool, whole: Path, backbones: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    section = QuantizationSection(bnb_4bit_compute_dtype="float32", bnb_4bit_use_double_quant=double)
    options = LoadOptions(quantization=section, dtype="float32", device="cpu")

    def loaded() -> MultimodalPhiForConditionalGeneration:
        if source == "whole":
            return load(str(whole), options).core
        torch.manual_seed(0)  # the projector is new
        return assemble(ModelSection(vision=str(backbones[0]), language=str(backbones[1])), options)[0]

    held = loaded()
    monkeypatch.setattr("eden.checkpoint.four_bits.free_memory", lambda: 0)
    packed = loaded()
    layers = {name: part for name, part in packed.named_modules() if type(part).__name__ == "Linear4bit"}
    assert len(layers) == 2 * 4 and is_dequantized(held) and not is_dequantized(packed)
    for name, layer in layers.items():
        numbers = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        assert held.get_submodule(name).weight.equal(numbers), name

    def loss_and_gradients(core: MultimodalPhiForConditionalGeneration) -> list[torch.Tensor]:
        for part in core.modules():
            if hasattr(part, "support_avx512bf16_for_cpu"):
                part.support_avx512bf16_for_cpu = False
        torch.manual_seed(0)
        model = add_adapters(core, LORA)
        shake(model)
        ids = torch.arange(3, 19).unsqueeze(0)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        gradients = [p.grad for n, p in model.named_parameters() if p.requires_grad and "projector" not in n]
        return [loss.detach(), *gradients]

    assert all(ours.equal(theirs) for ours, theirs in zip(*map(loss_and_gradients, (held, packed)), strict=True))


def test_a_model_in_four_bits_is_not_merged(whole: Path, tmp_path: Path) -> None:
    adapt(whole, tmp_path / "run")
    with pytest.raises(CheckpointError, match="4 bits cannot be merged"):
        merge(load(str(tmp_path / "run"), LoadOptions(quantization=QuantizationSection())))


def test_an_adapter_is_merged_into_the_numbers_of_the_four_bits_it_was_trained_beside(
    whole: Path, tmp_path: Path
) -> None:
    adapt(whole, tmp_path / "run")
    in_fp32 = QuantizationSection(bnb_4bit_compute_dtype="float32")
    beside = load(str(tmp_path / "run"), LoadOptions(in_fp32, dtype="float32"))
    save(merge(load_as_stored(str(tmp_path / "run"), QuantizationSection())), tmp_path / "merged")
    merged = load(str(tmp_path / "merged"), LoadOptions(dtype="float32"))
    ids = torch.arange(3, 19).unsqueeze(0)
    with torch.no_grad():
        found, wanted, in_full = (
            checkpoint.model(input_ids=ids).logits
            for checkpoint in (merged, beside, load(str(tmp_path / "run"), LoadOptions(dtype="float32")))
        )
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, in_full, rtol=1e-4, atol=1e-5)
    assert not merged.is_adapter


def test_the_align_stage_leads_into_the_next(backbones: tuple[Path, Path], tmp_path: Path) -> None:
    """Align trains the projector alone, LoRA starts from that projector, the last artifact needs only backbones."""
    clip, phi = map(str, backbones)
    common = ["quantization=null", "data.path=x", "model.vision=" + clip, "model.language=" + phi]
    align = load_for_training(load_recipe("align", [*common, "model.dtype=float32"]))
    assert {part for part, n in count_parameters(align).items() if n["trained"]} == {"projector"}
    shake(align.model)
    save(align, tmp_path / "align")
    overrides = ["quantization=null", f"model.base={tmp_path / 'align'}", "model.dtype=float32"]
    instruct = load_for_training(load_recipe("phi3.5-mini-patches", overrides))
    aligned = align.core.model.projector.state_dict()["modules_to_save.default.linear_1.weight"]
    started = instruct.core.model.projector.state_dict()["modules_to_save.default.linear_1.weight"]
    assert started.equal(aligned)
    shake(instruct.model)
    save(instruct, tmp_path / "instruct")
    instruct.model.eval()
    shutil.rmtree(tmp_path / "align")
    assert answers(load(str(tmp_path / "instruct"), LoadOptions(dtype="float32"))) == answers(instruct)


def test_a_lora_adapter_is_no_base_to_train_on(whole: Path, tmp_path: Path) -> None:
    adapt(whole, tmp_path / "run")
    with pytest.raises(CheckpointError, match="eden export"):
        load_for_training(load_recipe("digits", [f"model.base={tmp_path / 'run'}"]))


def test_bad_models_are_named_with_a_hint(whole: Path, backbones: tuple[Path, Path], tmp_path: Path) -> None:
    adapt(whole, tmp_path / "run")
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken)
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    half = tmp_path / "half"
    shutil.copytree(whole, half)
    (half / "config.json").write_text("{")
    bad = {
        str(tmp_path / "gone"): "no such folder",
        str(tmp_path / "empty"): "holds no config.json",
        str(backbones[1]): "a model of type 'phi3' cannot see",
        str(broken): "damaged",
        str(half): "not valid JSON",
    }
    for name, message in bad.items():
        with pytest.raises(CheckpointError, match=message) as caught:
            load(name)
        assert name in str(caught.value) and caught.value.fault.hint and "\n" not in str(caught.value)


def test_an_artifact_whose_base_is_gone_says_which(whole: Path, tmp_path: Path) -> None:
    adapt(whole, tmp_path / "run")
    shutil.rmtree(whole)
    with pytest.raises(CheckpointError, match="base model cannot be loaded") as caught:
        load(str(tmp_path / "run"))
    assert str(whole) in str(caught.value)


def test_backbones_of_the_wrong_kind_are_refused(backbones: tuple[Path, Path]) -> None:
    clip, phi = map(str, backbones)
    with pytest.raises(CheckpointError, match="no vision tower of type 'phi3'"):
        assemble(ModelSection(vision=phi, language=phi), LoadOptions())
    with pytest.raises(CheckpointError, match="no language model of type 'clip_vision_model'"):
        assemble(ModelSection(vision=clip, language=clip), LoadOptions())


def test_a_full_disk_leaves_the_old_artifact(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor's files are the last to be written; the disk fills just then."""
    checkpoint = load(str(whole))
    before = {path.name: path.read_bytes() for path in whole.iterdir()}

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(checkpoint.processor), "save_pretrained", full)
    shake(checkpoint.core)
    with pytest.raises(StorageError, match="the disk is full"):
        save(checkpoint, whole)
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == before
    assert [path.name for path in whole.parent.iterdir()] == ["whole"]


def test_the_saved_config_names_no_quantization(whole: Path, tmp_path: Path) -> None:
    options = LoadOptions(quantization=QuantizationSection())
    checkpoint = load(str(whole), options)
    model = add_adapters(checkpoint.core, LORA)
    save(Checkpoint(model, checkpoint.processor, "x", checkpoint.base), tmp_path / "run")
    assert "quantization_config" not in json.loads((tmp_path / "run" / "config.json").read_text())


def test_small_models_run_in_fp32_on_a_cpu(whole: Path) -> None:
    if not torch.cuda.is_available():
        assert load(str(whole)).core.dtype == torch.float32
    assert load(str(whole), LoadOptions(dtype="bfloat16", device="cpu")).core.dtype == torch.bfloat16
