"""The feature cache: what the tower would give, once, whatever happens on the way."""

import importlib.metadata
import json
import os
import re
import signal
from pathlib import Path

import cli
import psutil
import pytest
import torch
from conftest import make_image, make_model, make_processor
from safetensors.torch import load_file
from typer.testing import CliRunner

from eden import DataError, ImageError, StorageError
from eden.checkpoint import load_for_training
from eden.checkpoint.vision_encoder import VisionEncoder, load_vision_encoder
from eden.cli.main import app
from eden.data import features as module
from eden.data.features import FeatureStore
from eden.media.images import open_image
from eden.recipe import load_recipe


def make_encoder(feature: str = "patches", layer: int = -2, seed: int = 0) -> VisionEncoder:
    tower = make_model(feature).model.vision_tower
    torch.manual_seed(seed)
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return VisionEncoder(tower.eval(), make_processor(4).image_processor, feature, layer)


def make_files(folder: Path, number: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{index}.png" for index in range(number)]
    for index, path in enumerate(paths):
        make_image((index * 7 % 256, index // 256, index % 256), (48, 40)).save(path)  # no two alike
    return paths


def contents(cache: Path) -> dict[str, bytes]:
    """The shards of a cache."""
    return {path.name: path.read_bytes() for path in cache.glob("*/*.safetensors")}


@pytest.mark.parametrize("feature", ["pooled", "patches"])
def test_it_gives_what_the_tower_gives(feature: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 20)
    encoder, files = make_encoder(feature), make_files(tmp_path / "images", 50)
    sources = [*files[:49], files[49].read_bytes()]
    store = FeatureStore(encoder, tmp_path / "cache")
    assert store.missing(sources) == sources
    store.fill(sources)
    shape = store.shape
    for again in (store, FeatureStore(encoder, tmp_path / "cache")):
        again.fill(sources)
        assert again.missing(sources) == [] and again.faults == {} and len(again) == 50
        for source in sources:
            plain = encoder.features(encoder.pixels([open_image(source)]))[0]
            torch.testing.assert_close(again.features(source), plain, rtol=1e-4, atol=1e-4)
            assert plain.shape == shape
    assert len(contents(tmp_path / "cache")) == 3


def test_nothing_is_encoded_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = make_files(tmp_path / "images", 40)
    monkeypatch.setattr(module, "CHUNK", 16)
    seen: list[int] = []
    real = VisionEncoder.features
    monkeypatch.setattr(VisionEncoder, "features", lambda self, pixels: seen.append(len(pixels)) or real(self, pixels))
    encoder = make_encoder()
    FeatureStore(encoder, tmp_path / "cache").fill(files[:32])
    FeatureStore(encoder, tmp_path / "cache").fill(files[:32])
    assert sum(seen) == 32
    FeatureStore(encoder, tmp_path / "cache").fill(files)  # a data set that has grown
    assert sum(seen) == 40
    (tmp_path / "images").rename(tmp_path / "moved")
    moved = make_files(tmp_path / "moved", 40)  # written anew, the same to the byte
    store = FeatureStore(encoder, tmp_path / "cache")
    assert store.missing(moved) == moved
    store.fill(moved)
    assert sum(seen) == 40 and store.missing(moved) == []
    twins = [tmp_path / f"twin{index}.png" for index in range(2)]
    for path in twins:
        make_image("orange", (48, 40)).save(path)
    store.fill([*moved[:3], *twins])
    assert len(store) == 41 and torch.equal(store.features(twins[0]), store.features(twins[1]))


@pytest.mark.parametrize("change", ["weights", "layer", "preprocessing", "format", "image"])
def test_what_changes_is_computed_anew(change: str, tmp_path: Path) -> None:
    files = make_files(tmp_path / "images", 3)
    encoder = make_encoder()
    FeatureStore(encoder, tmp_path / "cache").fill(files)
    if change == "weights":
        other = make_encoder(seed=1)
    elif change == "layer":
        other = make_encoder(layer=-1)
    elif change == "preprocessing":
        other = make_encoder()
        other.image_processor.image_mean = [0.4, 0.4, 0.4]
    elif change == "format":
        other = encoder.to(torch.bfloat16)
    else:
        other = encoder
        make_image("purple", (48, 40)).save(files[0])
    store = FeatureStore(other, tmp_path / "cache")
    assert store.missing(files) == (files[:1] if change == "image" else files)
    store.fill(files)
    plain = other.features(other.pixels([open_image(files[0])]))[0]
    torch.testing.assert_close(store.features(files[0]), plain, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("start", ["base", "backbones"])
@pytest.mark.parametrize("attention", ["null", "eager"])
def test_a_cache_made_ahead_is_the_runs_own(start: str, attention: str, backbones: tuple[Path, Path]) -> None:
    """`eden cache` loads the tower alone, `eden train` the whole model: both are the same encoder."""
    name, overrides = "digits", ["model.dtype=float32"]
    if start == "backbones":
        name, overrides = "phi3.5-mini", [f"model.vision={backbones[0]}", f"model.language={backbones[1]}"]
    recipe = load_recipe(name, [f"model.attn_implementation={attention}", *overrides])
    encoder = load_vision_encoder(recipe)
    assert encoder.fingerprint == VisionEncoder.of(load_for_training(recipe)).fingerprint


def test_another_version_of_a_library_makes_other_features(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, installed = load_vision_encoder(load_recipe("digits")), importlib.metadata.version
    fingerprints = {encoder.fingerprint}
    for library in ("torch", "transformers", "pillow"):
        other = {library: "0"}
        monkeypatch.setattr(importlib.metadata, "version", lambda name, other=other: other.get(name) or installed(name))
        fingerprints.add(encoder.fingerprint)
    assert len(fingerprints) == 4


def test_bad_images_are_named_and_not_read_again(tmp_path: Path) -> None:
    files = make_files(tmp_path / "images", 5)
    files[1].write_bytes(files[1].read_bytes()[:60])
    files[3].unlink()
    os.mkfifo(files[3])  # nobody will ever write into it
    for _ in range(2):
        store = FeatureStore(make_encoder(), tmp_path / "cache")
        store.fill(files)
        assert list(store.faults) == [str(files[1]), str(files[3])]
        assert "damaged" in store.faults[str(files[1])] and "not a file" in store.faults[str(files[3])]
        with pytest.raises(ImageError, match="damaged"):
            store.features(files[1])
    assert len(store) == 3
    assert store.missing(files) == [files[3]]
    files[3].unlink()
    make_image("red").save(files[1])
    store = FeatureStore(make_encoder(), tmp_path / "cache")
    store.fill(files)
    assert list(store.faults) == [str(files[3])] and len(store) == 4


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    encoder = make_encoder()
    store = FeatureStore(encoder, tmp_path / "cache")
    store.fill(make_files(tmp_path / "images", 3))
    (shard,) = store.folder.glob("*.safetensors")
    shard.write_bytes(b"{}")
    with pytest.raises(StorageError, match=r"a file of the feature cache is damaged\. Delete it\."):
        FeatureStore(encoder, tmp_path / "cache")


FILL = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from eden.data import features
from test_features import make_encoder
features.CHUNK = 16
store = features.FeatureStore(make_encoder(), Path(sys.argv[1]))
store.fill([Path(name) for name in Path(sys.argv[2]).read_text().split()])
sys.exit(len(store.faults))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four hundred images, which make 25 shards; their names are in a file beside them."""
    files = make_files(tmp_path_factory.mktemp("many") / "images", 400)
    listing(files).write_text("\n".join(map(str, files)))
    return files


def listing(files: list[Path]) -> Path:
    return files[0].parent.with_name("names")


def filling(cache: Path, files: list[Path], stop: tuple[str, str, int] | None = None) -> cli.Python:
    """A process that fills a cache."""
    return cli.Python("-c", FILL, cache, listing(files), stop=stop)


# Images encoded; a shard written, but not under its name yet; under its name; read again; its images known.
MOMENTS = [
    ("eden.data.features", "FeatureStore._encoded"),
    ("pathlib", "Path.write_bytes"),
    ("pathlib", "Path.replace"),
    ("eden.data.features", "FeatureStore._refresh"),
    ("eden.data.image_index", "ImageTable.add"),
]


def test_killed_again_and_again_it_ends_as_one_made_in_peace(files: list[Path], tmp_path: Path) -> None:
    """By SIGKILL, at all moments that differ, early and later in the work."""
    assert filling(tmp_path / "peace", files).finished().returncode == 0
    war = tmp_path / "war"
    for module_name, function in MOMENTS:
        for call in (1, 4):
            with filling(war, files, (module_name, function, call)) as process:
                process.wait_until_stopped()
                process.kill()
            for path in war.glob("*/*.safetensors"):
                load_file(path)  # whole, or not there
    assert 5 <= len(contents(war)) < 25
    assert filling(war, files).finished().returncode == 0
    assert contents(war) == contents(tmp_path / "peace") and len(contents(war)) == 25
    assert not list(war.glob("*/.*"))
    encoder, store = make_encoder(), FeatureStore(make_encoder(), war)
    store.fill(files)
    plain = encoder.features(encoder.pixels([open_image(files[-1])]))[0]
    torch.testing.assert_close(store.features(files[-1]), plain, rtol=1e-4, atol=1e-4)


def test_two_processes_share_the_work(files: list[Path], tmp_path: Path) -> None:
    both = [filling(tmp_path / "together", files) for _ in range(2)]
    assert [process.finished().returncode for process in both] == [0, 0]
    assert filling(tmp_path / "alone", files).finished().returncode == 0
    assert contents(tmp_path / "together") == contents(tmp_path / "alone")
    assert len(contents(tmp_path / "alone")) == 25


def make_data(files: list[Path], *names: str) -> Path:
    """A data file beside its images; `names` are asked about once more."""
    turns = [{"from": "human", "value": "<image>\nwhat is it"}, {"from": "gpt", "value": "a colour"}]
    asked = [*(path.name for path in files), *names]
    data = files[0].with_name("data.json")
    data.write_text(json.dumps([{"id": f"{n}", "image": name, "conversations": turns} for n, name in enumerate(asked)]))
    return data


def test_the_command_counts_samples_and_images_and_names_the_bad_ones(tmp_path: Path) -> None:
    files = make_files(tmp_path / "images", 6)
    files[2].write_bytes(files[2].read_bytes()[:60])
    data = make_data(files, "2.png", "3.png")
    arguments = ["cache", "digits", f"data.path={data}", "data.features=cached", "data.eval_fraction=0.2"]
    skipped = CliRunner().invoke(app, [*arguments, "data.on_error=skip", "--json"])
    found = json.loads(skipped.stdout)
    assert (found["samples"], found["images"]) == (6, 5)
    assert sorted(line.split(": ")[0] for line in found["skipped"]) == [
        f"{data} record {n} (id {n - 1})" for n in (3, 7)
    ]
    failed = CliRunner().invoke(app, [*arguments, "data.on_error=fail"])
    assert isinstance(failed.exception, DataError)
    assert re.fullmatch(rf"{data} record [37] .*2.png: .* \(1 more\)\. data.on_error=skip .*", str(failed.exception))
    live = CliRunner().invoke(app, ["cache", "digits", f"data.path={data}", "data.features=live"])
    assert "not cached: data.features is live" in live.stderr and "8 samples and 0 images ready" in live.stdout


def test_ctrl_c_ends_the_command_and_its_helpers_with_a_word(tmp_path: Path) -> None:
    """As a terminal sends it: to all processes."""
    data = make_data(make_files(tmp_path / "images", 100))
    command = ["-m", "eden", "cache", "digits", f"data.path={data}", "data.features=cached", "--workers", "2"]
    environment = {**os.environ, "EDEN_CACHE": str(tmp_path / "cache")}
    encoding = ("eden.data.features", "FeatureStore._encoded", 1)
    with cli.Python(*command, env=environment, stop=encoding) as process:
        process.wait_until_stopped()
        helpers = psutil.Process(process.pid).children(recursive=True)
        for sign in (signal.SIGINT, signal.SIGCONT):
            os.killpg(process.pid, sign)
        _, stderr = process.communicate()
    assert (process.returncode, stderr) == (130, "stopped\n")
    assert helpers and psutil.wait_procs(helpers, timeout=60)[1] == []
