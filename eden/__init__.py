"""Eden gives a small language model eyes and ears.

>>> import eden
>>> eden.load("eden-tiny").ask("What colour is the star?", images=["scene.png"])
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from .errors import (
    AudioError,
    CheckpointError,
    ContextError,
    DataError,
    EdenError,
    EngineStopped,
    Fault,
    ImageError,
    InputError,
    Interrupted,
    MessageError,
    OverloadError,
    RecipeError,
    RunError,
    StorageError,
)
from .messages import Audio, Image, Message, Text

if TYPE_CHECKING:
    from .inference.assistant import Assistant
    from .media.speech import Transcriber

# bitsandbytes, whoever imports it first, reports an optional CPU kernel it did not find: nothing a user could act on.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

__version__ = "0.1.0"

__all__ = [
    "Assistant",
    "Audio",
    "AudioError",
    "CheckpointError",
    "ContextError",
    "DataError",
    "EdenError",
    "EngineStopped",
    "Fault",
    "Image",
    "ImageError",
    "InputError",
    "Interrupted",
    "Message",
    "MessageError",
    "OverloadError",
    "RecipeError",
    "RunError",
    "StorageError",
    "Text",
    "Transcriber",
    "__version__",
    "load",
]


def load(name: str = "eden-tiny", *, revision: str | None = None, **options: Any) -> Assistant:
    """Loads a model to ask.

    Args:
        name: `eden-tiny` (bundled), an artifact's folder, or a hub id.
        revision: of a hub repository: a branch, tag or commit.
        options: `dtype` ("bfloat16", "float32"), `device`, `quantization`, `attn_implementation`;
            see `eden.checkpoint.backbones.LoadOptions`.

    Raises:
        CheckpointError: there is no such model, or it is incomplete.
    """
    from .checkpoint import load as load_checkpoint
    from .checkpoint.backbones import LoadOptions
    from .inference.assistant import Assistant

    return Assistant(load_checkpoint(name, LoadOptions(**options), revision=revision))


_LAZY = {"Assistant": ".inference.assistant", "Transcriber": ".media.speech"}
"""Names whose modules take seconds to import, which `import eden` must not."""


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
