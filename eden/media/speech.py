"""A waveform becomes text: Whisper on faster-whisper, for recordings of any length.

    pieces -> blocks of two minutes -> speech found (VAD) -> windows of at most Whisper's length -> segments

Memory is that of one block, however long the recording is. Source: https://arxiv.org/abs/2212.04356 (Whisper),
https://github.com/SYSTRAN/faster-whisper, https://arxiv.org/abs/2303.00747 (windows cut where nobody speaks).
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.environment import versions
from ..core.files import cache_folder, new_folder, sha256
from ..core.location import EDEN_TINY, EDEN_TINY_FOLDER, refuse_missing_folder
from ..core.private_api import whisper_class
from ..errors import CheckpointError, InputError, first_line
from ..messages import AudioSource
from .audio import MAX_BYTES, MAX_SECONDS, SAMPLE_RATE, Waveform, read_audio
from .mixing import MIXING

if TYPE_CHECKING:
    from faster_whisper import WhisperModel

EDEN_TINY_WHISPER = EDEN_TINY_FOLDER / "whisper"

BLOCK_SECONDS = 120
SHORTEST_SPEECH = 0.2
"""Seconds; a shorter recording holds no word."""
SURE = 0.5
"""Probability of a language below which a window is heard in that of the words before it: a few words tell little."""
PAUSE_MS, PADDING_MS = 500, 200
"""A pause that may end a window, and what is kept around speech."""
JOINED = 2 / 3
"""Utterances share a window up to this part of it: of a window full of them Whisper tends to drop the last."""

Progress = Callable[[float], None]
"""Called with the seconds of sound that are done."""


@dataclass(frozen=True)
class Segment:
    """Words said without a long pause, and the code of their language; times in seconds from the recording's begin."""

    start: float
    end: float
    text: str
    language: str | None = None


@dataclass(frozen=True)
class Transcript:
    """What was said.

    Attributes:
        text: all words, or nothing where nobody speaks.
        language: the code, as `en`, of the one that is spoken longest; None where nobody speaks and none was given.
        duration: of the recording, in seconds.
        segments: the words with their times.
    """

    text: str
    language: str | None
    duration: float
    segments: tuple[Segment, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_srt(self) -> str:
        """The segments as SubRip subtitles."""
        return "\n".join(
            f"{number}\n{_srt_time(segment.start)} --> {_srt_time(segment.end)}\n{segment.text}\n"
            for number, segment in enumerate(self.segments, 1)
        )


class Transcriber:
    """Whisper, loaded when it is first needed. Safe to share between threads.

    Args:
        model: `eden-tiny`, a size faster-whisper knows (`small`, `large-v3`, ...), a hub id, or a folder; a Hugging
            Face checkpoint is converted to CTranslate2 once and kept in the cache.
        language: a code as `en`, also `en-US` or `English`; None or `auto` lets Whisper tell in each window.
        device: `cpu` or `cuda`; None is the GPU if there is one.
        compute_type: CTranslate2's; None is int8 on a CPU and float16 on a GPU.
        beam_size: hypotheses that are followed at once; 1 is greedy and faster.
        workers: recordings that are worked on at once, each on its share of the cores.
    """

    def __init__(
        self,
        model: str = EDEN_TINY,
        *,
        language: str | None = None,
        device: str | None = None,
        compute_type: str | None = None,
        beam_size: int = 5,
        workers: int = 1,
    ):
        self.name = model
        self.language = language
        self.device = device
        self.compute_type = compute_type
        self.beam_size = beam_size
        self.workers = workers
        self._loading = threading.Lock()

    @property
    def model(self) -> WhisperModel:
        """The loaded Whisper.

        Raises:
            CheckpointError: there is no such model, or it is incomplete.
            InputError: it does not know the language.
        """
        with self._loading:
            return self._model

    @cached_property
    def fingerprint(self) -> str:
        """Changes with what a transcript depends on besides the recording: weights, language, decoding, libraries."""
        decoding = (self.language, self._number_format, self.beam_size)
        windows = (BLOCK_SECONDS, PAUSE_MS, PADDING_MS, JOINED, MIXING)
        made_by = versions("faster-whisper", "ctranslate2", "av")
        settings = f"{sha256(self._folder / 'model.bin')} {decoding} {windows} {made_by}"
        return hashlib.sha256(settings.encode()).hexdigest()[:16]

    def transcribe(
        self,
        source: AudioSource,
        *,
        language: str | None = None,
        max_bytes: float = MAX_BYTES,
        max_seconds: float = MAX_SECONDS,
        on_progress: Progress | None = None,
    ) -> Transcript:
        """All words of a recording.

        Args:
            source: a path, encoded bytes, or a waveform [S].
            language: of this recording; None is the transcriber's.
            max_bytes: size limit of the encoded recording, in bytes.
            max_seconds: limit of its duration, in seconds.
            on_progress: called after each segment and block.

        Raises:
            AudioError: missing, not audio, truncated, damaged, or too long.
            CheckpointError: the Whisper cannot be loaded.
            InputError: it does not know the language.
        """
        # What is wrong with it is said before anything is decoded.
        language = self._code(language or self.language, self.model)
        pieces: Iterable[Waveform]
        if isinstance(source, np.ndarray):
            pieces = [source.astype(np.float32, copy=False)]
        else:
            pieces = read_audio(source, max_bytes=max_bytes, max_seconds=max_seconds)
        segments: list[Segment] = []
        start = 0.0
        rest = np.zeros(0, dtype=np.float32)
        for block, is_last in _blocks(pieces):
            waveform = np.concatenate([rest, block])
            windows = self._windows(waveform)
            cut = len(waveform)
            if not is_last and windows and windows[-1][1] > cut - SAMPLE_RATE:
                cut = windows.pop()[0]  # the last words may go on in the next block
            if windows:
                known = segments[-1].language if segments else None
                segments += self._transcribe_windows(waveform[:cut], windows, language, known, start, on_progress)
            rest, start = waveform[cut:], start + cut / SAMPLE_RATE
            if on_progress is not None:
                on_progress(start)
        text = " ".join(segment.text for segment in segments)
        spoken: dict[str | None, float] = {}
        for segment in segments:
            spoken[segment.language] = spoken.get(segment.language, 0.0) + segment.end - segment.start
        most = max(spoken, key=lambda code: spoken[code]) if spoken else language
        return Transcript(text, most, round(start, 3), tuple(segments))

    def _windows(self, waveform: Waveform) -> list[tuple[int, int]]:
        """Where somebody speaks, in samples: cut at pauses, joined again while a window has room."""
        from faster_whisper.vad import VadOptions, get_speech_timestamps

        if len(waveform) < SHORTEST_SPEECH * SAMPLE_RATE:
            return []
        longest = self.model.feature_extractor.n_samples
        options = VadOptions(
            max_speech_duration_s=longest / SAMPLE_RATE,
            min_silence_duration_ms=PAUSE_MS,
            speech_pad_ms=PADDING_MS,
        )
        windows: list[tuple[int, int]] = []
        for span in get_speech_timestamps(waveform, options):
            if windows and span["end"] - windows[-1][0] <= JOINED * longest:
                windows[-1] = windows[-1][0], span["end"]
            else:
                windows.append((span["start"], span["end"]))
        return windows

    def _transcribe_windows(
        self,
        waveform: Waveform,
        windows: list[tuple[int, int]],
        language: str | None,
        known: str | None,
        offset: float,
        on_progress: Progress | None,
    ) -> list[Segment]:
        """The segments of the windows, `offset` seconds later; without a language, each window tells its own."""
        parts = [(waveform, windows, offset)]
        if language is None and self.model.model.is_multilingual:
            parts = [(waveform[a:b], [(0, b - a)], offset + a / SAMPLE_RATE) for a, b in windows]
        segments = []
        for sound, clips, at in parts:
            found, info = self._decode(sound, clips, language)
            if known is not None and info.language_probability < SURE:
                found, info = self._decode(sound, clips, known)
            known = info.language
            for segment in found:
                start, end = round(at + segment.start, 3), round(at + segment.end, 3)
                segments.append(Segment(start, end, segment.text.strip(), known))
                if on_progress is not None:
                    on_progress(end)
        return segments

    def _decode(self, waveform: Waveform, windows: list[tuple[int, int]], language: str | None) -> tuple[Any, Any]:
        """faster-whisper's segments, which are decoded when they are taken, and what it knows of the whole."""
        # One greedy temperature, so that a recording always gives the same words; the windows are independent.
        return self.model.transcribe(
            waveform,
            language=language,
            beam_size=self.beam_size,
            temperature=0.0,
            condition_on_previous_text=False,
            clip_timestamps=[sample / SAMPLE_RATE for window in windows for sample in window],
        )

    @cached_property
    def _folder(self) -> Path:
        return find_whisper(self.name)

    @cached_property
    def _device(self) -> str:
        import ctranslate2

        return self.device or ("cuda" if ctranslate2.get_cuda_device_count() else "cpu")

    @property
    def _number_format(self) -> str:
        return self.compute_type or ("float16" if self._device == "cuda" else "int8")

    @cached_property
    def _model(self) -> WhisperModel:
        folder = self._folder
        try:
            model = whisper_class()(
                str(folder),
                device=self._device,
                compute_type=self._number_format,
                cpu_threads=0 if self.workers == 1 else 1,
                num_workers=self.workers,
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise CheckpointError(
                f"the Whisper cannot be loaded ({first_line(error)})",
                where=str(folder),
                hint="Copy or download it again.",
            ) from error
        self._code(self.language, model)
        return model

    def _code(self, language: str | None, model: WhisperModel) -> str | None:
        """The code of a language as people write it; None of `auto`."""
        written = (language or "auto").strip().lower()
        if written == "auto":
            return None
        code = re.split("[-_]", written)[0]
        if code not in model.supported_languages:
            from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

            code = TO_LANGUAGE_CODE.get(written, code)
        if code not in model.supported_languages:
            known = "English only" if not model.model.is_multilingual else "Whisper's languages, by code as `en`"
            raise InputError(
                f"it does not hear the language {language!r}",
                where=self.name,
                hint=f"It knows {known}.",
                kind="unsupported_language",
            )
        return code


def find_whisper(name: str) -> Path:
    """The local folder of a Whisper in CTranslate2's format, downloaded or converted if need be.

    Raises:
        CheckpointError: there is no such model, or it cannot be converted.
    """
    from faster_whisper.utils import available_models, download_model

    folder = EDEN_TINY_WHISPER if name == EDEN_TINY else Path(name)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        refuse_missing_folder(name)

        try:
            if name in available_models():
                return Path(download_model(name))
            folder = Path(snapshot_download(name))
        except Exception as error:  # the hub's client, httpx and the file system each have their own
            raise CheckpointError(
                f"no such folder, and no such Whisper on the hub ({first_line(error)})",
                where=name,
                hint="Give a size (tiny, base, small, ...), a hub id or a folder, and check the network.",
            ) from error
    if (folder / "model.bin").exists():
        return folder
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")])
    if not weights or not (folder / "config.json").exists():
        raise CheckpointError(
            "the folder holds no Whisper", where=str(folder), hint="Give one in CTranslate2's or Hugging Face's format."
        )
    return _converted(folder, weights)


def _converted(folder: Path, weights: list[Path]) -> Path:
    """A Hugging Face Whisper in CTranslate2's format, made once for the same weights and kept in the cache."""
    contents = " ".join(map(sha256, (folder / "config.json", *weights)))
    target = cache_folder() / "whisper" / hashlib.sha256(contents.encode()).hexdigest()[:16]
    if not (target / "model.bin").exists():
        convert_whisper(folder, target, quantization="float16")
    return target


def convert_whisper(folder: Path, target: Path, *, quantization: str) -> None:
    """Writes a Hugging Face Whisper in CTranslate2's format, with all that faster-whisper reads beside it.

    Args:
        folder: of a `WhisperForConditionalGeneration` with tokenizer and feature extractor.
        target: the folder to write.
        quantization: CTranslate2's number format of the weights on disk.

    Raises:
        CheckpointError: it is no complete Whisper.
        StorageError: the disk is full or not writable.
    """
    from ctranslate2.converters import TransformersConverter
    from transformers import AutoTokenizer, WhisperFeatureExtractor

    with new_folder(target) as new:
        try:
            TransformersConverter(str(folder)).convert(str(new), quantization=quantization, force=True)
            AutoTokenizer.from_pretrained(folder).backend_tokenizer.save(str(new / "tokenizer.json"))
            WhisperFeatureExtractor.from_pretrained(folder).save_pretrained(new)
        except (OSError, ValueError, KeyError, RuntimeError, AttributeError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise CheckpointError(
                f"no Whisper that can be converted ({first_line(error)})",
                where=str(folder),
                hint="Give a complete Whisper checkpoint: weights, tokenizer and preprocessor_config.json.",
            ) from error


def _blocks(pieces: Iterable[Waveform]) -> Iterator[tuple[Waveform, bool]]:
    """Pieces joined to blocks of `BLOCK_SECONDS`, each with whether it is the last."""
    size, held, count = BLOCK_SECONDS * SAMPLE_RATE, [np.zeros(0, dtype=np.float32)], 0
    for piece in pieces:
        held.append(piece)
        count += len(piece)
        while count > size:
            joined = np.concatenate(held)
            yield joined[:size], False
            held, count = [joined[size:]], count - size
    yield np.concatenate(held), True


def _srt_time(seconds: float) -> str:
    whole = round(seconds * 1000)
    return f"{whole // 3_600_000:02}:{whole // 60_000 % 60:02}:{whole // 1000 % 60:02},{whole % 1000:03}"
