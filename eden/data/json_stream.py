"""A JSON text read value by value: a list of any length needs the memory of its longest item."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

from ..errors import DataError

CHUNK = 2**20
"""Characters read at once."""
_SPACE = re.compile(r"[ \t\r\n]*")
_LONGEST_WORD = 16
"""Characters; a number, a literal or an escape that is cut off fails this near to the end, or is a string."""


class JsonStream:
    """Values of a JSON text in order.

    Args:
        file: the text.
        name: of the file, for errors.

    Every method raises DataError, with line and column, where the text is not valid JSON.
    """

    def __init__(self, file: TextIO, name: str):
        self._file = file
        self._name = name
        self._decode = json.JSONDecoder().raw_decode
        self._text = ""
        self._at = 0
        self._lines = 0  # ended before self._text
        self._column = 0  # of self._text's first character
        self._whole = False

    def items(self) -> Iterator[tuple[Any, str]]:
        """The items of the list that begins here, each with its text."""
        self._take("[")
        if self._peek() == "]":
            self._at += 1
            return
        while True:
            yield self.value()
            if self._take(",]") == "]":
                return

    def members(self) -> Iterator[str]:
        """The keys of the object that begins here; each key's value must be read before the next key."""
        self._take("{")
        if self._peek() == "}":
            self._at += 1
            return
        while True:
            if self._peek() != '"':
                raise self._error("expected a key in quotes", self._at)
            key, _ = self.value()
            self._take(":")
            yield key
            if self._take(",}") == "}":
                return

    def value(self) -> tuple[Any, str]:
        """The value that begins here, and its text."""
        self._peek()
        size = CHUNK
        while True:
            try:
                value, end = self._decode(self._text, self._at)
                if end < len(self._text) or self._whole:  # else a number may go on
                    text = self._text[self._at : end]
                    self._at = end
                    return value, text
            except json.JSONDecodeError as error:
                cut_off = error.msg.startswith("Unterminated") or error.pos >= len(self._text) - _LONGEST_WORD
                if self._whole or not cut_off:
                    raise self._error(error.msg, error.pos) from None
            except RecursionError:
                raise self._error("nested too deep", self._at) from None
            except ValueError:  # Python reads no number of more digits than sys.get_int_max_str_digits()
                raise self._error("a number of too many digits", self._at) from None
            self._read(size)
            size *= 2  # so that a value of any length is tried a few times only

    def end(self) -> None:
        """Nothing may follow."""
        if self._peek():
            raise self._error("more text behind the end", self._at)

    def _peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            found = _SPACE.match(self._text, self._at)
            assert found is not None
            self._at = found.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if self._whole:
                return ""
            self._read(CHUNK)

    def _take(self, wanted: str) -> str:
        found = self._peek()
        if not found or found not in wanted:
            expected = " or ".join(f"`{character}`" for character in wanted)
            raise self._error(f"expected {expected}", self._at)
        self._at += 1
        return found

    def _read(self, size: int) -> None:
        passed = self._text[: self._at]
        if breaks := passed.count("\n"):
            self._lines += breaks
            self._column = 0
        self._column += len(passed) - passed.rfind("\n") - 1
        more = self._file.read(size)
        self._whole = not more
        self._text = self._text[self._at :] + more
        self._at = 0

    def _error(self, what: str, position: int) -> DataError:
        before = self._text[:position]
        line = self._lines + before.count("\n") + 1
        column = len(before) - before.rfind("\n") + (self._column if "\n" not in before else 0)
        return DataError(
            f"not valid JSON ({what})",
            where=f"{self._name} line {line} column {column}",
            hint="Correct it there, or copy the file again if it is cut off.",
        )
