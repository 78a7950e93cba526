"""Bytes become pictures, waveforms and words, safely."""
