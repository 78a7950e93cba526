"""Recordings as programs and browsers write them, encoded by ffmpeg's own encoders."""

import io
from typing import Any

import av
import numpy as np

from eden.media.audio import SAMPLE_RATE, Waveform

CONTAINERS = {
    "wav": ("wav", "pcm_s16le"),
    "flac": ("flac", "flac"),
    "mp3": ("mp3", "libmp3lame"),
    "ogg": ("ogg", "libopus"),
    "m4a": ("ipod", "aac"),
    "webm": ("webm", "libopus"),
    "aac": ("adts", "aac"),
    "aiff": ("aiff", "pcm_s16be"),
    "caf": ("caf", "pcm_s16le"),
    "mp4": ("mp4", "aac"),
}
"""Names are their endings, with ffmpeg's format and codec; an MP4 has pictures beside the sound."""


def encode(
    waveform: Waveform, kind: str, *, rate: int = 48_000, layout: str = "mono", pauses: dict[float, float] | None = None
) -> bytes:
    """A waveform in one of `CONTAINERS`, at any sample rate and channel layout.

    With `pauses`, what comes after a time in seconds is written as recorded so much later: the recorder was paused.
    """
    container_format, codec = CONTAINERS[kind]
    buffer = io.BytesIO()
    pages = {"page_duration": "20000"} if kind == "ogg" and pauses else {}  # a page of Ogg has only one time
    with av.open(buffer, "w", format=container_format, options=pages) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        resampler = av.AudioResampler(
            format=stream.format.name, layout=layout, rate=rate, frame_size=stream.codec_context.frame_size or 0
        )
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform[None]), format="flt", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        pictures = add_pictures(container) if kind == "mp4" else None
        written = 0

        def paused(packet: av.Packet) -> av.Packet:
            if pauses is None:
                return packet
            at = float(packet.pts * packet.time_base)
            shift = sum(length for start, length in (pauses or {}).items() if at >= start - 0.05)
            packet.pts = packet.dts = packet.pts + round(shift / packet.time_base)
            return packet

        for part in (*resampler.resample(frame), *resampler.resample(None)):
            part.pts, written = written if pauses else None, written + part.samples
            container.mux(map(paused, stream.encode(part)))
        container.mux(map(paused, stream.encode(None)))
        for packet in encoded_pictures(pictures, len(waveform) / SAMPLE_RATE) if pictures else ():
            container.mux(paused(packet))
    return buffer.getvalue()


def add_pictures(container: Any) -> Any:
    """A track of ten pictures a second."""
    stream = container.add_stream("mpeg4", rate=10)
    stream.width = stream.height = 64
    return stream


def encoded_pictures(stream: Any, seconds: float) -> list[av.Packet]:
    """Black ones."""
    shown = [av.VideoFrame(64, 64, "yuv420p") for _ in range(round(10 * seconds))]
    return [packet for picture in [*shown, None] for packet in stream.encode(picture)]


def video_without_sound() -> bytes:
    """Half a second of black pictures in an MP4."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        container.mux(encoded_pictures(add_pictures(container), 0.5))
    return buffer.getvalue()


def tone(seconds: float, level: float = 0.3) -> Waveform:
    """A hum of 220 Hz."""
    return (level * np.sin(2 * np.pi * 220 * np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE)).astype(np.float32)
