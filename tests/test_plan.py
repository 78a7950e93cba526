"""Plans: counted exactly where a count is possible, compared with what really is held where it is an estimate."""

import json
import re
from pathlib import Path
from typing import Any

import cli
import pytest
import torch
from families import write_language_model
from rich.console import Console

from eden.checkpoint import count_parameters, load_for_training
from eden.errors import CheckpointError, DataError, InputError
from eden.plan import Plan, forecast
from eden.plan.measure import held_bytes, kept_bytes
from eden.plan.memory import GIB, WEIGHTS, layer_activations, lora_copies
from eden.plan.shapes import shapes_of
from eden.recipe import load_recipe
from eden.training.train import train

SHAPES = Path(__file__).parent.parent / "examples" / "shapes.json"
DIGITS = [f"data.path={SHAPES}"]


def plan(name: str, *overrides: str, **options: Any) -> Plan:
    return forecast(load_recipe(name, overrides), Console(quiet=True), **options)


@pytest.fixture(scope="module")
def phi() -> Plan:
    """The seed's recipe, without weights, data or network."""
    return plan("phi3.5-mini", steps=0)


def test_phi_is_counted_exactly_without_its_weights(phi: Plan) -> None:
    counts = phi.shapes.counts
    assert counts["language_model"]["frozen"] + counts["lm_head"]["frozen"] == 3_821_079_552
    qkv, o, gate_up = 3072 + 9216, 3072 + 3072, 3072 + 16_384
    assert counts["lora"] == {"trained": 32 * 64 * (qkv + o + gate_up), "frozen": 0}
    assert counts["projector"]["trained"] == 2 * 512 + (512 + 1) * 3072 + (3072 + 1) * 3072
    assert phi.workload.source == "assumed" and phi.workload.schedule.steps == 6000


def test_a_second_stage_is_planned_before_the_first_has_run(phi: Plan, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    planned = plan("phi3.5-mini-patches", "training.num_train_epochs=2", steps=0)
    assert planned.stage == "align" and phi.stage is None
    assert planned.shapes.config.num_image_tokens == 49
    assert planned.shapes.counts["language_model"] == phi.shapes.counts["language_model"]
    assert planned.shapes.counts["lora"]["trained"] > phi.shapes.counts["lora"]["trained"]  # down_proj's, too
    with pytest.raises(CheckpointError, match="no such folder"):
        plan("phi3.5-mini-patches", "model.base=runs/other", steps=0)


def test_parts_add_up_and_four_bits_are_what_they_are(phi: Plan) -> None:
    parts = phi.memory.parts
    assert phi.memory.total == sum(parts.values())
    assert parts["optimizer"] == 2 * parts["gradients"] == 8 * phi.shapes.trained
    linear = 32 * (3072 * 9216 + 3072 * 3072 + 3072 * 16_384 + 8192 * 3072)
    rest = 2 * (32_064 * 3072 + 65 * 3072)
    assert parts["language model"] == pytest.approx(linear * (0.5 + 4 / 64) + rest, rel=1e-5)
    doubled = plan("phi3.5-mini", "quantization.bnb_4bit_use_double_quant=true", steps=0).memory.parts
    assert (parts["language model"] - doubled["language model"]) / linear == pytest.approx(0.373 / 8, rel=0.01)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["quantization=null"],
        ["quantization.bnb_4bit_use_double_quant=true", "lora.r=8"],
        ["lora=null", "model.dtype=float32"],
        ["quantization=null", "lora.init_lora_weights=pissa"],
        ["model.vision_trainable_layers=2", "data.features=live"],
    ],
    ids=["4 bits", "bf16", "double quant", "projector, fp32", "pissa", "vision layers"],
)
def test_the_loaded_model_holds_what_was_estimated(overrides: list[str]) -> None:
    planned = plan("digits", *DIGITS, *overrides, steps=0)
    loaded = load_for_training(load_recipe("digits", [*DIGITS, *overrides]))
    assert planned.memory.held == pytest.approx(held_bytes(loaded), rel=0.02)
    assert planned.shapes.counts == count_parameters(loaded)


def test_the_digits_are_planned_with_real_steps_and_leave_nothing(tmp_path: Path) -> None:
    result = cli.eden("plan", "digits", *DIGITS, "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    planned = json.loads(result.stdout)
    assert planned["data"]["source"] == "encoded" and planned["data"]["samples"] == 7
    measured, parts = planned["measured"], planned["memory_estimate"]["by_part"]
    assert measured["what"] == "model" and measured["tokens"] == planned["data"]["longest_batch"]
    assert measured["held"] == pytest.approx(sum(parts[part] for part in WEIGHTS), rel=0.02)
    assert measured["peak"] > measured["held"] and measured["seconds"] > 0
    assert planned["steps"] == load_recipe("digits").training["max_steps"]
    assert planned["total_seconds_estimate"] == pytest.approx(planned["steps"] * planned["step_seconds_estimate"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("asked", ["bfloat16", "float32"])
@pytest.mark.parametrize("attention", ["eager", "null"])
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["lora.lora_dropout=0", "quantization=null"],
        ["lora.target_modules=[o_proj, qkv_proj, gate_up_proj, down_proj]"],
    ],
    ids=["4 bits", "no dropout", "down_proj"],
)
def test_a_layer_keeps_what_the_formula_says(overrides: list[str], attention: str, asked: str) -> None:
    assert_layer_keeps_as_said(overrides, attention, asked)


@pytest.mark.parametrize("family", ["smollm2", "qwen3"])
def test_a_layer_of_another_family_does_too(family: str, backbones: tuple[Path, Path], tmp_path: Path) -> None:
    """Heads that share keys, projections that are not joined, a head wider than its share of the model."""
    language = write_language_model(family, tmp_path / family)
    parts = ["model.base=null", f"model.vision={backbones[0]}", f"model.language={language}"]
    assert_layer_keeps_as_said([*parts, "quantization=null", "lora.target_modules=null"], "null", "float32")


def assert_layer_keeps_as_said(overrides: list[str], attention: str, asked: str) -> None:
    half = asked == "bfloat16"
    formats = [f"model.dtype={asked}", f"training.bf16={half}".lower(), "model.force_format=true"]
    if "quantization=null" not in overrides:
        formats.append(f"quantization.bnb_4bit_compute_dtype={asked}")
    recipe = load_recipe("digits", [*DIGITS, f"model.attn_implementation={attention}", *formats, *overrides])
    shapes, checkpoint, tokens = shapes_of(recipe), load_for_training(recipe), 100
    model = checkpoint.core.model
    checkpoint.model.train()
    states = torch.randn(1, tokens, shapes.config.text_config.hidden_size, dtype=getattr(torch, asked)).requires_grad_()

    def forward() -> object:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            options = {} if attention == "eager" else model.pack([tokens], states)
            return model.language_model(inputs_embeds=states, **(options | {"use_cache": False}))

    layers = model.language_model.layers
    all_of_them = kept_bytes(model, forward)
    model.language_model.layers = layers[:1]
    model.language_model.config.num_hidden_layers = 1
    of_one = kept_bytes(model, forward)
    estimated = layer_activations(recipe, shapes, [tokens], flat=True, gpu=False)
    estimated += lora_copies(recipe, shapes) // len(layers)
    assert (all_of_them - of_one) / (len(layers) - 1) == pytest.approx(estimated, rel=0.05)


@pytest.mark.parametrize(
    ("attention", "checkpointing", "rows"),
    [("eager", "true", 2), ("eager", "false", 2), ("null", "true", 4), ("null", "false", 4), ("sdpa", "false", 4)],
)
def test_a_real_step_takes_the_memory_that_was_estimated(
    attention: str, checkpointing: str, rows: int, tmp_path: Path
) -> None:
    """Rows long and many enough for activations to outweigh all else; no data, so lengths are assumed."""
    large = [f"model.attn_implementation={attention}", f"training.activation_checkpointing={checkpointing}"]
    large += [f"data.path={tmp_path / 'none.json'}", f"training.per_device_train_batch_size={rows}"]
    large += ["data.row_length=null"]
    planned = plan("digits", *large, steps=1)
    assert planned.measured is not None
    assert planned.measured.peak == pytest.approx(planned.memory.total, rel=0.1)


def test_checkpointing_batch_and_optimizer_change_what_they_should(phi: Plan) -> None:
    without = plan("phi3.5-mini", "training.activation_checkpointing=false", steps=0)
    assert without.memory.parts["activations"] > 10 * phi.memory.parts["activations"]
    small = plan("phi3.5-mini", "training.per_device_train_batch_size=1", steps=0)
    assert small.memory.parts["activations"] < 0.6 * phi.memory.parts["activations"]
    eight = plan("phi3.5-mini", "training.optim=paged_adamw_8bit", steps=0)
    assert eight.memory.parts["optimizer"] * 4 == phi.memory.parts["optimizer"]


def test_rows_steps_and_padding_are_those_of_the_run(tmp_path: Path) -> None:
    short = [
        "data.row_length=null",
        "model.attn_implementation=null",
        "training.max_steps=null",
        "training.num_train_epochs=3",
    ]
    short += ["training.per_device_train_batch_size=2", "training.gradient_accumulation_steps=2"]
    flat = plan("digits", *DIGITS, *short, steps=0).workload
    assert (len(flat.lengths), flat.rows, flat.padding) == (7, 7, 0.0)  # one of eight is held out
    last = train(load_recipe("digits", [*DIGITS, *short, f"training.output_dir={tmp_path}"])).log[-1]
    assert (flat.schedule.steps, flat.schedule.epochs) == (last["step"], last["epoch"]) == (6, 3.0)
    padded = plan("digits", *DIGITS, *short, "model.attn_implementation=eager", steps=0).workload
    assert padded.positions > flat.positions == flat.tokens == padded.tokens
    packed = plan("digits", *DIGITS, *short, "data.row_length=256", steps=0).workload
    assert packed.rows < 7 and packed.longest_positions <= 512 and packed.tokens == flat.tokens


def test_samples_that_are_too_long_are_left_out_or_refused_with_a_hint_that_helps() -> None:
    lengths = sorted(plan("digits", *DIGITS, steps=0).workload.lengths.tolist())
    rows = ["model.attn_implementation=null", f"data.row_length={lengths[-1] - 1}"]
    with pytest.raises(DataError, match=r"json record \d.*Raise data\.row_length, or set data\.on_error=skip\.$"):
        plan("digits", *DIGITS, *rows, steps=0)
    left = plan("digits", *DIGITS, *rows, "data.on_error=skip", steps=0).workload
    assert sorted(left.lengths.tolist()) == [length for length in lengths if length < lengths[-1]]
    with pytest.raises(DataError, match=r"every sample is too long.*data\.row_length is 5\. Raise data\.row_length\.$"):
        plan("digits", *DIGITS, "data.row_length=5", "data.on_error=skip", steps=0)


def test_a_budget_gets_the_cheapest_changes_in_order() -> None:
    full = ["training.activation_checkpointing=false", "quantization=null", "training.per_device_train_batch_size=8"]
    planned = plan("phi3.5-mini", *full, budget=5 * GIB, steps=0)
    (verdict,) = planned.verdicts
    assert not verdict.fits and verdict.possible
    made = [change.overrides[0] for change in verdict.changes]
    assert made[:2] == ["training.activation_checkpointing=true", "training.optim=paged_adamw_8bit"]
    assert verdict.changes[2].overrides == [
        "training.per_device_train_batch_size=4",
        "training.gradient_accumulation_steps=2",
    ]
    totals = [planned.memory.total, *(change.total for change in verdict.changes)]
    assert totals == sorted(totals, reverse=True) and totals[-1] <= 5 * GIB < totals[-2]
    changed = [word for change in verdict.changes for word in change.overrides]
    again = plan("phi3.5-mini", *full, *changed, budget=5 * GIB, steps=0)
    assert again.verdicts[0].fits and again.memory.total == totals[-1]


def test_a_budget_that_wants_4_bits_takes_no_pissa() -> None:
    planned = plan("phi3.5-mini", "quantization=null", "lora.init_lora_weights=pissa", budget=5 * GIB, steps=0)
    (verdict,) = planned.to_dict()["budgets"]
    assert any("lora.init_lora_weights=true" in change["overrides"] for change in verdict["changes"])


def test_a_budget_nothing_fits_is_one_line_with_what_would_help() -> None:
    result = cli.eden("plan", "phi3.5-mini", "--budget", "1GiB", "--steps", "0")
    assert result.returncode == 2 and result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert "nothing fits 1 GiB" in line and "training.optim=paged_adamw_8bit" in line
    assert re.search(r"Give at least [\d,]+MiB", line)
    with pytest.raises(InputError, match="no size: 'much'"):
        from eden.plan.budget import parse_size

        parse_size("much")


@pytest.mark.parametrize("recipe", ["phi3.5-mini", "phi4-mini-patches"])
def test_the_command_on_real_shapes_says_what_suffices_and_how_long_it_takes(recipe: str, tmp_path: Path) -> None:
    """One layer is measured; what autograd keeps of it is what the formula says."""
    result = cli.eden("plan", recipe, "--steps", "1", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    planned = json.loads(result.stdout)
    assert [verdict["budget"] // GIB for verdict in planned["budgets"]] == [6, 8, 12, 24]
    assert all(verdict["possible"] for verdict in planned["budgets"])
    measured = planned["measured"]
    assert measured["what"] == "layer" and planned["step_seconds_estimate"] > 0
    assert measured["kept"] == pytest.approx(measured["kept_estimate"], rel=0.05)
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_short_lines(tmp_path: Path) -> None:
    result = cli.eden("plan", "digits", *DIGITS, "--steps", "0", cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == ""
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) < 100
    assert any(line.startswith("samples") and "7, 468 tokens, 73 supervised" in line for line in lines)
    assert sum(line.endswith("enough") for line in lines) == 4
    assert list(tmp_path.iterdir()) == []
