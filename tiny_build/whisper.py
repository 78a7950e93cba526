"""eden-tiny's speech model: a Whisper of 1.6 million weights, trained from nothing on spoken sentences of the world.

A window is 6 s instead of 30 s; all else is Whisper's: its tokens, timestamps, features and decoding. A CTC loss on the
encoder, dropped after training, makes it find the words in the sound much sooner.

Source: Whisper, https://arxiv.org/abs/2212.04356; CTC beside attention, https://arxiv.org/abs/1609.06773.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from eden.core.console import progress
from eden.core.files import new_folder
from eden.data.collate import collate
from eden.media.audio import SAMPLE_RATE, Waveform
from eden.media.speech_synthesis import random_voice, speak
from eden.model.loss import IGNORE_INDEX

from .optimize import optimize
from .sentences import as_heard, sentences

WINDOW_SECONDS = 6
TIME_STEP = 0.02
"""Seconds between two timestamp tokens, as Whisper has it."""
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|startoftranscript|>", "<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>",
    "<|nocaptions|>", "<|notimestamps|>",
)  # fmt: skip
"""In the order of English Whisper's, which has languages among them; the timestamps follow."""
ENCODER_STRIDE = 2
CTC_SHARE = 0.3
LONGEST_CLIP = 5.2
"""Seconds; the window must also hold silence around the speech."""


@dataclass(frozen=True)
class HearingConfig:
    """How the Whisper is made; lengths in optimizer steps."""

    seed: int = 0
    clips: int = 40_000
    steps: int = 8_000
    batch: int = 32
    learning_rate: float = 1.5e-3
    muon_learning_rate: float = 3e-3
    width: int = 128
    encoder_layers: int = 4
    decoder_layers: int = 2


@dataclass(frozen=True)
class Clip:
    """One spoken sentence: its token ids, and its samples as int16 [S]."""

    ids: list[int]
    samples: np.ndarray[Any, np.dtype[np.int16]]


def train_whisper(config: HearingConfig, held_out: Collection[str], out: Path, console: Console) -> None:
    """Trains a Whisper from nothing and saves it, with tokenizer and feature extractor, as transformers does.

    Args:
        config: sizes and lengths.
        held_out: sentences (`sentences.plain_words`) that must not be in training.
        out: the folder to write.
        console: where progress is shown.
    """
    torch.manual_seed(config.seed)
    rng = random.Random(f"hearing {config.seed}")
    said = sentences(rng, held_out)
    tokenizer = build_tokenizer(as_heard(next(said)) for _ in range(20_000))
    clips: list[Clip] = []
    with progress(console) as bar:
        for _ in bar.track(range(config.clips), description="speaking sentences"):
            sentence = next(said)
            samples = speak(sentence, random_voice(rng, "train"))
            if len(samples) <= LONGEST_CLIP * SAMPLE_RATE:
                pcm = np.clip(samples * 2**15, -(2**15), 2**15 - 1).astype(np.int16)
                clips.append(Clip(tokenizer.encode(as_heard(sentence), add_special_tokens=False), pcm))
    extractor = WhisperFeatureExtractor(chunk_length=WINDOW_SECONDS)
    model = new_whisper(config, tokenizer)
    ctc_head = torch.nn.Linear(config.width, len(tokenizer) + 1)  # the last is CTC's blank

    def loss(step: int) -> torch.Tensor:
        windows = [_window(clips, rng) for _ in range(config.batch)]
        return _loss(model, ctc_head, tokenizer, extractor, windows, rng)

    trained = torch.nn.ModuleDict({"whisper": model, "ctc_head": ctc_head})
    optimize(
        trained,
        loss,
        steps=config.steps,
        learning_rate=config.learning_rate,
        muon_learning_rate=config.muon_learning_rate,
        name="hearing",
        console=console,
    )
    model.eval()
    with new_folder(out) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        extractor.save_pretrained(folder)


def build_tokenizer(texts: Iterable[str], pieces: int = 640) -> WhisperTokenizer:
    """Byte-level BPE laid out as English Whisper's: pieces, `SPECIAL_TOKENS`, and in the model alone the timestamps."""
    draft = ByteLevelBPETokenizer()
    draft.train_from_iterator((" " + text for text in texts), vocab_size=pieces, min_frequency=2, show_progress=False)
    learned = json.loads(draft.to_str())["model"]
    merges = [tuple(pair) for pair in learned["merges"]]
    tokenizer = WhisperTokenizer(vocab=learned["vocab"], merges=merges, pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS[1:])})
    return tokenizer


def new_whisper(config: HearingConfig, tokenizer: WhisperTokenizer) -> WhisperForConditionalGeneration:
    end, start = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|startoftranscript|>"])
    heads = config.width // 32
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=len(tokenizer) + round(WINDOW_SECONDS / TIME_STEP) + 1,
            d_model=config.width,
            encoder_layers=config.encoder_layers,
            decoder_layers=config.decoder_layers,
            encoder_attention_heads=heads,
            decoder_attention_heads=heads,
            encoder_ffn_dim=4 * config.width,
            decoder_ffn_dim=4 * config.width,
            max_source_positions=round(WINDOW_SECONDS / TIME_STEP),
            dropout=0.1,
            pad_token_id=end,
            bos_token_id=end,
            eos_token_id=end,
            decoder_start_token_id=start,
            suppress_tokens=[],
            begin_suppress_tokens=[],
        )
    )
    model.generation_config = GenerationConfig(
        decoder_start_token_id=start,
        eos_token_id=end,
        pad_token_id=end,
        suppress_tokens=[],
        begin_suppress_tokens=[],
    )
    return model


@dataclass(frozen=True)
class Window:
    """What the model hears at once: samples float32 [S], and each sentence in it as (ids, start, end in seconds)."""

    samples: Waveform
    spoken: list[tuple[list[int], float, float]]


def _window(clips: Sequence[Clip], rng: random.Random) -> Window:
    """One sentence or two with silence around them, or nothing at all; gain, noise and bandwidth left to chance."""
    chosen = rng.choices(clips, k=rng.choice((1, 1, 1, 2))) if rng.random() > 0.03 else []
    samples = np.zeros(WINDOW_SECONDS * SAMPLE_RATE, dtype=np.float32)
    spoken: list[tuple[list[int], float, float]] = []
    end = _seconds(rng.uniform(0, 0.7))
    for clip in chosen:
        start, stop = end, end + len(clip.samples)
        if stop > len(samples) - _seconds(0.1):
            break
        samples[start:stop] = clip.samples / np.float32(2**15)
        spoken.append((clip.ids, start / SAMPLE_RATE, stop / SAMPLE_RATE))
        end = stop + _seconds(rng.uniform(0.1, 0.9))
    if not spoken:
        end = _seconds(rng.uniform(0.5, WINDOW_SECONDS))
    if rng.random() < 0.3:  # a telephone, or a recording at 8 kHz
        samples = _filtered(samples, lambda bins: bins < len(bins) * rng.uniform(0.4, 1.0))
    if rng.random() < 0.65:
        level = float(np.sqrt(np.mean(samples[:end] ** 2))) or 0.05
        hiss = np.random.default_rng(rng.getrandbits(32)).standard_normal(len(samples), dtype=np.float32)
        if rng.random() < 0.5:  # the noise of rooms and streets is louder in its low tones
            hiss = _filtered(hiss, lambda bins: 1 / np.sqrt(bins + 20))
            hiss /= hiss.std()
        samples = samples + hiss * np.float32(level * 10 ** (-rng.uniform(4, 40) / 20))
    samples *= np.float32(10 ** (-rng.uniform(-6, 30) / 20))
    return Window(samples[: min(end, len(samples))].clip(-1, 1), spoken)


def _filtered(samples: Waveform, gain: Callable[[Any], Any]) -> Waveform:
    """The samples with each bin of their spectrum times its gain."""
    spectrum = np.fft.rfft(samples)
    return np.fft.irfft(spectrum * gain(np.arange(len(spectrum))), len(samples)).astype(np.float32)


def _seconds(seconds: float) -> int:
    return int(seconds * SAMPLE_RATE)


def _labels(window: Window, tokenizer: WhisperTokenizer, rng: random.Random) -> list[int]:
    """What the decoder is to say, half of the time with timestamps, as Whisper is trained."""
    end, nothing, plain = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|nocaptions|>", "<|notimestamps|>"])
    if not window.spoken:
        return [nothing, end]
    if rng.random() < 0.5:
        return [plain, *(token for ids, _, _ in window.spoken for token in ids), end]
    first = len(tokenizer)
    labels = []
    for ids, start, stop in window.spoken:
        labels += [first + round(start / TIME_STEP), *ids, first + round(stop / TIME_STEP)]
    return [*labels, end]


def _loss(
    model: WhisperForConditionalGeneration,
    ctc_head: torch.nn.Linear,
    tokenizer: WhisperTokenizer,
    extractor: WhisperFeatureExtractor,
    windows: list[Window],
    rng: random.Random,
) -> torch.Tensor:
    with torch.autocast("cpu", enabled=False):
        features = extractor(
            [window.samples for window in windows], sampling_rate=SAMPLE_RATE, padding="max_length", return_tensors="pt"
        )["input_features"]
    for row, window in zip(features, windows, strict=True):
        if rng.random() < 0.8:  # faster-whisper fills a window with zeros, transformers with silence
            row[:, len(window.samples) // extractor.hop_length :] = 0
    given = tokenizer.convert_tokens_to_ids("<|notimestamps|>")  # a prompt's word, so it is not supervised
    examples = []
    for row in (_labels(window, tokenizer, rng) for window in windows):
        labels = [IGNORE_INDEX if token == given else token for token in row]
        examples.append({"input_ids": [model.config.decoder_start_token_id, *row[:-1]], "labels": labels})
    batch = collate(examples, model.config.pad_token_id)
    output = model(input_features=features, decoder_input_ids=batch["input_ids"], labels=batch["labels"])
    heard = ctc_head(output.encoder_last_hidden_state).float().log_softmax(-1).transpose(0, 1)  # [T,B,V+1]
    targets = [[token for ids, _, _ in window.spoken for token in ids] for window in windows]
    frames = [min(len(heard), len(w.samples) // extractor.hop_length // ENCODER_STRIDE + 1) for w in windows]
    ctc = torch.nn.functional.ctc_loss(
        heard,
        torch.tensor([token for target in targets for token in target]),
        torch.tensor(frames),
        torch.tensor([len(target) for target in targets]),
        blank=ctc_head.out_features - 1,
        zero_infinity=True,
    )
    return (1 - CTC_SHARE) * output.loss + CTC_SHARE * ctc
