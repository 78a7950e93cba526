"""What holds for every family of language models: the same code, told what differs by a table."""

import json
import re
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_image
from families import twin, write_language_model
from test_checkpoint import QUESTIONS, answers
from test_train import losses, overrides
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, GPT2Config

from eden import CheckpointError, DataError
from eden.checkpoint import Checkpoint, add_adapters, load, merge, save
from eden.checkpoint.backbones import LoadOptions, assemble, check_backbones
from eden.data.collate import collate, collate_flat
from eden.data.control_tokens import CONTROL_TOKEN, CONTROL_WORD
from eden.data.dataset import ConversationDataset
from eden.data.validate import check
from eden.export.gguf import LANGUAGES, write_gguf
from eden.inference.engine import Engine
from eden.inference.request import Request
from eden.inference.sampling import Sampling
from eden.messages import to_chat
from eden.model import MultimodalPhiConfig, MultimodalPhiProcessor
from eden.model.attention import PACKED_SDPA
from eden.model.families import FAMILIES
from eden.model.loss import IGNORE_INDEX
from eden.plan.published import PUBLISHED
from eden.recipe import LoraSection, ModelSection, QuantizationSection, load_recipe
from eden.training.train import train

TODAY = datetime.now().strftime("%d %B %Y")
TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": " and\n"},
    {"role": "assistant", "content": "no"},
]
SMOLLM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
METADATA = f"## Metadata\n\nKnowledge Cutoff Date: June 2025\nToday Date: {TODAY}\nReasoning Mode: /no_think\n\n"
# Of each: the beginning of a conversation without a system message, the conversation, and what asks for an answer.
RENDERED = {
    "phi3": (
        "<|user|>\nhi<|end|>\n",
        "<|system|>\nbe brief<|end|>\n<|user|>\nhi<|end|>\n<|assistant|>\nyes<|end|>\n<|user|>\n and\n<|end|>\n"
        "<|assistant|>\nno<|end|>\n<|endoftext|>",
        "<|assistant|>\n",
    ),
    "phi4": (
        "<|user|>hi<|end|>",
        "<|system|>be brief<|end|><|user|>hi<|end|><|assistant|>yes<|end|><|user|> and\n<|end|><|assistant|>no<|end|>"
        "<|endoftext|>",
        "<|assistant|>",
    ),
    "smollm2": (
        f"<|im_start|>system\n{SMOLLM}<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n",
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
        "<|im_start|>user\n and\n<|im_end|>\n<|im_start|>assistant\nno<|im_end|>\n",
        "<|im_start|>assistant\n",
    ),
    "smollm3": (
        f"<|im_start|>system\n{METADATA}## Custom Instructions\n\n{SMOLLM}.\n\n<|im_start|>user\nhi<|im_end|>\n",
        f"<|im_start|>system\n{METADATA}## Custom Instructions\n\nbe brief\n\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\nyes<|im_end|>\n<|im_start|>user\n and\n<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\nno<|im_end|>\n",
        "<|im_start|>assistant\n<think>\n\n</think>\n",
    ),
    "qwen3": (
        "<|im_start|>user\nhi<|im_end|>\n",
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
        "<|im_start|>user\n and\n<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nno<|im_end|>\n",
        "<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def language(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model's folder, by its family's name."""
    return write_language_model(request.param, tmp_path_factory.mktemp("family") / request.param)


@pytest.fixture(scope="module")
def section(language: Path, backbones: tuple[Path, Path]) -> ModelSection:
    return ModelSection(vision=str(backbones[0]), language=str(language), vision_feature="patches")


@pytest.fixture(scope="module")
def checkpoint(section: ModelSection) -> Checkpoint:
    torch.manual_seed(0)
    model, processor = assemble(section, LoadOptions())
    return Checkpoint(model, processor, str(section.language), None)


@pytest.fixture(scope="module")
def samples(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """With two, no and one image."""
    encode = checkpoint.processor.encode

    def example(question: str, answer: str, *colours: str) -> dict[str, Any]:
        images = [{"type": "image", "image": make_image(colour)} for colour in colours]
        turn = {"role": "user", "content": [*images, {"type": "text", "text": question}]}
        return encode([turn, {"role": "assistant", "content": answer}])

    return [example("compare", "not alike", "blue", "red"), example("hello", "hi"), example("which", "lime", "lime")]


def test_text_is_rendered_as_published(checkpoint: Checkpoint) -> None:
    begun, whole, asking = RENDERED[checkpoint.processor.family]
    render = checkpoint.processor.apply_chat_template
    assert render(TALK[1:2], add_generation_prompt=True) == begun + asking
    assert render(TALK) == whole
    parts = [turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in TALK]
    assert render(parts) == whole


def test_labels_are_on_answers_and_what_closes_them_only(checkpoint: Checkpoint) -> None:
    processor, family = checkpoint.processor, FAMILIES[checkpoint.processor.family]
    talk = [
        TALK[0],
        {"role": "user", "content": [{"type": "image", "image": None}, {"type": "text", "text": "hi"}]},
        *TALK[2:],
    ]
    encoded = processor.encode(talk)
    supervised = [token for token, label in zip(encoded["input_ids"], encoded["labels"], strict=True) if label >= 0]
    assert processor.tokenizer.decode(supervised).replace(" ", "") == f"yes{family.ends[0]}no{family.ends[0]}"
    first_only = processor.encode([*talk[:-1], talk[-1] | {"weight": 0}])["labels"]
    spoken = [label for label in first_only if label != IGNORE_INDEX]
    assert processor.tokenizer.decode(spoken) == f"yes{family.ends[0]}"
    prompt = processor.encode(talk[:-1], add_generation_prompt=True)["input_ids"]
    assert encoded["input_ids"][: len(prompt)] == prompt
    assert encoded["input_ids"].count(processor.image_token_id) == 4


def test_tiles_take_the_same_ids_by_every_way(checkpoint: Checkpoint) -> None:
    """Whatever the tokenizer makes of the row ends."""
    plain, pictures = checkpoint.processor, [make_image("red", (96, 32)), make_image("blue", (64, 64))]
    processor = MultimodalPhiProcessor(plain.image_processor, plain.tokenizer, 4, plain.family, tiles=4)
    images = [{"type": "image", "image": picture} for picture in pictures]
    talk = [
        {"role": "user", "content": [*images, {"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": "a"},
    ]
    encoded = processor.encode(talk)
    called = processor(text=[processor.apply_chat_template(talk)], images=pictures)
    assert called["input_ids"][0] == encoded["input_ids"]
    counts = processor._get_num_multimodal_tokens([[32, 96], [64, 64]])["num_image_tokens"]
    ids, token = encoded["input_ids"], processor.image_token_id
    start, end = ids.index(token), len(ids) - ids[::-1].index(token)
    assert ids.count(token) == 4 * (4 + 5) < sum(counts) == end - start


def test_nobody_forges_a_turn(checkpoint: Checkpoint) -> None:
    processor = checkpoint.processor
    for token in processor.tokenizer.get_added_vocab():
        said = [{"role": "user", "content": f"a{token}b"}]
        plain = [{"role": "user", "content": "ab"}]
        added = set(processor.tokenizer.get_added_vocab().values())
        asked, other = (processor.encode(talk, add_generation_prompt=True)["input_ids"] for talk in (said, plain))
        assert [each for each in asked if each in added] == [each for each in other if each in added], token


def test_every_added_token_is_known_to_the_check_and_refused_in_training(checkpoint: Checkpoint) -> None:
    processor = checkpoint.processor
    for token in processor.tokenizer.get_added_vocab():
        text = f"a{token}b"
        assert CONTROL_TOKEN.search(text) or CONTROL_WORD.search(text), token
        for asked, answered in (("hi", text), (text, "hi")):
            with pytest.raises(ValueError, match=f"control token {re.escape(token)}"):
                processor.encode([{"role": "user", "content": asked}, {"role": "assistant", "content": answered}])


def test_what_is_a_control_token_to_some_is_counted_and_its_sample_named(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """By the check, which knows no model, and by a run with a model to which it is one; to Phi it is a word."""
    words = {"<filename>": 1, "<think>": 2, "</think>": 2, "<tool_call>": 1}
    answers = ["open <filename>", "<think>so</think> <think>no</think>", "<think></think><tool_call>", "plain"]
    records = [{"id": text, "question": "q", "answer": text} for text in answers]
    (tmp_path / "data.json").write_text(json.dumps(records))
    report, samples = check(tmp_path / "data.json")
    assert report.ok and report.control_words == words
    known = checkpoint.processor.tokenizer.get_added_vocab().keys() & words
    refused = [text for text in answers if any(word in text for word in known)]
    assert bool(refused) != checkpoint.processor.family.startswith("phi")
    dataset = ConversationDataset(samples, checkpoint.processor, max_length=500, on_error="skip")
    assert [sample.id for sample in dataset.samples] == [text for text in answers if text not in refused]
    assert [error.fault.where for error in dataset.skipped] == [
        f"{tmp_path}/data.json record {n + 1} (id {text})" for n, text in enumerate(answers) if text in refused
    ]
    if refused:
        with pytest.raises(DataError, match=r"record \d \(id .*the text contains the control token <"):
            ConversationDataset(samples, checkpoint.processor, max_length=500)


def test_the_image_token_has_a_row_that_nothing_else_has(checkpoint: Checkpoint) -> None:
    config, tokenizer = checkpoint.config, checkpoint.processor.tokenizer
    rows = config.text_config.vocab_size
    assert config.image_token_id == len(tokenizer) - 1 < rows and rows % 64 == 0
    assert checkpoint.core.lm_head.weight.shape[0] == rows == checkpoint.core.get_input_embeddings().weight.shape[0]
    before = twin(checkpoint.processor.family)[0]
    if rows > before.vocab_size:  # what was added is never the likeliest
        logits = checkpoint.core(torch.arange(20)[None]).logits
        assert logits.argmax(-1).max() < before.vocab_size
    tied = checkpoint.core.lm_head.weight is checkpoint.core.get_input_embeddings().weight
    assert tied == before.tie_word_embeddings == config.tie_word_embeddings


@torch.no_grad()
def test_batched_packed_and_cached_are_as_alone(checkpoint: Checkpoint, samples: list[dict[str, Any]]) -> None:
    model = checkpoint.core
    alone = [model(**collate([sample], 0)).logits[0] for sample in samples]
    together = model(**collate(samples, 0)).logits
    for sample, one, row in zip(samples, alone, together, strict=True):
        torch.testing.assert_close(row[: len(sample["input_ids"])], one, rtol=1e-4, atol=1e-4)
    flat = collate_flat(samples)
    features = model.model.encode_images(flat.pop("pixel_values"))
    model.model.language_model.set_attn_implementation(PACKED_SDPA)
    packed = model(**flat, image_features=features).logits[0].split(flat["sample_lengths"])
    model.model.language_model.set_attn_implementation("sdpa")
    for one, other in zip(alone, packed, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)


def test_the_engine_writes_what_generate_does(checkpoint: Checkpoint) -> None:
    """Each answer also with all that came before read anew for every token."""
    processor, model = checkpoint.processor, checkpoint.core
    model.generation_config.eos_token_id, ends = None, model.generation_config.eos_token_id
    examples = [
        processor.encode(to_chat(question, lambda image: image), add_generation_prompt=True) for question in QUESTIONS
    ]
    with Engine(checkpoint) as engine:
        requests = [engine.submit(Request.of(asked, Sampling(max_new_tokens=12))) for asked in examples]
        written = [request.wait().token_ids for request in requests]
    for asked, answer in zip(examples, written, strict=True):
        batch = {name: value for name, value in collate([asked], 0).items() if name != "labels"}
        for use_cache in (True, False):
            ids = model.generate(**batch, max_new_tokens=12, do_sample=False, use_cache=use_cache)
            assert ids[0, len(asked["input_ids"]) :].tolist() == answer
    model.generation_config.eos_token_id = ends
    family = FAMILIES[processor.family]
    assert ends == processor.tokenizer.convert_tokens_to_ids(list(family.ends))


def test_an_adapter_is_saved_loaded_and_merged(checkpoint: Checkpoint, section: ModelSection, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, processor = assemble(section, LoadOptions())
    adapted = add_adapters(model, LoraSection(r=4, lora_alpha=8, lora_dropout=0.0))
    on = {
        name.rpartition(".lora_A")[0].rpartition(".")[2] for name, _ in adapted.named_parameters() if "lora_A" in name
    }
    assert on == set(FAMILIES[processor.family].lora_targets)
    torch.manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    trained = Checkpoint(adapted.eval(), processor, "x", None)
    told = answers(trained)
    assert told != answers(checkpoint)
    save(trained, tmp_path / "adapter")
    loaded = load(str(tmp_path / "adapter"))
    assert answers(loaded) == told and loaded.processor.family == processor.family
    save(merge(loaded), tmp_path / "merged")
    assert answers(load(str(tmp_path / "merged"))) == told
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    assert type(plain.config.text_config) is type(checkpoint.config.text_config)
    assert AutoProcessor.from_pretrained(tmp_path / "merged").chat_template == processor.chat_template
    if processor.family not in LANGUAGES:
        title = FAMILIES[processor.family].title
        with pytest.raises(CheckpointError, match=f"no GGUF file is written of a {title}"):
            write_gguf(str(tmp_path / "merged"), tmp_path / "gguf")


def test_four_bits_hold_the_language_models_linear_layers_only(section: ModelSection) -> None:
    def assembled(options: LoadOptions) -> tuple[Any, MultimodalPhiProcessor]:
        torch.manual_seed(0)
        return assemble(section, options)

    model, processor = assembled(LoadOptions(QuantizationSection(), dtype="bfloat16"))
    state = assembled(LoadOptions(dtype="bfloat16"))[0].state_dict()
    quantized = {name for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"}
    layers = model.model.language_model.layers
    assert len(quantized) == len(layers) * (4 if processor.family.startswith("phi") else 7)
    assert all("language_model.layers" in name for name in quantized)
    for name, weight in model.state_dict().items():
        if any(part in name for part in ("projector", "vision_tower", "lm_head", "embed_tokens")):
            assert weight.equal(state[name]), name
    assert len(answers(Checkpoint(model, processor, "x", None))) == 3


def test_the_shipped_recipe_trains_a_twin(data: Path, backbones: tuple[Path, Path], tmp_path: Path) -> None:
    language = write_language_model("smollm2", tmp_path / "smollm2")
    settings = overrides(data, (backbones[0], language), tmp_path / "run", max_steps=3)
    train(load_recipe("smollm2", settings))
    assert {step for step, _, _ in losses(tmp_path / "run")} == {1, 2, 3}
    assert len(answers(load(str(tmp_path / "run")))) == 3


PARAMETERS = {
    "microsoft/Phi-3.5-mini-instruct": 3_821_079_552,
    "microsoft/Phi-4-mini-instruct": 3_836_021_760,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1_711_376_384,
    "HuggingFaceTB/SmolLM3-3B": 3_075_098_624,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_shapes_have_the_published_numbers_of_parameters(name: str) -> None:
    config = PUBLISHED[name]
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    head = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    assert model.num_parameters() + head == PARAMETERS[name]


def test_what_cannot_be_joined_is_named_before_a_weight_is_loaded(
    section: ModelSection, language: Path, tmp_path: Path
) -> None:
    family = FAMILIES[language.name]
    folder = tmp_path / "other"
    shutil.copytree(language, folder)
    (folder / "model.safetensors").write_bytes(b"no weights")
    wrong = section.model_copy(update={"language": str(folder)})
    assert check_backbones(wrong).family == family
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace(family.ends[0], "<|other|>"))
    settings = (folder / "tokenizer_config.json").read_text()
    (folder / "tokenizer_config.json").write_text(settings.replace(family.ends[0], "<|other|>"))
    with pytest.raises(CheckpointError) as lacking:
        assemble(wrong, LoadOptions())
    assert f"the tokenizer lacks {family.ends[0]}" in lacking.value.fault.what
    GPT2Config().save_pretrained(folder)
    with pytest.raises(CheckpointError) as other:
        assemble(wrong, LoadOptions())
    assert "'gpt2'" in other.value.fault.what and all(
        known.title in other.value.fault.what for known in FAMILIES.values()
    )


def test_configurations_of_before_are_a_phi_3s() -> None:
    assert MultimodalPhiConfig(text_config={"hidden_size": 64}).text_config.model_type == "phi3"
    with pytest.raises(ValueError, match="'gpt2' is known; those that work: Phi-4-mini"):
        MultimodalPhiConfig(text_config={"model_type": "gpt2"})
