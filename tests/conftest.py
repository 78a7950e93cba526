"""Small real parts: a character-level tokenizer with Phi-3.5's layout, CLIP and Phi-3 of a few thousand weights."""

import json
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import PIL.Image
import pytest
import torch
from cli import descendants, end, take_in_orphans
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
)

from eden.model import MultimodalPhiConfig, MultimodalPhiForConditionalGeneration, MultimodalPhiProcessor
from tiny_build.tokenizer import FIRST_PIECES, phi_tokenizer

if TYPE_CHECKING:
    from openai import OpenAI
    from servers import Running

IMAGE_SIZE, PATCH_SIZE, EMBEDDING_ROWS = 32, 16, 320


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Processes of the suite run side by side, one a core."""
    torch.set_num_threads(1)


def pytest_configure() -> None:
    take_in_orphans()


def pytest_unconfigure() -> None:
    end(descendants())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What is skipped for one reason is one line of the summary: without a browser that is every test with a page."""
    report = yield
    if isinstance(report.longrepr, tuple):
        report.longrepr = (str(Path(__file__).parent), None, report.longrepr[2])  # pytest joins those of one place
    return report


@pytest.fixture(autouse=True)
def _no_process_outlives_its_test() -> Iterator[None]:
    """Whatever fails. Those of a module's fixtures began before, and end with them."""
    before = descendants()
    yield
    end(descendants() - before)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing of the user's cache is read, and nothing is left in it."""
    os.environ["EDEN_CACHE"] = str(tmp_path_factory.mktemp("cache"))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Letters as tokens, all else as bytes; control tokens in Phi-3.5's order, swallowing the newline behind them."""
    pieces = [*FIRST_PIECES, "▁", *map(chr, range(97, 123))]
    return phi_tokenizer({piece: index for index, piece in enumerate(pieces)}, merges=[])


def make_processor(num_image_tokens: int) -> MultimodalPhiProcessor:
    size = IMAGE_SIZE
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    return MultimodalPhiProcessor(image_processor, make_tokenizer(), num_image_tokens=num_image_tokens)


def vision_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=24,
    )


def text_config() -> Phi3Config:
    tokenizer = make_tokenizer()
    return Phi3Config(
        vocab_size=EMBEDDING_ROWS,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )


def make_model(vision_feature: str) -> MultimodalPhiForConditionalGeneration:
    """A random model, the same at every call, in evaluation mode and fp32."""
    torch.manual_seed(0)
    config = MultimodalPhiConfig(
        vision_config=vision_config(),
        text_config=text_config(),
        vision_feature=vision_feature,
        image_token_id=len(make_tokenizer()),
    )
    model = MultimodalPhiForConditionalGeneration(config).eval()
    # Wide enough weights that argmax has a clear winner; the initial 0.02 leaves logits that nearly tie.
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    model.generation_config.eos_token_id = None
    return model


def make_image(colour: str, size: tuple[int, int] = (40, 40)) -> PIL.Image.Image:
    return PIL.Image.new("RGB", size, colour)


@pytest.fixture(scope="session", params=["pooled", "patches"])
def pair(request: pytest.FixtureRequest) -> tuple[MultimodalPhiForConditionalGeneration, MultimodalPhiProcessor]:
    """A model and its processor, once with pooled image features and once with patches."""
    model = make_model(request.param)
    return model, make_processor(model.config.num_image_tokens)


@pytest.fixture(scope="session")
def processor() -> MultimodalPhiProcessor:
    return make_processor(num_image_tokens=4)


@pytest.fixture(scope="session")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a CLIP and a Phi-3 checkpoint as the hub has them, with random weights."""
    root = tmp_path_factory.mktemp("backbones")
    torch.manual_seed(0)
    clip, phi = root / "clip", root / "phi"
    CLIPVisionModelWithProjection(vision_config()).save_pretrained(clip)
    make_processor(1).image_processor.save_pretrained(clip)
    Phi3ForCausalLM(text_config()).save_pretrained(phi)
    make_tokenizer().save_pretrained(phi)
    return clip, phi


@pytest.fixture(scope="module")
def server() -> Iterator["Running"]:
    """eden-tiny, served as it comes."""
    from servers import serving  # most tests serve nothing, and do not wait for what serving imports

    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def client(server: "Running") -> "OpenAI":
    """The official client, which asks once."""
    return server.client()


COLOURS = ["red", "lime", "blue", "white", "black", "yellow", "cyan", "magenta"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty-two questions about the colour of a picture, one in four without a picture."""
    folder = tmp_path_factory.mktemp("data")
    records = []
    for index in range(32):
        colour = COLOURS[index % len(COLOURS)]
        with_picture = index % 4 != 3
        if with_picture:
            image = make_image(colour)
            image.paste("white", (0, 0, 20, 20))  # a corner: it shows where the image was moved
            image.save(folder / f"{index:02d}.png")
        question = "<image>\nwhich colour" if with_picture else f"say {colour}"
        record: dict[str, Any] = {
            "id": f"{index:02d}",
            "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": colour}],
        }
        records.append(record | ({"image": f"{index:02d}.png"} if with_picture else {}))
    (folder / "train.json").write_text(json.dumps(records))
    return folder / "train.json"
