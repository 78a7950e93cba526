"""The real shapes with random weights: load in 4 bits, train two steps, save, load again, answer. `make rehearsal`.

CLIP ViT-B/32 and Phi-3.5-mini (32 layers, 3072 wide, 8192 inside, 32064 rows) are written to a folder as the hub has
them, then taken through the shipped recipe `phi3.5-mini`. Only the weights are not real, so only the words are not.
"""

import argparse
import gc
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from rich.console import Console
from safetensors.torch import save_file
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Phi3Config,
    Phi3ForCausalLM,
)

from bench.machine import describe
from eden.checkpoint import load
from eden.checkpoint.backbones import LoadOptions
from eden.core.processes import peak_memory_mib
from eden.inference.assistant import Assistant
from eden.messages import Message
from eden.recipe import load_recipe
from eden.training.train import train
from tiny_build.dataset import write_dataset
from tiny_build.tokenizer import FIRST_PIECES, PRINTABLE, phi_tokenizer

PIECES = 32_000
"""Phi-3.5's pieces; its eleven control tokens follow, then `<|image|>` at 32011."""

console = Console()


def main() -> None:
    """Runs the rehearsal and prints what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/rehearsal"))
    parser.add_argument("--steps", type=int, default=2, help="optimizer steps")
    arguments = parser.parse_args()
    out: Path = arguments.out
    shutil.rmtree(out, ignore_errors=True)
    console.print(f"machine: {describe()}")
    with timed("write random weights in the real shapes"):
        write_clip(out / "clip")
        write_phi(out / "phi")
    data = write_dataset(out / "data", 2 * arguments.steps, seed=0)
    recipe = load_recipe(
        "phi3.5-mini",
        [
            f"model.vision={out / 'clip'}",
            f"model.language={out / 'phi'}",
            f"data.path={data}",
            "data.images=null",
            "data.eval_fraction=0",
            "training.eval_strategy=no",
            "training.eval_steps=null",
            f"training.max_steps={arguments.steps}",
            f"training.output_dir={out / 'artifact'}",
        ],
    )
    with timed(f"load in 4 bits, train {arguments.steps} steps, save"):
        result = train(recipe, console=console)
    gc.collect()  # the trained model is in reference cycles of its trainer, and gigabytes alone wake no collector
    with timed("load the artifact in 4 bits, generate 5 tokens"):
        checkpoint = load(str(result.artifact), LoadOptions(quantization=recipe.quantization))
        question = [Message.user("What is in the picture?", [data.parent / "000000.png"])]
        answer = Assistant(checkpoint).answer_all([question], max_new_tokens=5)[0]
    console.print(f"it said {answer!r} (random weights, random words)", highlight=False)
    console.print(f"peak memory {peak_memory_mib() / 2**10:.1f} GiB")
    shutil.rmtree(out / "phi")  # 7.6 GB that nobody needs any more


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Prints how long the block took, and the peak memory so far."""
    started = time.monotonic()
    console.rule(what)
    yield
    console.print(f"{what}: {time.monotonic() - started:.0f} s, peak memory so far {peak_memory_mib() / 2**10:.1f} GiB")


def write_clip(folder: Path) -> None:
    """openai/clip-vit-base-patch32's vision half: 12 layers, 768 wide, 224 pixels a side, projected to 512."""
    CLIPVisionModelWithProjection(CLIPVisionConfig(projection_dim=512)).to(torch.bfloat16).save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)


def write_phi(folder: Path) -> None:
    """microsoft/Phi-3.5-mini-instruct, one shard a layer: the whole is never in memory."""
    config = Phi3Config(
        max_position_embeddings=131_072,
        original_max_position_embeddings=4096,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "short_factor": [1.0] * 48,
            "long_factor": [1.0] * 48,
        },
        architectures=["Phi3ForCausalLM"],
        dtype=torch.bfloat16,
    )
    config.save_pretrained(folder)
    pieces = [*FIRST_PIECES, "▁", *PRINTABLE]
    pieces += [f"▁unused{index}" for index in range(PIECES - len(pieces))]
    phi_tokenizer({piece: index for index, piece in enumerate(pieces)}, merges=[]).save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Phi3ForCausalLM(config).state_dict().items()}
    shards: dict[str, list[str]] = {}
    for name in shapes:
        layer = name.split(".")[2] if ".layers." in name else "rest"
        shards.setdefault(f"model-{layer}.safetensors", []).append(name)
    for file, names in shards.items():
        tensors = {name: random_weight(name, shapes[name]) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
    index = {name: file for file, names in shards.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def random_weight(name: str, shape: torch.Size) -> torch.Tensor:
    """Norms of one, all else small and random, as a fresh model has them."""
    if "norm" in name:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02)


if __name__ == "__main__":
    main()
