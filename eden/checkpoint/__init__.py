"""A model's folder: what is in it, and how it is put together, adapted, saved and merged."""

from .adapters import check_adapters, from_pissa, lora_weights
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
    "check_adapters",
    "check_model",
    "count_parameters",
    "from_pissa",
    "load",
    "load_as_stored",
    "load_for_training",
    "load_processor",
    "lora_weights",
    "merge",
    "model_fingerprint",
    "save",
    "speech_model",
    "speech_model_of_run",
]
