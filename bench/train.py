"""Training beside transformers' own: supervised tokens a second, and the most memory, at the same sizes.

The peer is `LlavaForConditionalGeneration` under transformers' Trainer, as its documentation trains it: rows padded to
the longest of a batch of eight, images through CLIP in every step. Eden runs as its recipes do: rows of 2,048 tokens
packed with whole samples, the loss on supervised positions, and images live or from the feature cache, which is filled
before. Both have CLIP ViT-B/32's shape with patches, a Phi-3 of 12 layers, 768 wide, with 32,064 rows, random weights,
LoRA of rank 64 on the same layers, the projector in training, AdamW, and compute in bf16 where the machine has units
for it, else in fp32; both see the samples of the same set, whose lengths are those of `bench.make_llava150k` at four
characters a token. Each runs in a process of its own.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from peft import LoraConfig, PeftModel, get_peft_model
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
from bench.make_llava150k import records
from bench.table import Bar, Row, show
from bench.timing import run
from eden.checkpoint import Checkpoint, add_adapters
from eden.checkpoint.vision_encoder import VisionEncoder
from eden.core.numeric_format import Machine, numeric_format
from eden.data.features import FeatureStore
from eden.data.packing import PackedDataset
from eden.model import MultimodalPhiConfig, MultimodalPhiForConditionalGeneration, MultimodalPhiProcessor
from eden.model.attention import PACKED_SDPA
from eden.model.loss import IGNORE_INDEX
from eden.recipe import LoraSection
from eden.training.trainer import EdenTrainer
from tiny_build.tokenizer import FIRST_PIECES, PRINTABLE, phi_tokenizer

SAMPLES, BATCH, ROW_LENGTH, STEPS, PICTURES, RUNS = 192, 8, 2048, 5, 64, 3
CHARACTERS_A_TOKEN, IMAGE_TOKENS, IMAGE_ID, PADDING, VOCABULARY = 4, 49, 32_011, 32_000, 32_064
TARGETS = ["o_proj", "qkv_proj", "gate_up_proj"]
FORMAT = numeric_format(Machine.here("cpu")).name
WAYS = {
    "live": "images live",
    "cached": "cached features",
    "compiled": "images live, torch.compile",
}
"""Eden's, by what they are called in the table; only the first two are in `make bench`."""
FIGURES = (("supervised tokens", "tokens/s"), ("peak memory", "MiB"))
BARS = {("live", "supervised tokens"): Bar(2, of_ratio=True)}
"""For what the peer does, too: images through CLIP in every step."""

Example = dict[str, Any]


def measure(ways: Sequence[str] = ("live", "cached")) -> list[Row]:
    """The peer and Eden in turn; of several runs of each, the medians."""
    runs: dict[str, list[tuple[float, float]]] = {way: [] for way in ("peer", *ways)}
    with tempfile.TemporaryDirectory() as folder:
        photographs(Path(folder), PICTURES)
        for _ in range(RUNS):
            for way, found in runs.items():
                finished = run(["-m", "bench.train", "--alone", way, "--pictures", folder])
                found.append((float(finished.output.splitlines()[-1]), finished.peak))
    medians = {way: np.median(found, axis=0).tolist() for way, found in runs.items()}
    rows, beside = [], "transformers' LLaVA and Trainer"
    for way in ways:
        for (what, unit), ours, theirs in zip(FIGURES, medians[way], medians["peer"], strict=True):
            rows.append(Row(f"{what}, {WAYS[way]}", ours, unit, beside, theirs, BARS.get((way, what))))
    return rows


def make_examples(pictures: Sequence[Path], number: int = SAMPLES, image_tokens: int = IMAGE_TOKENS) -> list[Example]:
    """Samples as ids and labels with their picture's file; what a tokenizer would make of their words, at random."""
    rng = np.random.default_rng(0)
    examples = []
    for index, record in enumerate(records(number, seed=0)):
        ids, labels = [32_010, *[IMAGE_ID] * image_tokens], [IGNORE_INDEX] * (1 + image_tokens)
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

    def set_epoch(self, epoch: int) -> None:
        """Nothing is varied."""

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
    """The seconds of all steps but the first `warm_up`, and the end of a run that has taken `limit` seconds."""

    def __init__(self, warm_up: int, limit: float):
        self.warm_up, self.limit = warm_up, limit
        self.started = self.seconds = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if state.global_step <= self.warm_up:
            self.started = time.perf_counter()
        self.seconds = time.perf_counter() - self.started
        if self.seconds >= self.limit:
            control.should_training_stop = True


@dataclass(frozen=True)
class Batch:
    """What a batch holds: supervised tokens, and tokens of each sample, padding left out."""

    supervised: int
    lengths: list[int]


class Counted:
    """A collator that counts every batch it makes."""

    def __init__(self, collate: Any):
        self.collate = collate
        self.batches: list[Batch] = []

    def __call__(self, items: Any) -> Any:
        batch = self.collate(items)
        lengths = batch["sample_lengths"] if "sample_lengths" in batch else batch["attention_mask"].sum(1).tolist()
        self.batches.append(Batch(int((batch["labels"][:, 1:] != IGNORE_INDEX).sum()), list(lengths)))
        return batch


def steps(trainer: Trainer, warm_up: int = 1, limit: float = math.inf) -> tuple[float, list[Batch]]:
    """Trains, and says the seconds of its steps after the first ones, and what was in their batches."""
    clock, counted = Clock(warm_up, limit), Counted(trainer.data_collator)
    trainer.data_collator = counted
    trainer.add_callback(clock)
    trainer.train()
    a_step = trainer.args.gradient_accumulation_steps
    return clock.seconds, counted.batches[warm_up * a_step : trainer.state.global_step * a_step]


def rate(trainer: Trainer, warm_up: int = 1) -> float:
    """Supervised tokens a second."""
    seconds, batches = steps(trainer, warm_up)
    return sum(batch.supervised for batch in batches) / seconds


def training_arguments(folder: str, batch: int, steps: int = STEPS, **more: Any) -> TrainingArguments:
    """What both have in common."""
    return TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=batch,
        max_steps=steps,
        bf16=FORMAT == "bfloat16",
        use_cpu=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        logging_steps=steps,
        **more,
    )


def text_config() -> Phi3Config:
    return Phi3Config(
        vocab_size=VOCABULARY, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12
    )


def peer(examples: list[Example], _: str) -> float:
    """transformers' LLaVA."""
    model = LlavaForConditionalGeneration(llava_config(CLIPVisionConfig(), text_config())).to(getattr(torch, FORMAT))
    model = llava_with_adapters(model, LoraSection(target_modules=TARGETS))
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(folder, BATCH)
        return rate(Trainer(model=model, args=arguments, train_dataset=Examples(examples), data_collator=padded))


def llava_config(vision: Any, text: Any) -> LlavaConfig:
    return LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE_ID, image_seq_length=IMAGE_TOKENS
    )


def llava_with_adapters(model: LlavaForConditionalGeneration, lora: LoraSection) -> PeftModel:
    """LoRA on the language model, and the projector in training, as Eden has them."""
    return get_peft_model(model, LoraConfig(modules_to_save=["multi_modal_projector"], **lora.model_dump()))


def padded(items: list[Example]) -> dict[str, torch.Tensor]:
    """A batch of rows as long as the longest."""
    width = max(len(item["input_ids"]) for item in items)

    def filled(name: str, fill: int) -> torch.Tensor:
        return torch.tensor([item[name] + [fill] * (width - len(item[name])) for item in items])

    ids = filled("input_ids", PADDING)
    return {
        "input_ids": ids,
        "attention_mask": (ids != PADDING).long(),
        "labels": filled("labels", IGNORE_INDEX),
        "pixel_values": torch.cat([item["pixel_values"] for item in items]),
    }


def eden(examples: list[Example], way: str) -> float:
    """Eden's own trainer on packed rows."""
    config = MultimodalPhiConfig(
        vision_config=CLIPVisionConfig(projection_dim=512),
        text_config=text_config(),
        vision_feature="patches",
        image_token_id=IMAGE_ID,
    )
    model = MultimodalPhiForConditionalGeneration(config).to(getattr(torch, FORMAT))
    model.model.language_model.set_attn_implementation(PACKED_SDPA)
    checkpoint = with_processor(add_adapters(model, LoraSection(target_modules=TARGETS)), config)
    with tempfile.TemporaryDirectory() as folder:
        store = filled_store(checkpoint, examples, Path(folder)) if way == "cached" else None
        packed: Any = PackedDataset(Examples(examples, store), ROW_LENGTH)  # type: ignore[arg-type]
        arguments, warm_up = training_arguments(folder, 1), 1
        if way == "compiled":  # which takes place again for rows of another length, in the first steps
            arguments, warm_up = training_arguments(folder, 1, 2 * STEPS, torch_compile=True), STEPS
        return rate(EdenTrainer(checkpoint, arguments, packed, None, Console(stderr=True, quiet=True)), warm_up)


def with_processor(adapted: PeftModel, config: MultimodalPhiConfig) -> Checkpoint:
    """The model with a processor of Phi-3.5's layout that knows letters and no words: its ids are made elsewhere."""
    tokenizer = phi_tokenizer({piece: i for i, piece in enumerate([*FIRST_PIECES, "▁", *PRINTABLE])}, merges=[])
    processor = MultimodalPhiProcessor(CLIPImageProcessorPil(), tokenizer, num_image_tokens=config.num_image_tokens)
    return Checkpoint(adapted, processor, "random weights", None)


def filled_store(checkpoint: Checkpoint, examples: list[Example], folder: Path) -> FeatureStore:
    """The features of all pictures."""
    files = sorted({example["file"] for example in examples})
    store = FeatureStore(VisionEncoder.of(checkpoint), folder)
    store.fill(files)
    return store


def main() -> None:
    """All three in a table; or one of them alone, in this process, and its rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["live", "cached"], help="Eden's, beside the peer")
    parser.add_argument("--alone", choices=["peer", *WAYS], help="one of them, in this process")
    parser.add_argument("--pictures", type=Path, help="folder of JPEGs, for --alone")
    arguments = parser.parse_args()
    if arguments.alone is None:
        return show({"train": measure(arguments.ways)})
    torch.manual_seed(0)
    train = peer if arguments.alone == "peer" else eden
    print(train(make_examples(sorted(arguments.pictures.glob("*.jpg"))), arguments.alone))
    return None


if __name__ == "__main__":
    main()
