"""Every error Eden raises on purpose.

    EdenError
    ├── InputError            what the user gave is wrong                    (exit code 2)
    │   ├── MessageError      a conversation: turn order, empty turns, unknown roles
    │   ├── ContextError      a conversation longer than the model can read
    │   ├── ImageError        an image: missing, truncated, not an image, too large
    │   ├── AudioError        a recording: missing, truncated, not audio, too long, nothing said in it
    │   ├── DataError         a data set: one record or the whole file
    │   ├── RecipeError       a recipe: unknown key, wrong type, impossible mix
    │   └── CheckpointError   a model: missing, incomplete, of another kind
    └── RunError              the work itself failed                         (exit code 1)
        ├── StorageError      the disk is full or not writable
        ├── OverloadError     more questions wait than the engine takes; ask again later
        ├── EngineStopped     the engine was closed or failed, and answers no more
        └── Interrupted       stopped by the user; says how to go on

A message is one line: what is wrong, where (file, line, sample), and what to do about it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: in every error, and in the report of a data set.

    Attributes:
        kind: a short, stable name, for programs that count or branch.
        what: what is wrong, in words a user can act on.
        where: the file, line, sample or key it was found at.
        hint: what to do about it.
        sample_id: of the record, if it is a record's and could be read.
    """

    kind: str
    what: str
    where: str | None = None
    hint: str | None = None
    sample_id: str | None = None

    @property
    def advice(self) -> str:
        """What is wrong and what to do, but not where: that may be a path, which is not for everybody."""
        return f"{self.what}. {self.hint}" if self.hint else self.what

    def at(self, where: str, sample_id: str | None = None) -> Fault:
        """The same, found at another place; its own place, if it has one, is told with what is wrong."""
        what = f"{self.where}: {self.what}" if self.where else self.what
        return replace(self, what=what, where=where, sample_id=sample_id)

    def __str__(self) -> str:
        return " ".join((f"{self.where}: {self.advice}" if self.where else self.advice).split())


class EdenError(Exception):
    """Base of all errors that Eden raises on purpose.

    Args:
        what: what is wrong, in words; or the whole fault.
        where, hint, kind: of the fault.
    """

    exit_code = 1

    def __init__(self, what: str | Fault, *, where: str | None = None, hint: str | None = None, kind: str = ""):
        self.fault = what if isinstance(what, Fault) else Fault(kind, what, where, hint)
        super().__init__(self.fault)

    def at(self, where: str, sample_id: str | None = None) -> Self:
        """The same error, found at another place."""
        return type(self)(self.fault.at(where, sample_id))


class InputError(EdenError):
    exit_code = 2


class MessageError(InputError):
    pass


class ContextError(InputError):
    pass


class ImageError(InputError):
    pass


class AudioError(InputError):
    pass


class DataError(InputError):
    pass


class RecipeError(InputError):
    pass


class CheckpointError(InputError):
    pass


class RunError(EdenError):
    pass


class StorageError(RunError):
    pass


class OverloadError(RunError):
    pass


class EngineStopped(RunError):
    pass


class Interrupted(RunError):
    exit_code = 130


def first_line(error: Exception) -> str:
    """What a library's error says, in one line, for an error of Eden's own."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
