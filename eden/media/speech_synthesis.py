"""Text becomes speech, with espeak-ng: many voices, none of them a person's.

The library's state runs on from one text to the next, so that a text said twice differs in its last bits; the same
texts in the same order, in a new process, give the same samples.

Source: espeak-ng, https://github.com/espeak-ng/espeak-ng, as packed by `espeakng-loader`.
"""

from __future__ import annotations

import ctypes
import random
import threading
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeAlias

import numpy as np

from ..errors import RunError
from .audio import Waveform, resample

VoiceSplit: TypeAlias = Literal["train", "test"]

ACCENTS = (
    "en", "en-us", "en-gb-x-rp", "en-gb-scotland", "en-029", "en-us-nyc", "en-gb-x-gbclan", "en-gb-x-gbcwmd",
)  # fmt: skip
SPEAKERS: dict[VoiceSplit, tuple[str, ...]] = {
    "train": (
        "m1", "m2", "m3", "m4", "m5", "m7", "m8", "f1", "f2", "f3", "f5", "Alex", "Alicia", "Andrea", "Andy", "Denis",
        "Diogo", "Gene", "Hugo", "Jacky", "Lee", "Marco", "Mario", "Michael", "Mike", "Nguyen", "Reed", "adam", "anika",
        "antonio", "aunty", "david", "ed", "edward", "grandma", "grandpa", "gustave", "ian", "john", "klatt", "klatt3",
        "max", "michel", "miguel", "norbert", "pablo", "pedro", "quincy", "rob", "robert", "sandro", "shelby", "steph",
        "travis", "victor",
    ),
    "test": ("f4", "m6", "Annie", "belinda", "boris", "paul"),
}  # fmt: skip
"""espeak-ng's variants; those of the test are never heard in training."""

# Of espeak-ng's speak_lib.h.
_SYNCHRONOUS, _CHARS_UTF8 = 2, 1
_RATE, _PITCH = 1, 3
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True)
class Voice:
    """Who speaks, and how.

    Attributes:
        accent: one of `ACCENTS`.
        speaker: an espeak-ng variant, see `SPEAKERS`.
        speed: words a minute.
        pitch: 0 to 100, 50 is the speaker's own.
    """

    accent: str = "en"
    speaker: str = "f4"
    speed: int = 165
    pitch: int = 50


def random_voice(rng: random.Random, split: VoiceSplit) -> Voice:
    """Any accent with a speaker of the split, at a speed and pitch people talk at."""
    return Voice(rng.choice(ACCENTS), rng.choice(SPEAKERS[split]), rng.randint(145, 210), rng.randint(35, 65))


def speak(text: str, voice: Voice | None = None) -> Waveform:
    """Speaks a text.

    Returns:
        float32 [S], mono, 16 kHz, within -1 and 1.

    Raises:
        RunError: espeak-ng is not installed, or has no such voice.
    """
    return _engine().speak(text, voice or Voice())


def add_noise(waveform: Waveform, snr_db: float, seed: int) -> Waveform:
    """White noise at a signal-to-noise ratio, in dB over the whole recording [S]."""
    noise = np.random.default_rng(seed).standard_normal(len(waveform)).astype(np.float32)
    return waveform + noise * np.float32(np.sqrt(np.mean(waveform**2) / 10 ** (snr_db / 10)))


class _Engine:
    """The library keeps one state for the whole process, so there is one engine, and one text at a time."""

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise RunError(
                "speaking needs espeak-ng", hint="Install it: pip install 'eden-multimodal[spoken]'."
            ) from error
        self._library: Any = ctypes.CDLL(espeakng_loader.get_library_path())
        self._rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
        if self._rate <= 0:
            raise RunError("espeak-ng does not start", hint="Install espeakng-loader anew.")
        self._samples: list[np.ndarray[Any, np.dtype[np.int16]]] = []
        self._callback = _CALLBACK(self._receive)  # kept: the library holds only its address
        self._library.espeak_SetSynthCallback(self._callback)
        self._lock = threading.Lock()

    def speak(self, text: str, voice: Voice) -> Waveform:
        name = f"{voice.accent}+{voice.speaker}"
        with self._lock:
            self._samples = []
            if self._library.espeak_SetVoiceByName(name.encode()) != 0:
                raise RunError(f"espeak-ng has no voice {name!r}", hint="Choose an accent and a speaker it has.")
            self._library.espeak_SetParameter(_RATE, voice.speed, 0)
            self._library.espeak_SetParameter(_PITCH, voice.pitch, 0)
            encoded = text.encode()
            self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 0, 0, _CHARS_UTF8, None, None)
            self._library.espeak_Synchronize()
            said = np.concatenate(self._samples) if self._samples else np.zeros(0, dtype=np.int16)
        return resample(said.astype(np.float32) / np.float32(2**15), self._rate)

    def _receive(self, samples: Any, number: int, events: Any) -> int:
        if samples and number > 0:
            self._samples.append(np.ctypeslib.as_array(samples, (number,)).copy())
        return 0


@cache
def _engine() -> _Engine:
    return _Engine()
