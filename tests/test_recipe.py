"""Recipes: the shipped ones say what they should, and a wrong one is refused with line, key and hint."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from eden import RecipeError
from eden.core.numeric_format import numeric_format
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
    assert recipe.training["bf16"] is True and arguments.bf16 is (recipe.numeric_format().name == "bfloat16")


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
    assert arguments.per_device_train_batch_size == arguments.per_device_eval_batch_size == 2
    assert arguments.max_steps == 6000
    assert (arguments.save_steps, arguments.logging_steps, arguments.eval_steps) == (0.4, 0.1, 0.1)
    assert arguments.bf16 is (numeric_format().name == "bfloat16") and arguments.activation_checkpointing


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
        r"line 2: model\.base excludes model\.vision and model\.language.*model\.vision=null model\.language=null",
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
    "an idle evaluation": (SMALL + "  eval_steps: 0.1\n", r"line 8: training\.eval_steps alone never evaluates"),
    "an old name": (SMALL + "  warmup_ratio: 0.1\n", r"line 8: unknown key .*Did you mean warmup_steps\?"),
    "a hub argument": (SMALL + "  hub_token: x\n", r"line 8: training\.hub_token cannot be set"),
    "two names of one argument": (
        SMALL + "  activation_checkpointing: true\n  gradient_checkpointing: false\n",
        r"line 9: training\.gradient_checkpointing and training\.activation_checkpointing are the same",
    ),
    "a revision of no base": (
        SMALL.replace("base: eden-tiny", "vision: v\n  language: l\n  base_revision: main"),
        r"line 4: model\.base_revision says nothing here: it needs model\.base",
    ),
    "two held-out sets": (
        SMALL.replace("train.json", "train.json\n  eval_path: e.json\n  eval_fraction: 0.1"),
        r"line 6: data\.eval_fraction says nothing here",
    ),
    "a section that quantizes nothing": (
        SMALL + "quantization:\n  load_in_4bit: false\n",
        r"line 9: a quantization section without 4 bits\. Write quantization: null",
    ),
    "an unknown number format": (
        SMALL + "quantization:\n  bnb_4bit_quant_type: int4\n",
        r"line 9: quantization\.bnb_4bit_quant_type is 'int4': input should be 'nf4' or 'fp4'",
    ),
    "a word for a truth value": (
        SMALL + "quantization:\n  bnb_4bit_use_double_quant: yes\n",
        r"line 9: .*is 'yes'.* Write true or false",
    ),
    "a number for text": (SMALL.replace("train.json", "2024"), r'line 4: data\.path is 2024.* in quotes: "2024"'),
    "a share that is no number": (SMALL.replace("train.json", "t\n  eval_fraction: .nan"), r"line 5: .*finite number"),
    "a value for a section": (SMALL + "lora: 8\n", r"line 8: lora is 8"),
    "an object": (SMALL + "lora: !!python/object:os.x {}\n", r"line 8: not valid YAML"),
    "an empty file": ("", r"not a recipe"),
    "a key twice": (SMALL + "  max_steps: 4\n", r'line 8: .*duplicate key "max_steps".* Keep one\.'),
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
    assert caught.value.fault.hint


WRONG_OVERRIDES = {
    "training.max_steps=0": r"training\.max_steps is 0\. Write 1 or more; leave it out",
    "training.learning_rate=-1": r"training\.learning_rate is -1\. Write 0 or more",
    "training.per_device_train_batch_size=0": r"training\.per_device_train_batch_size is 0\. Write 1 or more",
    "training.per_device_eval_batch_size=-1": r"training\.per_device_eval_batch_size is -1\. Write 1 or more",
    "training.gradient_accumulation_steps=0": r"training\.gradient_accumulation_steps is 0\. Write 1 or more",
    "training.metric_for_best_model=accuracy": r"training\.metric_for_best_model is accuracy, .* Write loss",
    "training.adam_beta1=1": r"training\.adam_beta1 is 1\. Write a number from 0 to below 1",
    "training.seed=-1": r"training\.seed is -1\. Write 0 or more",
    "max_steps": r"not an override",
    "=3": r"not an override",
    "training..x=1": r"not an override",
    "model.base.x=1": r"override model\.base\.x=1: model\.base is no section",
    "trainin.max_steps=1": r"override trainin\.max_steps=1: unknown key trainin\. Did you mean training\?",
    "lora={r: 0}": r"override lora={r: 0}: lora\.r is 0",
    "lora=[": r"override lora=\[ line 1: not valid YAML",
    "model.vision=v": r"excludes model\.vision",
    "data.path=null": r"override data\.path=null: data\.path is missing",
}


@pytest.mark.parametrize("override", WRONG_OVERRIDES)
def test_a_wrong_override_is_refused_by_its_own_words(small: Path, override: str) -> None:
    with pytest.raises(RecipeError, match=WRONG_OVERRIDES[override]):
        load_recipe(small, [override])


def test_a_run_of_no_epochs_is_refused_and_transformers_word_for_none_is_not(small: Path) -> None:
    assert load_recipe(small, ["training.num_train_epochs=0"]).training["max_steps"] == 3
    with pytest.raises(RecipeError, match=r"training\.num_train_epochs is 0\. Write a number above 0"):
        load_recipe(small, ["training.max_steps=-1", "training.num_train_epochs=0"])
    with pytest.raises(RecipeError, match=r"training\.max_steps is 0"):
        load_recipe(small).training_arguments(max_steps=0)


def test_a_base_takes_the_place_of_two_backbones_when_they_are_taken_out() -> None:
    with pytest.raises(
        RecipeError, match=r"^override model\.base=x: .*model\.vision=null model\.language=null"
    ) as caught:
        load_recipe("phi3.5-mini", ["model.base=x"])
    hint = [
        word.strip(",.")
        for word in str(caught.value.fault.hint).split()
        if word.startswith("model.") and "=null" in word
    ]
    recipe = load_recipe("phi3.5-mini", ["model.base=x", *(word for word in hint if word != "model.base=null")])
    assert (recipe.model.base, recipe.model.vision, recipe.model.language) == ("x", None, None)


def test_an_override_is_text_to_its_end(small: Path) -> None:
    assert load_recipe(small, ["data.path=/a b/#1: x"]).data.path == "/a b/#1: x"
    assert load_recipe(small, ["data.path='2024'"]).data.path == "2024"
    assert load_recipe(small, ["training.lr_scheduler_kwargs.num_cycles=2"]).training["lr_scheduler_kwargs"] == {
        "num_cycles": 2
    }


def test_numbers_and_words_are_read_by_yaml_1_2(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(SMALL + "  learning_rate: 2e-4\n  eval_strategy: no\n  run_name: on\n  bf16: true\n")
    training = load_recipe(path).training
    assert training["learning_rate"] == 2e-4
    assert (training["eval_strategy"], training["run_name"], training["bf16"]) == ("no", "on", True)


@pytest.mark.parametrize("word", ["1e-4", "no", "010", "1:30", "null", "~", "2024-01-01", "a: b #c", "é", ""])
def test_words_that_look_like_something_else_round_trip(small: Path, tmp_path: Path, word: str) -> None:
    recipe = load_recipe(small, [f"training.run_name={json.dumps(word)}", "training.learning_rate=1e-05"])
    again = load_recipe(recipe.save(tmp_path / "again.yaml"))
    assert again == recipe
    assert again.training["run_name"] == word
    assert again.training["learning_rate"] == 1e-5


WRONG_ARGUMENTS = {
    "training.eval_strategy=sometimes": r"refuses training\.eval_strategy\. It cannot be 'sometimes'",
    "training.lr_scheduler_type=cosin": r"did you mean cosine\?",
    "training.train_sampling_strategy=x": r"valid: random, sequential",
    "training.max_steps='100'": r"refuses training\.max_steps\. It is '100' and must be a valid integer",
    "training.bf16=yes": r"refuses training\.bf16\. It is 'yes' and must be a valid boolean",
    "training.logging_steps=2.5": r"must be an integer if bigger than 1",
    "training.load_best_model_at_end=true": r"requires the save and eval strategy to match",
    "training.lr_scheduler_kwargs.cycles=2": r"unexpected keyword argument 'cycles'",
    "training.lr_scheduler_type=cosine_with_min_lr": r"min_lr or min_lr_rate should be set",
    "training.lr_scheduler_type=warmup_stable_decay": r"missing 1 required positional argument: 'num_decay_steps'",
    "training.optim=galore_adamw": r"refuses training\.optim\. You need to define `optim_target_modules`|galore_torch",
    "training.optim_args=fused": r"refuses training\.optim_args",
    "training.optim_args='nope=3'": r"refuses training\.optim_args\. It changes nothing of adamw_torch",
}


@pytest.mark.parametrize("override", WRONG_ARGUMENTS)
def test_what_transformers_refuses_is_one_line(small: Path, override: str) -> None:
    with pytest.raises(RecipeError, match=WRONG_ARGUMENTS[override]) as caught:
        load_recipe(small, [override]).training_arguments()
    assert str(caught.value).startswith(f"override {override}: transformers refuses")
    assert "\n" not in str(caught.value)


def test_training_arguments_are_edens_where_they_must_be(small: Path) -> None:
    arguments = load_recipe(small).training_arguments(max_steps=7)
    assert arguments.max_steps == 7
    assert (arguments.remove_unused_columns, arguments.label_names, arguments.disable_tqdm) == (
        False,
        ["labels"],
        False,
    )
    with pytest.raises(RecipeError, match=r"unknown key training\.max_step\. Did you mean max_steps"):
        load_recipe(small).training_arguments(max_step=7)


def test_an_unknown_name_lists_the_shipped_recipes() -> None:
    with pytest.raises(RecipeError, match=r"phi3\.5-mini"):
        load_recipe("phi4")


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path)


def test_recipes_are_read_without_torch() -> None:
    script = (
        "import sys, eden.recipe; eden.recipe.load_recipe('phi3.5-mini', ['training.max_steps=3']);"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("report_to=wandb", r"training\.report_to.*pip install wandb"),
        ("report_to=[swanlab]", r"training\.report_to.*pip install swanlab"),
        ("report_to=[none, wandb]", r"training\.report_to.*none is not supported"),
        ("use_liger_kernel=true", r"training\.use_liger_kernel.*pip install liger-kernel"),
    ],
)
def test_a_package_that_a_run_would_need_is_named_before_it(setting: str, words: str) -> None:
    recipe = load_recipe("digits", [f"training.{setting}", "data.path=x"])
    with pytest.raises(RecipeError, match=words) as caught:
        recipe.training_arguments()
    assert "\n" not in str(caught.value)
