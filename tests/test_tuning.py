"""How adapters are made, taught and gone on with: DoRA, rsLoRA, a rate for the projector, answers that choose."""

import json
import shutil
from pathlib import Path

import bitsandbytes
import pytest
import torch
from conftest import make_image, make_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from rich.console import Console
from safetensors.torch import load_file
from transformers import CLIPVisionModelWithProjection, set_seed

from eden import CheckpointError, Message, RecipeError
from eden.checkpoint import (
    add_adapters,
    check_adapters,
    from_pissa,
    load,
    load_for_training,
    lora_weights,
    merge,
)
from eden.checkpoint.backbones import LoadOptions
from eden.inference.assistant import Assistant
from eden.messages import to_chat
from eden.plan import forecast
from eden.plan.forecast import ARTIFACT_FILES
from eden.recipe import LoraSection, Recipe, load_recipe
from eden.training.train import TrainingResult, train

QUIET = Console(quiet=True)
LAYERS = ["data.features=live", "model.vision_trainable_layers=1"]
FP32 = LoadOptions(dtype="float32")


def recipe(data: Path, backbones: tuple[Path, Path], out: Path, *changes: str) -> Recipe:
    """The seed's, in small and for a few steps."""
    fixed = [f"model.vision={backbones[0]}", f"model.language={backbones[1]}", f"data.path={data}", "data.images=null"]
    fixed += ["data.eval_fraction=0.125", "data.split_by=sample", f"training.output_dir={out}", "lora.r=4"]
    fixed += ["training.max_steps=8", "training.logging_steps=1", "training.learning_rate=1e-2"]
    fixed += ["training.per_device_train_batch_size=8", "training.save_strategy=no", "training.eval_strategy=no"]
    return load_recipe("phi3.5-mini", [*fixed, *changes])


def losses(result: TrainingResult) -> list[float]:
    return [row["loss"] for row in result.log if "loss" in row]


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def logits(checkpoint: object, image: object) -> torch.Tensor:
    example = checkpoint.processor.encode(  # type: ignore[attr-defined]
        to_chat([Message.user("which colour", [image]), Message.assistant("red")], lambda source: source)
    )
    inputs = {name: torch.as_tensor(value) for name, value in example.items()}
    ids = inputs["input_ids"][None]
    with torch.no_grad():
        return checkpoint.core(input_ids=ids, pixel_values=inputs["pixel_values"]).logits  # type: ignore[attr-defined, no-any-return]


VARIANTS = {
    "dora": ["lora.use_dora=true"],  # in 4 bits
    "rslora": ["lora.use_rslora=true", "lora.init_lora_weights=gaussian", "quantization=null"],
    "pissa": ["lora.init_lora_weights=pissa", "quantization=null"],
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_every_kind_of_adapter_learns_and_merges(
    changes: list[str], data: Path, backbones: tuple[Path, Path], tmp_path: Path
) -> None:
    """The loss falls; merged, the model says what it says with the adapter; what was not asked for stays away."""
    result = train(recipe(data, backbones, tmp_path / "run", *changes), console=QUIET)
    assert losses(result)[-1] < losses(result)[0] - 0.2
    weights = adapter(tmp_path / "run")
    assert any("lora_magnitude_vector" in name for name in weights) == ("lora.use_dora=true" in changes)
    loaded, image = load(str(tmp_path / "run"), FP32), make_image("red")
    expected = logits(loaded, image)
    assert torch.allclose(logits(merge(loaded), image), expected, atol=1e-4)


def test_rank_stabilized_updates_are_scaled_by_the_root_of_the_rank() -> None:
    sections = [LoraSection(r=4, lora_alpha=16, use_rslora=stable) for stable in (False, True)]
    models = [add_adapters(make_model("pooled"), section) for section in sections]
    layers = [next(part for part in model.modules() if isinstance(part, BaseTunerLayer)) for model in models]
    assert [layer.scaling["default"] for layer in layers] == [16 / 4, 16 / 2]


@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize("begin", ["pissa", "pissa_niter_16"])
def test_pissa_begins_with_the_largest_singular_values_and_ends_as_plain_lora(
    begin: str, stable: bool, data: Path, backbones: tuple[Path, Path], tmp_path: Path
) -> None:
    """It changes nothing at first; what it becomes says the same beside the base as it was."""
    changes = [f"lora.init_lora_weights={begin}", f"lora.use_rslora={str(stable).lower()}", "quantization=null"]
    changes += ["model.dtype=float32"]
    asked, image = recipe(data, backbones, tmp_path / "run", *changes), make_image("red")
    set_seed(0)  # of the projector
    plain = load_for_training(asked.override(["lora=null"]))
    set_seed(0)
    training = load_for_training(asked)
    training.model.eval()
    expected = logits(plain, image)
    assert torch.allclose(logits(training, image), expected, atol=1e-4)
    layer = training.core.model.language_model.layers[0].self_attn.o_proj
    base = plain.core.model.language_model.layers[0].self_attn.o_proj.weight
    was = torch.linalg.svdvals(base.detach())
    assert torch.linalg.svdvals(layer.base_layer.weight.detach())[0].isclose(was[4], rtol=0.05)
    begun = lora_weights(training.model)
    for name, weight in training.model.named_parameters():
        if "lora_" in name:
            weight.data += 0.1 * torch.randn(weight.shape)
    ended = get_peft_model_state_dict(training.model)
    other = load_for_training(*from_pissa(asked, begun, ended))
    other.model.eval()
    assert not torch.allclose(logits(training, image), expected, atol=1e-2)
    assert torch.allclose(logits(other, image), logits(training, image), atol=1e-4)


def test_a_resumed_run_of_pissa_ends_as_the_uninterrupted_one(
    data: Path, backbones: tuple[Path, Path], tmp_path: Path
) -> None:
    changes = ["lora.init_lora_weights=pissa_niter_4", "quantization=null", "training.save_strategy=steps"]
    asked = recipe(data, backbones, tmp_path / "run", *changes, "training.save_steps=4")
    whole = train(asked, console=QUIET)
    before, weights = losses(whole), adapter(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "adapter_config.json").read_text())["r"] == 8
    size = (tmp_path / "run" / "adapter_model.safetensors").stat().st_size
    assert forecast(asked, QUIET, steps=0).disk["artifact"] - ARTIFACT_FILES == pytest.approx(size, rel=0.05)
    for name in ("checkpoint-8", "adapter_config.json", "adapter_model.safetensors", "README.md"):
        path = tmp_path / "run" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert losses(train(asked, resume=True, console=QUIET)) == before
    assert all(weight.equal(weights[name]) for name, weight in adapter(tmp_path / "run").items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["lora.init_lora_weights=pissa"], "cannot be in 4 bits.*lora.init_lora_weights: true, or quantization: null"),
        (["lora.init_lora_weights=pissa_niter_4", "quantization=null", "lora.use_dora=true"], "beside lora.use_dora"),
        (["lora.init_lora_weights=pissa_niter_no", "quantization=null"], "adapters do not begin with"),
        (["lora.init_lora_weights=olora"], "olora changes the base's weights"),
        (["lora.init_lora_weights=gausian"], "adapters do not begin with lora.init_lora_weights=gausian"),
        (["lora.use_dora=1"], r"lora\.use_dora is 1"),
        (["lora=null", "model.projector_learning_rate=1e-3"], "nothing else trains"),
        (["model.vision_trainable_layers=1"], "changes the features, and data.features=auto keeps them"),
        (["data.eval_generate=4", "training.eval_strategy=no"], "training.eval_strategy has none"),
        (["data.eval_generate=4", "training.fsdp=true"], "training.fsdp shares it out"),
        (["training.metric_for_best_model=exact_match"], "nothing is answered"),
        (["training.metric_for_best_model=bleu"], "which no run measures"),
    ],
)
def test_what_cannot_be_is_refused(changes: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("phi3.5-mini", changes)


def test_libraries_without_dora_are_found_out_before_loading(
    data: Path, backbones: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe(data, backbones, tmp_path / "run", "lora.use_dora=true")
    check_adapters(asked)
    monkeypatch.delattr(bitsandbytes.functional, "dequantize_4bit")
    with pytest.raises(CheckpointError, match=r"have no DoRA in 4 bits .*quantization=null") as caught:
        check_adapters(asked)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("still", ["projector", "lora", "vision_tower"])
def test_the_projector_has_a_rate_of_its_own(
    still: str, data: Path, backbones: tuple[Path, Path], tmp_path: Path
) -> None:
    """What has next to none stays where it began, and the other moves."""
    rates = ("1e-2", "1e-12") if still == "projector" else ("1e-12", "1e-2")
    changes = ["quantization=null", f"training.learning_rate={rates[0]}", f"model.projector_learning_rate={rates[1]}"]
    changes += ["lora=null", *LAYERS] if still == "vision_tower" else []
    asked = recipe(data, backbones, tmp_path / "run", *changes, "training.max_steps=2")
    set_seed(int(asked.training_arguments().seed))
    begin = get_peft_model_state_dict(load_for_training(asked).model)
    train(asked, console=QUIET)
    end = adapter(tmp_path / "run")
    assert begin.keys() == end.keys()
    moved = {name: float((end[name] - begin[name]).abs().max()) for name in begin if "lora_A" not in name}
    assert all((distance < 1e-9) == (still in name) for name, distance in moved.items()), moved


IN_BF16 = ["quantization=null", "model.dtype=bfloat16", "model.force_format=true", "training.bf16=true"]
IN_BF16 += ["training.activation_checkpointing=false", "training.activation_checkpointing_kwargs=null"]


@pytest.mark.parametrize(
    ("feature", "changes"),
    [("pooled", []), ("patches", []), ("patches", IN_BF16)],
    ids=["pooled", "patches", "bf16, activations kept"],
)
def test_the_last_layer_of_the_tower_learns(
    feature: str, changes: list[str], data: Path, backbones: tuple[Path, Path], tmp_path: Path
) -> None:
    """That alone, of those that make the features; it is saved, merged and gone on with as all that trains.

    The recipe itself is in 4 bits, with activations computed twice.
    """
    features = [f"model.vision_feature={feature}", *changes]
    result = train(recipe(data, backbones, tmp_path / "run", *LAYERS, *features), console=QUIET)
    assert losses(result)[-1] < losses(result)[0] - 0.2
    loaded, image = load(str(tmp_path / "run"), FP32), make_image("red")
    expected = logits(loaded, image)
    merged = merge(loaded)
    assert torch.allclose(logits(merged, image), expected, atol=1e-4)
    before = CLIPVisionModelWithProjection.from_pretrained(backbones[0]).state_dict()
    after = merged.core.model.vision_tower.state_dict()
    assert before.keys() == after.keys()
    moved = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    last = {"pooled": 2, "patches": 1}[feature]
    assert moved == {name for name in after if f"encoder.layers.{last}." in name}
    none = [f"model.{name}=null" for name in ("vision", "language", "vision_feature")]
    further = [*LAYERS, *none, f"model.base={tmp_path / 'run'}", "training.max_steps=2", "training.learning_rate=1e-12"]
    train(recipe(data, backbones, tmp_path / "again", *further), console=QUIET)
    begun, ended = adapter(tmp_path / "run"), adapter(tmp_path / "again")
    assert begun.keys() == ended.keys() and any("vision_tower" in name for name in begun)
    assert all(torch.allclose(begun[name], ended[name], atol=1e-9) for name in begun)
    with pytest.raises(CheckpointError, match=r"1 layers of its tower, .* is 0.*Set model.vision_trainable_layers=1"):
        train(recipe(data, backbones, tmp_path / "other", *further, "model.vision_trainable_layers=0"), console=QUIET)
    assert not (tmp_path / "other").exists()


def test_a_tower_has_only_so_many_layers(data: Path, backbones: tuple[Path, Path], tmp_path: Path) -> None:
    changes = [*LAYERS, "model.vision_feature=patches", "model.vision_trainable_layers=3"]
    with pytest.raises(RecipeError, match=r"3, and 2 layers of .*clip make the features.*Write 2 or fewer"):
        train(recipe(data, backbones, tmp_path / "run", *changes), console=QUIET)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def first(data: Path, backbones: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter."""
    folder = tmp_path_factory.mktemp("first") / "run"
    train(recipe(data, backbones, folder, "quantization=null"), console=QUIET)
    return folder


def goes_on(data: Path, first: Path, out: Path, *changes: str) -> Recipe:
    none = [f"model.{name}=null" for name in ("vision", "language", "vision_feature")]
    return recipe(data, (first, first), out, *none, f"model.base={first}", "training.max_steps=2", *changes)


def test_an_adapter_is_gone_on_with(data: Path, first: Path, tmp_path: Path) -> None:
    """It begins where the other ended, in 4 bits as well, and stands on the other's base, not on the other."""
    train(goes_on(data, first, tmp_path / "four", "quantization={}", "training.learning_rate=1e-12"), console=QUIET)
    before, after = adapter(first), adapter(tmp_path / "four")
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-9) for name in before)
    assert any(bool(weight.any()) for name, weight in before.items() if "lora_B" in name)
    config = json.loads((tmp_path / "four" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None, "the backbones, which config.json names"
    shutil.move(first, tmp_path / "elsewhere")
    try:
        question = [[Message.user("which colour", [make_image("red")])]]
        assert Assistant(load(str(tmp_path / "four"))).answer_all(question, max_new_tokens=4)
    finally:
        shutil.move(tmp_path / "elsewhere", first)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["lora.r=8"], r"a LoRA adapter with r 4, and lora\.r is 8.*Set lora\.r=4 to go on with it, or merge it first"),
        (["lora.use_dora=true"], r"Set lora\.use_dora=false"),
        (["lora.target_modules=[o_proj]"], r"Set lora\.target_modules=\[gate_up_proj, o_proj, qkv_proj\]"),
        (["lora=null"], "the recipe has no lora section"),
        (["lora.init_lora_weights=gaussian"], "has begun, .* is gaussian"),
        (
            ["lora.init_lora_weights=pissa", "quantization=null"],
            r"has begun, .* is pissa.*lora\.init_lora_weights=true",
        ),
    ],
)
def test_adapters_of_another_shape_are_refused(
    changes: list[str], message: str, data: Path, first: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        train(goes_on(data, first, tmp_path / "run", *changes), console=QUIET)
    assert not (tmp_path / "run").exists()


def test_what_pissa_learned_is_in_the_artifact(data: Path, backbones: tuple[Path, Path], tmp_path: Path) -> None:
    """Gone on with, hardly a step further, it has the loss that it ended with."""
    evaluated = ["quantization=null", "model.dtype=float32", "training.eval_strategy=steps", "training.eval_steps=2"]
    pissa = recipe(data, backbones, tmp_path / "run", "lora.init_lora_weights=pissa", *evaluated)
    ended = [row["eval_loss"] for row in train(pissa, console=QUIET).log if "eval_loss" in row]
    further = goes_on(data, tmp_path / "run", tmp_path / "on", *evaluated, "lora.r=8", "training.learning_rate=1e-12")
    (begun,) = [row["eval_loss"] for row in train(further, console=QUIET).log if "eval_loss" in row]
    assert ended[-1] < ended[0] - 0.1
    assert begun == pytest.approx(ended[-1], abs=1e-4)


ANSWERED = ["data.eval_generate=3", "training.eval_strategy=steps", "training.eval_steps=2", "training.save_steps=2"]
ANSWERED += ["training.save_strategy=steps", "training.metric_for_best_model=exact_match"]
ANSWERED += ["training.load_best_model_at_end=true", "model.projector_learning_rate=3e-3", "lora.use_dora=true"]


def test_answers_choose_the_checkpoint_and_a_resumed_run_chooses_the_same(
    data: Path, backbones: tuple[Path, Path], tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    result = train(recipe(data, backbones, whole, *ANSWERED), console=QUIET)
    scores = [row["eval_exact_match"] for row in result.log if "eval_exact_match" in row]
    state = json.loads((whole / "checkpoint-8" / "trainer_state.json").read_text())
    assert len(scores) == 4 and all(3 * score == round(3 * score) for score in scores)
    assert state["best_metric"] == max(scores)
    best = Path(state["best_model_checkpoint"])
    assert best.name == f"checkpoint-{2 * (scores.index(max(scores)) + 1)}"
    chosen, kept = adapter(best), adapter(whole)
    assert all(kept[name].equal(weight) for name, weight in chosen.items())
    assert "held-out answers as expected" in (whole / "README.md").read_text()

    shutil.copytree(whole, cut)
    for name in ("checkpoint-6", "checkpoint-8"):
        shutil.rmtree(cut / name)
    for name in ("adapter_config.json", "adapter_model.safetensors", "README.md"):
        (cut / name).unlink()
    again = train(recipe(data, backbones, cut, *ANSWERED), resume=True, console=QUIET)
    rows = [
        [(r["step"], r.get("loss"), r.get("eval_loss"), r.get("eval_exact_match")) for r in run.log[:-1]]
        for run in (result, again)
    ]
    assert rows[0] == rows[1]
    assert all(weight.equal(kept[name]) for name, weight in adapter(cut).items())
