"""A model's folder: what is in it, and how it is put together, adapted, saved and merged."""

from .checkpoint import (
    Checkpoint,
    add_adapters,
    check_model,
    count_parameters,
    load,
    load_as_stored,
    load_for_training,
    load_processor,
    merge,
    save,
    speech_model,
    speech_model_of_run,
)
from .fingerprint import model_fingerprint

__all__ = [
    "Checkpoint",
    "add_adapters",
    "check_model",
    "count_parameters",
    "load",
    "load_as_stored",
    "load_for_training",
    "load_processor",
    "merge",
    "model_fingerprint",
    "save",
    "speech_model",
    "speech_model_of_run",
]
