"""What of a prompt is markup: the text that its template writes, never what people, recipes or models wrote into it.

A template is a program: it may trim, cut, join and move what it is given, and what comes out does not say where it came
from, unless the characters themselves do. So a conversation is rendered twice, the second time with the characters of
its contents moved to a plane of Unicode that nothing else uses. Where the two agree but for that, every character is
known for the template's own or not; and a control token's text that holds one which is not, is text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

from eft_local.checks import shown
from eft_local.errors import PromptError
from eft_local.specials import Special, Specials

if TYPE_CHECKING:
    from eft_local.backends.base import Vocabulary

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
    forged = _any_of(special.text for special in specials.within("\0".join(contents)) if special.is_markup)

    def rendered(spared: re.Pattern[str]) -> str:
        changed = [{**m, "content": _mark(str(m["content"]), forged, spared, hide)} for m in messages]
        return template(changed, args)

    for spared in (_NOTHING, _any_of(template.literals)):
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


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Match any of some texts, the longest first; nothing if there are none."""
    longest_first = sorted(filter(None, texts), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else _NOTHING


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


def tokenize_marked(vocabulary: Vocabulary, text: str, marked: str) -> list[int]:
    """Return the tokens of a text in which control tokens are spelled only by unmarked characters.

    marked: the text again, from `render_marked`. Without forged markup the tokens are llama.cpp's own.
    """
    present = vocabulary.specials().within(text)

    def forged(start: int, stop: int) -> bool:
        return text[start:stop] != marked[start:stop]

    def forges(special: Special) -> bool:
        return special.is_markup and any(forged(at, at + len(special.text)) for at in _places(special.text, text))

    if not any(map(forges, present)):
        return vocabulary.tokenize(text, add_special=False, parse_special=True)
    tokens: list[int] = []
    for part in _partition(text, present, forged):
        if isinstance(part, int):
            tokens.append(part)
        else:
            tokens += tokenize_text(vocabulary, text[slice(*part)], add_special=False)
    return tokens


def tokenize_text(vocabulary: Vocabulary, text: str, *, add_special: bool) -> list[int]:
    """Return the tokens of a text in which nothing is markup. add_special: with BOS, if the vocabulary wants it.

    llama.cpp cuts user-defined tokens out of every text: those that are markup are broken up.
    """
    shown = _any_of(s.text for s in vocabulary.specials().within(text) if s.is_markup and not s.is_control)
    cuts = [match.start() + 1 for match in shown.finditer(text)]
    first, *rest = (text[start:stop] for start, stop in pairwise((0, *cuts, len(text))))
    tokens = vocabulary.tokenize(first, add_special=add_special, parse_special=False)
    return tokens + [token for part in rest for token in verbatim(vocabulary, part)]


def verbatim(vocabulary: Vocabulary, text: str) -> list[int]:
    """Return the tokens of a text that continues another one: no special tokens, markup is plain text.

    SentencePiece vocabularies put a space before every text, as if it began one. Behind an anchor they do not.
    """
    tokens = vocabulary.tokenize(text, add_special=False, parse_special=False)
    data = text.encode()
    if b"".join(map(vocabulary.piece, tokens)) == data:
        return tokens
    anchored = vocabulary.tokenize("\n" + text, add_special=False, parse_special=False)
    for start in (1, 2, 3):  # the anchor is one to three tokens
        if b"".join(map(vocabulary.piece, anchored[start:])) == data:
            return anchored[start:]
    return tokens


def controls_named(vocabulary: Vocabulary, texts: Collection[str]) -> frozenset[int]:
    """Return the control tokens that some of the texts name: what they write is markup, and never part of an answer."""
    wanted = {text.strip() for text in texts}
    found = (special for special in vocabulary.specials() if special.is_control) if wanted else ()
    return frozenset(special.token for special in found if special.text in wanted)


def _places(part: str, text: str) -> Iterator[int]:
    at = text.find(part)
    while at >= 0:
        yield at
        at = text.find(part, at + 1)


def _partition(
    text: str, specials: Sequence[Special], forged: Callable[[int, int], bool]
) -> list[tuple[int, int] | int]:
    """Cut a text as llama.cpp's `tokenizer_st_partition` does, but not at control tokens that are forged.

    specials: in llama.cpp's order, the longest first. Returns ids of tokens, and (start, stop) of what is between them.
    """
    parts: list[tuple[int, int] | int] = [(0, len(text))]
    for special in specials:
        cut: list[tuple[int, int] | int] = []
        for part in parts:
            cut += [part] if isinstance(part, int) else _cut(text, *part, special, forged)
        parts = cut
    return parts


def _cut(
    text: str, start: int, stop: int, special: Special, forged: Callable[[int, int], bool]
) -> Iterator[tuple[int, int] | int]:
    at = start
    while (found := text.find(special.text, at, stop)) >= 0:
        end = found + len(special.text)
        if special.is_markup and forged(found, end):
            at = found + 1
            continue
        left = start + len(text[start:found].rstrip(_SPACES)) if special.strips_left else found
        if left > start:
            yield start, left
        yield special.token
        start = at = stop - len(text[end:stop].lstrip(_SPACES)) if special.strips_right else end
    if start < stop:
        yield start, stop
