"""What a model sees of a picture that is not square: its middle, all of it between bars, or all of it stretched."""

import json
from itertools import islice
from pathlib import Path

import cli
import numpy as np
import PIL.Image
import pytest
import torch
from conftest import IMAGE_SIZE
from test_gguf import saved
from transformers import AutoProcessor

import eden
from eden import RecipeError
from eden.checkpoint import load, merge, save
from eden.checkpoint.backbones import LoadOptions, open_image_processor
from eden.checkpoint.checkpoint import check_model, load_for_training
from eden.checkpoint.vision_encoder import VisionEncoder, load_vision_encoder
from eden.core.location import EDEN_TINY_FOLDER
from eden.data.features import FeatureStore
from eden.evaluate.registry import open_task
from eden.evaluate.run import evaluate
from eden.media.images import open_image
from eden.plan.shapes import config_of
from eden.recipe import ModelSection, Recipe, load_recipe
from eden.tiny.world import strips

ASPECTS = ("crop", "pad", "squash")
SIZES = [(100, 40), (40, 101), (33, 32), (60, 60), (7, 20)]


def noise(size: tuple[int, int]) -> PIL.Image.Image:
    width, height = size
    return PIL.Image.fromarray(np.random.RandomState(0).randint(0, 256, (height, width, 3), dtype=np.uint8))


def plain(image: PIL.Image.Image, aspect: str, side: int, bars: tuple[int, int, int]) -> np.ndarray:
    """The square picture as it is defined, with Pillow alone."""
    width, height = image.size
    if aspect == "pad":
        longest = max(width, height)
        square = PIL.Image.new("RGB", (longest, longest), bars)
        square.paste(image, ((longest - width) // 2, (longest - height) // 2))
        image = square
    if aspect != "crop":
        return np.asarray(image.resize((side, side), PIL.Image.Resampling.BICUBIC))
    scale = side / min(width, height)
    wide, high = (side if length == min(width, height) else int(length * scale) for length in (width, height))
    left, top = (wide - side) // 2, (high - side) // 2
    scaled = image.resize((wide, high), PIL.Image.Resampling.BICUBIC)
    return np.asarray(scaled.crop((left, top, left + side, top + side)))


def recipe_of(backbones: tuple[Path, Path], aspect: str | None) -> Recipe:
    vision, language = backbones
    return load_recipe(
        "align",
        [
            *(f"model.vision={vision}", f"model.language={language}", "model.dtype=float32", "data.path=x"),
            f"model.image_aspect={aspect or 'null'}",
        ],
    )


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> str:
    """eden-tiny's weights in a model that pads; it was not trained so."""
    checkpoint = load("eden-tiny")
    checkpoint.config.image_aspect = "pad"
    section = ModelSection(vision=str(EDEN_TINY_FOLDER), image_aspect="pad")
    checkpoint.processor.image_processor = open_image_processor(section)
    return saved(checkpoint.core, checkpoint.processor, tmp_path_factory.mktemp("padded") / "model")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("aspect", ASPECTS)
def test_pixels_are_those_of_the_definition(backbones: tuple[Path, Path], aspect: str, size: tuple[int, int]) -> None:
    check_pixels(backbones[0], aspect, size, IMAGE_SIZE, bars=(122, 116, 104))


def check_pixels(vision: Path, aspect: str, size: tuple[int, int], side: int, bars: tuple[int, int, int]) -> None:
    image_processor = open_image_processor(ModelSection(vision=str(vision), image_aspect=aspect))
    pixels = image_processor([noise(size)], return_tensors="pt")["pixel_values"][0].numpy()
    mean, std = (np.array(getattr(image_processor, f"image_{name}"))[:, None, None] for name in ("mean", "std"))
    seen = np.rint((pixels * std + mean) * 255).transpose(1, 2, 0)
    assert seen.tolist() == plain(noise(size), aspect, side, bars).tolist()


def test_crop_is_the_towers_own(backbones: tuple[Path, Path]) -> None:
    """So that caches of features made before there was a choice stay good."""
    own = open_image_processor(ModelSection(vision=str(backbones[0])))
    assert open_image_processor(ModelSection(vision=str(backbones[0]), image_aspect="crop")).to_dict() == own.to_dict()
    recipes = [recipe_of(backbones, aspect) for aspect in (None, *ASPECTS)]
    fingerprints = [load_vision_encoder(recipe).fingerprint for recipe in recipes]
    assert fingerprints[0] == fingerprints[1] and len(set(fingerprints)) == 3
    runs = [VisionEncoder.of(load_for_training(recipe)).fingerprint for recipe in recipes]
    assert fingerprints == runs, "`eden cache` and the run must mean the same features"


@pytest.mark.parametrize("aspect", ["pad", "squash"])
def test_it_travels_with_a_model(backbones: tuple[Path, Path], aspect: str, tmp_path: Path) -> None:
    recipe, image = recipe_of(backbones, aspect), noise((100, 40))
    trained = load_for_training(recipe)
    trained.core.generation_config.eos_token_id = None
    expected = trained.processor.image_processor([image], return_tensors="pt")["pixel_values"]
    adapter, merged = save(trained, tmp_path / "adapter"), tmp_path / "merged"
    save(merge(load(str(adapter), LoadOptions(dtype="float32"))), merged)
    for folder in (adapter, merged):
        assert json.loads((folder / "config.json").read_text())["image_aspect"] == aspect
        checkpoint = load(str(folder))
        assert checkpoint.config.image_aspect == config_of(ModelSection(base=str(folder))).image_aspect == aspect
        processor = checkpoint.processor
        assert torch.equal(processor.image_processor([image], return_tensors="pt")["pixel_values"], expected)
        sizes = [[40, 100], [100, 40], [1, 1]]
        assert processor._get_num_multimodal_tokens(sizes)["num_image_tokens"] == [processor.num_image_tokens] * 3
        encoder = load_vision_encoder(load_recipe("digits", [f"model.base={folder}", "model.dtype=float32"]))
        assert torch.equal(encoder.pixels([image]), expected)
    plain_transformers = AutoProcessor.from_pretrained(merged)
    seen = plain_transformers(text=["<|image|>"], images=[image], return_tensors="pt")["pixel_values"]
    assert torch.equal(seen, expected)


def test_features_are_those_of_the_whole_picture(backbones: tuple[Path, Path], tmp_path: Path) -> None:
    encoder = load_vision_encoder(recipe_of(backbones, "pad"))
    files = [tmp_path / f"{width}.png" for width in (60, 100, 160)]
    for file in files:
        noise((int(file.stem), 40)).save(file)
    store = FeatureStore(encoder, tmp_path / "cache")
    store.fill(files)
    for file in files:
        live = encoder.features(encoder.pixels([open_image(file)]))[0]
        torch.testing.assert_close(store.features(file), live, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_without_the_field_crops() -> None:
    assert "image_aspect" not in json.loads((EDEN_TINY_FOLDER / "config.json").read_text())
    assert load("eden-tiny").config.image_aspect == "crop"
    assert load("eden-tiny").processor.image_processor.do_center_crop


def test_another_aspect_than_the_bases_is_refused_before_a_weight_is_read(padded: str) -> None:
    for base, trained, asked in (("eden-tiny", "crop", "pad"), (padded, "pad", "squash")):
        check_model(ModelSection(base=base, image_aspect=trained))
        section = ModelSection(base=base, image_aspect=asked)
        recipe = load_recipe("digits", [f"model.base={base}", f"model.image_aspect={asked}"])
        for look in (
            lambda section=section: check_model(section),
            lambda section=section: config_of(section),
            lambda recipe=recipe: load_vision_encoder(recipe),
        ):
            with pytest.raises(RecipeError, match=f"model.image_aspect is {asked}, and {base} was trained with"):
                look()
    done = cli.eden("train", "digits", "model.image_aspect=pad", "data.path=x")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "Leave it out, or start anew from model.vision and model.language." in done.stderr


def test_objects_at_the_ends_are_seen_by_who_pads_alone(padded: str) -> None:
    """eden-tiny looks at the middle third, where nothing is, and says so."""
    groups = {"accuracy_wide": open_task("world", limit=72).groups["accuracy_wide"]}
    shares = {}
    for model in ("eden-tiny", padded):
        task = open_task("world", limit=1)
        result = evaluate(eden.load(model), type(task)("world", groups, task.score, task.measures))
        shares[model] = result.to_dict()["accuracy_wide"]
    assert shares["eden-tiny"] <= 0.3 and shares[padded] >= 0.6, shares


def test_strips_hold_the_middle_row_or_column_of_a_scene() -> None:
    for scene, image in islice(strips(1, "test"), 8):
        wide = image.size == (288, 96)
        assert wide or image.size == (96, 288)
        assert {thing.row if wide else thing.column for thing in scene.objects} == {1}
        assert {thing.column if wide else thing.row for thing in scene.objects} <= {0, 2}
        assert scene.split == "test"
        middle = np.asarray(image)[:, 96:192] if wide else np.asarray(image)[96:192]
        assert (middle == middle[0, 0]).all()
