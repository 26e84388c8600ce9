"""Flash attention of ours: each row gets the bits that it gets alone, near what the formula says, or it is not used."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eft_local.backends.llamacpp import kernels
from eft_local.backends.llamacpp.kernels import attention
from eft_local.backends.llamacpp.kernels.attention import OURS, REFERENCE, THEIRS, Attention, Case

LOADED = kernels.load()
pytestmark = pytest.mark.skipif(
    isinstance(LOADED, str), reason=f"{LOADED}; eft-local's kernels are for Linux on x86-64 CPUs with AVX2"
)

FORMS = {
    "plain": {},
    "long": {"cells": 700, "rows": 70},
    "one row": {"rows": 1, "cells": 600},
    "cells that are no whole block": {"cells": 45},
    "a sliding window": {"window": 40, "cells": 300},
    "soft-capped": {"softcap": 2.0},
    "ALiBi": {"bias": 8.0},
    "ALiBi, heads no power of two": {"bias": 8.0, "heads": 6},
    "sinks": {"sinks": True},
    "one head of keys": {"kv_heads": 1},
    "each its own": {"kv_heads": 8},
    "great scores": {"scale": 300.0},
}


@pytest.fixture
def attend() -> Attention:
    assert not isinstance(LOADED, str)
    yield LOADED.attention
    LOADED.attention.use(exact=True)


def case(**given: object) -> Case:
    return Case(**{"width": 64, "heads": 8, "kv_heads": 2, "rows": 20, "cells": 150} | given)


class Longer(Case):
    """Sixty cells more, which no row may look at, and which hold great numbers."""

    def _with(self, own: np.ndarray, number: float) -> np.ndarray:
        return np.concatenate([own, np.full((*own.shape[:-2], 60, own.shape[-1]), number, np.float16)], axis=-2)

    @property
    def _short(self) -> Case:
        return Case(self.width, self.heads, self.kv_heads, self.rows, self.cells - 60)

    @property
    def keys(self) -> np.ndarray:
        return self._with(self._short.keys, 9)

    @property
    def values(self) -> np.ndarray:
        return self._with(self._short.values, 60_000)

    @property
    def mask(self) -> np.ndarray:
        return np.concatenate([self._short.mask, np.full((self.rows, 60), -np.inf, np.float16)], axis=1)


def expected(case: Case) -> np.ndarray:
    """The formula in float64, [rows, heads, width]."""
    queries, keys, values = (each.astype(np.float64) for each in (case.queries, case.keys, case.values))
    group = case.heads // case.kv_heads
    keys, values = (each.repeat(group, axis=0) for each in (keys, values))
    scores = np.einsum("hrw,hcw->hrc", queries, keys) * case.scale / case.width**0.5
    if case.softcap:
        scores = case.softcap * np.tanh(scores / case.softcap)
    below = 2 ** int(np.log2(case.heads))
    slopes = [
        2.0 ** (-case.bias * (h + 1) / below) if h < below else 2.0 ** (-case.bias / 2 * (2 * (h - below) + 1) / below)
        for h in range(case.heads)
    ]
    scores = scores + (np.array(slopes)[:, None, None] if case.bias else 1.0) * case.mask.astype(np.float64)
    if case.sinks:
        sinks = np.broadcast_to(case.sink[:, None, None], (case.heads, case.rows, 1))
        scores = np.concatenate([scores, sinks], axis=2)
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    weights /= weights.sum(axis=2, keepdims=True)
    return np.einsum("hrc,hcw->rhw", weights[..., : case.cells], values)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("width", [8, 64, 80, 256])
def test_it_is_the_formula(attend, width, form):
    found = attend.compute(OURS, case(width=width, **form))
    np.testing.assert_allclose(found, expected(case(width=width, **form)), atol=1e-7 * max(30, form.get("scale", 0)))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_llama_cpps_reference_is_near(attend, form):
    """It adds up in F16."""
    np.testing.assert_allclose(attend.compute(REFERENCE, case(**form)), expected(case(**form)), atol=1e-2)


@settings(max_examples=60, deadline=None)
@given(
    width=st.sampled_from([8, 16, 64, 96, 256]),
    heads=st.sampled_from([(1, 1), (4, 1), (6, 3), (8, 8)]),
    rows=st.integers(1, 70),
    before=st.integers(0, 600),
    cuts=st.sets(st.integers(1, 69), max_size=6),
    threads=st.integers(1, 3),
    form=st.sampled_from([{}, {"window": 33}, {"softcap": 2.0}, {"bias": 8.0}, {"sinks": True}]),
)
def test_rows_get_the_same_bits_in_whatever_parts_they_come(width, heads, rows, before, cuts, threads, form):
    assert not isinstance(LOADED, str)
    tried = Case(width, *heads, rows=rows, cells=rows + before, **form)
    together = LOADED.attention.compute(OURS, tried)
    places = sorted({0, rows, *(cut for cut in cuts if cut < rows)})
    parts = [LOADED.attention.compute(OURS, tried, part, threads) for part in pairwise(places)]
    LOADED.attention.use(exact=True)
    np.testing.assert_array_equal(np.concatenate(parts), together)


def test_cells_that_are_hidden_change_nothing(attend):
    """What lies in cells of other times is there all the same: a cache grows, and its rows are rewound."""
    short = case(rows=1, cells=100)
    longer = Longer(**{name: getattr(short, name) for name in ("width", "heads", "kv_heads", "rows")}, cells=160)
    np.testing.assert_array_equal(attend.compute(OURS, longer), attend.compute(OURS, short))


def test_a_row_that_may_look_at_nothing_gets_nothing(attend):
    nowhere = case(rows=4, cells=2)  # the first two rows stand before the first cell
    assert not attend.compute(OURS, nowhere)[:2].any()


def test_llama_cpps_own_depends_on_company(attend):
    """Or there would be nothing to mend."""
    tried = case(rows=70, cells=700)
    together = attend.compute(THEIRS, tried)
    apart = np.concatenate([attend.compute(THEIRS, tried, (i, i + 1)) for i in range(tried.rows)])
    assert not np.array_equal(together, apart)


def test_one_that_is_not_exact_is_not_used(attend, monkeypatch):
    monkeypatch.setattr(Attention, "agrees", lambda self, case: False)
    again = Attention(attend._compiled, attend._ggml)
    assert again.exact == REFERENCE


@pytest.mark.parametrize(("width", "suits"), [(64, True), (256, True), (0, False), (36, False), (576, False)])
def test_heads_of_other_sizes_are_left_to_llama_cpp(width, suits):
    assert attention.suits(width) == suits
    assert kernels.attends([64, width]) == suits


def test_heads_that_do_not_suit_are_computed_by_the_reference(attend):
    tried = case(width=36)
    np.testing.assert_array_equal(attend.compute(OURS, tried), attend.compute(REFERENCE, tried))
