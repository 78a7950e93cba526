"""Training beside transformers' own: supervised tokens a second, and the most memory, at the same sizes.

The peer is `LlavaForConditionalGeneration` under transformers' Trainer, as its documentation trains it: rows padded to
the longest of a batch of eight, images through CLIP in every step. Eden runs as its recipes do: rows of 2,048 tokens
packed with whole samples, the loss on supervised positions, and images live or from the feature cache, which is filled
before. Both have CLIP ViT-B/32's shape with patches, a Phi-3 of 12 layers, 768 wide, with 32,064 rows, random weights
in bf16, LoRA of rank 64 on the same layers, the projector in training, AdamW; both see the samples of the same set,
whose lengths are those of `bench.make_llava150k` at four characters a token. Each runs in a process of its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Phi3Config,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from bench.features import photographs
from bench.machine import describe
from bench.make_llava150k import records
from eden.checkpoint import Checkpoint, add_adapters
from eden.data.features import FeatureStore, in_best_format
from eden.data.packing import PackedDataset
from eden.machine import peak_memory_mib
from eden.model import MultimodalPhiConfig, MultimodalPhiForConditionalGeneration, MultimodalPhiProcessor
from eden.model.attention import PACKED_SDPA
from eden.model.processing import IGNORE_INDEX
from eden.recipe import LoraSection
from eden.tiny.tokenizer import FIRST_PIECES, PRINTABLE, phi_tokenizer
from eden.trainer import EdenTrainer
from eden.vision_encoder import VisionEncoder

SAMPLES, BATCH, ROW_LENGTH, STEPS, PICTURES = 192, 8, 2048, 5, 64
CHARACTERS_A_TOKEN, IMAGE_TOKENS, IMAGE_ID, VOCABULARY = 4, 49, 32_011, 32_064
TARGETS = ["o_proj", "qkv_proj", "gate_up_proj"]

Example = dict[str, Any]


def main() -> None:
    """Runs the peer and Eden, one after the other, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alone", choices=["peer", "live", "cached"], help="one of them, in this process")
    parser.add_argument("--pictures", type=Path)
    arguments = parser.parse_args()
    if arguments.alone:
        torch.manual_seed(0)
        run = peer if arguments.alone == "peer" else eden
        print(json.dumps(run(make_examples(sorted(arguments.pictures.glob("*.jpg"))), arguments.alone)))
        return
    with tempfile.TemporaryDirectory() as folder:
        photographs(Path(folder), PICTURES)
        print(f"{'':24} supervised tokens/s  ratio  tokens/s  peak memory [MiB]")
        first = None
        for name in ("peer", "live", "cached"):
            command = [sys.executable, "-m", "bench.train", "--alone", name, "--pictures", folder]
            result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
            first = first or result["supervised"]
            label = "transformers' LLaVA" if name == "peer" else f"Eden, {name} features"
            print(
                f"{label:24} {result['supervised']:19.0f} {result['supervised'] / first:6.2f} "
                f"{result['tokens']:9.0f} {result['peak']:18.0f}"
            )


def make_examples(pictures: Sequence[Path]) -> list[Example]:
    """Samples as ids and labels with their picture's file; what a tokenizer would make of their words, at random."""
    rng = np.random.default_rng(0)
    examples = []
    for index, record in enumerate(records(SAMPLES, seed=0)):
        ids, labels = [32_010, *[IMAGE_ID] * IMAGE_TOKENS], [IGNORE_INDEX] * (1 + IMAGE_TOKENS)
        for turn in record["conversations"]:
            words = rng.integers(100, 32_000, len(turn["value"]) // CHARACTERS_A_TOKEN + 2).tolist()
            ids += words
            labels += words if turn["from"] == "gpt" else [IGNORE_INDEX] * len(words)
        examples.append({"input_ids": ids, "labels": labels, "file": pictures[index % len(pictures)]})
    return examples


class Examples(torch.utils.data.Dataset[Example]):
    """The samples, their images opened when a batch needs them, or taken from the cache."""

    def __init__(self, examples: Sequence[Example], features: FeatureStore | None = None):
        self.examples, self.features = examples, features
        self.lengths = np.array([len(example["input_ids"]) for example in examples])
        self.image_processor = CLIPImageProcessorPil()

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        example = dict(self.examples[index])
        file = example.pop("file")
        if self.features is not None:
            return {**example, "image_features": self.features.features(file).unsqueeze(0)}
        image = PIL.Image.open(file).convert("RGB")
        return {**example, "pixel_values": self.image_processor([image], return_tensors="pt")["pixel_values"]}


class Clock(TrainerCallback):
    """The seconds of all steps but the first."""

    started = ended = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.ended = time.perf_counter()
        self.started = self.started or self.ended


class Counted:
    """A collator that counts the tokens of every batch it makes."""

    def __init__(self, collate: Any):
        self.collate, self.batches = collate, []

    def __call__(self, items: Any) -> Any:
        batch = self.collate(items)
        supervised = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
        real = sum(batch["sample_lengths"]) if "sample_lengths" in batch else int(batch["attention_mask"].sum())
        self.batches.append((supervised, real))
        return batch


def measure(trainer: Trainer) -> dict[str, float]:
    """Trains, and says how many tokens went through a second."""
    clock, counted = Clock(), Counted(trainer.data_collator)
    trainer.data_collator = counted
    trainer.add_callback(clock)
    trainer.train()
    seconds = clock.ended - clock.started
    supervised, tokens = (sum(numbers) / seconds for numbers in zip(*counted.batches[1:STEPS], strict=True))
    return {"supervised": supervised, "tokens": tokens, "peak": peak_memory_mib()}


def training_arguments(folder: str, batch: int) -> TrainingArguments:
    """What both have in common."""
    return TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=batch,
        max_steps=STEPS,
        bf16=True,
        use_cpu=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        logging_steps=STEPS,
    )


def text_config() -> Phi3Config:
    return Phi3Config(
        vocab_size=VOCABULARY, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12
    )


def peer(examples: list[Example], _: str) -> dict[str, float]:
    """transformers' LLaVA."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(), text_config=text_config(), image_token_index=IMAGE_ID, image_seq_length=49
    )
    model = LlavaForConditionalGeneration(config).to(torch.bfloat16)
    lora = LoraConfig(
        r=64, lora_alpha=16, lora_dropout=0.1, target_modules=TARGETS, modules_to_save=["multi_modal_projector"]
    )
    model = get_peft_model(model, lora)

    def collate(items: list[Example]) -> dict[str, torch.Tensor]:
        width = max(len(item["input_ids"]) for item in items)

        def padded(name: str, fill: int) -> torch.Tensor:
            return torch.tensor([item[name] + [fill] * (width - len(item[name])) for item in items])

        ids = padded("input_ids", 32_000)
        pixels = torch.cat([item["pixel_values"] for item in items])
        return {
            "input_ids": ids,
            "attention_mask": (ids != 32_000).long(),
            "labels": padded("labels", IGNORE_INDEX),
            "pixel_values": pixels,
        }

    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(folder, BATCH)
        return measure(Trainer(model=model, args=arguments, train_dataset=Examples(examples), data_collator=collate))


def eden(examples: list[Example], images: str) -> dict[str, float]:
    """Eden's own trainer on packed rows."""
    tokenizer = phi_tokenizer({piece: i for i, piece in enumerate([*FIRST_PIECES, "▁", *PRINTABLE])}, merges=[])
    config = MultimodalPhiConfig(
        vision_config=CLIPVisionConfig(projection_dim=512),
        text_config=text_config(),
        vision_feature="patches",
        image_token_id=IMAGE_ID,
    )
    model = MultimodalPhiForConditionalGeneration(config).to(torch.bfloat16)
    model.model.language_model.set_attn_implementation(PACKED_SDPA)
    processor = MultimodalPhiProcessor(CLIPImageProcessorPil(), tokenizer, num_image_tokens=IMAGE_TOKENS)
    adapted = add_adapters(model, LoraSection(target_modules=TARGETS))
    checkpoint = Checkpoint(adapted, processor, "middle", None)
    with tempfile.TemporaryDirectory() as folder:
        store = None
        if images == "cached":
            files = sorted({example["file"] for example in examples})
            store = FeatureStore(in_best_format(VisionEncoder.of(checkpoint), files, Path(folder)), Path(folder))
            store.fill(files)
        packed: Any = PackedDataset(Examples(examples, store), ROW_LENGTH)  # type: ignore[arg-type]
        arguments = training_arguments(folder, 1)
        return measure(EdenTrainer(checkpoint, arguments, packed, None, Console(stderr=True, quiet=True)))


if __name__ == "__main__":
    if "--alone" not in sys.argv:
        print(f"machine: {describe()}")
    main()
