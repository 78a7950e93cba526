"""What is kept of a data set: read once, encoded once, whole or not there; and what is drawn from several of them."""

import base64
import gc
import json
import os
import pickle
import platform
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cli
import numpy as np
import psutil
import pytest
from conftest import make_image, make_processor
from rich.console import Console

from eden import DataError, InputError, RecipeError
from eden.core.files import write_file
from eden.core.processes import cores
from eden.data import tokens
from eden.data.cache import shrink
from eden.data.dataset import ConversationDataset
from eden.data.prepare import read_data
from eden.data.store import Samples, open_store
from eden.data.tokens import TokenTable
from eden.data.validate import check, load_samples
from eden.media.audio import to_wav
from eden.messages import to_chat
from eden.model.processing import MultimodalPhiProcessor
from eden.recipe import Recipe, load_recipe
from eden.training.train import train

MAKE = [sys.executable, "-m", "bench.make_llava150k"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache for each test."""
    monkeypatch.setenv("EDEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(path: Path, number: int, image: Callable[[int], str | None] = lambda index: None) -> Path:
    """Questions and answers of several lengths, with an image where one is named."""
    records = []
    for index in range(number):
        name = image(index)
        question = f"say {'word ' * (index % 5)}{index}"
        turns = [{"from": "human", "value": question if name is None else f"<image>\n{question}"}]
        turns.append({"from": "gpt", "value": f"{path.stem} {index}"})
        records.append({"id": str(index), "conversations": turns} | ({} if name is None else {"image": name}))
    path.write_text(json.dumps(records))
    return path


def kept(cache: Path, pattern: str = "records.arrow") -> list[Path]:
    return sorted((cache / "data").rglob(pattern))


def test_records_are_read_once_and_again_when_the_file_changes(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "d.json", 10)
    first, _ = load_samples(path)
    (file,) = kept(cache)
    written = file.stat().st_mtime_ns
    again, report = load_samples(path)
    assert list(again) == list(first) and report.samples == 10
    assert kept(cache) == [file] and file.stat().st_mtime_ns == written
    write(path, 11)
    changed, _ = load_samples(path)
    assert len(changed) == 11 and changed[10].messages[1].text == "d 10"
    assert [sample.id for sample in first] == [str(index) for index in range(10)] and file in kept(cache)
    del first, again, changed
    gc.collect()
    write(path, 12)
    assert len(load_samples(path)[0]) == 12
    (now,) = kept(cache)
    assert now != file, "what was kept of the earlier versions is gone"


def test_samples_are_a_sequence_and_travel_to_other_processes(tmp_path: Path) -> None:
    samples, _ = load_samples(write(tmp_path / "d.json", 10))
    assert [sample.id for sample in samples[2:8:3]] == ["2", "5"]
    assert samples[-1].id == "9"
    with pytest.raises(IndexError):
        samples[10]
    sent = pickle.dumps(samples)
    assert len(sent) < 4000, "the file is mapped, not sent"
    assert list(pickle.loads(sent)) == list(samples)
    joined = Samples.joined([samples[:2], samples[8:]])
    assert [sample.id for sample in joined] == ["0", "1", "8", "9"]


def test_killed_while_reading_leaves_no_half_cache(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "d.json", 10_000)
    with cli.Python("-m", "eden", "check", path, stop=("eden.data.store", "_row", 9000)) as process:
        process.wait_until_stopped()
        process.kill()
    (half,) = kept(cache, ".records.arrow.*")
    assert kept(cache) == [] and half.stat().st_size
    report, samples = check(path)
    assert report.ok and len(samples) == 10_000
    assert len(kept(cache)) == 1 and kept(cache, ".records.arrow.*") == []


def test_processes_that_help_end_with_the_one_they_help(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "d.json", 3000)
    script = """
import os, signal, sys
from conftest import make_processor
from eden.data.store import open_store
from eden.data.tokens import TokenTable
TokenTable(open_store(sys.argv[1]), make_processor(1), lambda *done: os.kill(os.getpid(), signal.SIGSTOP))
"""
    with cli.Python("-c", script, path) as process:
        process.wait_until_stopped()
        helpers = psutil.Process(process.pid).children()
        assert helpers or cores() == 1
        process.send_signal(signal.SIGKILL)  # to it alone
    assert kept(cache, "tokens-*.arrow") == []
    assert psutil.wait_procs(helpers, timeout=60)[1] == [], "a helper is left over"


def test_several_processes_open_the_same_data_at_once(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "d.json", 5000)
    running = [cli.Python("-m", "eden", "check", path, "--json") for _ in range(3)]
    results = [process.finished() for process in running]
    outputs = {result.stdout for result in results}
    assert [result.returncode for result in results] == [0, 0, 0]
    assert len(outputs) == 1 and json.loads(outputs.pop())["samples"] == 5000
    assert len(kept(cache)) == 1


@pytest.mark.parametrize("left", [0, 100, 0.5])
def test_a_damaged_file_of_the_cache_is_made_again(tmp_path: Path, cache: Path, left: float) -> None:
    path = write(tmp_path / "d.json", 10)

    def read() -> list[list[int]]:
        dataset = ConversationDataset(load_samples(path)[0], make_processor(4), max_length=100)
        return [dataset[index]["input_ids"].tolist() for index in range(len(dataset))]

    whole = read()
    files = kept(cache, "*.arrow")
    contents = [file.read_bytes() for file in files]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content[: int(left if left > 1 else left * len(content))])
    assert read() == whole
    assert [file.read_bytes() for file in files] == contents and len(files) == 2


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDEN_CACHE", str(tmp_path / "file" / "cache"))
    result = cli.eden("check", write(tmp_path / "d.json", 2))
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1 and "cannot write" in result.stderr


@pytest.mark.parametrize("in_processes", [False, True])
def test_kept_tokens_are_those_of_the_processor(
    tmp_path: Path, in_processes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_processes:
        monkeypatch.setattr(tokens, "ENCODED_IN_PROCESSES", 0)
        monkeypatch.setattr(tokens, "AT_ONCE", 3)
        monkeypatch.setattr(tokens, "cores", lambda: 2)
    processor = make_processor(4)
    path = write(tmp_path / "d.json", 20, lambda index: "a.png" if index % 3 else None)
    records = json.loads(path.read_text())
    records[7] = {"id": "7"}  # a faulty record in the middle
    path.write_text(json.dumps(records))
    make_image("red").save(tmp_path / "a.png")
    store = open_store(path)
    table = TokenTable(store, processor)
    assert table.lengths[7] == 0
    for row in set(range(20)) - {7}:
        example = processor.encode(to_chat(store.sample(row).messages))
        ids, labels = table[row]
        assert ids.tolist() == example["input_ids"] and labels.tolist() == example["labels"]
        assert table.lengths[row] == len(ids) and table.supervised[row] == (labels != -100).sum()


def test_tokens_are_encoded_once_and_again_for_another_template(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, _ = load_samples(write(tmp_path / "d.json", 5))
    first = ConversationDataset(samples, make_processor(4), max_length=100)
    calls = []
    encode = MultimodalPhiProcessor.encode
    monkeypatch.setattr(MultimodalPhiProcessor, "encode", lambda *a, **k: calls.append(1) or encode(*a, **k))
    again = ConversationDataset(samples, make_processor(4), max_length=50)
    assert not calls and again[3]["input_ids"].tolist() == first[3]["input_ids"].tolist()
    other = make_processor(4)
    other.chat_template = other.chat_template.replace("<|user|>\\n", "<|user|>\\nQ ")
    changed = ConversationDataset(samples, other, max_length=100)
    assert len(calls) == 5 and changed[3]["input_ids"].tolist() != first[3]["input_ids"].tolist()
    assert len(kept(cache, "tokens-*.arrow")) == 2
    sent = pickle.loads(pickle.dumps(first))
    assert sent[3]["labels"].tolist() == first[3]["labels"].tolist()


def test_what_is_too_long_is_named_or_left_out(tmp_path: Path) -> None:
    samples, _ = load_samples(write(tmp_path / "d.json", 10))
    processor = make_processor(4)
    lengths = ConversationDataset(samples, processor, max_length=1000).lengths
    limit = int(np.median(lengths))
    with pytest.raises(DataError, match=f"data.max_length is {limit}"):
        ConversationDataset(samples, processor, max_length=limit)
    dataset = ConversationDataset(samples, processor, max_length=limit, on_error="skip")
    assert len(dataset.skipped) == (lengths > limit).sum() and dataset.lengths.max() <= limit
    assert len(dataset) + len(dataset.skipped) == 10
    assert [dataset.samples[i].id for i in range(len(dataset))] == [str(i) for i in np.flatnonzero(lengths <= limit)]
    assert [len(dataset[i]["input_ids"]) for i in range(len(dataset))] == dataset.lengths.tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_damaged_in_mid_run(tmp_path: Path, workers: int) -> None:
    import torch.utils.data

    make_image("red").save(tmp_path / "whole.png")
    make_image("red").save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:60])
    path = write(tmp_path / "d.json", 6, lambda index: "cut.png" if index == 4 else "whole.png")
    samples, _ = load_samples(path, look="listed")
    dataset = ConversationDataset(samples, make_processor(4), max_length=100, on_error="skip")
    assert dataset.damaged() == []
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=workers)
    examples = list(loader)
    assert [bool((example["labels"] != -100).any()) for example in examples] == [True] * 4 + [False, True]
    assert examples[4]["pixel_values"].shape == examples[3]["pixel_values"].shape
    (error,) = dataset.damaged()
    assert "record 5 (id 4)" in str(error) and "cut.png" in str(error)
    with pytest.raises(DataError, match=r"record 5 \(id 4\).*cut\.png: the image is damaged"):
        ConversationDataset(samples, make_processor(4), max_length=100)[4]


def recipe(tmp_path: Path, *overrides: str) -> Recipe:
    return load_recipe(
        "align", ["data.path=null", "data.images=null", f"training.output_dir={tmp_path / 'run'}", *overrides]
    )


def test_a_run_survives_damaged_images_and_lists_them(tmp_path: Path, backbones: tuple[Path, Path]) -> None:
    """In batches of one, so that some have nothing to learn from at all."""
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    make_image("red").save(tmp_path / "whole.png")
    path = write(tmp_path / "d.json", 8, lambda index: "whole.png" if index % 2 else "cut.png")
    settings = recipe(
        tmp_path,
        f"data.path={path}",
        "data.eval_fraction=0.25",
        "data.split_by=sample",
        "data.on_error=skip",
        "data.features=live",
        f"model.vision={backbones[0]}",
        f"model.language={backbones[1]}",
        "training.per_device_train_batch_size=1",
        "training.gradient_accumulation_steps=1",
        "training.max_steps=6",
        "training.logging_steps=1",
    )
    result = train(settings, console=Console(quiet=True))
    losses = [row["loss"] for row in result.log if "loss" in row]
    assert len(losses) == 6 and np.isfinite(losses).all() and 0.0 in losses and max(losses) > 0
    assert all("cut.png: " in line for line in result.skipped)
    assert len(result.skipped) == 4, "each is listed, whether in training or held out"
    assert "cut.png" in result.report.read_text()


def shared(folder: Path, pictures: int, of_each: int) -> Path:
    """Records of which some show the same picture, under names that differ in writing."""
    make_image("red").save(folder / "whole.png")
    records = []
    for index in range(pictures * of_each):
        name = f"{index % pictures}.png"
        (folder / name).write_bytes((folder / "whole.png").read_bytes())
        name = name if index < pictures else f"./{name}"
        records.append({"image": name, "query": "q", "response": f"{index}"})
    (folder / "shared.json").write_text(json.dumps(records))
    return folder / "shared.json"


def shown(samples: Samples) -> set[str]:
    return {str(Path(str(image.source))) for sample in samples for m in sample.messages for image in m.images}


def test_a_picture_is_in_training_or_held_out(tmp_path: Path) -> None:
    path = shared(tmp_path, 200, 2)
    by_media = recipe(tmp_path, f"data.path={path}", "data.eval_fraction=0.1")
    trained, held_out, _ = read_data(by_media, Console(quiet=True))
    assert (len(trained), len(held_out)) == (360, 40)
    assert not shown(trained) & shown(held_out)
    by_sample = recipe(tmp_path, f"data.path={path}", "data.eval_fraction=0.1", "data.split_by=sample")
    trained, held_out, _ = read_data(by_sample, Console(quiet=True))
    assert len(held_out) == 40 and shown(trained) & shown(held_out)


def test_records_that_share_nothing_are_held_out_as_before(tmp_path: Path) -> None:
    path = shared(tmp_path, 40, 1)
    found = []
    for by in ("media", "sample"):
        _, held_out, _ = read_data(recipe(tmp_path, f"data.path={path}", f"data.split_by={by}"), Console(quiet=True))
        found.append([sample.id for sample in held_out])
    assert found[0] == found[1] and len(found[0]) == 1


def test_samples_are_one_group_over_pictures_and_recordings_that_others_have(tmp_path: Path) -> None:
    """The picture in the record itself is the same as another's; two of a chain share nothing, and are on one side."""
    make_image("red").save(tmp_path / "a.png")
    url = "data:image/png;base64," + base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
    (tmp_path / "7.wav").write_bytes(to_wav(np.zeros(16_000, dtype=np.float32)))
    chain: list[dict[str, object]] = [
        {"image": url},
        {"image": [url, "a.png"]},
        {"image": "a.png", "audio": "7.wav"},
        {"audio": "7.wav"},
    ]
    alone: list[dict[str, object]] = [{} for _ in range(4)]
    path = tmp_path / "d.json"
    path.write_text(json.dumps([record | {"query": "q", "response": "a"} for record in chain + alone]))
    for seed in range(4):
        settings = recipe(
            tmp_path, f"data.path={path}", "data.eval_fraction=0.5", f"data.split_seed={seed}", "model.speech=eden-tiny"
        )
        trained, held_out, _ = read_data(settings, Console(quiet=True))
        sides = [{sample.id for sample in side} & {"1", "2", "3", "4"} for side in (trained, held_out)]
        assert sorted(map(len, sides)) == [0, 4] and len(held_out) == 4
    path.write_text(json.dumps([record | {"query": "q", "response": "a"} for record in chain]))
    with pytest.raises(RecipeError, match=r"data\.split_by=sample"):
        read_data(recipe(tmp_path, f"data.path={path}", "model.speech=eden-tiny"), Console(quiet=True))


def test_what_workers_will_open_again_is_not_forgotten(tmp_path: Path) -> None:
    """The data file becomes another while a run reads it, and is read by somebody else."""
    path = write(tmp_path / "d.json", 3)
    store = open_store(path)
    for_worker, folder = pickle.dumps(store), store.folder
    write(path, 4)
    assert len(open_store(path)) == 4 and folder.exists()
    assert len(pickle.loads(for_worker)) == 3
    del store
    gc.collect()
    write(path, 5)
    assert len(open_store(path)) == 5 and not folder.exists()


def test_the_cache_is_listed_limited_and_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDEN_CACHE", str(tmp_path / "cache"))
    stores = {name: open_store(write(tmp_path / f"{name}.json", 20)) for name in "abc"}
    a, b, c = folders = [store.folder for store in stores.values()]
    transcripts = write_file(tmp_path / "cache" / "transcripts" / "a.jsonl", "{}")
    assert shrink(1) == [], "all are held by this process"
    del stores
    gc.collect()
    for age, folder in enumerate(folders):
        for path in (*folder.iterdir(), folder):
            os.utime(path, (10**9 - age, 10**9 - age))
    listed = json.loads(cli.eden("cache", "--list", "--json").stdout)["entries"]
    rows = [(row["path"], row["in_use"]) for row in listed]
    assert rows == [(str(path), False) for path in (c, b, a, transcripts)], "the longest unused first"
    limit = sum(row["bytes"] for row in listed[1:])
    assert [entry.path for entry in shrink(limit)] == [c] and not c.exists(), "one is enough"
    held = open_store(tmp_path / "b.json")
    result = cli.eden("cache", "--clear")
    assert (a.exists(), b.exists(), transcripts.exists()) == (False, True, False), result.stdout
    assert held.folder == b and len(held) == 20
    (b / f"in-use-{2**22 + 1}-1.0-x-{platform.node()}").touch()
    del held
    gc.collect()
    assert [entry.path for entry in shrink(0)] == [b], "the mark of a process that was killed holds nothing"


def test_a_run_keeps_the_cache_below_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is unused for longest goes, and is named; what is small and dear stays."""
    data = write(tmp_path / "d.json", 20)
    old, new = (write(tmp_path / f"{name}.json", 20) for name in ("old", "new"))
    folders = [open_store(path).folder for path in (old, new)]
    gc.collect()
    for age, folder in enumerate(folders):
        for path in (*folder.iterdir(), folder):
            os.utime(path, (10**9 + age, 10**9 + age))
    transcripts = write_file(tmp_path / "cache" / "transcripts" / "a.jsonl", "{}")
    size = sum(path.stat().st_size for path in folders[1].iterdir())
    monkeypatch.setenv("EDEN_CACHE_GB", str((size + transcripts.stat().st_size) / 1e9))
    result = cli.eden("cache", "digits", f"data.path={data}", "data.features=live")
    assert result.returncode == 0, result.stderr
    assert f"removed from the cache, which was above EDEN_CACHE_GB: {folders[0]}\n" in result.stderr
    assert [folder.exists() for folder in folders] == [False, True] and transcripts.exists()
    assert result.stderr.count("removed from the cache") == 1


@pytest.mark.parametrize("written", ["fifty", "", "-1", "nan", "50 GB"])
def test_a_limit_of_the_cache_that_is_none_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    """And costs nothing: to Python `nan` and -1 are numbers, and whatever is kept is not below them."""
    kept = open_store(write(tmp_path / "kept.json", 20)).folder
    gc.collect()
    monkeypatch.setenv("EDEN_CACHE_GB", written)
    with pytest.raises(InputError, match=r"EDEN_CACHE_GB is .*\. Write a number from 0 on, as 50\.") as caught:
        read_data(recipe(tmp_path, f"data.path={tmp_path / 'kept.json'}"), Console(quiet=True))
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    assert kept.exists()


@pytest.mark.parametrize("options", [[], ["digits", "--list"], ["--list", "--clear"]])
def test_the_cache_is_told_one_thing(options: list[str]) -> None:
    result = cli.eden("cache", *options)
    assert result.returncode == 2 and "Give a recipe, or --list, or --clear." in result.stderr


def test_sources_are_mixed_by_weight(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.json", 30), write(tmp_path / "b.json", 10)
    sources = f"data.sources=[{{path: {a}, weight: 1}}, {{path: {b}, weight: 3}}]"
    mixed, held_out, _ = read_data(recipe(tmp_path, sources, "data.eval_fraction=0.1"), Console(quiet=True))
    assert len(held_out) == 4 and len(mixed) == 36, "an epoch has as many samples as there are to train on"
    drawn = Counter(sample.messages[1].text for sample in mixed)
    of_a = {text: number for text, number in drawn.items() if text.startswith("a")}
    of_b = {text: number for text, number in drawn.items() if text.startswith("b")}
    assert sum(of_a.values()) == 9 and set(of_a.values()) == {1}, "a choice of the large one"
    assert sum(of_b.values()) == 27 and max(of_b.values()) - min(of_b.values()) <= 1, "all of the small one, repeated"
    assert not set(drawn) & {sample.messages[1].text for sample in held_out}
    again, _, _ = read_data(recipe(tmp_path, sources, "data.eval_fraction=0.1"), Console(quiet=True))
    assert list(again) == list(mixed)
    dataset = ConversationDataset(mixed, make_processor(1), max_length=100)
    for index in (0, 8, 9, 35):
        expected = make_processor(1).encode(to_chat(mixed[index].messages))
        assert dataset[index]["input_ids"].tolist() == expected["input_ids"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.sources=[{path: a}]", "data.path=b"], "data.sources excludes data.path"),
        ([], r"data\.path is missing"),
        (["data.sources=[]"], r"data\.sources is \[\]"),
        (["data.sources=[{path: a, weight: 0}]"], r"data\.sources\.0\.weight is 0"),
        (["data.sources=[{path: a, weight: -1.5}]"], r"data\.sources\.0\.weight is -1\.5"),
        (["data.sources=[{path: a, wieght: 2}]"], "Did you mean weight"),
        (["data.sources=[{weight: 2}]"], r"data\.sources\.0\.path is missing"),
        (["data.sources=[{path: a}, {path: a}]"], "names a twice"),
        (["data.sources=[{path: a/b}, {path: c}, {path: ./c/../a/b}]"], r"names a/b twice, also as \./c/\.\./a/b"),
        (["data.sources=[{path: a}]", "data.images=b"], r"data\.images says nothing here"),
    ],
)
def test_impossible_mixes_are_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        recipe(tmp_path, *overrides)
    assert "override data." in str(caught.value)


def test_a_mix_is_written_into_the_recipe_and_read_back(tmp_path: Path) -> None:
    loaded = recipe(tmp_path, "data.sources=[{path: a, images: i, weight: 2}, {path: b}]")
    assert load_recipe(loaded.save(tmp_path / "recipe.yaml")) == loaded


def test_a_weight_that_gives_nothing_is_refused(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.json", 30), write(tmp_path / "b.json", 10)
    sources = f"data.sources=[{{path: {a}, weight: 1000}}, {{path: {b}, weight: 0.1}}]"
    with pytest.raises(RecipeError, match=r"b\.json gives no sample"):
        read_data(recipe(tmp_path, sources), Console(quiet=True))


def test_ten_kinds_of_broken_records_are_counted_named_and_skipped(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    options = ["--records", "1500", "--images", "5", "--broken", "0.1"]
    made = cli.Python("-m", "bench.make_llava150k", path, *options, cwd=cli.ROOT).finished()
    assert made.returncode == 0, made.stderr
    broken = {
        line.split(": ")[0].split(", ")[1]: int(line.split(": ")[1])
        for line in made.stdout.splitlines()
        if line.startswith("  broken")
    }
    assert len(broken) == 10
    checked = cli.eden("check", path, "--images", tmp_path / "train2017", "--decode", "--json", "--faults", "20")
    assert checked.returncode == 2, checked.stderr
    report = json.loads(checked.stdout)
    assert report["faults_by_kind"] == broken and report["faulty"] == sum(broken.values())
    assert len(report["faults"]) == 20 and report["unnamed_faults"] == sum(broken.values()) - 20
    assert all(f"{path} record " in fault["where"] and fault["hint"] for fault in report["faults"])
    assert sum(report["kinds"].values()) == sum(bar["samples"] for bar in report["histograms"]["characters"])
    samples, _ = load_samples(path, tmp_path / "train2017", on_error="skip")
    assert len(samples) == 1500 - sum(broken.values())
    with pytest.raises(DataError, match="more faults") as caught:
        load_samples(path, tmp_path / "train2017")
    assert report["faults"][0]["where"] in str(caught.value)


def test_kinds_and_repetitions(tmp_path: Path) -> None:
    def turns(*texts: str) -> list[dict[str, str]]:
        return [{"from": "gpt" if index % 2 else "human", "value": text} for index, text in enumerate(texts)]

    long = "word " * 60
    records = [
        {"id": "a", "conversations": turns("q", "a", "r", "b")},
        {"id": "b", "conversations": turns("Describe the scene.", long)},
        {"id": "c", "conversations": turns("Why?", long)},
        {"id": "d", "conversations": turns("Why?", "So.")},
        {"id": "e", "conversations": turns("Why?", "So.")},
        {"id": "complex_reasoning_7", "conversations": turns("Why?", "Because.")},
    ]
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    report, _ = check(path)
    assert report.kinds == {"conversation": 1, "detail": 1, "reasoning": 2, "short answer": 2}
    assert report.counts["repeated_samples"] == 1 and report.counts["repeated_ids"] == 0
    assert report.repeated == [{"where": f"{path} line 5 (id e)", "same_as": f"{path} line 4 (id d)"}]
    bars = report.histograms["turns"]
    assert [(bar["from"], bar["to"], bar["samples"]) for bar in bars] == [(2, 2, 5), (3, 3, 0), (4, 4, 1)]
