"""Which rows go into one call of llama.cpp: few passes, and nothing but the batch's own tokens kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eft_local.backends.base import ContextOptions, Rows
from eft_local.backends.llamacpp.calls import calls

LENGTHS = [10, 20, 30, 40]


def shares(made):
    """Return each call's rows per sequence, in the order in which these come."""
    return [{sequence: sum(row.sequence == sequence for row in call) for sequence in order(call)} for call in made]


def order(call):
    return list(dict.fromkeys(row.sequence for row in call))


def made(batch, *, size=512, fill=True, room=1000):
    return list(calls(batch, LENGTHS, room=room, size=size, fill=fill))


def test_unequal_rows_are_filled_up_to_one_pass():
    assert shares(made([Rows(0, [1, 2, 3], 3), Rows(1, [4], 1)])) == [{0: 3, 1: 3}]
    assert shares(made([Rows(0, [1, 2, 3], 3), Rows(1, [4], 1)], fill=False)) == [{0: 3, 1: 1}]


def test_a_gap_between_sequences_is_filled_where_that_is_a_row_and_saves_a_pass():
    assert shares(made([Rows(0, [1], 1), Rows(2, [2], 1)])) == [{0: 1, 1: 1, 2: 1}]


def test_nothing_is_filled_where_rows_cost_more_than_a_pass():
    batch = [Rows(0, [1] * 17, 17), Rows(1, [4], 1)]
    assert shares(made(batch)) == [{0: 17, 1: 1}]


def test_nothing_is_filled_without_room():
    assert shares(made([Rows(0, [1, 2, 3], 3), Rows(1, [4], 1)], room=22)) == [{0: 3, 1: 1}]


def test_prompts_of_several_lengths_are_left_to_llama_cpp():
    batch = [Rows(0, [1] * 30, 1), Rows(1, [1] * 50, 1), Rows(2, [1] * 90, 1)]
    assert shares(made(batch)) == [{0: 30, 1: 50, 2: 90}]


@settings(max_examples=200, deadline=None)
@given(
    st.permutations(range(4)),
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 6)), min_size=1, max_size=4),
    st.booleans(),
)
def test_every_row_is_evaluated_once_and_in_order(numbers, wanted, fill):
    batch = [
        Rows(sequence, list(range(1, 1 + silent + outputs)), outputs)
        for sequence, (silent, outputs) in zip(numbers, wanted, strict=False)
    ]
    found = made(batch, size=32, fill=fill)
    assert all(0 < len(call) <= 32 for call in found)
    for each in batch:
        rows = [row for call in found for row in call if row.sequence == each.sequence]
        own = rows[: len(each.tokens)]
        assert [row.token for row in own] == list(each.tokens)
        assert [row.wanted for row in own] == [i >= len(each.tokens) - each.outputs for i in range(len(own))]
        assert not any(row.wanted for row in rows[len(own) :])
        start = LENGTHS[each.sequence]
        assert [row.position for row in rows] == list(range(start, start + len(rows)))
        assert fill or len(rows) == len(own)
    outputs = [row for call in found for row in call if row.wanted]
    assert not any(row.wanted for call in found[:-1] for row in call)
    assert [row.sequence for row in outputs] == [each.sequence for each in batch for _ in range(each.outputs)]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2)])
def test_logits_come_in_the_batchs_order(order, ggufs):
    from eft_local.backends.llamacpp import Model

    with Model.load(ggufs / "base.gguf", trusted=True) as model:
        exact = {"n_threads": 1, "kv_type": "f32", "flash_attention": False}
        with model.open(ContextOptions(n_ctx=256, n_seq=3, n_outputs=12, **exact)) as context:
            places = enumerate(order)
            batch = [Rows(sequence, [7 + sequence] * (1 + 2 * place), 1 + place) for place, sequence in places]
            context.submit(batch)
            together = np.split(context.logits().copy(), np.cumsum([each.outputs for each in batch])[:-1])
            assert [context.length(each.sequence) for each in batch] == [len(each.tokens) for each in batch]
            for each, rows in zip(batch, together, strict=True):
                context.rewind(each.sequence, 0)
                context.submit([each])
                np.testing.assert_allclose(rows, context.logits(), atol=1e-4)
