"""The number format: what each kind of machine computes in, and that a run says it and keeps the recipe as it is."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from eden.checkpoint.backbones import LoadOptions
from eden.core.numeric_format import Machine, emulation_factor, numeric_format
from eden.errors import RecipeError
from eden.recipe import QuantizationSection, load_recipe
from eden.training.train import train
from tiny_build.dataset import write_dataset

SMALL = 12 * 4 * 192**2
"""eden-tiny's size."""
HERE = numeric_format(parameters=SMALL, training=True).name


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        (Machine("cuda", (9, 0)), "bfloat16"),
        (Machine("cuda", (8, 0)), "bfloat16"),
        (Machine("cuda", (7, 5)), "float16"),
        (Machine("cpu", bf16_units=True), "bfloat16"),
        (Machine("cpu", bf16_units=False), "float32"),
        (Machine("mps"), "float32"),
    ],
)
def test_each_machine_has_its_format_and_a_reason(machine: Machine, name: str) -> None:
    found = numeric_format(machine)
    assert found.name == name
    assert found.instead_of("bfloat16") == name and found.instead_of("float32") == "float32"
    assert str(found).startswith(f"computing in {name}: ") and len(found.reason) > 10


@pytest.mark.parametrize(
    ("parameters", "trains", "answers"),
    [(SMALL, "float32", "float32"), (10**8, "bfloat16", "float32"), (10**9, "bfloat16", "bfloat16")],
)
def test_a_small_model_computes_in_fp32_on_a_cpu_with_bf16_units(parameters: int, trains: str, answers: str) -> None:
    cpu, gpu = Machine("cpu", bf16_units=True), Machine("cuda", (8, 0))
    assert numeric_format(cpu, parameters, training=True).name == trains
    assert numeric_format(cpu, parameters).name == answers
    assert numeric_format(gpu, parameters).name == numeric_format(gpu, parameters, training=True).name == "bfloat16"


@pytest.mark.parametrize(
    ("language", "name"),
    [({"num_hidden_layers": 4, "hidden_size": 192}, "float32"), ({}, "bfloat16"), (None, "bfloat16")],
)
def test_a_recipe_finds_the_size_of_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, language: dict[str, int] | None, name: str
) -> None:
    """Of a base and of backbones, by their files alone; what cannot be read is large, and refused when it is loaded."""
    monkeypatch.setattr(Machine, "here", lambda device=None: Machine("cpu", bf16_units=True))
    for folder, config in {"base": {"text_config": language}, "language": language}.items():
        if language is not None:
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "config.json").write_text(json.dumps(config))
    backbones = ["model.base=null", f"model.vision={tmp_path / 'vision'}", f"model.language={tmp_path / 'language'}"]
    for overrides in ([f"model.base={tmp_path / 'base'}"], backbones):
        recipe = load_recipe("digits", overrides)
        assert recipe.numeric_format().name == name
        here = recipe.on_this_machine()
        assert here.quantization is not None
        formats = (here.model.dtype, here.quantization.bnb_4bit_compute_dtype, here.training["bf16"])
        assert formats == (name, name, name == "bfloat16")
        forced = load_recipe("digits", [*overrides, "model.force_format=true"])
        assert forced.numeric_format().name == "bfloat16" and forced.on_this_machine() is forced


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the variables are those of x86")
def test_a_cpu_held_to_older_instructions_has_no_bf16() -> None:
    code = "from eden.core.numeric_format import numeric_format; print(numeric_format().name)"
    older = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run([sys.executable, "-c", code], env=older, capture_output=True, text=True, check=True)
    assert run.stdout == "float32\n"


def test_the_emulation_is_measured() -> None:
    assert emulation_factor() > 0


def small_run(tmp_path: Path, *overrides: str) -> tuple[str, dict[str, object], Path]:
    """One step on eden-tiny: what it printed, its run.json, and its folder."""
    data = write_dataset(tmp_path / "data", 8, seed=1)
    folder = tmp_path / "run"
    console = Console(record=True, width=300, file=(tmp_path / "printed").open("w"))
    train(
        load_recipe(
            "digits",
            [
                f"data.path={data}",
                f"training.output_dir={folder}",
                "data.eval_fraction=0.25",
                "training.max_steps=1",
                "training.per_device_train_batch_size=2",
                "training.save_strategy=steps",
                *overrides,
            ],
        ),
        resume="training.max_steps=2" in overrides,
        console=console,
    )
    return console.export_text(), json.loads((folder / "run.json").read_text()), folder


def test_a_run_says_its_format_and_keeps_the_recipe_as_it_was_written(tmp_path: Path) -> None:
    printed, run, folder = small_run(tmp_path)
    assert str(numeric_format(parameters=SMALL, training=True)) in printed
    assert run["computed_in"] == HERE
    assert (
        HERE in (folder / "report.html").read_text() and f"computed in | {HERE}" in (folder / "README.md").read_text()
    )
    saved = load_recipe(folder / "recipe.yaml")
    assert saved.training["bf16"] is True and saved.model.dtype == "bfloat16"
    assert saved.quantization is not None and saved.quantization.bnb_4bit_compute_dtype == "bfloat16"


def test_a_run_that_goes_on_in_another_format_is_told(tmp_path: Path) -> None:
    _, run, folder = small_run(tmp_path)
    (folder / "run.json").write_text(json.dumps(run | {"computed_in": "float16"}))
    printed, run, _ = small_run(tmp_path, "training.max_steps=2")
    assert f"the run began in float16 and goes on in {HERE}" in printed
    assert run["computed_in"] == HERE


def test_by_force_it_computes_in_bf16_whatever_that_costs() -> None:
    recipe = load_recipe("digits", ["model.force_format=true"])
    assert recipe.on_this_machine() is recipe
    assert recipe.training_arguments().bf16


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU computes in fp16")
def test_fp16_on_a_cpu_is_refused_before_anything_is_loaded() -> None:
    recipe = load_recipe("digits", ["training.bf16=null", "training.fp16=true", "model.base=./not-here"])
    with pytest.raises(RecipeError, match=r"a CPU does not compute in fp16.*Write training\.bf16: true"):
        recipe.training_arguments()


def test_four_bits_are_computed_in_the_machines_format_unless_another_is_asked_for() -> None:
    small = SimpleNamespace(num_hidden_layers=2, hidden_size=64)

    def compute(options: LoadOptions) -> torch.dtype:
        dtype: torch.dtype = options.for_language_model(small)["quantization_config"].bnb_4bit_compute_dtype
        return dtype

    assert compute(LoadOptions(QuantizationSection())) == getattr(torch, HERE)
    assert compute(LoadOptions(QuantizationSection(), "float32")) == getattr(torch, numeric_format().name)
    assert compute(LoadOptions(QuantizationSection(), "bfloat16")) == torch.bfloat16
    assert LoadOptions(device="cpu").numeric_format(small).name == "float32"
    assert LoadOptions(dtype="bfloat16").torch_dtype(small) == torch.bfloat16
