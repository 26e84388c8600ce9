"""Do two models mean the same by every token id? Only then can their logits be combined."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eft_local.backends.base import TokenTable
from eft_local.errors import VocabularyMismatchError

# llama.cpp's `llama_token_attr`, the bits that are read here.
UNKNOWN, UNUSED, NORMAL, CONTROL, BYTE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 5
_KINDS = {BYTE: "byte", CONTROL: "control", UNKNOWN: "unknown", NORMAL: "normal", UNUSED: "unused"}

# What converters, old and new, and llama.cpp itself call ids that no tokenizer knows.
_PADDING = re.compile(rb"\[PAD\d+\]|\[EMPTY_\d+\]|<dummy\d+>")

_SHOWN = 3  # differences that an error names

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Common:
    """What several roles' tokens have in common.

    width: ids that a mixture has scores for, 0 … width − 1.
    hidden: those of them that are never offered: padding in every role, special tokens that are not the same in all.
    differences: which special tokens of a role are not the base's, in words; roles without any are left out.
    """

    width: int
    hidden: npt.NDArray[np.intp]
    differences: Mapping[str, str]

    def has(self, token: int) -> bool:
        """Whether a token is the same in every role."""
        return 0 <= token < self.width and token not in self.hidden


def common_tokens(tables: Mapping[str, TokenTable]) -> Common:
    """Compare every role's tokens with the base's.

    tables: by role, "base" among them; roles whose table is the same object are compared once, and each is read once.
    Raises: VocabularyMismatchError, see `compare`.
    """
    distinct = {id(tables["base"]): "base"}
    for name, table in tables.items():
        distinct.setdefault(id(table), name)
    read = {name: _Tokens.of(tables[name]) for name in distinct.values()}
    found = {name: _compared(read["base"], tokens, ("base", name)) for name, tokens in read.items()}
    # A tuned model may give a meaning to ids that the others still call padding: the widest counts.
    width = min(max(each.width for each in found.values()), *(len(tokens.texts) for tokens in read.values()))
    unused = np.bitwise_and.reduce([tokens.attributes[:width] for tokens in read.values()]) & UNUSED
    own = np.concatenate([each.own for each in found.values()])
    return Common(
        width,
        np.union1d(np.flatnonzero(unused), own[own < width]),
        {name: _own(read["base"], read[name], each.own, name) for name, each in found.items() if each.own.size},
    )


def _own(base: _Tokens, tokens: _Tokens, own: npt.NDArray[np.intp], name: str) -> str:
    described = _described(base, tokens, own[:_SHOWN], ("base", name))
    return described if own.size <= _SHOWN else f"{described}, and {own.size - _SHOWN} more"


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two vocabularies agree.

    width: all ids from there on are padding in one or both.
    own: ids of special tokens that only one of them has, or that they name differently, ascending.
    """

    width: int
    own: npt.NDArray[np.intp]


def compare(reference: TokenTable, other: TokenTable, names: tuple[str, str] = ("base", "expert")) -> Agreement:
    """Return how far two models mean the same by every id; they must mean the same text.

    Two ids are the same token when their texts are equal and their attributes agree in what the id adds to a
    text: a byte token ("<0x0A>" is a newline) is not a normal one of that spelling, and control markup, which
    prints nothing, is not normal text. Other attributes do not decide it: "user-defined" is an added token, which
    converters also call normal or control, and "unused" is their opinion too. (Whether a token ends a
    generation is no attribute; a base and its chat model may differ.) Ids that both call unused are padding.

    Fine-tunes add special tokens, or rename reserved ones: such ids differ and hurt nobody, as they are not offered.
    Some call tokens that they add normal text: of these a hundredth of the vocabulary may be added.

    names: the roles, for the error. Raises: VocabularyMismatchError if text tokens differ.
    """
    ours = _Tokens.of(reference)
    return _compared(ours, ours if other is reference else _Tokens.of(other), names)


def _compared(ours: _Tokens, theirs: _Tokens, names: tuple[str, str]) -> Agreement:
    differing, agreement = _differences(ours, theirs)
    if agreement.width and not differing.size:
        return agreement
    message = (
        f"{names[0]} ({len(ours.texts)} tokens) and {names[1]} ({len(theirs.texts)} tokens) do not share a vocabulary: "
    )
    if not differing.size:
        raise VocabularyMismatchError(f"{message}no token is common; use models that have a tokenizer")
    count = "1 id differs" if differing.size == 1 else f"{differing.size} ids differ"
    shown = _described(ours, theirs, differing[:_SHOWN], names)
    raise VocabularyMismatchError(f"{message}{count}: {shown}; use models of one family")


def _described(ours: _Tokens, theirs: _Tokens, ids: npt.NDArray[np.intp], names: tuple[str, str]) -> str:
    return ", ".join(
        f"id {token} is {ours.describe(token)} in {names[0]} and {theirs.describe(token)} in {names[1]}"
        for token in ids.tolist()
    )


@dataclass(frozen=True, slots=True)
class _Tokens:
    texts: list[bytes]
    attributes: npt.NDArray[np.int32]
    padding: Mask

    @classmethod
    def of(cls, table: TokenTable) -> _Tokens:
        texts, attributes = table.texts(), table.attributes()
        padding = np.not_equal(attributes & UNUSED, 0)
        for token in range(len(texts) - 1, -1, -1):  # old converters mark the tail by its texts only
            if not (padding[token] or _PADDING.fullmatch(texts[token])):
                break
            padding[token] = True
        return cls(texts, attributes, padding)

    def has(self, kinds: int) -> Mask:
        marked: Mask = np.not_equal(self.attributes & kinds, 0)
        return marked

    @property
    def is_control(self) -> Mask:
        return self.has(CONTROL | UNKNOWN)

    @property
    def is_text(self) -> Mask:
        """Which are a text's own; llama.cpp leaves "normal" on tokens that it takes for control tokens."""
        return self.has(NORMAL | BYTE) & ~self.is_control

    def describe(self, token: int) -> str:
        if token >= len(self.texts):
            return "missing"
        kind = "".join(f" ({name})" for bit, name in _KINDS.items() if self.attributes[token] & bit)
        return repr(self.texts[token].decode("utf-8", "backslashreplace")) + kind


def _differences(ours: _Tokens, theirs: _Tokens) -> tuple[npt.NDArray[np.intp], Agreement]:
    """Return the ids that must not differ and do, ascending, and how far the vocabularies agree otherwise."""
    width = min(len(ours.texts), len(theirs.texts))
    longer = ours if len(ours.texts) > width else theirs
    same_text: Mask = np.fromiter(map(bytes.__eq__, ours.texts, theirs.texts), np.bool_, width)
    unused_by_both = ours.padding[:width] & theirs.padding[:width]
    unused_by_one = ours.padding[:width] ^ theirs.padding[:width]
    used_by_both = ~(unused_by_both | unused_by_one)
    clash = ours.has(BYTE)[:width] ^ theirs.has(BYTE)[:width]
    for one, another in ((ours, theirs), (theirs, ours)):
        clash |= one.is_text[:width] & another.is_control[:width]
    text = ours.is_text[:width] | theirs.is_text[:width]

    differs = ~same_text & ~unused_by_both
    own = np.concatenate((differs, ~longer.padding[width:]))
    wrong = np.concatenate((np.where(same_text, clash, text) & used_by_both, np.zeros(own.size - width, np.bool_)))
    added_text = own & ~wrong & np.concatenate((text & unused_by_one, longer.is_text[width:]))
    if np.count_nonzero(added_text) > width / 100:
        wrong |= added_text
    common = np.flatnonzero(~unused_by_both & ~own[:width])
    last = int(np.flatnonzero(~unused_by_both)[-1]) + 1 if common.size else 0
    return np.flatnonzero(wrong), Agreement(last, np.flatnonzero(own & ~wrong))
