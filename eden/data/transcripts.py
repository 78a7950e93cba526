"""What was said in the recordings of a data set: computed once, kept by content, and gone on with after a stop.

One JSON-lines file for each Whisper and way of decoding; a line is written when a recording is done, so that a run that
is killed loses nothing but the recordings it was at.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..core.files import cache_folder, sha256, storage_error
from ..errors import AudioError, DataError
from ..media.speech import Transcriber
from ..messages import AudioSource, MediaSource, transcribe_message
from .cache import digest
from .formats import Sample
from .store import RecordStore


class TranscriptStore:
    """Transcripts by the SHA-256 of the recording's bytes.

    Args:
        transcriber: whose transcripts these are.
        folder: where they are kept; None is Eden's cache.

    Raises:
        StorageError: the folder is not writable.
    """

    def __init__(self, transcriber: Transcriber, folder: str | Path | None = None):
        self.transcriber = transcriber
        self.path = Path(folder or cache_folder() / "transcripts") / f"{transcriber.fingerprint}.jsonl"
        self._words: dict[str, str] = {}
        self._writing = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines = self.path.read_bytes().split(b"\n") if self.path.exists() else []
        except OSError as error:
            raise storage_error(error, self.path) from error
        for line in lines:
            try:
                row = json.loads(line)
                self._words[row["sha256"]] = row["text"]
            except (ValueError, KeyError, TypeError):  # cut off when a run was killed
                continue

    def __len__(self) -> int:
        return len(self._words)

    def words(self, source: AudioSource) -> str:
        """What is said in a recording, from the store or, once, from Whisper.

        Raises:
            AudioError: it cannot be read.
            StorageError: the disk is full.
        """
        key = content_digest(source)
        if key not in self._words:
            text = self.transcriber.transcribe(source).text
            row = json.dumps({"sha256": key, "text": text}, ensure_ascii=False)
            with self._writing:
                self._append(row)
                self._words[key] = text
        return self._words[key]

    def _append(self, row: str) -> None:
        # A line break before as well as after: a line that was cut off stays alone.
        try:
            with self.path.open("ab") as file:
                file.write(f"\n{row}\n".encode())
        except OSError as error:
            raise storage_error(error, self.path) from error


def transcribe_samples(
    samples: Sequence[Sample],
    store: TranscriptStore,
    *,
    on_error: Literal["fail", "skip"] = "fail",
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Sample], list[DataError]]:
    """The samples in words (`in_words`), and the errors of those left out.

    Args:
        samples: checked samples.
        store: of the transcripts.
        on_error: `fail` at the first recording in which nothing is said, or `skip` its sample.
        on_progress: called with (recordings done, recordings in all).

    Raises:
        DataError: a recording cannot be read or nothing is said in it; the message names the sample.
    """
    words = heard_words(samples, store, on_progress)
    transcribed: list[Sample] = []
    faults: list[DataError] = []
    for found in words_or_faults(samples, words, on_error):
        if isinstance(found, DataError):
            faults.append(found)
        else:
            transcribed.append(found)
    return transcribed, faults


def words_or_faults(
    samples: Iterable[Sample], heard: Mapping[str, str | AudioError], on_error: str
) -> Iterator[Sample | DataError]:
    """Each sample in words, or why it is not; `on_error` as of `transcribe_samples`."""
    for sample in samples:
        try:
            yield in_words(sample, heard)
        except DataError as fault:
            if on_error == "fail":
                raise
            yield fault


def heard_words(
    samples: Iterable[Sample], store: TranscriptStore, on_progress: Callable[[int, int], None] | None = None
) -> dict[str, str | AudioError]:
    """What is said in the recordings of samples, by their names, or why one cannot be read; arguments as above."""
    spoken = {_name(part.source): part.source for sample in samples for m in sample.messages for part in m.audio}
    heard: dict[str, str | AudioError] = {}

    def attempt(source: AudioSource) -> str | AudioError:
        try:
            return store.words(source)
        except AudioError as error:
            return error

    with ThreadPoolExecutor(store.transcriber.workers) as pool:
        for name, found in zip(spoken, pool.map(attempt, spoken.values()), strict=True):
            heard[name] = found
            if on_progress is not None:
                on_progress(len(heard), len(spoken))
    return heard


def in_words(sample: Sample, heard: Mapping[str, str | AudioError]) -> Sample:
    """The sample with each recording as text (`eden.messages.transcribe_message`).

    Raises:
        DataError: a recording cannot be read or nothing is said in it; the message names the sample.
    """

    def words(source: AudioSource) -> str:
        found = heard[_name(source)]
        if isinstance(found, AudioError):
            raise found
        return found

    try:
        return replace(sample, messages=tuple(transcribe_message(message, words) for message in sample.messages))
    except AudioError as error:
        raise DataError(error.fault.at(sample.where)) from error


class HeardStore(RecordStore):
    """A store whose samples are in words.

    Args:
        store: the records.
        heard: `heard_words` of them.
        unheard: rows with a recording that cannot be had in words; they count as faulty.
    """

    def __init__(self, store: RecordStore, heard: Mapping[str, str | AudioError], unheard: Sequence[int]):
        vars(self).update(vars(store))
        self._heard, self._unheard = heard, list(unheard)
        self.variant = digest(json.dumps(sorted((name, str(words)) for name, words in heard.items())))

    def faulty(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        faulty = super().faulty()
        faulty[self._unheard] = True
        return faulty

    def sample(self, row: int) -> Sample:
        return in_words(super().sample(row), self._heard)


def _name(source: AudioSource) -> str:
    return content_digest(source) if isinstance(source, bytes | np.ndarray) else str(source)


def content_digest(source: AudioSource | MediaSource) -> str:
    """The SHA-256 of a recording or a picture: of its file's bytes, or of its samples or pixels.

    Raises:
        AudioError: it cannot be read.
    """
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    if not isinstance(source, str | Path):
        values = np.asarray(source)
        return hashlib.sha256(f"{values.shape} {values.dtype}".encode() + values.tobytes()).hexdigest()
    try:
        return sha256(Path(source))
    except OSError as error:
        raise AudioError(f"cannot be read ({error.strerror})", where=str(source), hint="Check the path.") from None
