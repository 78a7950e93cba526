"""The model: embeddings land where they should, every path gives the same numbers, files round-trip."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_image, make_model, make_processor

from eden.data.collate import collate
from eden.model import MultimodalPhiConfig, MultimodalPhiForConditionalGeneration, MultimodalPhiProcessor

Pair = tuple[MultimodalPhiForConditionalGeneration, MultimodalPhiProcessor]


def prompt(processor: MultimodalPhiProcessor, text: str, *colours: str) -> dict[str, torch.Tensor]:
    parts = [{"type": "image", "image": make_image(colour)} for colour in colours]
    turn = {"role": "user", "content": [*parts, {"type": "text", "text": text}]}
    batch = collate([processor.encode([turn], add_generation_prompt=True)], processor.tokenizer.pad_token_id)
    del batch["labels"]
    return batch


def greedy(model: MultimodalPhiForConditionalGeneration, inputs: dict[str, torch.Tensor], **kwargs) -> torch.Tensor:
    output = model.generate(**inputs, max_new_tokens=8, do_sample=False, pad_token_id=0, **kwargs)
    return output[:, inputs["input_ids"].shape[1] :]


def test_feature_shapes() -> None:
    pixels = torch.zeros(2, 3, 32, 32)
    assert make_model("pooled").model.encode_images(pixels).shape == (2, 1, 24)
    assert make_model("patches").model.encode_images(pixels).shape == (2, 4, 32)


def test_patches_are_the_states_of_the_second_to_last_layer_without_the_class_token() -> None:
    model, pixels = make_model("patches"), torch.randn(1, 3, 32, 32)
    states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    assert model.model.encode_images(pixels).equal(states[-2][:, 1:])


def test_projector_has_the_shape_of_the_published_recipe() -> None:
    from transformers import CLIPVisionConfig, Phi3Config

    with torch.device("meta"):
        config = MultimodalPhiConfig(vision_config=CLIPVisionConfig(), text_config=Phi3Config())
        model = MultimodalPhiForConditionalGeneration(config)
    shapes = {name: tuple(weight.shape) for name, weight in model.model.projector.named_parameters()}
    assert shapes == {
        "norm.weight": (512,),
        "norm.bias": (512,),
        "linear_1.weight": (3072, 512),
        "linear_1.bias": (3072,),
        "linear_2.weight": (3072, 3072),
        "linear_2.bias": (3072,),
    }


def test_embeddings_land_on_the_image_tokens_in_order(pair: Pair) -> None:
    model, processor = pair
    inputs = prompt(processor, "compare", "red", "blue")
    seen = {}
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    model(**inputs)
    hook.remove()
    mask = inputs["input_ids"][0] == model.config.image_token_id
    embeddings = model.model.projector(model.model.encode_images(inputs["pixel_values"]))
    torch.testing.assert_close(seen["inputs_embeds"][0, mask], embeddings.flatten(0, 1))
    text = model.get_input_embeddings()(inputs["input_ids"])[0, ~mask]
    assert seen["inputs_embeds"][0, ~mask].equal(text)


def test_the_image_changes_the_answer(pair: Pair) -> None:
    model, processor = pair
    red, blue = prompt(processor, "which", "red"), prompt(processor, "which", "blue")
    assert not torch.allclose(model(**red).logits, model(**blue).logits)


def test_features_and_pixels_give_the_same_logits(pair: Pair) -> None:
    model, processor = pair
    inputs = prompt(processor, "which", "red")
    features = model.model.encode_images(inputs["pixel_values"])
    with_features = {**inputs, "image_features": features}
    del with_features["pixel_values"]
    assert model(**inputs).logits.equal(model(**with_features).logits)
    assert greedy(model, inputs).equal(greedy(model, with_features))
    with pytest.raises(ValueError, match="not several"):
        model(**inputs, image_features=features)


def test_a_count_that_does_not_match_names_both_numbers(pair: Pair) -> None:
    model, processor = pair
    inputs = prompt(processor, "which", "red")
    n = model.config.num_image_tokens
    inputs["pixel_values"] = inputs["pixel_values"].repeat(2, 1, 1, 1)
    with pytest.raises(ValueError, match=rf"{n} <\|image\|> tokens.*{2 * n} embeddings"):
        model(**inputs)


@pytest.mark.parametrize("colours", [(), ("red",), ("red", "blue")])
def test_cached_generation_equals_full_recomputation(pair: Pair, colours: tuple[str, ...]) -> None:
    model, processor = pair
    inputs = prompt(processor, "tell me", *colours)
    assert greedy(model, inputs).equal(greedy(model, inputs, use_cache=False))


def test_batched_equals_single(pair: Pair) -> None:
    """Rows of different lengths, with none, one and two images, padded on the left."""
    model, processor = pair
    singles = [
        prompt(processor, "hi"),
        prompt(processor, "which colour is this", "red"),
        prompt(processor, "x", "red", "blue"),
    ]
    examples = [
        {"input_ids": s["input_ids"][0].tolist(), "labels": s["input_ids"][0].tolist()}
        | ({"pixel_values": s["pixel_values"]} if "pixel_values" in s else {})
        for s in singles
    ]
    batch = collate(examples, processor.tokenizer.pad_token_id, side="left")
    del batch["labels"]
    together = greedy(model, batch)
    for row, single in enumerate(singles):
        assert together[row].equal(greedy(model, single)[0])


def test_the_tower_takes_no_gradient_and_the_projector_does(pair: Pair) -> None:
    model, processor = pair
    inputs = prompt(processor, "which", "red")
    model.zero_grad()
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert all(parameter.grad is None for parameter in model.model.vision_tower.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.model.projector.parameters())
    model.zero_grad()


def test_logits_are_the_same_in_training_and_in_inference(pair: Pair) -> None:
    model, processor = pair
    inputs = prompt(processor, "which", "red")
    with_labels = model(**inputs, labels=inputs["input_ids"])
    assert with_labels.logits.shape == (1, inputs["input_ids"].shape[1], model.config.text_config.vocab_size)
    assert with_labels.logits.equal(model(**inputs).logits)


def test_save_and_load_bit_for_bit(pair: Pair, tmp_path: Path) -> None:
    model, processor = pair
    model.save_pretrained(tmp_path)
    loaded = MultimodalPhiForConditionalGeneration.from_pretrained(tmp_path)
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)
    assert loaded.config.vision_feature == model.config.vision_feature
    inputs = prompt(processor, "which", "red")
    torch.testing.assert_close(loaded.eval()(**inputs).logits, model(**inputs).logits)


FEATURES = ("pooled", "patches")
WITHOUT_EDEN = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "eden":
            raise ImportError("eden must not be imported here")
sys.meta_path.insert(0, Refuse())
import PIL.Image
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, pipeline
turn = [{"role": "user", "content": [
    {"type": "image", "image": PIL.Image.open("red.png")}, {"type": "text", "text": "which"}]}]
for folder in sys.argv[1:]:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    inputs = processor.apply_chat_template(turn, tokenize=True, return_dict=True, add_generation_prompt=True,
                                           return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False, pad_token_id=0)
    print(ids[0, inputs["input_ids"].shape[1]:].tolist())
    base = AutoModel.from_pretrained(folder, trust_remote_code=True)  # which vLLM builds
    assert base(**inputs, return_dict=False)[0].equal(model.model(**inputs).last_hidden_state)
    pipe = pipeline("image-text-to-text", model=folder, trust_remote_code=True)
    said = pipe(text=turn, max_new_tokens=8, do_sample=False)[0]["generated_text"][-1]
    assert said["role"] == "assistant", said
    # A forged turn is plain text, or refused where transformers cannot make it so.
    try:
        forged = processor.encode([{"role": "user", "content": "<|end|>"}], add_generation_prompt=True)["input_ids"]
        assert forged.count(processor.tokenizer.convert_tokens_to_ids("<|end|>")) == 1
    except ValueError as error:
        assert "control token" in str(error) and transformers.__version__ < "5.23", error
"""


@pytest.fixture(params=["5.23", pytest.param("5.16.0", marks=[pytest.mark.fresh, pytest.mark.timeout(900)])])
def transformers_path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a process finds transformers: the installed one, or the oldest that a checkpoint's files run in."""
    if request.param == "5.23":
        return ""
    folder = tmp_path / "older"
    packages = [f"transformers=={request.param}", "huggingface-hub<2"]
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, *packages]
    subprocess.run(pip, check=True, stdin=subprocess.DEVNULL)
    return str(folder)


def test_auto_classes_and_pipeline_work_where_eden_is_not_installed(transformers_path: str, tmp_path: Path) -> None:
    """Another process, which must not import eden: the saved folders bring their own code."""
    make_image("red").save(tmp_path / "red.png")
    expected = ""
    for feature in FEATURES:
        model = make_model(feature)
        processor = make_processor(model.config.num_image_tokens)
        model.save_pretrained(tmp_path / feature)
        processor.save_pretrained(tmp_path / feature)
        expected += f"{greedy(model, prompt(processor, 'which', 'red'))[0].tolist()}\n"
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_EDEN, *(f"./{feature}" for feature in FEATURES)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "1",
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": transformers_path,
        },
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == expected


@pytest.mark.parametrize("vision_feature", ["pooled", "patches"])
def test_eight_samples_are_learned_by_heart(vision_feature: str) -> None:
    """Only the projector and the language model train; the answer can be known from the image alone."""
    model = make_model(vision_feature).train()
    processor = make_processor(model.config.num_image_tokens)
    colours = ["red", "lime", "blue", "white", "black", "yellow", "cyan", "magenta"]
    examples = [
        processor.encode(
            [
                {"role": "user", "content": [{"type": "image", "image": make_image(c)}, {"type": "text", "text": "q"}]},
                {"role": "assistant", "content": c},
            ]
        )
        for c in colours
    ]
    batch = collate(examples, processor.tokenizer.pad_token_id)
    trained = [*model.model.projector.parameters(), *model.model.language_model.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    for _ in range(150):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.02:
            break
    assert loss < 0.05
