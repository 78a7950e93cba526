"""SigLIP beside CLIP: the same code, told what differs by a table."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import make_image
from test_image_aspect import ASPECTS, check_pixels, noise
from transformers import CLIPVisionModelWithProjection, PreTrainedConfig, SiglipVisionConfig, SiglipVisionModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from eden import CheckpointError
from eden.checkpoint import Checkpoint, load, save
from eden.checkpoint.backbones import LoadOptions, assemble, open_image_processor
from eden.checkpoint.checkpoint import load_for_training
from eden.checkpoint.vision_encoder import VisionEncoder, load_vision_encoder
from eden.export.gguf import write_gguf
from eden.inference.assistant import Assistant
from eden.model import MultimodalPhiConfig
from eden.model.modeling import run_tower
from eden.model.tiling import pixels_of
from eden.plan.published import PUBLISHED
from eden.recipe import ModelSection, load_recipe

PARAMETERS = {
    "openai/clip-vit-base-patch32": 87_849_216,
    "google/siglip-base-patch16-224": 92_884_224,
    "google/siglip-so400m-patch14-384": 428_225_600,
    "google/siglip2-base-patch16-224": 92_884_224,
    "google/siglip2-so400m-patch14-384": 428_225_600,
}
IMAGES = [make_image("red"), make_image("blue", (60, 40))]


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tower's folder: 3 layers, 9 patches."""
    folder = tmp_path_factory.mktemp("siglip")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=48, patch_size=16)).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 48, "width": 48}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["pooled", "patches"])
def section(request: pytest.FixtureRequest, siglip: Path, backbones: tuple[Path, Path]) -> ModelSection:
    return ModelSection(vision=str(siglip), language=str(backbones[1]), vision_feature=request.param)


@torch.no_grad()
def test_features_are_the_towers_own(section: ModelSection) -> None:
    """SigLIP has no class token: all patches are kept. What is pooled is what its head attends to."""
    model, processor = assemble(section, LoadOptions())
    pixels = processor.image_processor(IMAGES, return_tensors="pt")["pixel_values"]
    whole = SiglipVisionModel.from_pretrained(str(section.vision))(pixels, output_hidden_states=True)
    pooled = section.vision_feature == "pooled"
    wanted = whole.pooler_output.unsqueeze(1) if pooled else whole.hidden_states[-2]
    assert wanted.shape == (2, 1 if pooled else 9, 32)
    torch.testing.assert_close(model.model.encode_images(pixels), wanted)
    assert (model.config.num_image_tokens, model.config.image_feature_size) == wanted.shape[1:]
    assert model.config.image_aspect == "squash"
    recorded = run_tower(model.model.vision_tower, pixels, section.vision_feature, -2, output_hidden_states=True)
    torch.testing.assert_close(recorded.pooler_output, wanted)


@pytest.mark.parametrize("aspect", ASPECTS)
def test_a_picture_that_is_not_square(siglip: Path, aspect: str) -> None:
    """SigLIP's own way is to stretch it."""
    check_pixels(siglip, aspect, (100, 40), side=48, bars=(127, 127, 127))
    own = open_image_processor(ModelSection(vision=str(siglip)))
    stretched = open_image_processor(ModelSection(vision=str(siglip), image_aspect="squash"))
    assert own.to_dict() == stretched.to_dict()


@pytest.mark.parametrize("aspect", [None, *ASPECTS])
def test_tiles_are_of_the_towers_side(siglip: Path, aspect: str | None) -> None:
    image_processor = open_image_processor(ModelSection(vision=str(siglip), image_aspect=aspect))
    picture = noise((144, 48))
    tiles = [PIL.Image.fromarray(np.asarray(picture)[:, left : left + 48]) for left in (0, 48, 96)]
    expected = image_processor([picture, *tiles], return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels_of([picture], image_processor, tiles=3), expected)


def test_a_model_with_tiles_is_saved_loaded_cached_and_asked(
    siglip: Path, backbones: tuple[Path, Path], tmp_path: Path
) -> None:
    parts = {"vision": str(siglip), "language": str(backbones[1]), "vision_feature": "patches", "tiles": 3}
    torch.manual_seed(0)
    model, processor = assemble(ModelSection(**parts), LoadOptions(dtype="float32"))
    checkpoint, pictures = Checkpoint(model, processor, "x", None), [noise((144, 48)), noise((40, 40))]
    answer = Assistant(checkpoint).ask("which colour", pictures, max_new_tokens=8)
    save(checkpoint, tmp_path / "model")
    loaded = load(str(tmp_path / "model"))
    assert Assistant(loaded).ask("which colour", pictures, max_new_tokens=8) == answer
    live = VisionEncoder.of(loaded)
    settings = [f"model.{name}={value}" for name, value in parts.items()]
    for parts_or_whole in (["model.base=null", *settings], [f"model.base={tmp_path / 'model'}"]):
        recipe = load_recipe("digits", [*parts_or_whole, "model.dtype=float32", "quantization=null"])
        encoder = load_vision_encoder(recipe)
        assert torch.equal(encoder.pixels(pictures), live.pixels(pictures))
        assert encoder.pixels(pictures).shape == (4 + 1, 3, 48, 48)
        torch.testing.assert_close(encoder.features(live.pixels(pictures)), live.features(live.pixels(pictures)))
        assert encoder.fingerprint == VisionEncoder.of(load_for_training(recipe)).fingerprint


def test_its_last_layers_that_make_the_features_train(section: ModelSection, tmp_path: Path) -> None:
    """They alone, of the tower, and they are saved with what trains."""
    parts = {"vision": section.vision, "language": section.language, "vision_feature": section.vision_feature}
    settings = [f"model.{name}={value}" for name, value in parts.items()]
    settings += ["model.base=null", "model.dtype=float32", "model.vision_trainable_layers=2", "data.features=live"]
    settings += ["lora=null", "model.projector_learning_rate=1e-3", f"data.path={tmp_path / 'none'}"]
    checkpoint = load_for_training(load_recipe("digits", settings))
    tower = checkpoint.model.train().get_base_model().model.vision_tower
    trained = {name: weight for name, weight in tower.named_parameters() if weight.requires_grad}
    wanted = {"pooled": {1, 2}, "patches": {0, 1}}[section.vision_feature]
    assert {int(name.split("encoder.layers.")[1].partition(".")[0]) for name in trained} == wanted
    for weight in trained.values():
        torch.nn.init.normal_(weight, std=0.2)
    save(Checkpoint(checkpoint.model.eval(), checkpoint.processor, "x", None), tmp_path / "adapter")
    pixels = torch.randn(2, 3, 48, 48)
    loaded = load(str(tmp_path / "adapter"), LoadOptions(dtype="float32"))
    torch.testing.assert_close(loaded.core.model.encode_images(pixels), checkpoint.core.model.encode_images(pixels))


def test_a_model_is_saved_loaded_cached_and_asked(section: ModelSection, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, processor = assemble(section, LoadOptions())
    checkpoint = Checkpoint(model, processor, "x", None)
    answer = Assistant(checkpoint).ask("which colour", IMAGES[:1], max_new_tokens=8)
    save(checkpoint, tmp_path / "model")
    loaded = load(str(tmp_path / "model"))
    assert Assistant(loaded).ask("which colour", IMAGES[:1], max_new_tokens=8) == answer
    live = VisionEncoder.of(loaded)
    written = tmp_path / "recipe"
    for parts in (
        {"base": str(tmp_path / "model")},
        {"vision": section.vision, "language": section.language, "vision_feature": section.vision_feature},
    ):
        settings = [f"model.{name}={value}" for name, value in parts.items()]
        settings += ["model.base=null"] * ("base" not in parts)
        encoder = load_vision_encoder(load_recipe("digits", [*settings, "model.dtype=float32", f"data.path={written}"]))
        assert encoder.shape == live.shape
        torch.testing.assert_close(encoder.features(live.pixels(IMAGES)), live.features(live.pixels(IMAGES)))
    if section.vision_feature == "patches":
        with pytest.raises(CheckpointError, match="no GGUF file is written of a SigLIP tower"):
            write_gguf(str(tmp_path / "model"), tmp_path / "gguf")


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_shapes_have_the_published_numbers_of_parameters(name: str) -> None:
    config: PreTrainedConfig = PUBLISHED[name]
    kind = SiglipVisionModel if config.model_type.startswith("siglip") else CLIPVisionModelWithProjection
    with torch.device("meta"):
        assert kind(config).num_parameters() == PARAMETERS[name]


def test_another_kind_is_named(siglip: Path, backbones: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match=r"'siglip2_vision_model' is known; those that work: CLIP \(clip\), SigLIP"):
        MultimodalPhiConfig(vision_config={"model_type": "siglip2_vision_model"})
    with pytest.raises(CheckpointError, match="no vision tower of type 'phi3' is known"):
        assemble(ModelSection(vision=str(backbones[1]), language=str(backbones[1])), LoadOptions())
