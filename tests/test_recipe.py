"""Recipes: the shipped ones say what they should, and a wrong one is refused with line, key and cure."""

import subprocess
import sys
from pathlib import Path

import pytest

from eden import RecipeError
from eden.recipe import load_recipe, shipped_recipes

SMALL = """\
model:
  base: eden-tiny
data:
  path: train.json
training:
  output_dir: runs/x
  max_steps: 3
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_loads_round_trips_and_suits_transformers(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert load_recipe(recipe.save(tmp_path / "saved.yaml")) == recipe
    arguments = recipe.training_arguments()
    assert arguments.output_dir == recipe.training["output_dir"]
    assert arguments.bf16


def test_the_seed_number_for_number() -> None:
    recipe = load_recipe("phi3.5-mini")
    assert recipe.model.vision == "openai/clip-vit-base-patch32"
    assert recipe.model.language == "microsoft/Phi-3.5-mini-instruct"
    assert recipe.model.vision_feature == "pooled"
    assert recipe.quantization is not None and recipe.lora is not None
    assert recipe.quantization.model_dump() == {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_use_double_quant": False,
    }
    assert recipe.lora.model_dump() == {
        "r": 64,
        "lora_alpha": 16,
        "lora_dropout": 0.1,
        "target_modules": ["o_proj", "qkv_proj", "gate_up_proj"],
    }
    arguments = recipe.training_arguments()
    assert arguments.per_device_train_batch_size == 2
    assert arguments.max_steps == 6000
    assert (arguments.save_steps, arguments.logging_steps, arguments.eval_steps) == (0.4, 0.1, 0.1)
    assert arguments.bf16 and arguments.activation_checkpointing


def test_align_trains_the_projector_alone() -> None:
    assert load_recipe("align").lora is None


def test_overrides_take_yaml_values(small: Path) -> None:
    recipe = load_recipe(
        small,
        [
            "training.max_steps=100",
            "training.learning_rate=1e-4",
            "training.eval_strategy=no",
            "training.bf16=true",
            "model.base=runs/x",
            "lora.r=8",
        ],
    )
    assert recipe.training["max_steps"] == 100
    assert recipe.training["learning_rate"] == 1e-4
    assert recipe.training["eval_strategy"] == "no"
    assert recipe.training["bf16"] is True
    assert recipe.model.base == "runs/x"
    assert recipe.lora is not None and recipe.lora.r == 8
    assert load_recipe("phi3.5-mini", ["lora=null"]).lora is None


REFUSED = {
    "an unknown section": ("modle:\n  base: x\n" + SMALL, r"line 1: unknown key modle\. Did you mean model\?"),
    "an unknown key": (SMALL.replace("path:", "pth:"), r"line 4: unknown key data\.pth\. Did you mean path\?"),
    "an unknown training argument": (
        SMALL.replace("max_steps", "max_step"),
        r"line 7: unknown key training\.max_step\. Did you mean max_steps\?",
    ),
    "a wrong type": (SMALL + "lora:\n  r: many\n", r"line 9: lora\.r is 'many': input should be a valid integer"),
    "a number out of range": (SMALL + "lora:\n  r: 0\n", r"line 9: lora\.r is 0: .*greater than 0"),
    "no data": (SMALL.replace("data:\n  path: train.json\n", ""), r"data is missing"),
    "no output": (SMALL.replace("  output_dir: runs/x\n", ""), r"training\.output_dir is missing"),
    "base and backbones": (
        SMALL.replace("base: eden-tiny", "base: eden-tiny\n  vision: v\n  language: l"),
        r"line 1: model\.base excludes",
    ),
    "half a pair of backbones": (SMALL.replace("base: eden-tiny", "vision: v"), r"both model\.vision and model\.lang"),
    "a feature that the base decides": (
        SMALL.replace("base: eden-tiny", "base: eden-tiny\n  vision_feature: pooled"),
        r"belongs to the base",
    ),
    "a layer for pooled features": (
        SMALL.replace("base: eden-tiny", "vision: v\n  language: l\n  vision_feature_layer: -1"),
        r"needs model\.vision_feature: patches",
    ),
    "fp16 and bf16": (SMALL + "  fp16: true\n  bf16: true\n", r"exclude each other"),
    "evaluation without samples": (
        SMALL.replace("train.json", "train.json\n  eval_fraction: 0") + "  eval_strategy: steps\n",
        r"needs held-out samples",
    ),
    "an argument that is Eden's": (SMALL + "  remove_unused_columns: true\n", r"remove_unused_columns cannot be set"),
    "a key twice": (SMALL + "  max_steps: 4\n", r"line 8: 'max_steps' is given twice"),
    "broken YAML": (SMALL + "  - [\n", r"line \d+: not valid YAML"),
    "not a mapping": ("- 1\n", r"not a recipe"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_recipe_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    text, message = REFUSED[name]
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    assert caught.value.cure


@pytest.mark.parametrize("override", ["max_steps", "=3", "training..x=1", "model.base.x=1"])
def test_a_wrong_override_is_refused(small: Path, override: str) -> None:
    with pytest.raises(RecipeError):
        load_recipe(small, [override])


def test_what_transformers_refuses_is_one_line(small: Path) -> None:
    with pytest.raises(RecipeError, match="transformers refuses"):
        load_recipe(small, ["training.eval_strategy=sometimes"]).training_arguments()


def test_an_unknown_name_lists_the_shipped_recipes() -> None:
    with pytest.raises(RecipeError, match=r"phi3\.5-mini"):
        load_recipe("phi4")


def test_the_module_imports_without_torch() -> None:
    script = "import sys, eden.recipe; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
