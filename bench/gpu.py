"""The real shapes with random weights on one GPU, in under eight minutes: `python -m bench.gpu`.

CLIP ViT-B/32 and Phi-3.5-mini in their published sizes, trained as the recipes `phi3.5-mini` (the seed's) and
`phi3.5-mini-patches` (rows of packed samples, cached features) say, beside transformers' LlavaForConditionalGeneration
in the same 4 bits, and the second recipe with one thing changed at a time, if its library is here. Samples have
LLaVA-Instruct's lengths (`bench.make_llava150k` at four characters a token), pictures are JPEGs of 640x480, decoded in
every step where features are not cached. Each part is a process of its own; its row is printed as soon as it is there.

Rates are of all steps after the first two. `peak` is the most that torch had in tensors and `reserved` what its
allocator held for them; `plan` is what `eden plan` estimates for the same samples, without the 0.75 GiB that it assumes
for CUDA itself, and beside it how far the estimate is above (+) or below (-) the peak. The first two steps read the
longest batch, which the estimate is for.

`mfu` is model FLOPs a second over the device's published dense bf16 FLOPs a second. Model FLOPs are those that training
needs, without padding or layers that are computed twice: with P weights in the linear layers of the language model, A
in adapters and projector, K supervised tokens, L layers, samples of t tokens, n in all, and I images

    4 P n + 6 A n + 6 L D sum(t^2) + 4 D V K + 2 I (tower's weights x tower's positions), the last where images are live

for a frozen weight costs a product forth and a product back, one in training two back, and causal attention
2 D t^2 forth and twice that back (https://arxiv.org/abs/2204.02311, appendix B, with frozen weights).
"""

import argparse
import copy
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from rich.console import Console
from transformers import CLIPVisionConfig, LlavaForConditionalGeneration, Phi3Config, Trainer
from transformers.models.phi3.modeling_phi3 import Phi3DecoderLayer

import eden.model.modeling
from bench.features import photographs
from bench.machine import describe
from bench.train import (
    Batch,
    Example,
    Examples,
    filled_store,
    llava_config,
    llava_with_adapters,
    make_examples,
    padded,
    steps,
    with_processor,
)
from eden.checkpoint import Checkpoint, add_adapters
from eden.checkpoint.backbones import LoadOptions
from eden.core.private_api import mark_four_bits
from eden.data.packing import PackedDataset
from eden.model import MultimodalPhiForConditionalGeneration
from eden.model.attention import PACKED_SDPA
from eden.model.loss import IGNORE_INDEX
from eden.plan.measure import to_four_bits
from eden.plan.memory import CUDA_RESERVE, GIB, estimate
from eden.plan.shapes import Shapes, shapes_of
from eden.plan.workload import Lengths, workload_of
from eden.recipe import QuantizationSection, Recipe, load_recipe
from eden.training.trainer import EdenTrainer

MINUTES = 8
RESERVE = 20
"""Seconds of them that no part is given: for what begins and ends the whole."""
PEER_BATCH, WARM_UP = 8, 2
FLOPS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "4090": 165e12,
}
"""bf16 FLOPs a second without sparsity, from NVIDIA's data sheets, by words of the device's name."""
COLUMNS = ("tokens/s", "supervised", "peak GiB", "reserved", "plan GiB", "off by", "mfu", "steps")


@dataclass(frozen=True)
class Part:
    """One row.

    Attributes:
        what: it is.
        recipe: that it trains.
        changes: to the recipe.
        needs: a library without which it is left out.
        cuda: it needs a GPU, even in a rehearsal.
    """

    what: str
    recipe: str = "phi3.5-mini-patches"
    changes: Sequence[str] = field(default=())
    needs: str | None = None
    cuda: bool = False


PARTS = {
    "seed": Part("phi3.5-mini, as it is", "phi3.5-mini", ["data.features=live"]),
    "fastest": Part("phi3.5-mini-patches, as it is"),
    "peer": Part("transformers' LLaVA, the same 4 bits"),
    "flash": Part(
        "patches, flash-attention", changes=["model.attn_implementation=flash_attention_2"], needs="flash_attn"
    ),
    "liger": Part("patches, Liger's fused loss", needs="liger_kernel"),
    "paged": Part("patches, paged 8-bit AdamW", changes=["training.optim=paged_adamw_8bit"], cuda=True),
    "kept": Part("patches, all activations kept", changes=["training.activation_checkpointing=false"]),
    "compile": Part("patches, torch.compile", changes=["training.torch_compile=true"], needs="triton", cuda=True),
}


@dataclass(frozen=True)
class Size:
    """How much of everything: what is measured, or as little as a rehearsal needs."""

    samples: int
    pictures: int
    steps: int
    seconds: float
    limit: float


REAL, TINY = Size(192, 64, 400, 20, 100), Size(16, 4, 3, 60, 400)


def main() -> None:
    """Prints a row of each part as soon as it has run; with `--alone` runs one, in this process, and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; without any, all run")
    parser.add_argument("--tiny", action="store_true", help="rehearse on a CPU: toy sizes, figures that mean nothing")
    parser.add_argument("--alone", choices=PARTS, help="one part, in this process")
    parser.add_argument("--folder", type=Path, help="where --alone finds its pictures")
    arguments = parser.parse_args()
    if unknown := [part for part in arguments.parts if part not in PARTS]:
        parser.error(f"no part is called {unknown[0]!r}; there are {', '.join(PARTS)}")
    if not (arguments.tiny or torch.cuda.is_available()):
        parser.exit(2, "bench.gpu: torch finds no CUDA device here; --tiny rehearses it on a CPU\n")
    if arguments.alone:
        print(json.dumps(alone(arguments.alone, arguments.folder, arguments.tiny)))
    else:
        table(arguments.parts or list(PARTS), arguments.tiny)


def table(names: Sequence[str], tiny: bool) -> None:
    """Runs the parts, one after the other, until they have run or the time is over."""
    ends, size = time.monotonic() + 60 * MINUTES - RESERVE, TINY if tiny else REAL
    print(f"machine: {describe()}" + (" (a rehearsal: the figures mean nothing)" if tiny else ""))
    print("| " + " | ".join(["", *COLUMNS]) + " |\n" + "|---" * (1 + len(COLUMNS)) + "|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        photographs(Path(name), size.pictures)
        for part in names:
            left = min(size.limit, ends - time.monotonic())
            print(f"| {PARTS[part].what} | {' | '.join(cells(part, Path(name), tiny, left))} |", flush=True)


def cells(name: str, folder: Path, tiny: bool, left: float) -> list[str]:
    """What stands in the row of a part, or why nothing does."""
    part = PARTS[name]
    if part.needs and importlib.util.find_spec(part.needs) is None:
        return [f"not measured: {part.needs} is not installed"]
    if part.cuda and not torch.cuda.is_available():
        return ["not measured: it needs a GPU"]
    if left < RESERVE:
        return ["not measured: the time is over"]
    command = [sys.executable, "-m", "bench.gpu", "--alone", name, "--folder", str(folder)]
    environment = {"CUDA_VISIBLE_DEVICES": "0"} | os.environ  # Trainer would share a batch out among all GPUs
    try:
        result = subprocess.run(
            command + ["--tiny"] * tiny, capture_output=True, text=True, timeout=left, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return [f"not measured: more than {left:.0f} s"]
    if result.returncode:
        said = result.stderr.strip().splitlines() or ["no word"]
        return [f"not measured: {said[-1][:120].replace('|', '/')}"]
    found = json.loads(result.stdout.splitlines()[-1])
    peak, reserved, plan = (found[key] for key in ("peak", "reserved", "plan"))
    return [
        f"{found['tokens']:,.0f}",
        f"{found['supervised']:,.0f}",
        f"{peak / GIB:.2f}" if peak else "no GPU",
        f"{reserved / GIB:.2f}" if reserved else "no GPU",
        f"{plan / GIB:.2f}" if plan else "",
        f"{plan / peak - 1:+.1%}" if plan and peak else "",
        f"{found['mfu']:.1%}" if found["mfu"] else "unknown",
        str(found["steps"]),
    ]


def alone(name: str, folder: Path, tiny: bool) -> dict[str, Any]:
    """Builds and trains one part, and says what it took."""
    torch.manual_seed(0)
    size = TINY if tiny else REAL
    recipe = recipe_of(PARTS[name], folder, tiny)
    shapes = shapes_of(recipe)
    pictures = sorted(folder.glob("*.jpg"))
    examples = make_examples(pictures, size.samples, shapes.config.num_image_tokens)
    if name == "liger":
        eden.model.modeling.answer_loss = liger_loss
    with tempfile.TemporaryDirectory() as out:
        if name == "peer":
            plan, trainer = None, peer_trainer(recipe, shapes, examples, size, out)
        else:
            plan, trainer = eden_trainer(recipe, shapes, examples, size, out)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # what building and encoding took is no part of training
            torch.cuda.reset_peak_memory_stats()
        seconds, batches = steps(trainer, WARM_UP, size.seconds)
    live = name in ("seed", "peer")
    a_second = sum(model_flops(shapes, batch, live) for batch in batches) / seconds
    most = peak_flops()
    return {
        "tokens": sum(sum(batch.lengths) for batch in batches) / seconds,
        "supervised": sum(batch.supervised for batch in batches) / seconds,
        "peak": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        "reserved": torch.cuda.max_memory_reserved() if torch.cuda.is_available() else None,
        "plan": plan,
        "mfu": a_second / most if most else None,
        "steps": trainer.state.global_step - WARM_UP,
    }


def recipe_of(part: Part, folder: Path, tiny: bool) -> Recipe:
    """The shipped recipe on two backbones, by their names, whose sizes Eden knows, or toys of the same architecture."""
    vision, language = "openai/clip-vit-base-patch32", "microsoft/Phi-3.5-mini-instruct"
    if tiny:
        vision, language = str(folder / "clip"), str(folder / "phi")
        toy = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
        CLIPVisionConfig(**toy, projection_dim=32).save_pretrained(vision)
        Phi3Config(**toy).save_pretrained(language)
    changes = [f"model.vision={vision}", f"model.language={language}"]
    changes += ["training.gradient_accumulation_steps=1"] * tiny
    if part.recipe == "phi3.5-mini-patches":  # it begins with an aligned model, which is of the same shape
        changes += ["model.base=null", "model.vision_feature=patches", "data.features=cached"]
    return load_recipe(part.recipe, [*changes, *part.changes])


def eden_trainer(
    recipe: Recipe, shapes: Shapes, examples: list[Example], size: Size, out: str
) -> tuple[int, EdenTrainer]:
    """What Eden plans for these samples, in bytes of tensors, and the trainer that `eden train` would have."""
    arguments = training_arguments(recipe, size, out)
    checkpoint = eden_checkpoint(recipe, shapes)
    store = filled_store(checkpoint, examples, Path(out)) if recipe.data.features == "cached" else None
    samples: Any = Examples(examples, store)
    lengths = Lengths("encoded", samples.lengths, sum(map(supervised, examples)), len(examples))
    workload = workload_of(recipe, lengths, arguments)
    rows, sizes = samples, samples.lengths
    if recipe.data.row_length is not None:
        rows = PackedDataset(samples, recipe.data.row_length, recipe.data.split_seed)
        sizes = np.array([samples.lengths[row].sum() for row in rows.rows])
    plan = estimate(recipe, shapes, workload, arguments, gpu=True).total - CUDA_RESERVE
    rows = longest_first(rows, sizes, arguments.train_batch_size, arguments.gradient_accumulation_steps)
    return plan, EdenTrainer(checkpoint, arguments, rows, None, Console(stderr=True, quiet=True))


def peer_trainer(recipe: Recipe, shapes: Shapes, examples: list[Example], size: Size, out: str) -> Trainer:
    """transformers' LLaVA and Trainer with batches of whole samples, about as many tokens as one of Eden's rows."""
    arguments = training_arguments(recipe, size, out, per_device_train_batch_size=PEER_BATCH)
    config = llava_config(copy.deepcopy(shapes.config.vision_config), copy.deepcopy(shapes.config.text_config))
    model = built(LlavaForConditionalGeneration, config, recipe.quantization)
    samples = Examples(examples)
    rows = longest_first(samples, samples.lengths, PEER_BATCH, arguments.gradient_accumulation_steps)
    adapted = llava_with_adapters(model, recipe.lora)
    return Trainer(model=adapted, args=arguments, train_dataset=rows, data_collator=padded)


def training_arguments(recipe: Recipe, size: Size, out: str, **changes: Any) -> Any:
    """The recipe's, for a short run that writes nothing and reads its rows in their order."""
    return recipe.training_arguments(
        output_dir=out,
        max_steps=size.steps,
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        report_to="none",
        train_sampling_strategy="sequential",
        **changes,
    )


def longest_first(rows: Any, sizes: np.ndarray, batch: int, accumulation: int) -> Any:
    """The rows with the longest batch ahead of them, as often as the first steps take batches."""
    longest = np.argsort(-sizes, kind="stable")[:batch].tolist()
    return torch.utils.data.Subset(rows, [*longest * accumulation * WARM_UP, *range(len(rows))])


def eden_checkpoint(recipe: Recipe, shapes: Shapes) -> Checkpoint:
    """The recipe's model with random weights and its adapters."""
    config = copy.deepcopy(shapes.config)
    model = built(MultimodalPhiForConditionalGeneration, config, recipe.quantization)
    model.model.language_model.set_attn_implementation(recipe.model.attn_implementation or PACKED_SDPA)
    return with_processor(add_adapters(model, recipe.lora), config)


def built(kind: Any, config: Any, quantization: QuantizationSection | None) -> Any:
    """A model of random weights, made where it trains: each layer is in 4 bits before the next one takes 16."""
    number, config.text_config.num_hidden_layers = config.text_config.num_hidden_layers, 0
    with LoadOptions().torch_device:
        model = kind(config).to(torch.bfloat16)
    language = model.model.language_model
    for index in range(number):
        with LoadOptions().torch_device:
            layer = Phi3DecoderLayer(language.config, index).to(torch.bfloat16)
        to_four_bits(layer, quantization)
        language.layers.append(layer)
    language.config.num_hidden_layers = number
    mark_four_bits(model)
    return model


def supervised(example: Example) -> int:
    return sum(label != IGNORE_INDEX for label in example["labels"])


def model_flops(shapes: Shapes, batch: Batch, live: bool) -> float:
    """FLOPs that training on a batch needs; see the head of this file."""
    text, vision, counts = shapes.config.text_config, shapes.config.vision_config, shapes.counts
    n, images, layers = sum(batch.lengths), len(batch.lengths), text.num_hidden_layers
    needed = 4 * shapes.layer_weights * layers * n + 6 * counts["lora"]["trained"] * n
    needed += 6 * counts["projector"]["trained"] * images * shapes.config.num_image_tokens
    needed += 6 * layers * text.hidden_size * sum(length**2 for length in batch.lengths)
    needed += 4 * text.hidden_size * text.vocab_size * batch.supervised
    if live:
        positions = (vision.image_size // vision.patch_size) ** 2 + 1
        needed += 2 * counts["vision_tower"]["frozen"] * positions * images
    return needed


def peak_flops() -> float | None:
    """Of this device by its data sheet; None if it is not among those that are known."""
    if not torch.cuda.is_available():
        return None
    words = torch.cuda.get_device_name().replace("-", " ").split()
    return next((flops for name, flops in FLOPS.items() if set(name.split()) <= set(words)), None)


def liger_loss(
    hidden_states: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, num_items_in_batch: torch.Tensor | int
) -> torch.Tensor:
    """`eden.model.loss.answer_loss` by Liger's kernel."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    of_answers = targets != IGNORE_INDEX
    kernel = LigerFusedLinearCrossEntropyLoss(reduction="sum")
    return kernel(head, hidden_states[of_answers], targets[of_answers]) / num_items_in_batch


if __name__ == "__main__":
    main()
