"""Comparing vocabularies, with lists of (text, attributes) in place of models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from eft_local.backends.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, common_tokens, compare
from eft_local.errors import VocabularyMismatchError

USER_DEFINED = 1 << 4


@dataclass
class Tokens:
    """As much of a vocabulary as `compare` reads."""

    tokens: list[tuple[bytes, int]]

    @property
    def n_tokens(self):
        return len(self.tokens)

    def texts(self):
        return [text for text, _ in self.tokens]

    def attributes(self):
        return np.array([attributes for _, attributes in self.tokens], dtype=np.int32)


WORDS = [(b"<s>", CONTROL), (b"<0x0A>", BYTE), (b"a", NORMAL), (b"b", NORMAL)]


def pads(first, count, attributes=UNUSED, text="[PAD{}]"):
    return [(text.format(token).encode(), attributes) for token in range(first, first + count)]


def changed(token, text=None, attributes=None):
    tokens = list(WORDS)
    tokens[token] = (
        tokens[token][0] if text is None else text,
        tokens[token][1] if attributes is None else attributes,
    )
    return Tokens(tokens)


def test_equal_vocabularies_share_their_whole_width():
    assert compare(Tokens(WORDS), Tokens(WORDS)).width == 4


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize(
    "padding",
    [
        {},
        {"text": "<dummy{}>", "attributes": USER_DEFINED},
        {"text": "[EMPTY_{}]", "attributes": NORMAL},
        {"text": "whatever {}", "attributes": UNUSED | CONTROL},
    ],
)
def test_padded_tails_of_any_length_and_name_are_left_out(count, padding):
    padded = Tokens(WORDS + pads(4, count, **padding))
    assert compare(padded, Tokens(WORDS)).width == 4
    assert compare(Tokens(WORDS), padded).width == 4
    assert compare(padded, Tokens(WORDS + pads(4, 3))).width == 4
    assert compare(padded, padded).width == 4


def test_unused_ids_before_the_tail_keep_their_place():
    tokens = [*WORDS, (b"<unused0>", UNUSED | CONTROL), (b"c", NORMAL)]
    renamed = [*WORDS, (b"[PAD4]", UNUSED), (b"c", NORMAL)]
    assert compare(Tokens(tokens), Tokens(renamed)).width == 6


@pytest.mark.parametrize(
    ("token", "attributes"),
    [
        (0, USER_DEFINED),  # an added token, shown or not
        (0, UNKNOWN),
        (0, CONTROL | 1 << 8),  # strips spaces at its right
        (1, UNUSED),
        (2, USER_DEFINED),
        (2, UNUSED),  # one converter's opinion
        (2, 0),
    ],
)
def test_attributes_that_do_not_reports(token, attributes):
    assert compare(Tokens(WORDS), changed(token, attributes=attributes)).width == 4
    assert compare(changed(token, attributes=attributes), Tokens(WORDS)).width == 4


@pytest.mark.parametrize(
    ("token", "attributes", "words"),
    [
        (0, NORMAL, r"1 id differs: id 0 is '<s>' \(control\) in base and '<s>' \(normal\) in expert"),
        (1, NORMAL, r"id 1 is '<0x0A>' \(byte\) in base and '<0x0A>' \(normal\) in expert"),
        (2, CONTROL, r"id 2 is 'a' \(normal\) in base and 'a' \(control\) in expert"),
        (2, UNKNOWN, r"id 2 is 'a' \(normal\) in base and 'a' \(unknown\) in expert"),
    ],
)
def test_attributes_that_reports(token, attributes, words):
    with pytest.raises(VocabularyMismatchError, match=words):
        compare(Tokens(WORDS), changed(token, attributes=attributes))
    with pytest.raises(VocabularyMismatchError, match=f"1 id differs: id {token} is"):
        compare(changed(token, attributes=attributes), Tokens(WORDS))


def test_the_error_names_the_first_differences_and_counts_the_rest():
    other = Tokens([(b"\xffx\n", NORMAL), *WORDS])
    with pytest.raises(VocabularyMismatchError) as raised:
        compare(Tokens(WORDS), other, names=("base", "experts.kind"))
    assert str(raised.value) == (
        "base (4 tokens) and experts.kind (5 tokens) do not share a vocabulary: 5 ids differ: "
        "id 0 is '<s>' (control) in base and '\\\\xffx\\n' (normal) in experts.kind, "
        "id 1 is '<0x0A>' (byte) in base and '<s>' (control) in experts.kind, "
        "id 2 is 'a' (normal) in base and '<0x0A>' (byte) in experts.kind; use models of one family"
    )


def test_equal_widths_prove_nothing():
    with pytest.raises(VocabularyMismatchError, match="1 id differs: id 3 is 'b'"):
        compare(Tokens(WORDS), changed(3, text=b"B"))


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("kind", [USER_DEFINED, CONTROL])
def test_special_tokens_that_the_other_lacks_are_reported(padding, kind):
    longer = Tokens([*WORDS, (b"<think>", kind), (b"<pad>", CONTROL)])
    shorter = Tokens(WORDS + pads(4, padding))
    assert compare(longer, shorter).own.tolist() == [4, 5]
    assert compare(shorter, longer).own.tolist() == [4, 5]
    common = common_tokens({"base": shorter, "kind": longer})
    assert common.width == 4 + padding
    assert common.hidden.tolist() == [4, 5][:padding]
    assert [token for token in range(-1, 8) if common.has(token)] == [0, 1, 2, 3]
    assert list(common.differences) == ["kind"]
    assert "id 5 is " in common.differences["kind"]


def test_special_tokens_of_another_name_are_reported():
    reserved = [
        *WORDS,
        (b"<|r0|>", CONTROL),
        (b"<|r1|>", CONTROL),
        (b"<|r2|>", CONTROL),
        (b"<|r3|>", CONTROL),
        WORDS[3],
    ]
    named = [
        *WORDS,
        *((b"<|n%d|>" % i, kind) for i, kind in enumerate((CONTROL, UNKNOWN, USER_DEFINED, UNUSED))),
        WORDS[3],
    ]
    common = common_tokens({"base": Tokens(reserved), "kind": Tokens(named)})
    assert (common.width, common.hidden.tolist()) == (9, [4, 5, 6, 7])
    assert common.differences == {
        "kind": "id 4 is '<|r0|>' (control) in base and '<|n0|>' (control) in kind, "
        "id 5 is '<|r1|>' (control) in base and '<|n1|>' (unknown) in kind, "
        "id 6 is '<|r2|>' (control) in base and '<|n2|>' in kind, and 1 more"
    }


def test_control_tokens_that_a_file_calls_normal_are_no_text():
    """As llama.cpp leaves "normal" on what it takes for a control token."""
    odd = Tokens([*WORDS, (b"[PAD]", NORMAL | CONTROL)])
    assert compare(odd, odd).own.size == 0
    assert compare(odd, Tokens([*WORDS, (b"<x>", CONTROL)])).own.tolist() == [4]


def test_added_text_is_little():
    words = WORDS + [(b"w%d" % i, NORMAL) for i in range(396)]
    more = [(b"m%d" % i, NORMAL) for i in range(5)]
    assert compare(Tokens(words), Tokens(words + more[:4])).own.tolist() == [400, 401, 402, 403]
    with pytest.raises(VocabularyMismatchError, match=r"5 ids differ: id 400 is missing in base and 'm0' \(normal\)"):
        compare(Tokens(words), Tokens(words + more))


def test_a_padding_name_within_the_vocabulary_is_a_token():
    with pytest.raises(VocabularyMismatchError, match="id 2"):
        compare(Tokens(WORDS), changed(2, text=b"[PAD2]"))


@pytest.mark.parametrize("tokens", [[], pads(0, 3)])
def test_models_without_tokens_cannot_be_combined(tokens):
    with pytest.raises(VocabularyMismatchError, match="no token is common"):
        compare(Tokens(tokens), Tokens(tokens))


# Several roles


@dataclass
class Counted(Tokens):
    """Counts how often it is read."""

    reads: int = 0

    def texts(self):
        self.reads += 1
        return super().texts()


def test_each_table_is_read_once():
    base, tuned = Counted(WORDS), Counted(WORDS + pads(4, 2))
    roles = {"antiexpert": tuned, "base": base, "kind": tuned, "same": base}
    assert common_tokens(roles).width == 4
    assert (base.reads, tuned.reads) == (1, 1)


def test_the_role_that_differs_is_named():
    base = Tokens(WORDS)
    with pytest.raises(VocabularyMismatchError, match=r"^base \(4 tokens\) and kind \(4 tokens\)"):
        common_tokens({"base": base, "antiexpert": Tokens(WORDS), "kind": changed(3, text=b"B"), "last": base})
