"""Special tokens: those that are cut out of a text before the rest of it is tokenised."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_UNKNOWN, _CONTROL, _LSTRIP, _RSTRIP = 1 << 0, 1 << 3, 1 << 7, 1 << 8


@dataclass(frozen=True, slots=True)
class Special:
    """A token that is cut out of a text before the rest of it is tokenised.

    attributes: llama.cpp's `llama_token_attr`.
    """

    text: str
    token: int
    attributes: int

    @property
    def is_control(self) -> bool:
        """Whether only markup, and never a text, becomes this token."""
        return bool(self.attributes & (_CONTROL | _UNKNOWN))

    @property
    def is_markup(self) -> bool:
        """Whether it is a template's to write: control tokens, and such as `<|im_start|>` that a file calls text."""
        return self.is_control or (self.text.startswith("<|") and self.text.endswith("|>"))

    @property
    def strips_left(self) -> bool:
        """Whether the white space before it is dropped."""
        return bool(self.attributes & _LSTRIP)

    @property
    def strips_right(self) -> bool:
        """Whether the white space after it is dropped."""
        return bool(self.attributes & _RSTRIP)


class Specials:
    """A vocabulary's special tokens, the longest text first; of equals, the lower id."""

    def __init__(self, specials: Iterable[Special] = ()) -> None:
        self._all = tuple(sorted(specials, key=lambda special: (-len(special.text.encode()), special.token)))
        self._begun: dict[str, list[Special]] = {}  # thousands may begin alike, and stand in no text
        for special in self._all:
            self._begun.setdefault(special.text[:4], []).append(special)

    def __iter__(self) -> Iterator[Special]:
        return iter(self._all)

    def within(self, text: str) -> list[Special]:
        """Return those whose text stands in this one, in order."""
        alike = [group for beginning, group in self._begun.items() if beginning in text]
        found = [special for group in alike for special in group if special.text in text]
        return sorted(found, key=lambda special: (-len(special.text.encode()), special.token))


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Match any of some texts, the longest first; nothing if there are none."""
    longest_first = sorted(filter(None, texts), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else re.compile("(?!)")
