"""How a run gets at its images: through the tower in every step, or as features from the cache."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console

from ..checkpoint.vision_encoder import VisionEncoder, load_vision_encoder
from ..core import distributed
from ..core.console import progress
from ..core.processes import cores, ignore_sigint, single_threaded_pool
from ..errors import ImageError
from ..media.images import open_image
from ..recipe import Recipe
from .features import BATCH, FeatureStore
from .image_index import Source

MEASURED = 32
"""Images that the ways to the features are timed with."""


def open_features(
    choice: str, encoder: VisionEncoder, images: Sequence[Source], reads: float, batch: int, console: Console
) -> FeatureStore | None:
    """The features of a run's images, all of them encoded; None if they go through the tower in each step.

    Args:
        choice: `cached`, `live`, or `auto`, which the main process decides for all.
        encoder: of the model in training.
        images: the run's, each once.
        reads: how many images the steps of the run take, repetitions counted.
        batch: samples that a process takes at once.
        console: where progress is shown.

    Raises:
        StorageError: the cache cannot be written.
    """
    if choice == "live" or not images:
        return None
    store = FeatureStore(encoder)
    if choice == "auto":
        with console.status("measuring the vision tower"):
            if not distributed.from_main(lambda: _pays(encoder, store, images, reads, batch, console)):
                return None
    fill(store, images, console)  # all processes together
    return store


def cache_features(recipe: Recipe, images: Sequence[Source], console: Console, workers: int = 1) -> FeatureStore:
    """Encodes the images of a recipe ahead of its run, with as many processes as are asked for.

    Args:
        recipe: of the run; its model's tower is loaded, and nothing else of the model.
        images: the run's, each once.
        console: where progress is shown.
        workers: processes, each with a tower of its own and its share of the cores.

    Raises:
        CheckpointError: the recipe's model is missing.
        StorageError: the cache cannot be written.
    """
    store = FeatureStore(load_vision_encoder(recipe))
    context = multiprocessing.get_context("spawn")
    share = max(1, cores() // workers)
    helpers = [context.Process(target=_help, args=(recipe, images, share), daemon=True) for _ in range(workers - 1)]
    with ignore_sigint():
        for helper in helpers:
            helper.start()
    fill(store, images, console, threads=share)  # what a helper that dies leaves undone is done here
    for helper in helpers:
        helper.join()
    return store


def _help(recipe: Recipe, images: Sequence[Source], share: int) -> None:
    FeatureStore(load_vision_encoder(recipe)).fill(images, threads=share)


def fill(store: FeatureStore, images: Sequence[Source], console: Console, threads: int | None = None) -> None:
    """Encodes what is missing, with a progress bar."""
    with progress(console) as bar:
        task = bar.add_task("encoding images", total=len(images))
        store.fill(images, threads=threads, on_progress=lambda done, _: bar.update(task, completed=done))


def _pays(
    encoder: VisionEncoder, store: FeatureStore, images: Sequence[Source], reads: float, batch: int, console: Console
) -> bool:
    """Whether encoding all images ahead takes less time than encoding those of each step in it; both are measured."""
    missing = len(store.missing(images))
    if missing == 0:
        return True
    usable = [source for source in images[: 2 * MEASURED] if _opens(source)][:MEASURED]
    if not usable:
        return False
    live, ahead = seconds_live(encoder, usable, batch), seconds_ahead(encoder, usable)
    console.print(
        f"images: {reads:,.0f} reads at {live * 1000:.1f} ms live, or {missing:,} to encode at {ahead * 1000:.1f} ms",
        highlight=False,
    )
    return missing * ahead < reads * live


def _opens(source: Source) -> bool:
    try:
        open_image(source)
    except ImageError:
        return False
    return True


def seconds_live(encoder: VisionEncoder, images: Sequence[Source], batch_size: int) -> float:
    """Of an image, from the file to its features, as the images of a training step take them: one batch, then the next.

    Args:
        encoder: in the number format of the run.
        images: some that can be used.
        batch_size: images that go through the tower at once.
    """
    return _seconds_an_image(encoder, images, batch_size, map)


def seconds_ahead(encoder: VisionEncoder, images: Sequence[Source]) -> float:
    """Of an image, from the file to its features, as `FeatureStore.fill` takes them; arguments as of `seconds_live`."""
    enough = 2 * BATCH * cores()
    images = list(itertools.islice(itertools.cycle(images), enough))
    with single_threaded_pool(cores()) as pool:
        return _seconds_an_image(encoder, images, BATCH, pool.map)


def _seconds_an_image(encoder: VisionEncoder, images: Sequence[Source], batch_size: int, apply: Any) -> float:
    def encode(batch: Sequence[Source]) -> None:
        encoder.features(torch.cat([encoder.pixels([open_image(source)]) for source in batch])).cpu()

    encode(images[:1])
    started = time.perf_counter()
    for _ in apply(encode, [images[start : start + batch_size] for start in range(0, len(images), batch_size)]):
        pass
    return (time.perf_counter() - started) / len(images)
