"""From tokens to text that is safe to show while it grows."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .sampler import Token

UNFINISHED = "\ufffd"
"""What a tokenizer writes for bytes that are no character, or not one yet."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Text that became certain, and the tokens that begin in it."""

    text: str
    tokens: tuple[Token, ...]


class TextStream:
    """Tokens in, text out, as early as it is certain: no half characters, and no part of a stop string.

    Args:
        tokenizer: of the model.
        stop: the text ends before the first of these.
        behind: the token before the first, which may be of a text that is gone on with.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = (), behind: int | None = None):
        self.stopped = False
        self._stop = stop
        self._decoder = IncrementalDecoder(tokenizer, behind)
        self._held = ""  # decoded, but perhaps the beginning of a stop string
        self._given = 0  # characters given so far
        self._pending: deque[tuple[int, Token]] = deque()  # tokens not given yet, and the character they begin at

    def push(self, token: Token) -> TextDelta | None:
        """The text that this token makes certain; None if there is none. Once `stopped`, nothing may be pushed."""
        self._pending.append((self._given + len(self._held), token))
        self._held += self._decoder.push(token.id)
        ends = [place for text in self._stop if (place := self._held.find(text)) >= 0]
        if ends:
            self.stopped = True
            return self._give(min(ends))
        return self._give(len(self._held) - self._possible_stop())

    def finish(self) -> TextDelta | None:
        """What was held back, once no token follows; nothing if the text was stopped."""
        if self.stopped:
            return None
        self._held += self._decoder.finish()
        tokens = tuple(token for _, token in self._pending)
        return TextDelta(self._held, tokens) if self._held or tokens else None

    def _give(self, length: int) -> TextDelta | None:
        if length == 0:
            return None
        text, self._held = self._held[:length], self._held[length:]
        self._given += length
        tokens = []
        while self._pending and self._pending[0][0] < self._given:
            tokens.append(self._pending.popleft()[1])
        return TextDelta(text, tuple(tokens))

    def _possible_stop(self) -> int:
        """The length of the longest end of the held text that a stop string begins with."""
        longest = 0
        for text in self._stop:
            for length in range(min(len(text) - 1, len(self._held)), longest, -1):
                if self._held.endswith(text[:length]):
                    longest = length
                    break
        return longest


class IncrementalDecoder:
    """Decodes token by token what the tokenizer would decode at once, and gives whole characters only.

    A token's text depends on its neighbours (spaces, characters of several byte tokens), so each is decoded behind
    those that gave the last text, and what they gave is taken off again.
    """

    def __init__(self, tokenizer: Any, behind: int | None = None):
        self._tokenizer = tokenizer
        self._window: list[int] = [] if behind is None else [behind]
        self._num_known = len(self._window)  # tokens at the head of the window whose text was given
        self._known = self._decode(self._window)  # that text

    def push(self, token_id: int) -> str:
        """The text that is whole with this token."""
        self._window.append(token_id)
        text = self._decode(self._window)
        if text.endswith(UNFINISHED):
            return ""
        # Tokenizers have pieces for ASCII but its line breaks and tabs: another that comes as a byte is noise, which is
        # decoded together with the bytes behind it.
        if text and text[-1].isascii() and text[-1] not in "\n\r\t" and _byte(self._tokenizer, token_id) is not None:
            return ""
        new = self._new(text)
        if new:
            self._window = self._window[self._num_known :]
            self._num_known = len(self._window)
            self._known = self._decode(self._window)
        return new

    def finish(self) -> str:
        """The rest, once no token follows; a character that stays unfinished is left out."""
        run: list[int] = []  # the bytes at the end
        while (
            len(run) < len(self._window) and (byte := _byte(self._tokenizer, self._window[-1 - len(run)])) is not None
        ):
            run.insert(0, byte)
        try:
            bytes(run).decode()
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data":  # else it is noise, and stays visible as such
                return self._new(self._decode(self._window[: error.start - len(run)]))
        text = self._new(self._decode(self._window))
        return text if run else text.rstrip(UNFINISHED)

    def _new(self, text: str) -> str:
        if text.startswith(self._known):
            return text[len(self._known) :]
        # Bytes that are no character spoil the ones before them in the same run, which were given already.
        return self._decode(self._window[self._num_known :])

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


def token_bytes(tokenizer: Any, token_id: int) -> bytes:
    """The bytes one token stands for, its leading space included; one byte of a character for a byte token."""
    if (byte := _byte(tokenizer, token_id)) is not None:
        return bytes([byte])
    name: str = tokenizer.convert_ids_to_tokens(token_id)
    if token_id in tokenizer.all_special_ids or token_id in tokenizer.added_tokens_decoder:
        return name.encode()
    # Behind another token, for a decoder drops the space the very first one begins with.
    anchor = tokenizer.convert_tokens_to_ids("a")
    text: str = tokenizer.decode([anchor, token_id])
    return text[1:].encode()


def _byte(tokenizer: Any, token_id: int) -> int | None:
    """The byte that a byte-fallback token (`<0xE2>`) stands for; None for any other."""
    name: str | None = tokenizer.convert_ids_to_tokens(token_id)
    return int(name[3:5], 16) if name is not None and len(name) == 6 and name.startswith("<0x") else None
