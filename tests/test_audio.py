"""Decoding: what is a recording becomes samples, what is none becomes one line, and no header is believed."""

import io
import struct
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
from recordings import CONTAINERS, encode, tone, video_without_sound

from eden import AudioError
from eden.media.audio import MAX_BYTES, SAMPLE_RATE, announced_seconds, audio_seconds, open_audio, resample, to_wav

HUM = tone(3.0)


@pytest.mark.parametrize("kind", CONTAINERS)
@pytest.mark.parametrize(("rate", "layout"), [(48_000, "mono"), (48_000, "stereo"), (16_000, "mono")])
def test_every_container_gives_the_same_sound(kind: str, rate: int, layout: str) -> None:
    heard = open_audio(encode(HUM, kind, rate=rate, layout=layout))
    assert heard.dtype == np.float32 and heard.ndim == 1
    assert abs(len(heard) / SAMPLE_RATE - 3.0) < 0.15
    middle = heard[SAMPLE_RATE : 2 * SAMPLE_RATE]
    spectrum = np.abs(np.fft.rfft(middle))
    assert spectrum.argmax() == 220
    level = 0.3 if layout == "mono" else 0.3 / np.sqrt(2)  # ffmpeg spreads one channel's power over two
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(level / np.sqrt(2), rel=0.1)


def test_a_path_is_known_by_its_content_and_not_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "song.txt"
    path.write_bytes(encode(HUM, "flac"))
    assert np.array_equal(open_audio(path), open_audio(path.read_bytes()))
    assert announced_seconds(path) == audio_seconds(path) == 3.0
    assert announced_seconds(tmp_path / "gone") == 0.0


def test_wav_round_trip_and_resampling() -> None:
    assert np.abs(open_audio(to_wav(HUM)) - HUM).max() < 1e-4
    assert len(resample(HUM, 8_000)) == 2 * len(HUM)
    assert open_audio(HUM) is HUM


def test_samples_that_are_no_numbers_become_silence() -> None:
    broken = struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", 0, b"WAVE", b"fmt ", 16, 3, 1, 16_000, 64_000, 4, 32, b"data", 16
    )
    samples = open_audio(broken + struct.pack("<4f", float("nan"), float("inf"), -1e30, 0.5))
    assert samples.tolist() == [0.0, 1.0, -1.0, 0.5]


def patched(data: bytes, offset: int, layout: str, value: int) -> bytes:
    return data[:offset] + struct.pack(layout, value) + data[offset + struct.calcsize(layout) :]


WAV = to_wav(HUM)
BAD = {
    "empty": (b"", "empty"),
    "text": (b"these are words and not sound", "not a recording"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), "not a recording"),
    "a play list": (b"#EXTM3U\n#EXT-X-TARGETDURATION:10\nfile:///etc/hosts\n", "not a recording"),
    "a concat script": (b"ffconcat version 1.0\nfile /etc/hosts\n", "not a recording"),
    "a bare header": (b"RIFF\0\0\0\0WAVE", "damaged"),
    "a video without sound": (video_without_sound(), "no sound in it"),
    "no samples": (patched(WAV, 40, "<I", 0)[:44], "no sound"),
    "a header of 10 MHz": (patched(WAV, 24, "<I", 10_000_000), "10,000,000 Hz"),
    "a header of no channels": (patched(WAV, 22, "<H", 0), "0 channels"),
    "a header of 65535 channels": (patched(WAV, 22, "<H", 65_535), "channels"),
    "a header that claims hours": (patched(WAV, 40, "<I", 5 * 3600 * 32_000), "cut off"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_recording_is_one_line(name: str, tmp_path: Path) -> None:
    data, words = BAD[name]
    path = tmp_path / "bad.wav"
    path.write_bytes(data)
    for source in (data, path):
        with pytest.raises(AudioError, match=words) as caught:
            open_audio(source)
        assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", sorted(CONTAINERS.keys() - {"aac"}))  # which says nowhere how long it is
@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.8])
def test_a_file_that_was_cut_off_is_refused(kind: str, share: float) -> None:
    data = encode(HUM, kind)
    with pytest.raises(AudioError, match=r"cut off|damaged|no sound"):
        open_audio(data[: int(len(data) * share)])


@pytest.mark.parametrize("kind", ["webm", "ogg", "m4a", "mp4"])
@pytest.mark.parametrize("pauses", [{1.0: 4.0}, {0.0: 5.0}, {0.0: 3.0, 0.5: 2.0, 1.5: 6.0}])
def test_a_recorder_that_was_paused(kind: str, pauses: dict[float, float]) -> None:
    """The sound stands where the recording's own times have it, with silence between."""
    waveform = open_audio(encode(HUM, kind, pauses=pauses))
    assert len(waveform) / SAMPLE_RATE == pytest.approx(3 + sum(pauses.values()), abs=0.1)
    loud = np.abs(waveform).reshape(-1)[: len(waveform) // 1600 * 1600].reshape(-1, 1600).max(axis=1) > 0.1
    starts = np.flatnonzero(np.diff(loud.astype(int), prepend=0) == 1) / 10
    begun = [] if 0.0 in pauses else [0.0]
    expected = begun + [at + sum(length for start, length in pauses.items() if start <= at) for at in pauses]
    assert starts == pytest.approx(expected, abs=0.15)


def test_a_clock_that_was_set_is_no_pause() -> None:
    assert len(open_audio(encode(HUM, "ogg", pauses={1.0: 0.3}))) == pytest.approx(3 * SAMPLE_RATE, abs=1600)


@pytest.mark.parametrize("kind", ["wav", "aiff", "caf"])
def test_what_stands_behind_the_sound_may_be_cut_off(kind: str) -> None:
    data = encode(HUM, kind, rate=16_000)
    name, order = {"wav": (b"LIST", "<I"), "aiff": (b"ANNO", ">I"), "caf": (b"info", ">Q")}[kind]
    assert len(open_audio(data + name + struct.pack(order, 1000) + b"INFO")) == len(HUM)
    assert len(open_audio(data + name)) == len(HUM)


@pytest.mark.parametrize(("layout", "inverted"), [("stereo", [1]), ("quad", [1, 2])])
def test_channels_that_cancel_one_another_are_heard(layout: str, inverted: list[int]) -> None:
    channels = np.tile(HUM, (4 if layout == "quad" else 2, 1))
    channels[inverted] *= -1
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(channels), format="fltp", layout=layout)
    frame.sample_rate = SAMPLE_RATE
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="wav") as container:
        stream = container.add_stream("pcm_f32le", rate=SAMPLE_RATE, layout=layout)
        for part in av.AudioResampler(format="flt", layout=layout, rate=SAMPLE_RATE).resample(frame):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    assert np.abs(open_audio(buffer.getvalue())) == pytest.approx(np.abs(HUM), abs=1e-3)


def wav(channels: np.ndarray) -> bytes:
    """A WAV of channels [C, S] that does not say where they stand, as field recorders write it."""
    count, data = len(channels), channels.T.astype("<f4").tobytes()
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, count, SAMPLE_RATE, SAMPLE_RATE * count * 4, count * 4, 32)
    return (
        struct.pack("<4sI4s", b"RIFF", 36 + len(data), b"WAVE") + form + struct.pack("<4sI", b"data", len(data)) + data
    )


@pytest.mark.parametrize("count", range(1, 17))
def test_channels_are_mixed_and_not_clipped(count: int) -> None:
    """More than eight have no planes of their own in a frame, nine of them stand nowhere."""
    loud = tone(0.5, level=1.0)
    assert open_audio(wav(np.tile(loud, (count, 1)))) == pytest.approx(loud, abs=1e-3)
    for alone in (0, count - 1):
        channels = np.zeros((count, len(loud)), dtype=np.float32)
        channels[alone] = loud
        mixed = open_audio(wav(channels))
        share = np.abs(mixed).max()
        assert 0.5 / count < share <= 1.0 + 1e-6 and mixed == pytest.approx(share * loud, abs=1e-3)


@pytest.mark.parametrize("kind", ["m4a", "ogg", "flac"])
def test_surround_sound_is_heard(kind: str) -> None:
    heard = open_audio(encode(HUM, kind, layout="7.1"))
    assert np.abs(np.fft.rfft(heard[SAMPLE_RATE : 2 * SAMPLE_RATE])).argmax() == 220


def test_an_id3_tag_hides_no_format() -> None:
    tag = b"ID3\4\0\0" + bytes([0, 0, 1, 0]) + bytes(128)
    assert len(open_audio(tag + encode(HUM, "aac"))) == pytest.approx(len(HUM), abs=4000)
    assert len(open_audio(tag + encode(HUM, "mp3"))) == pytest.approx(len(HUM), abs=4000)


def test_damage_in_the_middle_is_noticed() -> None:
    data = bytearray(encode(np.random.default_rng(0).normal(0, 0.1, 10 * SAMPLE_RATE).astype(np.float32), "flac"))
    data[len(data) // 4 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 4)
    with pytest.raises(AudioError, match="cut off"):
        open_audio(bytes(data))


def test_a_recording_of_unknown_length_is_read_to_its_end() -> None:
    """What a program writes into a pipe: the sizes are not known when the header is written."""
    streamed = patched(patched(WAV, 4, "<I", 0xFFFFFFFF), 40, "<I", 0xFFFFFFFF)
    assert len(open_audio(streamed)) == len(HUM)


def test_limits_hold_before_and_while_decoding(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"longer than 0\.025 minutes"):
        open_audio(WAV, max_seconds=1.5)
    streamed = patched(WAV, 40, "<I", 0xFFFFFFFF)
    with pytest.raises(AudioError, match="longer than"):
        open_audio(streamed, max_seconds=1.5)
    with pytest.raises(AudioError, match="the limit is 1,000"):
        open_audio(WAV, max_bytes=1000)
    big = tmp_path / "big.wav"
    with big.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(AudioError, match="the limit is 26,214,400"):
        open_audio(big)


def test_hours_of_silence_in_a_small_file_cost_nothing() -> None:
    """FLAC holds silence in next to no bytes; the limit must stop the decoder, not count afterwards."""
    half_an_hour = encode(np.zeros(1800 * SAMPLE_RATE, dtype=np.float32), "flac", rate=16_000)
    assert len(half_an_hour) < 2**20
    unknown_length = bytearray(half_an_hour)
    unknown_length[21] &= 0xF0  # STREAMINFO's count of samples, 36 bits: 0 is unknown
    unknown_length[22:26] = bytes(4)
    for data in (half_an_hour, bytes(unknown_length)):
        tracemalloc.start()
        with pytest.raises(AudioError, match="longer than 10 minutes"):
            audio_seconds(data)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
        tracemalloc.stop()


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"gone\.wav: no such recording"):
        open_audio(tmp_path / "gone.wav")
    with pytest.raises(AudioError, match="not a file"):
        open_audio(tmp_path)
    with pytest.raises(AudioError):
        open_audio("nul\0byte")
