"""The channels of a recording become one."""

from __future__ import annotations

from typing import Any, TypeAlias

import av
import numpy as np

Floats: TypeAlias = "np.ndarray[Any, np.dtype[np.float32]]"

MIXING = 2
"""To be raised where channels are mixed otherwise than before: a transcript that is kept was heard from the mix."""
CANCELLED = 0.05
"""Share of the sound of channels that is lost where their mix is silent, as of stereo with one channel inverted."""


def channel_weights(layout: av.AudioLayout) -> Floats:
    """Each channel's share of the mix [C]: ffmpeg's, scaled so that what is on all of them is not clipped."""
    count = len(layout.channels)
    each_alone = np.eye(count, dtype=np.float32).reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(each_alone, format="flt", layout=layout)
    frame.sample_rate = 16_000
    try:
        (mixed,) = av.AudioResampler(format="flt", layout="mono", rate=frame.sample_rate).resample(frame)
    except av.FFmpegError:  # of these channels it is not known where they stand
        return np.full(count, 1 / count, dtype=np.float32)
    weights: Floats = mixed.to_ndarray()[0]
    return weights / max(1.0, weights.sum())


def heard(channels: Floats, weights: Floats) -> Floats:
    """The mix [S] of channels [C, S], or the loudest of them where they cancel one another."""
    if len(channels) == 1:
        return channels[0]
    mixed: Floats = weights @ channels
    power = np.square(channels).mean(axis=1)
    cancelled = np.square(mixed).mean() < CANCELLED * power.sum() / len(channels) ** 2
    loudest: Floats = channels[int(power.argmax())]
    return loudest if cancelled else mixed
