"""What of a prompt is markup: the text that its template writes, never what people, recipes or models wrote into it.

A template is a program: it may trim, cut, join and move what it is given, and what comes out does not say where it came
from, unless the characters themselves do. So a conversation is rendered twice, the second time with the characters of
its contents moved to a plane of Unicode that nothing else uses. Where the two agree but for that, every character is
known for the template's own or not; and a control token's text that holds one which is not, is text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from eft_local.backends.specials import Specials, any_of
from eft_local.errors import PromptError, shown

if TYPE_CHECKING:
    pass

_PLANE = 1 << 16
_UNASSIGNED = range(4, 14)
"""Planes of Unicode without characters."""

_NOTHING, _EVERYTHING = re.compile("(?!)"), re.compile(".+", re.DOTALL)

_SPACES = " \t\n\v\f\r"  # what llama.cpp's `isspace` strips beside a token

Messages = Sequence[Mapping[str, Any]]


class Template(Protocol):
    """A compiled chat template. Raises: PromptError if it cannot render these messages."""

    @property
    def literals(self) -> Collection[str]:
        """The texts between quotes in its source: it may look for them in contents."""

    def __call__(self, messages: Messages, args: Mapping[str, Any]) -> str: ...


def render_marked(
    template: Template, messages: Messages, args: Mapping[str, Any], specials: Specials
) -> tuple[str, str]:
    """Return a rendered conversation, and the same text with the characters of its contents marked (that is, changed).

    specials: those that are markup are looked for.

    All of the contents is marked, if the template then does the same; if not, all but what the template may look for
    (such as "</think>"); if not, only texts of control tokens. Where it does not even do the same with these, its
    output with them marked is taken: then it has not taken them for its own markup either.
    White space and characters beyond the first plane stay unmarked: templates strip the one, and no control token
    consists of the other.
    Raises: PromptError.
    """
    text = template(messages, args)
    contents = [str(message["content"]) for message in messages]
    plane = _free_plane("".join((text, *contents)))
    hide, unhide = _Shift(plane), _Unshift(plane)
    forged = any_of(special.text for special in specials.within("\0".join(contents)) if special.is_markup)

    def rendered(spared: re.Pattern[str]) -> str:
        changed = [{**m, "content": _mark(str(m["content"]), forged, spared, hide)} for m in messages]
        return template(changed, args)

    for spared in (_NOTHING, any_of(template.literals)):
        with suppress(PromptError):
            marked = rendered(spared)
            if marked.translate(unhide) == text:
                return text, marked
    marked = rendered(_EVERYTHING)
    return marked.translate(unhide), marked


def _mark(content: str, forged: re.Pattern[str], spared: re.Pattern[str], hide: _Shift) -> str:
    """Mark a content's characters: those of `forged` texts, and of all others that are not `spared`."""
    return _between(forged, content, lambda rest: _between(spared, rest, hide.apply, str), hide.apply)


def _between(pattern: re.Pattern[str], text: str, rest: Callable[[str], str], found: Callable[[str], str]) -> str:
    """Apply `found` to a pattern's matches and `rest` to what is between them."""
    parts, at = [], 0
    for match in pattern.finditer(text):
        parts += [rest(text[at : match.start()]), found(match.group())]
        at = match.end()
    return "".join((*parts, rest(text[at:])))


class _Shift(dict[int, int]):
    """A table for `str.translate` that moves the first plane's characters, but white space, to another plane."""

    def __init__(self, plane: int) -> None:
        self._by = plane * _PLANE

    def __missing__(self, character: int) -> int:
        moves = character < _PLANE and not chr(character).isspace()
        self[character] = character + self._by if moves else character
        return self[character]

    def apply(self, text: str) -> str:
        return text.translate(self)


class _Unshift(dict[int, int]):
    """Moves them back."""

    def __init__(self, plane: int) -> None:
        self._plane = plane

    def __missing__(self, character: int) -> int:
        self[character] = character % _PLANE if character // _PLANE == self._plane else character
        return self[character]


def _free_plane(text: str) -> int:
    used = {ord(character) // _PLANE for character in set(text)}
    for plane in _UNASSIGNED:
        if plane not in used:
            return plane
    strange = next(character for character in text if ord(character) // _PLANE in _UNASSIGNED)
    raise PromptError(f"the conversation holds {shown(strange)}, which is no character of Unicode; remove it")
