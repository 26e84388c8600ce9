"""Do two models mean the same by every token id? Only then can their logits be combined."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eft_local.errors import VocabularyMismatchError
from eft_local.protocols import TokenTable, Vocabulary

# llama.cpp's `llama_token_attr`, the bits that are read here.
UNKNOWN, UNUSED, NORMAL, CONTROL, BYTE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 5
_KINDS = {BYTE: "byte", CONTROL: "control", UNKNOWN: "unknown", NORMAL: "normal", UNUSED: "unused"}

# What converters, old and new, and llama.cpp itself call ids that no tokenizer knows.
_PADDING = re.compile(rb"\[PAD\d+\]|\[EMPTY_\d+\]|<dummy\d+>")

_SHOWN = 3  # differences that an error names

Mask = npt.NDArray[np.bool_]


def common_width(tables: Mapping[str, TokenTable]) -> int:
    """Compare every role's tokens with the base's; return how many ids they have in common.

    tables: by role, "base" among them; roles whose table is the same object are compared once, and each is read once.
    Raises: VocabularyMismatchError.
    """
    distinct = {id(tables["base"]): "base"}
    for name, table in tables.items():
        distinct.setdefault(id(table), name)
    read = {name: _Tokens.of(tables[name]) for name in distinct.values()}
    widths = [_compared(read["base"], tokens, ("base", name)) for name, tokens in read.items()]
    # A tuned model may give a meaning to ids that the others still call padding: the widest counts.
    return min(max(widths), *(len(tokens.texts) for tokens in read.values()))


def unused_tokens(tables: Iterable[TokenTable], width: int) -> npt.NDArray[np.intp]:
    """Return the ids below `width` that stand for nothing in every role: padding inside a vocabulary, never offered."""
    attributes = [table.attributes()[:width] for table in {id(table): table for table in tables}.values()]
    return np.flatnonzero(np.bitwise_and.reduce(attributes) & UNUSED)


def compare(reference: TokenTable, other: TokenTable, names: tuple[str, str] = ("base", "expert")) -> int:
    """Return the common width n: both models mean the same by ids 0 … n − 1, and all beyond is padding.

    Two ids are the same token when their texts are equal and their attributes agree in what the id adds to a
    text: a byte token ("<0x0A>" is a newline) is not a normal one of that spelling, and control markup, which
    prints nothing, is not normal text. Other attributes do not tell: "user-defined" is an added token, which
    converters also call normal or control, and "unused" is their opinion too. (Whether a token ends a
    generation is no attribute; a base and its chat model may differ.) Ids that both call unused are padding.

    names: the roles, for the error. Raises: VocabularyMismatchError.
    """
    ours = _Tokens.of(reference)
    return _compared(ours, ours if other is reference else _Tokens.of(other), names)


def _compared(ours: _Tokens, theirs: _Tokens, names: tuple[str, str]) -> int:
    differing, n = _differences(ours, theirs)
    if n and not differing:
        return n
    message = (
        f"{names[0]} ({len(ours.texts)} tokens) and {names[1]} ({len(theirs.texts)} tokens) do not share a vocabulary: "
    )
    if not differing:
        raise VocabularyMismatchError(f"{message}no token is common; use models that have a tokenizer")
    shown = ", ".join(
        f"id {token} is {ours.describe(token)} in {names[0]} and {theirs.describe(token)} in {names[1]}"
        for token in differing[:_SHOWN]
    )
    count = "1 id differs" if len(differing) == 1 else f"{len(differing)} ids differ"
    raise VocabularyMismatchError(f"{message}{count}: {shown}; use models of one family")


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


@dataclass(frozen=True, slots=True)
class _Tokens:
    texts: list[bytes]
    attributes: npt.NDArray[np.int32]
    padding: Mask

    @classmethod
    def of(cls, table: TokenTable) -> _Tokens:
        texts, attributes = table.texts(), table.attributes()
        padding = np.not_equal(attributes & UNUSED, 0)
        for token in range(len(texts) - 1, -1, -1):  # old converters tell the tail by its texts only
            if not (padding[token] or _PADDING.fullmatch(texts[token])):
                break
            padding[token] = True
        return cls(texts, attributes, padding)

    def has(self, kinds: int) -> Mask:
        marked: Mask = np.not_equal(self.attributes & kinds, 0)
        return marked

    def describe(self, token: int) -> str:
        if token >= len(self.texts):
            return "missing"
        kind = "".join(f" ({name})" for bit, name in _KINDS.items() if self.attributes[token] & bit)
        return repr(self.texts[token].decode("utf-8", "backslashreplace")) + kind


def _differences(ours: _Tokens, theirs: _Tokens) -> tuple[list[int], int]:
    """Return the ids that differ, ascending, and the width without padding that both have."""
    width = min(len(ours.texts), len(theirs.texts))
    same_text: Mask = np.fromiter(map(bytes.__eq__, ours.texts, theirs.texts), np.bool_, width)
    padding = ours.padding[:width] & theirs.padding[:width]
    used = ~(ours.padding[:width] | theirs.padding[:width])
    clash = ours.has(BYTE)[:width] ^ theirs.has(BYTE)[:width]
    for one, another in ((ours, theirs), (theirs, ours)):
        clash |= one.has(NORMAL)[:width] & another.has(CONTROL | UNKNOWN)[:width]

    within = np.where(same_text, clash & used, ~padding)
    beyond = ~(ours if len(ours.texts) > width else theirs).padding[width:]
    common = np.flatnonzero(~padding)
    return np.flatnonzero(np.concatenate((within, beyond))).tolist(), int(common[-1]) + 1 if common.size else 0
