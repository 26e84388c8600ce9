"""Bytes of tokens to text that may be shown: whole characters only, and nothing that a stop string may swallow."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Turns the pieces of an answer into text, and notices stop strings across token boundaries."""

    def __init__(self, stop: Sequence[str] = (), prefix: bytes = b"") -> None:
        """prefix: bytes that the answer already has; they may begin a character or a stop string, but are not shown."""
        self.stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = self._decoder.decode(prefix)
        longest = max(map(len, self.stop), default=1)
        self._held = self._held[len(self._held) - self._held_length() :] if longest > 1 else ""
        self._unshown = len(self._held)
        self.stopped = False

    def push(self, piece: bytes) -> str:
        """Add one token's bytes and return the text that can be shown now."""
        self._held += self._decoder.decode(piece)
        # The stop string that is complete first ends the answer, however the text is cut into tokens.
        found = [(at + len(text), at) for text in self.stop if (at := self._held.find(text)) >= 0]
        if found:
            self.stopped = True
            return self._take(min(found)[1], drop_rest=True)
        return self._take(len(self._held) - self._held_length())

    def flush(self) -> str:
        """Return what was held back; bytes of a character that never became whole are left out."""
        return "" if self.stopped else self._take(len(self._held))

    def _held_length(self) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        for length in range(min(max(map(len, self.stop), default=0) - 1, len(self._held)), 0, -1):
            if any(text.startswith(self._held[-length:]) for text in self.stop):
                return length
        return 0

    def _take(self, length: int, *, drop_rest: bool = False) -> str:
        shown = self._held[min(self._unshown, length) : length]
        self._unshown = max(0, self._unshown - length)
        self._held = "" if drop_rest else self._held[length:]
        return shown
