"""Speech in conversations, data sets, training and evaluation: it becomes text once, in the right place."""

import base64
import json
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import cli
import numpy as np
import pytest
from conftest import make_image, make_processor
from recordings import tone
from rich.console import Console

import eden
from eden import Audio, AudioError, DataError, Image, Message, Text
from eden.data.dataset import ConversationDataset
from eden.data.formats import RecordError, Sample, read_samples
from eden.data.prepare import read_data
from eden.data.store import RecordStore, Samples
from eden.data.transcripts import HeardStore, TranscriptStore, transcribe_samples
from eden.data.validate import check, load_samples
from eden.media.audio import SAMPLE_RATE, to_wav
from eden.media.speech import Transcriber
from eden.media.speech_synthesis import Voice, speak
from eden.messages import to_chat, transcribe_message
from eden.recipe import load_recipe
from tiny_build.dataset import write_dataset


def words(source: Any) -> str:
    return {"a.wav": "How many stars are there?", "b.wav": "A red star.", "silent.wav": ""}[str(source)]


def test_a_recording_alone_is_the_question() -> None:
    message = Message.user("", [Path("1.png")], ["a.wav"])
    assert transcribe_message(message, words) == Message(
        "user", (Image(Path("1.png")), Text("How many stars are there?"))
    )
    both = Message.user("  ", [], ["a.wav", "b.wav"])
    assert transcribe_message(both, words).text == "How many stars are there?\nA red star."


def test_a_recording_beside_words_is_quoted() -> None:
    message = Message("user", (Audio("b.wav"), Image("1.png"), Text("Is that so?"), Audio("a.wav")))
    assert transcribe_message(message, words) == Message(
        "user",
        (
            Text('Audio transcript: "A red star."'),
            Image("1.png"),
            Text("Is that so?"),
            Text("\n"),
            Text('Audio transcript: "How many stars are there?"'),
        ),
    )
    written = Message.user("hello")
    assert transcribe_message(written, words) is written


def test_silence_is_no_question_but_may_be_context() -> None:
    with pytest.raises(AudioError, match="no speech was heard"):
        transcribe_message(Message.user("", [], ["silent.wav"]), words)
    assert transcribe_message(Message.user("What was said?", [], ["silent.wav"]), words).text.startswith(
        'Audio transcript: ""\n'
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_image("red").save(tmp_path / "1.png")
    (tmp_path / "q.wav").write_bytes(to_wav(speak("What colour is the star?", Voice())))
    (tmp_path / "hum.wav").write_bytes(to_wav(tone(1.0)))
    (tmp_path / "cut.wav").write_bytes((tmp_path / "q.wav").read_bytes()[:5000])
    return tmp_path


def record(text: str, **media: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": "Red."}]
    return {"id": "7", "conversations": turns, **media}


def write(folder: Path, *records: Any) -> Path:
    path = folder / "data.json"
    path.write_text(json.dumps(list(records)))
    return path


def only(path: Path, **folders: Path) -> Sample | RecordError:
    (sample,) = read_samples(path, **folders)
    return sample


def test_llava_with_audio(folder: Path) -> None:
    sample = only(write(folder, record("<image>\n<audio>\nAnd?", image="1.png", audio="q.wav")))
    assert isinstance(sample, Sample)
    assert sample.messages[0].content == (Image(folder / "1.png"), Audio(folder / "q.wav"), Text("And?"))
    elsewhere = only(write(folder, record("<audio>", audio="q.wav")), audio=folder.parent)
    assert isinstance(elsewhere, Sample) and elsewhere.messages[0].content == (Audio(folder.parent / "q.wav"),)


def test_messages_with_input_audio(folder: Path) -> None:
    data = (folder / "q.wav").read_bytes()
    for part, source in (
        ({"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"}}, data),
        ({"type": "input_audio", "input_audio": {"path": "q.wav"}}, folder / "q.wav"),
        ({"type": "audio", "audio": "q.wav"}, folder / "q.wav"),
        ({"type": "audio", "url": "data:audio/wav;base64," + base64.b64encode(data).decode()}, data),
    ):
        turns = [{"role": "user", "content": [part]}, {"role": "assistant", "content": "Red."}]
        sample = only(write(folder, {"messages": turns}))
        assert isinstance(sample, Sample) and sample.messages[0].content == (Audio(source),)


FAULTS = {
    "audio_count": record("<audio><audio>", audio="q.wav"),
    "missing_audio": record("<audio>", audio="gone.wav"),
    "damaged_audio": record("<audio>", audio="cut.wav"),
    "not_audio": record("<audio>", audio="1.png"),
    "remote_audio": {"messages": [{"role": "user", "content": [{"type": "audio", "url": "https://x.org/a.wav"}]}]},
    "bad_record": record("<audio>", audio=[7]),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_each_fault_is_named(folder: Path, kind: str) -> None:
    report, good = check(write(folder, FAULTS[kind]))
    assert [fault.kind for fault in report.faults] == [kind] and not good
    assert "data.json record 1" in report.faults[0].where


def test_counts(folder: Path) -> None:
    report, _ = check(write(folder, record("<audio>", audio="q.wav"), record("hello")))
    assert report.ok and report.counts["recordings"] == 1 and report.counts["text_only_samples"] == 1


def test_transcripts_are_computed_once_and_outlive_a_cut_line(folder: Path, tmp_path: Path) -> None:
    samples, _ = load_samples(write(folder, record("<audio>", audio="q.wav"), record("<audio>", audio="q.wav")))
    store = TranscriptStore(Transcriber(), tmp_path / "store")
    heard, faults = transcribe_samples(samples, store)
    assert [sample.messages[0].text for sample in heard] == ["What colour is the star?"] * 2 and faults == []
    (line,) = (row for row in store.path.read_text().splitlines() if row)
    told = json.loads(line) | {"text": "What was kept."}
    store.path.write_text(json.dumps(told) + '\n{"sha256": "cut o')
    again = TranscriptStore(Transcriber(), tmp_path / "store")
    assert again.words(folder / "q.wav") == "What was kept."
    (folder / "q.wav").write_bytes(to_wav(speak("Where is the cross?", Voice())))
    assert again.words(folder / "q.wav") == "Where is the cross?"
    assert len(TranscriptStore(Transcriber(), tmp_path / "store")) == 2
    assert len(TranscriptStore(Transcriber(beam_size=1), tmp_path / "store")) == 0


def test_a_sample_in_which_nothing_is_said_is_named_or_skipped(folder: Path, tmp_path: Path) -> None:
    samples, _ = load_samples(write(folder, record("<audio>", audio="hum.wav"), record("<audio>", audio="q.wav")))
    store = TranscriptStore(Transcriber(), tmp_path / "store")
    with pytest.raises(DataError, match=r"data\.json record 1 .*no speech was heard"):
        transcribe_samples(samples, store)
    heard, faults = transcribe_samples(samples, store, on_error="skip")
    assert len(heard) == 1 and "record 1" in str(faults[0])


def test_one_spoken_record_leaves_the_others_where_they_are(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the mapped file; and the tokens of all are kept, under another name when other words are heard."""
    monkeypatch.setenv("EDEN_CACHE", str(tmp_path / "cache"))
    spoken = [record("<audio>", audio="hum.wav"), record("<audio>", audio="q.wav")]
    path = write(folder, *[record("written") for _ in range(6)], *spoken)
    settings = load_recipe(
        "digits", [f"data.path={path}", "data.eval_fraction=0", "data.on_error=skip", "training.eval_strategy=no"]
    )
    samples, _, skipped = read_data(settings, Console(quiet=True))
    assert isinstance(samples.stores[0], RecordStore)
    assert [sample.messages[0].text for sample in samples] == ["written"] * 6 + ["What colour is the star?"]
    assert len(skipped) == 1 and "record 7" in skipped[0]
    dataset = ConversationDataset(samples, make_processor(4), max_length=100)
    expected = make_processor(4).encode(to_chat(samples[6].messages))["input_ids"]
    for copied in (dataset, pickle.loads(pickle.dumps(dataset))):
        assert copied[6]["input_ids"].tolist() == expected
        assert copied.samples[6] == samples[6]
    (kept,) = (tmp_path / "cache").rglob("tokens-*.arrow")
    written = kept.stat().st_mtime_ns
    again, _, _ = read_data(settings, Console(quiet=True))
    assert len(pickle.dumps(again)) < 4000, "the records are mapped, not sent"
    assert list(ConversationDataset(again, make_processor(4), max_length=100).lengths) == list(dataset.lengths)
    assert list(kept.parent.glob("tokens-*.arrow")) == [kept] and kept.stat().st_mtime_ns == written, "encoded once"
    other = Samples.of(HeardStore(samples.stores[0], {str(folder / "q.wav"): "Otherwise."}, [6]), samples.row)
    assert len(ConversationDataset(other, make_processor(4), max_length=100)[6]["input_ids"]) != len(expected)
    assert len(list(kept.parent.glob("tokens-*.arrow"))) == 2


def run(*arguments: str | Path, cache: Path) -> subprocess.CompletedProcess[str]:
    return cli.eden(*arguments, env=os.environ | {"EDEN_CACHE": str(cache)})


def overrides(data: Path, out: Path) -> list[str]:
    training = {"output_dir": out, "max_steps": 3, "logging_steps": 1, "per_device_train_batch_size": 4}
    return [f"data.path={data}", "data.eval_fraction=0.1", *(f"training.{k}={v}" for k, v in training.items())]


def test_training_on_spoken_questions_is_training_on_their_words(tmp_path: Path) -> None:
    """The same pictures, questions and recipe, once in writing and once by voice: the same losses."""
    losses = {}
    for name, spoken in (("typed", False), ("spoken", True)):
        data = write_dataset(tmp_path / name, 14, seed=4, turns=1, spoken=spoken)
        if not spoken:  # people write without capitals now and then; a transcript never does
            records = json.loads(data.read_text())
            for row in records:
                placeholder, question = row["conversations"][0]["value"].split("\n")
                question = question.replace("color", "colour").rstrip("?.")
                sign = "." if question.lower().startswith(("describe", "count")) else "?"
                row["conversations"][0]["value"] = f"{placeholder}\n{question[0].upper()}{question[1:]}{sign}"
            data.write_text(json.dumps(records))
        result = run("train", "digits", *overrides(data, tmp_path / f"{name}-run"), "--json", cache=tmp_path / "cache")
        assert result.returncode == 0, result.stderr
        rows = map(json.loads, (tmp_path / f"{name}-run" / "training.jsonl").read_text().splitlines())
        losses[name] = [row["loss"] for row in rows if "loss" in row]
    assert len(losses["typed"]) == 3
    assert losses["spoken"] == pytest.approx(losses["typed"], abs=0.05)


def test_the_cache_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "spoken", 14, seed=5, turns=1, spoken=True)
    arguments = ["cache", "digits", *overrides(data, tmp_path / "run")]
    environment = os.environ | {"EDEN_CACHE": str(tmp_path / "killed")}
    after_five = ("eden.data.transcripts", "TranscriptStore._append", 5)
    with cli.Python("-m", "eden", *arguments, env=environment, stop=after_five) as process:
        process.wait_until_stopped()
        process.kill()
    assert len(stored(tmp_path / "killed")) == 5
    for cache in ("killed", "whole"):
        result = run(*arguments, "--json", cache=tmp_path / cache)
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout) == {"samples": 14, "images": 14, "skipped": []}
    killed, whole = (stored(tmp_path / cache) for cache in ("killed", "whole"))
    assert killed == whole and len(whole) == 14
    assert not (tmp_path / "run").exists()


def stored(cache: Path) -> dict[str, str]:
    (path,) = cache.rglob("*.jsonl")
    rows = []
    for line in path.read_text().splitlines():
        if line.endswith("}"):
            rows.append(json.loads(line))
    assert len(rows) == len({row["sha256"] for row in rows})
    return {row["sha256"]: row["text"] for row in rows}


@pytest.fixture(scope="module")
def assistant() -> eden.Assistant:
    return eden.load("eden-tiny")


def test_the_assistant_hears(assistant: eden.Assistant, folder: Path) -> None:
    picture = make_image("white", (96, 96))
    typed = assistant.ask("What colour is the star?", images=[picture])
    assert assistant.ask(images=[picture], audio=[folder / "q.wav"]) == typed
    assert assistant.ask(images=[picture], audio=[(folder / "q.wav").read_bytes()]) == typed
    assert assistant.ask(images=[picture], audio=[speak("What colour is the star?", Voice())]) == typed
    chat = assistant.chat()
    chat.ask(images=[picture], audio=[folder / "q.wav"])
    assert chat.messages[0].text == "What colour is the star?" and chat.messages[0].audio == ()


def test_what_cannot_be_heard_is_refused(assistant: eden.Assistant, folder: Path) -> None:
    with pytest.raises(AudioError, match="no speech was heard"):
        assistant.ask(audio=[folder / "hum.wav"])
    with pytest.raises(AudioError, match="cut off"):
        assistant.ask(audio=[folder / "cut.wav"])
    half_an_hour = np.zeros(1800 * SAMPLE_RATE, dtype=np.float32)
    with pytest.raises(AudioError, match="longer than 10 minutes"):
        assistant.ask(audio=[to_wav(half_an_hour[: 700 * SAMPLE_RATE])])
    endless = np.tile(np.concatenate([speak("How many small red circles are there?", Voice()), tone(1.0, 0.0)]), 120)
    with pytest.raises(eden.ContextError, match=r"length is 1,024 tokens"):
        assistant.ask(audio=[endless])


def test_evaluation_by_voice(tmp_path: Path) -> None:
    arguments = ["evaluate", "eden-tiny", "world", "--limit", "36", "--spoken", "--json"]
    quiet = json.loads(run(*arguments, "--html", tmp_path / "page.html", cache=tmp_path).stdout)
    assert quiet["word_error_rate"] <= 0.05
    assert quiet["accuracy_spoken"] >= quiet["accuracy"] - 0.1
    assert set(quiet["by_kind"]["accuracy_spoken"]) == set(quiet["by_kind"]["word_error_rate"])
    assert "word error rate" in (tmp_path / "page.html").read_text().lower()
    noisy = json.loads(run(*arguments, "--noise-db", "0", cache=tmp_path).stdout)
    assert quiet["word_error_rate"] < noisy["word_error_rate"]
    assert noisy["accuracy"] == quiet["accuracy"]
