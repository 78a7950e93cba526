"""Bytes or a path become a waveform, safely. The only place of the package that decodes audio.

    recording -> container, known by its content -> packets -> frames -> float32, mono, 16 kHz

Nothing a header claims is believed: a claim can only make Eden refuse sooner, and each limit is checked again on what
was really decoded, while it is decoded.
"""

from __future__ import annotations

import io
import struct
import wave
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import av
import numpy as np

from ..core.files import check_the_path
from ..errors import AudioError, first_line
from ..messages import AudioSource
from .mixing import channel_weights, heard

Waveform: TypeAlias = "np.ndarray[Any, np.dtype[np.float32]]"
"""Samples [S]: float32, mono, 16 kHz, within -1 and 1."""

SAMPLE_RATE = 16_000
MAX_BYTES = 25 * 2**20
MAX_SECONDS = 600.0
UNLIMITED = float("inf")
PAUSES = frozenset({"ogg", "m4a", "webm"})
"""Containers whose packets have times of their own."""

DEMUXERS = {name: name for name in ("wav", "flac", "mp3", "ogg", "webm", "aac", "aiff", "caf")} | {"m4a": "mp4"}
"""Containers that are opened, by content and not by file name, and ffmpeg's names of them; all others stay closed."""
FORMATS = tuple(DEMUXERS)
CODECS = (
    "pcm_u8", "pcm_s8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le", "pcm_s16be", "pcm_s24be",
    "pcm_s32be", "pcm_f32be", "pcm_f64be", "pcm_mulaw", "pcm_alaw", "adpcm_ms", "adpcm_ima_wav", "adpcm_ima_qt",
    "flac", "mp3", "mp3float", "opus", "libopus", "vorbis", "aac", "alac",
)  # fmt: skip
"""The decoders that may run; no video is ever decoded, not even to look what it is."""
SAMPLE_RATES = range(1_000, 384_001)
MAX_CHANNELS = 16
LONGEST_GAP = 0.5
"""Seconds that may be missing of what a header announces; encoders round and pad."""
LONGEST_PAUSE = 3600.0
"""Seconds that a recorder may have been paused between packets, or before the first; more is a clock that was set."""
STREAMED = 0x7FFFF000
"""Sizes from here on are what programs write that do not know yet how long a recording will be."""


def open_audio(source: AudioSource, *, max_bytes: float = MAX_BYTES, max_seconds: float = MAX_SECONDS) -> Waveform:
    """Decodes a whole recording.

    Args:
        source: a path, encoded bytes, or a waveform (taken as it is).
        max_bytes: size limit of the encoded file, in bytes; checked before reading.
        max_seconds: limit of the duration, in seconds; checked before and while decoding.

    Returns:
        float32 [S], mono, 16 kHz.

    Raises:
        AudioError: missing, not audio, truncated, damaged, without sound or too long.
    """
    if isinstance(source, np.ndarray):
        return source
    return np.concatenate(list(read_audio(source, max_bytes=max_bytes, max_seconds=max_seconds)))


def read_audio(
    source: str | Path | bytes, *, max_bytes: float = MAX_BYTES, max_seconds: float = MAX_SECONDS
) -> Iterator[Waveform]:
    """Decodes a recording piece by piece; arguments and errors are those of `open_audio`."""
    where = "recording" if isinstance(source, bytes) else str(source)
    with _opened(source, max_bytes, where) as file, _decoding_errors(where):
        kind = _known_format(file, where)
        _check_complete(file, kind, where)
        with _container(file, kind) as container:
            stream = _checked_stream(container, where)
            announced = _announced_seconds(container, stream, file)
            if announced > max_seconds:
                raise _too_long(announced, max_seconds, where)
            limit, samples = max_seconds * SAMPLE_RATE, 0
            lost: list[float] = []
            for piece in _resampled(_frames(container, stream, lost), kind in PAUSES):
                samples += len(piece)
                if samples > limit:
                    raise _too_long(samples / SAMPLE_RATE, max_seconds, where)
                yield piece
    if samples == 0:
        raise AudioError("the recording holds no sound", where=where, hint="Record it again.", kind="empty_audio")
    seconds = samples / SAMPLE_RATE - sum(lost)
    if announced - seconds > max(LONGEST_GAP, announced / 20):
        raise _cut_off(f"{announced:.1f} s announced, {seconds:.1f} s found", where)


def announced_seconds(path: str | Path) -> float:
    """The duration that a file's header announces, in seconds, unchecked; 0 where it says none, or cannot be read."""
    try:
        with _opened(path, UNLIMITED, str(path)) as file, _decoding_errors(str(path)):
            kind = _known_format(file, str(path))
            with _container(file, kind) as container:
                return _announced_seconds(container, _checked_stream(container, str(path)), file)
    except AudioError:
        return 0.0


def audio_seconds(source: AudioSource, *, max_bytes: float = MAX_BYTES, max_seconds: float = MAX_SECONDS) -> float:
    """The duration in seconds, by decoding and not keeping. Arguments and errors are those of `open_audio`."""
    if isinstance(source, np.ndarray):
        return len(source) / SAMPLE_RATE
    pieces = read_audio(source, max_bytes=max_bytes, max_seconds=max_seconds)
    return sum(map(len, pieces)) / SAMPLE_RATE


def resample(waveform: Waveform, rate: int) -> Waveform:
    """A mono waveform of another sample rate (in Hz) at 16 kHz."""
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform[None]), format="flt", layout="mono")
    frame.sample_rate = rate
    return np.concatenate(list(_resampled([frame])))


def to_wav(waveform: Waveform) -> bytes:
    """A waveform as the bytes of a 16-bit WAV file."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((waveform.clip(-1, 1) * (2**15 - 1)).astype("<i2").tobytes())
    return buffer.getvalue()


def _known_format(file: BinaryIO, where: str) -> str:
    """Which of `FORMATS` the first bytes are of. ffmpeg's own probing would also open play lists and what they name."""
    head = file.read(12)
    file.seek(0)
    if not head:
        raise AudioError("the recording is empty (0 bytes)", where=where, hint="Record it again.", kind="empty_audio")
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return "wav"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "aiff"
    if head[4:8] == b"ftyp":
        return "m4a"
    for magic, kind in ((b"fLaC", "flac"), (b"OggS", "ogg"), (b"\x1a\x45\xdf\xa3", "webm"), (b"caff", "caf")):
        if head.startswith(magic):
            return kind
    start = head
    if head.startswith(b"ID3") and len(head) > 9:  # a tag before either; seven bits a byte say how long it is
        file.seek(10 + sum(byte << 7 * place for place, byte in enumerate(reversed(head[6:10]))))
        start = file.read(2)
        file.seek(0)
    sync = int.from_bytes(start[:2])
    if sync & 0xFFF6 == 0xFFF0:  # a frame header of ADTS
        return "aac"
    if sync & 0xFFE6 == 0xFFE2 or head.startswith(b"ID3"):  # of MPEG audio, layer III
        return "mp3"
    raise AudioError(
        "not a recording Eden can read", where=where, hint=f"Use one of {', '.join(FORMATS)}.", kind="not_audio"
    )


def _container(file: BinaryIO, kind: str) -> Any:
    """The opened container; whatever its tracks are, only `CODECS` may decode them."""
    options = {"codec_whitelist": ",".join(CODECS)}
    return av.open(file, mode="r", format=DEMUXERS[kind], metadata_errors="ignore", options=options)


def _checked_stream(container: Any, where: str) -> Any:
    if not container.streams.audio:
        raise AudioError(
            "there is no sound in it (a video without an audio track)",
            where=where,
            hint="Give a recording with sound.",
            kind="empty_audio",
        )
    stream = container.streams.audio[0]
    context = stream.codec_context
    if context is None:  # of a codec that this ffmpeg has never heard of
        codec, rate, channels = "something unknown", SAMPLE_RATE, 1
    else:
        codec, rate, channels = context.name, context.sample_rate, context.channels
    for fault in (
        f"it is encoded as {codec}" if codec not in CODECS else "",
        f"it claims a sample rate of {rate:,} Hz" if rate not in SAMPLE_RATES else "",
        f"it claims {channels} channels" if not 0 < channels <= MAX_CHANNELS else "",
    ):
        if fault:
            hint = f"Save it as one of {', '.join(FORMATS)} at a usual sample rate."
            raise AudioError(f"Eden does not open this recording: {fault}", where=where, hint=hint, kind="not_audio")
    return stream


def _announced_seconds(container: Any, stream: Any, file: BinaryIO) -> float:
    """The duration the file's header announces, 0 where none is or it is a guess."""
    if container.format.name == "aac":  # ffmpeg guesses from the bit rate of the first frames
        return 0.0
    if container.format.name == "mp3":
        place = file.tell()
        file.seek(0)
        head = file.read(2**16)
        file.seek(place)
        if b"Xing" not in head and b"Info" not in head:  # ffmpeg then guesses from the first frame's bit rate
            return 0.0
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else 0.0


def _frames(container: Any, stream: Any, lost: list[float]) -> Iterator[Any]:
    """Decoded frames; what cannot be decoded is passed over, and its seconds are listed as lost."""
    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except av.InvalidDataError:
            lost.append(float((packet.duration or 0) * packet.time_base))


def _resampled(frames: Iterable[Any], pauses: bool = False) -> Iterator[Waveform]:
    """Frames at 16 kHz and as one channel; with `pauses`, silence where their times say that nothing was recorded."""
    resampler: Any = None
    weights = np.ones(1, dtype=np.float32)
    done = 0

    def pieces(frame: Any) -> Iterator[Waveform]:
        for part in resampler.resample(frame):
            # Packed: PyAV reads beyond the end of a frame that has a plane for each of eight channels.
            channels = part.to_ndarray().reshape(-1, len(weights)).T
            mixed = heard(np.nan_to_num(channels, nan=0.0, posinf=1.0, neginf=-1.0), weights)
            yield mixed.clip(-1, 1).astype(np.float32, copy=False)

    for frame in frames:
        pause = frame.time - done / SAMPLE_RATE if pauses and frame.time is not None else 0.0
        frame.pts = None  # small jumps are a recorder's rounding: the samples follow one another all the same
        if resampler is None:
            resampler = av.AudioResampler(format="flt", layout=frame.layout, rate=SAMPLE_RATE)
            weights = channel_weights(frame.layout)
        if LONGEST_GAP < pause <= LONGEST_PAUSE:
            for piece in _silence(pause):
                done += len(piece)
                yield piece
        for piece in pieces(frame):
            done += len(piece)
            yield piece
    if resampler is not None:
        yield from pieces(None)


def _silence(seconds: float) -> Iterator[Waveform]:
    for start in range(0, round(seconds * SAMPLE_RATE), SAMPLE_RATE):
        yield np.zeros(min(SAMPLE_RATE, round(seconds * SAMPLE_RATE) - start), dtype=np.float32)


def _check_complete(file: BinaryIO, kind: str, where: str) -> None:
    """Refuses a file that ends before its own structure says it does."""
    end_of_block = _END_OF_BLOCK.get(kind)
    if end_of_block is None:
        return
    size, position = file.seek(0, io.SEEK_END), {"wav": 12, "aiff": 12, "caf": 8}.get(kind, 0)
    while position < size:
        file.seek(position)
        head = file.read(27)
        following = end_of_block(head, position, file)
        if following is None:
            break
        # A pad byte may be missing, and all of what stands behind the sound.
        if following > size + 1 and (kind == "ogg" or not _SOUND.isdisjoint((head[:4], head[4:8]))):
            raise _cut_off(f"{following - size:,} bytes are missing", where)
        position = following
    file.seek(0)


_SOUND = {b"data", b"SSND", b"mdat", b"moov"}
"""Names of the blocks that a recording cannot be without, of all containers."""


def _end_of_chunk(head: bytes, position: int, file: BinaryIO) -> int | None:
    """Of a RIFF chunk (WAV); None where the file gives no length."""
    if len(head) < 8:
        return None
    size = struct.unpack("<I", head[4:8])[0]
    return None if size == 0 or size >= STREAMED else position + 8 + size + size % 2


def _end_of_big_chunk(head: bytes, position: int, file: BinaryIO) -> int | None:
    """Of an IFF chunk (AIFF), which is as a RIFF chunk with its size the other way round."""
    return _end_of_chunk(head[:4] + head[7:3:-1], position, file)


def _end_of_caf_chunk(head: bytes, position: int, file: BinaryIO) -> int | None:
    """Of a chunk of Apple's Core Audio Format."""
    size = int.from_bytes(head[4:12], signed=True) if len(head) >= 12 else 0
    return position + 12 + size if size > 0 else None


def _end_of_page(head: bytes, position: int, file: BinaryIO) -> int | None:
    """Of an Ogg page (RFC 3533)."""
    if not head.startswith(b"OggS"):
        return None
    if len(head) < 27:
        return position + 27
    lacing = file.read(head[26])
    return position + 27 + head[26] + sum(lacing)


def _end_of_box(head: bytes, position: int, file: BinaryIO) -> int | None:
    """Of an ISO base media box (MP4, ISO/IEC 14496-12)."""
    if len(head) < 16:
        return None
    size = struct.unpack(">I", head[:4])[0]
    if size == 1:
        size = struct.unpack(">Q", head[8:16])[0]
    return position + size if size >= 8 else None


_END_OF_BLOCK: dict[str, Callable[[bytes, int, BinaryIO], int | None]] = {
    "wav": _end_of_chunk,
    "aiff": _end_of_big_chunk,
    "caf": _end_of_caf_chunk,
    "ogg": _end_of_page,
    "m4a": _end_of_box,
}


@contextmanager
def _opened(source: str | Path | bytes, max_bytes: float, where: str) -> Iterator[BinaryIO]:
    if isinstance(source, bytes):
        if len(source) > max_bytes:
            raise _too_many_bytes(len(source), max_bytes, where)
        yield io.BytesIO(source)
        return
    path = Path(source)
    try:
        if not path.is_file():
            what = "no such recording" if not path.exists() else "not a file"
            raise AudioError(what, where=where, hint=check_the_path(path), kind="missing_audio")
        if (size := path.stat().st_size) > max_bytes:
            raise _too_many_bytes(size, max_bytes, where)
        file = path.open("rb")
    except (OSError, ValueError) as error:
        what = f"cannot read the recording ({first_line(error)})"
        raise AudioError(what, where=where, hint="Check the path.", kind="missing_audio") from None
    with file:
        yield file


@contextmanager
def _decoding_errors(where: str) -> Iterator[None]:
    try:
        yield
    except (av.FFmpegError, ValueError, struct.error) as error:
        reason = error.strerror if isinstance(error, av.FFmpegError) else first_line(error)
        raise AudioError(
            f"the recording is damaged ({reason})",
            where=where,
            hint="Restore or replace the file.",
            kind="damaged_audio",
        ) from None


def _cut_off(found: str, where: str) -> AudioError:
    return AudioError(
        f"the recording is cut off ({found})", where=where, hint="Copy or record it again.", kind="damaged_audio"
    )


def _too_long(seconds: float, limit: float, where: str) -> AudioError:
    return AudioError(
        f"the recording is longer than {limit / 60:,.4g} minutes (at least {seconds / 60:,.1f})",
        where=where,
        hint="Cut it into shorter pieces; `eden transcribe` takes any length.",
        kind="audio_too_long",
    )


def _too_many_bytes(size: int, limit: float, where: str) -> AudioError:
    return AudioError(
        f"the recording has {size:,} bytes, the limit is {limit:,.0f}",
        where=where,
        hint="Save it smaller, as ogg or mp3; `eden transcribe` takes any size.",
        kind="audio_too_long",
    )
