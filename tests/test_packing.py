"""Packed rows and the loss without logits: faster ways to the very same numbers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_image, make_model, make_processor
from test_train import losses, overrides

from eden import DataError
from eden.checkpoint import Checkpoint, load_for_training
from eden.data.collate import collate, collate_flat
from eden.data.packing import efficiency, pack
from eden.model.attention import PACKED_SDPA
from eden.recipe import load_recipe
from eden.training.train import train
from eden.training.trainer import Collator

LENGTHS = np.random.default_rng(0).gamma(5, 45, 3000).astype(int) + 40


def test_rows_hold_every_sample_once_and_whole() -> None:
    rows = pack(LENGTHS, 2048)
    assert sorted(index for row in rows for index in row) == list(range(len(LENGTHS)))
    assert max(sum(LENGTHS[index] for index in row) for row in rows) <= 2048
    assert efficiency(rows, LENGTHS, 2048) == LENGTHS.sum() / (2048 * len(rows)) >= 0.97


def test_rows_follow_from_the_seed() -> None:
    assert pack(LENGTHS, 1024, seed=1) == pack(LENGTHS, 1024, seed=1) != pack(LENGTHS, 1024, seed=2)


def test_best_fit_takes_the_row_with_the_least_room() -> None:
    assert sorted(sorted(row) for row in pack([5, 7, 3, 2, 3], 10)) == [[0, 3, 4], [1, 2]]
    assert pack([], 10) == []


def test_a_sample_longer_than_a_row_is_named() -> None:
    with pytest.raises(DataError, match=r"sample 2: a sample has 11 tokens, and a row of data.row_length has 10"):
        pack([3, 11], 10)


@pytest.fixture(params=["pooled", "patches"])
def examples(request: pytest.FixtureRequest) -> tuple[Any, list[dict[str, Any]]]:
    """A model with a frozen head, and samples with two, one and no images."""
    model = make_model(request.param)
    processor = make_processor(model.config.num_image_tokens)

    def example(question: str, answer: str, *colours: str) -> dict[str, Any]:
        images = [{"type": "image", "image": make_image(colour)} for colour in colours]
        turn = {"role": "user", "content": [*images, {"type": "text", "text": question}]}
        return processor.encode([turn, {"role": "assistant", "content": answer}])

    model.lm_head.requires_grad_(False)
    return model, [
        example("compare these", "they are not alike", "blue", "red"),
        example("hello there", "hi"),
        example("which colour is this", "green", "green"),
    ]


@pytest.mark.parametrize("implementation", ["sdpa", "eager", PACKED_SDPA])
@pytest.mark.parametrize("window", [None, 9])
def test_samples_in_a_row_are_as_alone(examples: Any, implementation: str, window: int | None) -> None:
    model, samples = examples
    model.config.text_config.sliding_window = window
    model.model.language_model.set_attn_implementation("sdpa")
    alone = [model(**collate([sample], 0)).logits[0] for sample in samples]
    model.model.language_model.set_attn_implementation(implementation)
    batch = collate_flat(samples)
    together = model(**batch).logits[0].split(batch["sample_lengths"])
    for one, packed in zip(alone, together, strict=True):
        torch.testing.assert_close(packed, one, rtol=1e-4, atol=1e-4)


def test_lengths_that_do_not_fill_the_row_are_refused(examples: Any) -> None:
    model, samples = examples
    batch = collate_flat(samples)
    with pytest.raises(ValueError, match=r"samples of \d+ tokens in 1 row\(s\) of \d+"):
        model(**{**batch, "sample_lengths": batch["sample_lengths"][:-1]})


def test_the_loss_without_logits_is_the_loss(examples: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in pieces, and in its gradient."""
    model, samples = examples
    monkeypatch.setattr("eden.model.loss.PIECE", 7)

    def loss_and_gradient(**inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad()
        output = model(**inputs)
        output.loss.backward()
        return output.loss.detach(), model.model.projector.linear_1.weight.grad.clone()

    plain = loss_and_gradient(**collate(samples, 0))
    for batch in (collate(samples, 0), collate_flat(samples)):
        assert model(**batch, return_logits=False).logits is None
        torch.testing.assert_close(loss_and_gradient(**batch, return_logits=False), plain, rtol=1e-4, atol=1e-6)
    model.lm_head.requires_grad_(True)
    with pytest.raises(ValueError, match="the head is in training"):
        model(**collate(samples, 0), return_logits=False)


def test_a_batch_of_rows_is_a_batch_of_their_samples(examples: Any) -> None:
    _, samples = examples
    rows = [[samples[0], samples[1]], [samples[2]]]
    flat = Collator(0, flat=True)(rows)
    assert flat["sample_lengths"] == [len(sample["input_ids"]) for sample in samples]
    assert flat["input_ids"][0].tolist() == [token for sample in samples for token in sample["input_ids"]]
    padded = Collator(0, flat=False)(rows)
    assert padded["input_ids"].shape[0] == 3 and padded["pixel_values"].equal(flat["pixel_values"])


def run(folder: Path, backbones: tuple[Path, Path], data: Path, *changes: str) -> list[float]:
    """The losses of a few steps in fp32, without dropout."""
    steps = {"max_steps": 4, "logging_steps": 1, "save_strategy": "'no'", "eval_steps": 4, "bf16": False}
    exact = ("model.dtype=float32", "model.vision_feature=patches", "quantization=null", "lora.lora_dropout=0")
    train(load_recipe("phi3.5-mini", [*overrides(data, backbones, folder, **steps), *exact, *changes]))
    return [loss for _, _, loss in losses(folder)]


def test_every_way_of_training_gives_the_same_losses(backbones: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    """Padded with live pixels, flat, with cached features; packed rows of one sample each are such batches, too."""
    padded = run(tmp_path / "padded", backbones, data, "model.attn_implementation=sdpa")
    flat = run(tmp_path / "flat", backbones, data)
    cached = run(tmp_path / "cached", backbones, data, "data.features=cached")
    assert len(padded) == 5 and len(set(padded)) == 5
    for other in (flat, cached):
        assert other == pytest.approx(padded, rel=1e-4)


def test_a_packed_run_learns_from_all(backbones: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    seen = run(
        tmp_path / "packed",
        backbones,
        data,
        *("data.row_length=256", "data.features=auto", "training.max_steps=12", "training.learning_rate=1e-2"),
    )
    assert seen[-2] < seen[0] - 0.3
    assert json.loads((tmp_path / "packed" / "run.json").read_text())["features"] in ("live", "cached")


@pytest.mark.parametrize("base", ["eden-tiny"])
def test_an_evaluation_takes_nothing_from_the_gradient_in_four_bits(base: str, tmp_path: Path) -> None:
    checkpoint: Checkpoint = load_for_training(
        load_recipe("digits", [f"model.base={base}", "lora.lora_dropout=0", f"training.output_dir={tmp_path}"])
    )
    question = [{"role": "user", "content": "how many"}, {"role": "assistant", "content": "two of them"}]
    batch = collate([checkpoint.processor.encode(question)], 0)
    for name, parameter in checkpoint.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)

    def gradients() -> list[torch.Tensor]:
        checkpoint.model.train()
        checkpoint.model.zero_grad()
        checkpoint.model(**batch).loss.backward()
        return [p.grad.clone() for name, p in checkpoint.model.named_parameters() if "lora_A" in name]

    before = gradients()
    checkpoint.model.eval()
    with torch.no_grad():
        checkpoint.model(**batch)
    torch.testing.assert_close(gradients(), before)
