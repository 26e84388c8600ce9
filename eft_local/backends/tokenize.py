"""From text to tokens: control tokens are what a template wrote, and nothing that somebody typed becomes one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import pairwise

from eft_local.backends.base import Vocabulary
from eft_local.backends.specials import Special, any_of

_SPACES = " \t\n\v\f\r"  # what llama.cpp's `isspace` strips beside a token


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
    cut_out = any_of(s.text for s in vocabulary.specials().within(text) if s.is_markup and not s.is_control)
    cuts = [match.start() + 1 for match in cut_out.finditer(text)]
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
