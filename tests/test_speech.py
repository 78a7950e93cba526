"""Hearing: eden-tiny's own Whisper on speech in every container, long and short, and conversion of Hugging Face's."""

import importlib.metadata
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faster_whisper
import numpy as np
import pytest
import torch
from recordings import CONTAINERS, encode, tone
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

import eden.media.speech
from eden import CheckpointError, InputError
from eden.media.audio import SAMPLE_RATE, Waveform, open_audio
from eden.media.speech import Segment, Transcriber, Transcript, find_whisper
from eden.media.speech_synthesis import ACCENTS, SPEAKERS, Voice, add_noise, random_voice, speak
from tiny_build.whisper import HearingConfig, build_tokenizer, new_whisper

QUESTION = "What colour is the large star?"
SENTENCES = (QUESTION, "How many circles are there?", "Is the cross above the square?", "Where is the yellow triangle?")


@pytest.fixture(scope="module")
def transcriber() -> Transcriber:
    return Transcriber(workers=2)


@pytest.fixture(scope="module")
def spoken() -> Waveform:
    return speak(QUESTION, Voice("en-us", "m6"))


@pytest.mark.parametrize("kind", CONTAINERS)
def test_every_container_gives_the_same_words(transcriber: Transcriber, spoken: Waveform, kind: str) -> None:
    assert transcriber.transcribe(encode(spoken, kind)).text == QUESTION


@pytest.mark.parametrize(("rate", "layout"), [(44_100, "stereo"), (8_000, "mono"), (96_000, "mono")])
def test_every_sample_rate_gives_the_same_words(
    transcriber: Transcriber, spoken: Waveform, rate: int, layout: str
) -> None:
    assert transcriber.transcribe(encode(spoken, "wav", rate=rate, layout=layout)).text == QUESTION


SILENT = {
    "a tenth of a second": speak(QUESTION, Voice())[2000:3600],
    "digital silence": np.zeros(3 * SAMPLE_RATE, dtype=np.float32),
    "faint noise": np.random.default_rng(0).normal(0, 1e-3, 3 * SAMPLE_RATE).astype(np.float32),
    "loud noise": np.random.default_rng(0).normal(0, 0.2, 3 * SAMPLE_RATE).astype(np.float32).clip(-1, 1),
    "a hum": tone(3.0),
    "one sample": np.zeros(1, dtype=np.float32),
}


@pytest.mark.parametrize("name", SILENT)
def test_where_nobody_speaks_no_words_are_invented(transcriber: Transcriber, name: str) -> None:
    transcript = transcriber.transcribe(SILENT[name])
    assert transcript.text == "" and transcript.segments == ()
    assert transcript.duration == pytest.approx(len(SILENT[name]) / SAMPLE_RATE, abs=1e-3)


def monologue(pauses: float, repeats: int) -> tuple[Waveform, list[str]]:
    rng = random.Random(0)
    silence = np.zeros(int(pauses * SAMPLE_RATE), dtype=np.float32)
    said = [rng.choice(SENTENCES) for _ in range(repeats)]
    return np.concatenate([part for text in said for part in (speak(text, random_voice(rng, "test")), silence)]), said


def test_long_speech_is_heard_in_order_with_times(transcriber: Transcriber) -> None:
    waveform, said = monologue(pauses=1.2, repeats=12)
    transcript = transcriber.transcribe(waveform)
    assert transcript.text == " ".join(said)
    assert [segment.text for segment in transcript.segments] == said
    times = [time for segment in transcript.segments for time in (segment.start, segment.end)]
    assert times == sorted(times) and times[0] >= 0 and times[-1] <= transcript.duration


def test_blocks_neither_lose_nor_repeat_words(transcriber: Transcriber, monkeypatch: pytest.MonkeyPatch) -> None:
    waveform, said = monologue(pauses=0.9, repeats=8)
    monkeypatch.setattr(eden.media.speech, "BLOCK_SECONDS", 7)
    done: list[float] = []
    transcript = transcriber.transcribe(encode(waveform, "flac", rate=16_000), on_progress=done.append)
    assert transcript.text == " ".join(said)
    assert done == sorted(done) and done[-1] == pytest.approx(len(waveform) / SAMPLE_RATE, abs=0.01)


@pytest.mark.parametrize("kind", ["webm", "ogg", "m4a", "mp4"])
@pytest.mark.parametrize(("first", "pause"), [(0.0, 4.0), (5.0, 3.0)])
def test_segments_have_the_times_of_a_recorder_that_was_paused(
    transcriber: Transcriber, spoken: Waveform, kind: str, first: float, pause: float
) -> None:
    """It began to run, or was told to go on, seconds before somebody spoke."""
    seconds = len(spoken) / SAMPLE_RATE
    waveform = np.concatenate([spoken, tone(1.0, 0.0), spoken])
    transcript = transcriber.transcribe(encode(waveform, kind, pauses={0.0: first, seconds + 0.5: pause}))
    assert [segment.text for segment in transcript.segments] == [QUESTION] * 2
    found = [(segment.start, segment.end) for segment in transcript.segments]
    begun = first, first + seconds + 1.0 + pause
    for times, start in zip(found, begun, strict=True):
        assert times == pytest.approx((start, start + seconds), abs=0.3)
    assert transcript.duration == pytest.approx(begun[1] + seconds, abs=0.1)


def multilingual(windows: list[tuple[str, float]]) -> type:
    """In the place of faster-whisper's model: of each window the language and how sure it is, until it is told one."""
    told = iter(windows)

    class Multilingual:
        supported_languages = ("de", "en", "fr")
        model = SimpleNamespace(is_multilingual=True)
        feature_extractor = SimpleNamespace(n_samples=6 * SAMPLE_RATE)

        def __init__(self, folder: str, **options: Any):
            pass

        def transcribe(
            self, waveform: Waveform, *, language: str | None, clip_timestamps: list[float], **options: Any
        ) -> tuple[Iterator[Any], Any]:
            code, probability = next(told) if language is None else (language, 1.0)
            times = zip(clip_timestamps[::2], clip_timestamps[1::2], strict=True)
            segments = (SimpleNamespace(start=start, end=end, text=f" {code}") for start, end in times)
            return segments, SimpleNamespace(language=code, language_probability=probability)

    return Multilingual


LANGUAGES = {
    "English, then German": ([("en", 0.99), ("en", 0.9), ("de", 0.97), ("de", 0.9)], "en en de de"),
    "unsure, as of a few words": ([("en", 0.99), ("fr", 0.49), ("de", 0.5), ("fr", 0.2)], "en en de de"),
    "unsure from the beginning": ([("fr", 0.3), ("en", 0.4), ("en", 0.6), ("de", 0.1)], "fr fr en en"),
}


@pytest.mark.parametrize("block", [120, 4])
@pytest.mark.parametrize("name", LANGUAGES)
def test_each_window_has_its_language(spoken: Waveform, monkeypatch: pytest.MonkeyPatch, name: str, block: int) -> None:
    """Below `SURE` that of the window before, which may be in the block before."""
    windows, expected = LANGUAGES[name]
    monkeypatch.setattr(faster_whisper, "WhisperModel", multilingual(windows))
    monkeypatch.setattr(eden.media.speech, "BLOCK_SECONDS", block)
    pause = tone(1.5, 0.0)
    said = np.concatenate([spoken, pause] * 4)
    transcript = Transcriber().transcribe(said)
    assert [segment.language for segment in transcript.segments] == expected.split()
    assert transcript.text == expected, "and is written in it"
    starts = [(len(spoken) + len(pause)) * number / SAMPLE_RATE for number in range(4)]
    assert [segment.start for segment in transcript.segments] == pytest.approx(starts, abs=0.3)


def test_the_language_of_a_recording_is_that_of_most_of_its_speech(
    spoken: Waveform, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = np.concatenate([spoken, tone(1.5, 0.0)] * 3)
    monkeypatch.setattr(faster_whisper, "WhisperModel", multilingual([("en", 0.9), ("de", 0.9), ("de", 0.9)]))
    assert Transcriber().transcribe(said).language == "de"
    monkeypatch.setattr(faster_whisper, "WhisperModel", multilingual([]))
    given = Transcriber(language="German").transcribe(said)
    assert (given.language, given.text) == ("de", "de de de"), "who is told does not look"


def test_threads_share_one_whisper(transcriber: Transcriber, spoken: Waveform) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert {transcript.text for transcript in pool.map(transcriber.transcribe, [spoken] * 16)} == {QUESTION}


def test_subtitles() -> None:
    transcript = Transcript("A. B.", "en", 3700.0, (Segment(0.5, 1.25, "A."), Segment(3661.0, 3662.002, "B.")))
    assert transcript.to_srt() == ("1\n00:00:00,500 --> 00:00:01,250\nA.\n\n2\n01:01:01,000 --> 01:01:02,002\nB.\n")


@pytest.fixture(scope="module")
def hugging_face_whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Whisper as the hub has them."""
    folder = tmp_path_factory.mktemp("whisper")
    torch.manual_seed(0)
    tokenizer = build_tokenizer(SENTENCES, pieces=300)
    model = new_whisper(HearingConfig(width=64, encoder_layers=2, decoder_layers=1), tokenizer).half()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(chunk_length=6).save_pretrained(folder)
    return folder


def test_a_hugging_face_whisper_is_converted_once_and_computes_the_same(
    hugging_face_whisper: Path, spoken: Waveform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDEN_CACHE", str(tmp_path))
    converted = find_whisper(str(hugging_face_whisper))
    assert converted.is_relative_to(tmp_path)
    made = (converted / "model.bin").stat().st_mtime_ns
    assert find_whisper(str(hugging_face_whisper)) == converted
    assert (converted / "model.bin").stat().st_mtime_ns == made
    transcriber = Transcriber(str(hugging_face_whisper), compute_type="float32")
    features = WhisperFeatureExtractor.from_pretrained(hugging_face_whisper)(
        spoken, sampling_rate=SAMPLE_RATE, return_tensors="pt"
    )["input_features"]
    plain = WhisperForConditionalGeneration.from_pretrained(hugging_face_whisper, dtype=torch.float32)
    with torch.inference_mode():
        expected = plain.model.encoder(features).last_hidden_state
    found = torch.from_numpy(np.array(transcriber.model.encode(features.numpy()[0])))
    assert torch.allclose(found, expected, atol=1e-3)


def test_what_is_no_whisper_is_one_line(hugging_face_whisper: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such Whisper on the hub"):
        Transcriber("nobody/nothing").transcribe(tone(1.0))
    with pytest.raises(CheckpointError, match="holds no Whisper"):
        find_whisper(str(tmp_path))
    (tmp_path / "model.bin").write_bytes(b"not a model")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        assert Transcriber(str(tmp_path)).model
    with pytest.raises(InputError, match="does not hear the language 'de'"):
        assert Transcriber(language="de").model


@pytest.mark.parametrize("written", ["en", "EN", "en-US", "en_GB", "English", " english "])
def test_a_language_as_people_write_it(transcriber: Transcriber, spoken: Waveform, written: str) -> None:
    transcript = transcriber.transcribe(spoken, language=written)
    assert (transcript.text, transcript.language) == (QUESTION, "en")
    assert [segment.language for segment in transcript.segments] == ["en"]


@pytest.mark.parametrize("written", ["German", "de-AT", "Klingon", "x"])
def test_a_language_it_does_not_hear(transcriber: Transcriber, written: str) -> None:
    with pytest.raises(InputError, match=f"does not hear the language '{written}'"):
        transcriber.transcribe(tone(1.0), language=written)


def test_the_fingerprint_tells_what_a_transcript_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Transcriber().fingerprint == Transcriber(workers=2).fingerprint
    installed, before = importlib.metadata.version, Transcriber().fingerprint
    with monkeypatch.context() as patch:
        patch.setattr(importlib.metadata, "version", lambda name: "0" if name == "ctranslate2" else installed(name))
        assert Transcriber().fingerprint != before, "of another version"
    others = {
        Transcriber(**options).fingerprint
        for options in ({}, {"language": "en"}, {"beam_size": 1}, {"compute_type": "float32"})
    }
    assert len(others) == 4


def test_voices_of_the_test_are_not_in_training_and_each_can_speak() -> None:
    assert not set(SPEAKERS["train"]) & set(SPEAKERS["test"])
    heights = {speaker: speak("Yes.", Voice("en", speaker)) for speakers in SPEAKERS.values() for speaker in speakers}
    assert all(0.1 < len(waveform) / SAMPLE_RATE < 2 and np.abs(waveform).max() > 0.1 for waveform in heights.values())
    assert all(len(speak("Yes.", Voice(accent))) for accent in ACCENTS)


def test_noise_is_as_loud_as_asked(spoken: Waveform) -> None:
    noise = add_noise(spoken, 10.0, seed=0) - spoken
    assert 10 * np.log10(np.mean(spoken**2) / np.mean(noise**2)) == pytest.approx(10.0, abs=0.1)


def test_the_shipped_question(transcriber: Transcriber) -> None:
    path = Path(__file__).parent.parent / "examples" / "question.wav"
    assert transcriber.transcribe(open_audio(path)).text == "How many objects are there?"
