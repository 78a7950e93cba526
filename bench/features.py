"""The feature cache beside the plain loop: images a second from JPEG files to CLIP's features.

The shape of CLIP ViT-B/32 with random weights, pictures of COCO's size. The plain loop is what the model's page shows,
CLIPProcessor's pixels and CLIPModel's tower in fp32, 32 images at a time; Eden's is `FeatureStore.fill` with the number
format that it measured, files written. Then how alike the features are.
"""

import tempfile
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

from bench.table import Bar, Row, show
from bench.timing import timed
from eden.checkpoint.vision_encoder import VisionEncoder
from eden.core.numeric_format import numeric_format
from eden.core.processes import run_in_thread
from eden.data.features import FeatureStore

NUMBER, BATCH = 256, 32


def measure() -> list[Row]:
    """Both rates, how fast the cache is read, and the least cosine similarity."""
    torch.manual_seed(0)
    encoder = run_in_thread(
        lambda: VisionEncoder(
            CLIPVisionModelWithProjection(CLIPVisionConfig(projection_dim=512)).eval().requires_grad_(False),
            CLIPImageProcessorPil(),
            "patches",
            -2,
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        files = photographs(Path(folder), NUMBER)
        plain(encoder, files[:BATCH])
        expected, alone = timed(lambda: run_in_thread(lambda: plain(encoder, files)))
        best = encoder.to(getattr(torch, numeric_format().name))
        store = FeatureStore(best, Path(folder))
        _, filling = timed(lambda: store.fill(files))
        found, reading = timed(lambda: torch.stack([store.features(file) for file in files]))
    alike = torch.nn.functional.cosine_similarity(found.float().flatten(1), expected.flatten(1))
    name, loop = str(best.tower.dtype).removeprefix("torch."), "plain loop of processor and tower, fp32"
    rate = NUMBER / alone
    return [
        Row(f"feature cache filled, in {name}", NUMBER / filling, "images/s", loop, rate, Bar(3, of_ratio=True)),
        Row("read from the cache", NUMBER / reading, "images/s", loop, rate),
        Row(
            "least cosine similarity to the loop's features",
            float(alike.min()),
            bar=Bar(0.999),
            digits=5,
        ),
    ]


@torch.inference_mode()
def plain(encoder: VisionEncoder, files: list[Path]) -> torch.Tensor:
    """The features [I,N,Dv], as a script would get them."""
    found = []
    for start in range(0, len(files), BATCH):
        images = [PIL.Image.open(file).convert("RGB") for file in files[start : start + BATCH]]
        pixels = encoder.image_processor(images, return_tensors="pt")["pixel_values"]
        found.append(encoder.tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:])
    return torch.cat(found)


def photographs(folder: Path, number: int) -> list[Path]:
    """JPEGs of 640x480 with soft colours and grain, about 110 kB each; every one another."""
    files = []
    for index in range(number):
        rng = np.random.default_rng(index)
        colours = PIL.Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize((640, 480))
        picture = np.asarray(colours, dtype=np.int16) + rng.normal(0, 8, (480, 640, 3)).astype(np.int16)
        files.append(folder / f"{index:06d}.jpg")
        PIL.Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(files[-1], quality=90)
    return files


if __name__ == "__main__":
    show({"features": measure()})
