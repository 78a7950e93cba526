"""Seconds of sound a second, for the same Whisper weights: Eden's Transcriber beside transformers' own pipeline.

Whisper-tiny and whisper-small in their real shapes with random weights. Both decode the same number of tokens a window,
with the same number of beams; what they write means nothing. `python -m bench.speech`.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import pre_tokenizers
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
    pipeline,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from bench.table import Row, show
from bench.timing import timed
from eden.media.audio import SAMPLE_RATE
from eden.media.speech import Transcriber, convert_whisper
from eden.media.speech_synthesis import speak

NEW_TOKENS = 32
SHAPES = {
    "whisper-tiny": {"d_model": 384, "layers": 4, "heads": 6},
    "whisper-small": {"d_model": 768, "layers": 12, "heads": 12},
}
TEXT_TOKENS, ALL_TOKENS = 50_257, 51_865


def measure() -> list[Row]:
    """Both rates for each shape and number of beams."""
    transformers.utils.logging.set_verbosity_error()
    sentence = "The small red star is at the top left of the picture, and the large blue circle is in the center. "
    waveform = speak(sentence * 10)
    seconds, rows = len(waveform) / SAMPLE_RATE, []
    with tempfile.TemporaryDirectory() as folder:
        for name, shape in SHAPES.items():
            path = Path(folder) / name
            write_random_whisper(path / "hf", **shape)
            convert_whisper(path / "hf", path / "ct2", quantization="float16")
            for beams in (1, 5):
                ours, windows = through_eden(path / "ct2", waveform, beams)
                theirs = through_transformers(path / "hf", waveform, beams)
                what = f"{name}, {beams} beam{'s' * (beams > 1)}, {seconds:.0f} s of speech in {windows} windows"
                rates = seconds / ours, seconds / theirs
                rows.append(Row(what, rates[0], "s of sound a second", "transformers' pipeline, fp32", rates[1]))
    return rows


def through_eden(folder: Path, waveform: np.ndarray, beams: int) -> tuple[float, int]:
    """Seconds, after a warm-up, and windows of 30 s that were decoded."""
    transcriber = Transcriber(str(folder), language="en", beam_size=beams)
    transcriber.model.max_length = 2 * NEW_TOKENS  # CTranslate2 writes at most half of it
    transcriber.transcribe(waveform[: 5 * SAMPLE_RATE])
    decoded: list[int] = []
    generate = transcriber.model.generate_with_fallback

    def counted(*arguments, **options):
        result = generate(*arguments, **options)
        decoded.append(len(result[0].sequences_ids[0]))
        return result

    transcriber.model.generate_with_fallback = counted
    _, seconds = timed(lambda: transcriber.transcribe(waveform))
    assert set(decoded) == {NEW_TOKENS}, f"a window ended early: {decoded}"
    return seconds, len(decoded)


def through_transformers(folder: Path, waveform: np.ndarray, beams: int) -> float:
    """Seconds, after a warm-up."""
    pipe = pipeline("automatic-speech-recognition", model=str(folder), chunk_length_s=30, device="cpu")
    options = {
        "max_new_tokens": NEW_TOKENS,
        "min_new_tokens": NEW_TOKENS,
        "num_beams": beams,
        "language": "en",
        "task": "transcribe",
    }
    with torch.inference_mode():
        pipe(waveform[: 5 * SAMPLE_RATE], generate_kwargs=options)
        return timed(lambda: pipe(waveform, generate_kwargs=options))[1]


def write_random_whisper(folder: Path, d_model: int, layers: int, heads: int) -> None:
    """A multilingual Whisper of real shape with random weights, a tokenizer of the real layout with made-up pieces."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(f"p{number}" for number in range(TEXT_TOKENS - len(letters) - 1))]
    vocabulary = {piece: index for index, piece in enumerate([*pieces, "<|endoftext|>"])}
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[], pad_token="<|endoftext|>")
    special = ["<|startoftranscript|>", *(f"<|{code}|>" for code in list(LANGUAGES)[:99]), "<|translate|>"]
    special += ["<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in ["<|endoftext|>", *special]}
    end = ids["<|endoftext|>"]
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=ALL_TOKENS,
            d_model=d_model,
            encoder_layers=layers,
            decoder_layers=layers,
            encoder_attention_heads=heads,
            decoder_attention_heads=heads,
            encoder_ffn_dim=4 * d_model,
            decoder_ffn_dim=4 * d_model,
            pad_token_id=end,
            bos_token_id=end,
            eos_token_id=end,
            decoder_start_token_id=ids["<|startoftranscript|>"],
            suppress_tokens=[],
            begin_suppress_tokens=[],
        )
    )
    with torch.no_grad():  # words must win over timestamps and the end, so that each window has all its tokens
        embeddings = model.model.decoder.embed_tokens.weight
        torch.nn.init.normal_(embeddings, std=0.2)
        embeddings[end:] = 0
    model.generation_config = GenerationConfig(
        decoder_start_token_id=ids["<|startoftranscript|>"],
        eos_token_id=end,
        pad_token_id=end,
        suppress_tokens=[],
        begin_suppress_tokens=[],
        is_multilingual=True,
        lang_to_id={token: ids[token] for token in special[1:100]},
        task_to_id={"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]},
        no_timestamps_token_id=ids["<|notimestamps|>"],
        max_length=448,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)


if __name__ == "__main__":
    show({"speech": measure()})
