"""What `backends.base` promises, held by every backend: llama.cpp, and the fake that other tests stand on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from eft_local.backends.base import ContextOptions, Evaluator, LanguageModel, Rows
from eft_local.backends.llamacpp import Model
from eft_local.errors import Cancelled, ContextOverflowError, UsageError
from tests.helpers.fake import FakeModel, noise

TOKENS = list(range(40, 60))
OTHERS = list(range(90, 70, -1))


@pytest.fixture(scope="module", params=["llama.cpp", "llama.cpp, recurrent", "fake", "fake, recurrent"])
def model(request: pytest.FixtureRequest, ggufs: Path) -> Iterator[LanguageModel]:
    recurrent = "recurrent" in request.param
    if request.param.startswith("fake"):
        yield FakeModel(noise(1), recurrent=recurrent)
        return
    with Model.load(ggufs / ("mamba.gguf" if recurrent else "base.gguf"), trusted=True) as model:
        yield model


@pytest.fixture
def context(model: LanguageModel) -> Iterator[Evaluator]:
    # In f32, without flash attention and by one thread, no split of a text into calls changes its logits.
    options = ContextOptions(
        n_ctx=256, n_seq=3, n_outputs=len(TOKENS) + 2, kv_type="f32", flash_attention=False, n_threads=1
    )
    context = model.open(options)
    yield context
    context.close()


def read(context: Evaluator, *batch: Rows) -> np.ndarray:
    context.submit(batch)
    return context.logits().copy()


def same(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_capabilities_say_whether_a_sequence_can_be_rewound(model: LanguageModel, context: Evaluator) -> None:
    read(context, Rows(0, TOKENS))
    left = context.rewind(0, 12)
    assert left == context.length(0) == (12 if model.capabilities.rewinds else 0)


def test_a_vocabulary_is_consistent_with_itself(model: LanguageModel) -> None:
    vocabulary = model.vocabulary
    assert len(vocabulary.texts()) == len(vocabulary.attributes()) == vocabulary.n_tokens
    assert all(map(vocabulary.is_eog, vocabulary.ends()))
    assert vocabulary.ends()
    assert all(vocabulary.piece(token) == b"" for token in vocabulary.ends())
    text = "a plain text, 12 words?"
    tokens = vocabulary.tokenize(text, add_special=False, parse_special=True)
    assert b"".join(map(vocabulary.piece, tokens)) == text.encode()
    with_bos = vocabulary.tokenize(text, add_special=True, parse_special=False)
    assert with_bos == ([vocabulary.bos] if vocabulary.add_bos else []) + tokens
    for special in vocabulary.specials():
        assert special.token in vocabulary.tokenize(f"a{special.text}b", add_special=False, parse_special=True)
        assert not special.is_control or special.token not in vocabulary.tokenize(
            special.text, add_special=False, parse_special=False
        )


def test_logits_are_those_of_the_last_rows_in_the_order_of_the_batch(context: Evaluator) -> None:
    both = read(context, Rows(0, TOKENS, 3), Rows(1, OTHERS, 2))
    assert both.shape == (5, context.n_vocab)
    assert both.dtype == np.float32
    for sequence in (0, 1):
        assert context.rewind(sequence, 0) == 0
    same(read(context, Rows(0, TOKENS, 3)), both[:3])
    same(read(context, Rows(1, OTHERS, 2)), both[3:])
    assert np.abs(both[0] - both[1]).max() > 0.01


def test_rows_that_nobody_wants_have_no_logits(context: Evaluator) -> None:
    both = read(context, Rows(0, TOKENS, 0), Rows(1, OTHERS, 1))
    assert both.shape == (1, context.n_vocab)
    assert (context.length(0), context.length(1), context.length(2)) == (len(TOKENS), len(OTHERS), 0)


def test_a_text_in_parts_has_the_logits_of_the_whole(context: Evaluator) -> None:
    whole = read(context, Rows(0, TOKENS, len(TOKENS)))
    parts = [read(context, Rows(1, part, len(part))) for part in (TOKENS[:1], TOKENS[1:8], TOKENS[8:])]
    same(np.concatenate(parts), whole)


def test_after_a_rewind_it_is_as_if_the_rest_had_never_been(model: LanguageModel, context: Evaluator) -> None:
    expected = read(context, Rows(0, TOKENS))
    read(context, Rows(1, TOKENS[:15]), Rows(2, OTHERS))
    read(context, Rows(1, OTHERS[:4]))
    held = context.rewind(1, 15)
    same(read(context, Rows(1, TOKENS[held:])), expected)


def test_a_copy_continues_as_the_original_does_and_leaves_it_alone(model: LanguageModel, context: Evaluator) -> None:
    read(context, Rows(0, TOKENS[:-1]), Rows(1, OTHERS))
    context.copy(0, 1)
    assert context.length(1) == context.length(0) == len(TOKENS) - 1
    copied = read(context, Rows(1, TOKENS[-1:]))
    assert context.length(0) == len(TOKENS) - 1
    same(read(context, Rows(0, TOKENS[-1:])), copied)
    same(read(context, Rows(2, TOKENS)), copied)


def test_what_does_not_fit_is_refused_and_changes_nothing(model: LanguageModel, context: Evaluator) -> None:
    read(context, Rows(0, TOKENS))
    room = context.n_ctx - len(TOKENS)
    with pytest.raises(ContextOverflowError):
        context.submit([Rows(1, OTHERS), Rows(0, [50] * (room + 1))])
    assert (context.length(0), context.length(1)) == (len(TOKENS), 0)
    with pytest.raises(UsageError):
        context.submit([Rows(1, [50] * 30, 30)])
    assert (context.length(0), context.length(1)) == (len(TOKENS), 0)
    context.submit([Rows(0, [50] * room)])
    assert context.length(0) == context.n_ctx


def test_an_abort_lasts_until_it_is_lifted(model: LanguageModel, context: Evaluator) -> None:
    read(context, Rows(0, TOKENS))
    context.abort()
    with pytest.raises(Cancelled):
        context.submit([Rows(0, OTHERS), Rows(1, OTHERS)])
    context.resume()
    held = context.length(0)
    assert held == len(TOKENS) or (held == 0 and not model.capabilities.rewinds)
    assert context.length(1) == 0
    follows = read(context, Rows(0, [*TOKENS, 50][held:]))
    same(read(context, Rows(2, [*TOKENS, 50])), follows)


def test_contexts_of_one_model_do_not_know_of_each_other(model: LanguageModel, context: Evaluator) -> None:
    other = model.open(ContextOptions(n_ctx=64, kv_type="f32", flash_attention=False, n_threads=1))
    try:
        read(context, Rows(0, TOKENS))
        same(read(other, Rows(0, OTHERS)), read(context, Rows(1, OTHERS)))
        assert (other.length(0), context.length(0)) == (len(OTHERS), len(TOKENS))
    finally:
        other.close()
