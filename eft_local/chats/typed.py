"""What was typed and not sent, and what was sent and can be recalled: a file beside the chats."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from eft_local import files

REMEMBERED = 500
"""Questions that ↑ can recall."""


class Typed:
    """What was typed, in a file: sent questions to recall, and per chat what is not sent yet."""

    def __init__(self, file: Path | None) -> None:
        """file: None keeps nothing. Several apps may share it: each writes what was typed in its own."""
        self.file = file
        self.recalled: tuple[str, ...] = ()
        self.unsent: dict[str, str] = {}
        self._kept: tuple[str, str, tuple[str, ...]] | None = None
        self._read()

    def keep(self, chat: str, text: str, recalled: Sequence[str], *, before: str = "") -> None:
        """Write what is typed, if it changed, readable by the user alone. A disk that refuses is no reason to stop.

        chat: where it is typed.  before: where it was typed when it was last kept.
        """
        now = (chat, text, tuple(recalled))
        if now == self._kept:
            return
        self._read()  # what other apps have kept since then
        for each in {chat, before}:
            self.unsent.pop(each, None)
        if text.strip():
            self.unsent[chat] = text
        of_others = [question for question in self.recalled if question not in recalled]
        self.recalled = (*of_others, *recalled)[-REMEMBERED:]
        if self._write():
            self._kept = now

    def forget(self, is_gone: Callable[[str], bool]) -> None:
        """Drop what was typed in chats that are gone for good."""
        gone = [chat for chat in self.unsent if chat and is_gone(chat)]
        for chat in gone:
            del self.unsent[chat]
        if gone:
            self._write()

    def _read(self) -> None:
        """Read the file. Where there is none, or it is damaged, all stays as it is: recalling is a comfort."""
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            kept = json.loads(self.file.read_bytes()) if self.file else {}
            recalled = tuple(map(str, kept["recalled"]))
            self.unsent = {str(chat): str(text) for chat, text in kept["unsent"].items()}
            self.recalled = recalled

    def _write(self) -> bool:
        if self.file is None:
            return True
        content = json.dumps({"recalled": self.recalled, "unsent": self.unsent}, ensure_ascii=False)
        try:
            files.write(self.file, content.encode("utf-8", "surrogatepass"), private=True, make_folder=True)
        except OSError:
            return False
        return True
