"""The feature cache beside the plain loop: images a second from JPEG files to CLIP's features.

The shape of CLIP ViT-B/32 with random weights, pictures of COCO's size. The plain loop is what the model's page shows,
CLIPProcessor's pixels and CLIPModel's tower in fp32, 32 images at a time; Eden's is `FeatureStore.fill` with the number
format that it measured, files written. Then how alike the features are.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

from bench.machine import describe
from eden.data.features import FeatureStore, in_best_format
from eden.machine import in_a_thread
from eden.vision_encoder import VisionEncoder

NUMBER, BATCH = 256, 32


def main() -> None:
    """Prints both rates, their ratio, and the least cosine similarity."""
    torch.manual_seed(0)
    encoder = in_a_thread(
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
        started = time.perf_counter()
        expected = in_a_thread(lambda: plain(encoder, files))
        alone = NUMBER / (time.perf_counter() - started)
        best = in_a_thread(lambda: in_best_format(encoder, files, Path(folder)))
        store = FeatureStore(best, Path(folder))
        started = time.perf_counter()
        store.fill(files)
        rate = NUMBER / (time.perf_counter() - started)
        started = time.perf_counter()
        found = torch.stack([store.features(file) for file in files])
        reading = NUMBER / (time.perf_counter() - started)
    alike = torch.nn.functional.cosine_similarity(found.float().flatten(1), expected.flatten(1))
    name = str(best.tower.dtype).removeprefix("torch.")
    print(f"CLIP ViT-B/32, {NUMBER} JPEGs of 640x480")
    print(f"plain loop, fp32        {alone:8.1f} images/s")
    print(f"eden cache, {name:<12}{rate:8.1f} images/s   ratio {rate / alone:.2f}")
    print(f"read from the cache     {reading:8.0f} images/s")
    print(f"least cosine similarity {alike.min():.5f}")


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
    print(f"machine: {describe()}")
    main()
