"""A picture as an overview and tiles: ids, pixels, features and answers, by whichever way they are made."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import IMAGE_SIZE, make_model, make_processor
from test_image_aspect import noise, recipe_of
from transformers import AutoProcessor

from eden import CheckpointError, DataError, RecipeError
from eden.checkpoint import Checkpoint, load, merge, save
from eden.checkpoint.backbones import LoadOptions
from eden.checkpoint.checkpoint import check_model, load_for_training
from eden.checkpoint.vision_encoder import VisionEncoder, load_vision_encoder
from eden.data.collate import collate_flat
from eden.data.dataset import ConversationDataset
from eden.data.features import FeatureStore
from eden.data.validate import load_samples
from eden.export.gguf import write_gguf
from eden.inference.assistant import Assistant
from eden.media.images import image_size, open_image
from eden.messages import Message
from eden.model.loss import IGNORE_INDEX
from eden.model.processing import MultimodalPhiProcessor
from eden.model.tiling import ROW_END, grid_of
from eden.plan.shapes import config_of
from eden.recipe import ModelSection

TILES = 4
SIZES = {(96, 32): (1, 3), (32, 70): (3, 1), (64, 64): (2, 2), (20, 20): (0, 0), (300, 10): (1, 4)}
"""Width and height of a picture, and the rows and columns of its grid."""


def tiled(num_image_tokens: int = 4) -> MultimodalPhiProcessor:
    plain = make_processor(num_image_tokens)
    return MultimodalPhiProcessor(plain.image_processor, plain.tokenizer, num_image_tokens, tiles=TILES)


def tiled_checkpoint() -> Checkpoint:
    model = make_model("patches")
    model.config.tiles = TILES
    return Checkpoint(model, tiled(), "tiled", None)


def asked(*pictures: PIL.Image.Image | None, sizes: list[tuple[int, int]] | None = None) -> list[dict]:
    parts: list[dict] = [{"type": "image", "image": picture} for picture in pictures]
    for part, size in zip(parts, sizes or (), strict=False):
        part["size"] = lambda size=size: size
    question = {"role": "user", "content": [*parts, {"type": "text", "text": "what is it"}]}
    return [question, {"role": "assistant", "content": "a cat"}]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A record for each size, and one of two pictures."""
    names = []
    for width, height in SIZES:
        names.append(f"{width}.png")
        noise((width, height)).save(tmp_path / names[-1])
    shown = [[name] for name in names] + [names[:2]]
    turns = [{"from": "human", "value": "what"}, {"from": "gpt", "value": "a cat"}]
    records = [
        {"id": str(n), "image": of, "conversations": [{**turns[0], "value": "<image>" * len(of) + "what"}, turns[1]]}
        for n, of in enumerate(shown)
    ]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(records))
    return path


@pytest.mark.parametrize("size", SIZES)
def test_the_grid_is_that_of_the_shape(size: tuple[int, int]) -> None:
    width, height = size
    rows, columns = grid_of(height, width, TILES, IMAGE_SIZE)
    assert (rows, columns) == SIZES[size]
    processor = tiled()
    pixels = processor.image_pixels([noise(size)])
    assert pixels.shape == (1 + rows * columns, 3, IMAGE_SIZE, IMAGE_SIZE)
    plain = make_processor(4).image_processor
    assert torch.equal(pixels[:1], plain([noise(size)], return_tensors="pt")["pixel_values"]), "first the overview"


def test_a_picture_of_the_grids_size_is_cut_as_it_is() -> None:
    shades = np.asarray(noise((96, 32)))
    tiles = [PIL.Image.fromarray(shades[:, left : left + 32]) for left in (0, 32, 64)]
    expected = make_processor(4).image_processor(tiles, return_tensors="pt")["pixel_values"]
    assert torch.equal(tiled().image_pixels([noise((96, 32))])[1:], expected)


def test_ids_are_the_same_with_pictures_with_sizes_and_from_transformers() -> None:
    processor, pictures = tiled(), [noise(size) for size in SIZES]
    encoded = processor.encode(asked(*pictures))
    ids = encoded["input_ids"]
    by_size = processor.encode(asked(*[None] * len(SIZES), sizes=list(SIZES)))
    assert by_size == {"input_ids": ids, "labels": encoded["labels"]}
    text = processor.apply_chat_template(asked(*pictures), tokenize=False)
    called = processor(text=[text], images=pictures, return_tensors="pt")
    assert called["input_ids"][0].tolist() == ids
    assert torch.equal(called["pixel_values"], encoded["pixel_values"])
    assert set(called) == {"input_ids", "attention_mask", "pixel_values"}
    learnt = [token_id for token_id, label in zip(ids, encoded["labels"], strict=True) if label != IGNORE_INDEX]
    assert processor.tokenizer.decode(learnt).strip() == "a cat<|end|>"


def test_vllm_finds_each_picture() -> None:
    """As its transformers backend does: it puts what stands for each picture in the place of its token.

    Also where a user's own text between two pictures is that of a row end.
    """
    processor, pictures = tiled(), [noise(size) for size in SIZES]
    talk = asked(*pictures)
    talk[0]["content"].insert(2, {"type": "text", "text": ROW_END})
    text = processor.apply_chat_template(talk, tokenize=False)
    called = processor(text=[text], images=pictures, return_text_replacement_offsets=True)
    counts = processor._get_num_multimodal_tokens([[height, width] for width, height in SIZES])
    assert counts["num_image_patches"] == [1 + rows * columns for rows, columns in SIZES.values()]
    assert processor._get_num_multimodal_tokens([[128, 32]])["num_image_tokens"] == [processor.most_image_tokens]
    encode, token = processor.tokenizer.encode, processor.image_token_id
    written = [encode(each["replacement"], add_special_tokens=False) for each in called["text_replacement_offsets"][0]]
    assert [len(ids) for ids in written] == counts["num_image_tokens"]
    assert [ids.count(token) for ids in written] == [4 * patches for patches in counts["num_image_patches"]]
    pieces, ids = iter(written), encode(text, add_special_tokens=False)
    assert [new for old in ids for new in (next(pieces) if old == token else [old])] == called["input_ids"][0]


def test_cached_equals_live_and_packed_equals_alone(data: Path, tmp_path: Path) -> None:
    checkpoint = tiled_checkpoint()
    samples, _ = load_samples(data)
    sets = [ConversationDataset(samples, checkpoint.processor, max_length=1000) for _ in range(2)]
    store = FeatureStore(VisionEncoder.of(checkpoint), tmp_path / "cache")
    store.fill(list(samples.images().values()))
    again = FeatureStore(VisionEncoder.of(checkpoint), tmp_path / "cache")
    again.fill(list(samples.images().values()))
    assert sets[1].use_features(again) == []
    live, cached = ([examples[place] for place in range(len(samples))] for examples in sets)
    images = [len(example["pixel_values"]) for example in live]
    assert images == [4, 4, 5, 1, 3, 8], "of one thinner than 4:1 the middle is seen"
    with torch.no_grad():
        for pixels, features in zip(live, cached, strict=True):
            assert features["image_features"].shape == (len(pixels["pixel_values"]), 4, 32)
            torch.testing.assert_close(
                checkpoint.model(**collate_flat([pixels])).loss,
                checkpoint.model(**collate_flat([features])).loss,
                rtol=1e-4,
                atol=1e-4,
            )
        packed = checkpoint.model(**collate_flat(live)).loss
        alone = torch.stack([checkpoint.model(**collate_flat([example])).loss for example in live])
    weights = torch.tensor([int((np.asarray(example["labels"]) != IGNORE_INDEX).sum()) for example in live])
    torch.testing.assert_close(packed, (alone * weights).sum() / weights.sum(), rtol=1e-4, atol=1e-4)


def test_a_picture_of_another_size_takes_other_tokens(data: Path) -> None:
    """The data file is the same, and so are the tokens that are kept of it, but for the picture's."""
    checkpoint = tiled_checkpoint()
    before = ConversationDataset(load_samples(data)[0], checkpoint.processor, max_length=1000)
    noise((20, 20)).save(data.parent / "96.png")
    with pytest.raises(DataError, match="an image changed its size in mid-run"):
        before[0]
    after = ConversationDataset(load_samples(data)[0], checkpoint.processor, max_length=1000)
    assert len(after[0]["pixel_values"]) == 1 and after.lengths[0] < before.lengths[0]
    (data.parent / "96.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    damaged = ConversationDataset(
        load_samples(data, look="listed")[0], checkpoint.processor, max_length=1000, on_error="skip"
    )
    assert len(damaged[0]["pixel_values"]) == 1 and damaged.damage[0]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("turned", [1, 6])
def test_the_size_is_that_of_the_opened_picture(kind: str, turned: int, tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = turned
    for size in ((60, 40), (301, 10), (10, 95)):
        noise(size).save(tmp_path / "picture", kind, **({} if kind == "GIF" else {"exif": exif}))
        assert image_size(tmp_path / "picture") == open_image(tmp_path / "picture").size


def test_the_engine_answers_as_generate_does() -> None:
    assistant = Assistant(tiled_checkpoint())
    messages = [Message.user("what is it", [noise((96, 32)), noise((64, 64))])]
    answer = assistant.answer_all([messages], max_new_tokens=8)[0]
    example = assistant.encode(messages)
    ids = torch.tensor([example["input_ids"]])
    written = assistant.checkpoint.model.generate(
        input_ids=ids, pixel_values=example["pixel_values"], max_new_tokens=8, do_sample=False
    )[0, ids.shape[1] :]
    assert answer == assistant.processor.tokenizer.decode(written, skip_special_tokens=True).strip()


def test_they_travel_with_a_model(backbones: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = recipe_of(backbones, "pad").override(["model.tiles=4", "model.vision_feature=patches"])
    picture = noise((96, 32))
    trained = load_for_training(recipe)
    expected = trained.processor.image_pixels([picture])
    adapter, merged = str(save(trained, tmp_path / "adapter")), str(tmp_path / "merged")
    save(merge(load(adapter, LoadOptions(dtype="float32"))), merged)
    for folder in (adapter, merged):
        checkpoint = load(folder)
        assert checkpoint.config.tiles == checkpoint.processor.tiles == 4
        assert torch.equal(checkpoint.processor.image_pixels([picture]), expected)
        encoder = load_vision_encoder(recipe.override([f"model.base={folder}", *NO_BACKBONES]))
        assert encoder.tiles == 4 and torch.equal(encoder.pixels([picture]), expected)
        with pytest.raises(RecipeError, match=r"model\.tiles is 2, and .* was trained with 4"):
            check_model(ModelSection(base=folder, tiles=2))
        with pytest.raises(CheckpointError, match=r"llama\.cpp cannot see a picture in Eden's tiles"):
            write_gguf(folder, tmp_path / "gguf")
    loaded = AutoProcessor.from_pretrained(merged)
    assert torch.equal(loaded(text=["<|image|>"], images=[picture], return_tensors="pt")["pixel_values"], expected)
    many = ModelSection(vision=str(backbones[0]), language=str(backbones[1]), vision_feature="patches", tiles=1100)
    for look in (check_model, config_of):
        with pytest.raises(
            RecipeError, match=r"model.tiles is 1100: a picture takes up to 4,404 tokens, and .* reads 4,096"
        ):
            look(many)


def test_a_configuration_and_a_processor_that_disagree_are_refused(
    backbones: tuple[Path, Path], tmp_path: Path
) -> None:
    """Of a whole model, and of an adapter and its base."""
    recipe = recipe_of(backbones, "pad").override(
        ["model.tiles=4", "model.vision_feature=patches", "quantization=null"]
    )
    base, adapter = str(save(merge(load_for_training(recipe)), tmp_path / "base")), str(tmp_path / "adapter")
    save(load_for_training(recipe.override([f"model.base={base}", *NO_BACKBONES])), adapter)
    for folder in (adapter, base):
        path = Path(folder, "config.json")
        for key, said, done in (("tiles", 2, "4"), ("image_aspect", "squash", "pad")):
            saved = path.read_text()
            path.write_text(json.dumps(json.loads(saved) | {key: said}))
            with pytest.raises(CheckpointError, match=f"{key} is {said} in config.json, and {done} in the files of"):
                load(folder)
            path.write_text(saved)
        assert load(folder).config.tiles == 4


NO_BACKBONES = [f"model.{key}=null" for key in ("vision", "language", "vision_feature", "image_aspect", "tiles")]
