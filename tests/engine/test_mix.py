"""The formula against closed forms and an independent float64 reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from eft_local.backends.ranking import rank
from eft_local.engine.mix import log_softmax, mix, plausible, top_p_mask

INF = np.float32(np.inf)

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")


def rows(*values):
    return np.array(values, dtype=np.float32)


def random_rows(seed, n_rows=3, n=50, scale=3.0):
    return np.random.default_rng(seed).normal(scale=scale, size=(n_rows, n)).astype(np.float32)


def probabilities(scores):
    return np.exp(log_softmax(scores).astype(np.float64))


LOGITS = arrays(np.float32, (2, 7), elements=st.floats(-20, 20, width=32))
FACTORS = st.floats(-2, 3, width=32)


# The formula


def test_by_hand_with_amplification():
    base, expert, antiexpert = rows([1, 2, 3]), rows([0, 5, 1]), rows([2, 2, -1])
    # antiexpert + 1.5·(base − antiexpert) + 2·(expert − antiexpert)
    expected = rows([2 - 1.5 - 4, 2 + 0 + 6, -1 + 6 + 4])
    np.testing.assert_array_equal(mix(base, [expert], [antiexpert], [2.0], beta=1.5), expected)


def test_by_hand_with_two_experts_and_own_antiexperts():
    base = rows([1, 2, 3])
    experts, antiexperts = [rows([0, 5, 1]), rows([4, 4, 4])], [rows([2, 2, -1]), rows([1, 0, 8])]
    tuning = 0.5 * (experts[0] - antiexperts[0]) + 0.25 * (experts[1] - antiexperts[1])
    np.testing.assert_array_equal(mix(base, experts, antiexperts, [0.5, 0.25]), base + tuning)
    scale = antiexperts[0] + 2 * (base - antiexperts[0])  # the first expert's antiexpert
    np.testing.assert_array_equal(mix(base, experts, antiexperts, [0.5, 0.25], beta=2.0), scale + tuning)


def test_conservative_filter_ignores_only_the_scale_delta():
    base, expert, antiexpert = rows([-1, -2, -3]), rows([-5, -1, -2]), rows([-2, -2, -2])
    keep = np.array([[True, False, True]])
    mixed = mix(base, [expert], [antiexpert], [1.0], beta=2.0, keep=keep)
    np.testing.assert_array_equal(mixed, rows([-2 + 2 * 1 - 3, -1, -2 + 2 * -1 + 0]))
    assert mixed[0, 1] == expert[0, 1]  # outside the filter a token keeps the expert's log-probability


def test_rows_are_independent():
    base, expert, antiexpert = (random_rows(seed) for seed in range(3))
    together = mix(base, [expert], [antiexpert], [0.7], beta=1.3)
    for row in range(3):
        one = slice(row, row + 1)
        alone = mix(base[one], [expert[one]], [antiexpert[one]], [0.7], beta=1.3)
        np.testing.assert_array_equal(together[one], alone)


def test_slices_of_padded_arrays_and_a_given_output():
    base, expert, antiexpert = random_rows(0, n=60), random_rows(1, n=64), random_rows(2, n=50)
    before = [array.copy() for array in (base, expert, antiexpert)]
    out = np.full((3, 50), 7, dtype=np.float32)
    assert mix(base[:, :50], [expert[:, :50]], [antiexpert], [1.0], out=out) is out
    np.testing.assert_array_equal(out, base[:, :50] + (expert[:, :50] - antiexpert))
    for array, copy in zip((base, expert, antiexpert), before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_no_expert_is_the_base():
    base = random_rows(0)
    np.testing.assert_array_equal(mix(base, [], [], []), base)


# Invariants


@given(LOGITS, LOGITS, LOGITS)
def test_alpha_0_is_the_base_exactly(base, expert, antiexpert):
    np.testing.assert_array_equal(mix(base, [expert], [antiexpert], [0.0]), base)


@given(LOGITS, LOGITS)
def test_base_equal_to_antiexpert_is_the_expert(base, expert):
    mixed = mix(base, [expert], [base], [1.0])
    np.testing.assert_allclose(probabilities(mixed), probabilities(expert), atol=1e-5)


@given(LOGITS, FACTORS, st.floats(0, 3, width=32))
def test_three_equal_models_are_that_model(model, alpha, beta):
    mixed = mix(model, [model], [model], [alpha], beta=beta)
    np.testing.assert_allclose(mixed, model, atol=1e-5)


@given(LOGITS, LOGITS, LOGITS, FACTORS, st.floats(0, 3, width=32), st.sampled_from([0, 1, 2]))
def test_a_constant_added_to_one_model_changes_nothing(base, expert, antiexpert, alpha, beta, which):
    models = [base, expert, antiexpert]
    before = probabilities(mix(models[0], [models[1]], [models[2]], [alpha], beta=beta))
    models[which] = models[which] + np.float32(4)
    after = probabilities(mix(models[0], [models[1]], [models[2]], [alpha], beta=beta))
    np.testing.assert_allclose(after, before, atol=1e-4)


@given(LOGITS, LOGITS, LOGITS, LOGITS, FACTORS, FACTORS, st.floats(0, 3, width=32), arrays(bool, (2, 7)))
def test_any_mixture_follows_the_formula(base, expert, other, antiexpert, alpha, own, beta, keep):
    b, e, o, a = (array.astype(np.float64) for array in (base, expert, other, antiexpert))
    expected = a + beta * keep * (b - a) + alpha * (e - a) + own * (o - b)
    mixed = mix(base, [expert, other], [antiexpert, base], [alpha, own], beta=beta, keep=keep)
    np.testing.assert_allclose(mixed, expected, atol=1e-4)


# Infinities

WITH_INFINITIES = arrays(np.float32, (2, 7), elements=st.one_of(st.just(-INF), st.floats(-20, 20, width=32)))


@settings(max_examples=300)
@given(*[WITH_INFINITIES] * 4, FACTORS, FACTORS, st.floats(0, 3, width=32), st.none() | arrays(bool, (2, 7)))
def test_infinities_never_give_nan_nor_a_possible_token_that_the_base_forbids(
    base, expert, other, antiexpert, alpha, own, beta, keep
):
    mixed = mix(base, [expert, other], [antiexpert, expert], [alpha, own], beta=beta, keep=keep)
    assert (mixed < INF).all()  # neither NaN nor +inf
    assert (mixed[base == -INF] == -INF).all()


@pytest.mark.parametrize(
    ("base", "expert", "antiexpert", "expected"),
    [
        (-INF, 1, 2, -INF),  # impossible for the base
        (-INF, -INF, -INF, -INF),  # impossible for all, as padding may be
        (3, -INF, -INF, 3),  # −inf − −inf is no change
        (3, -INF, 1, -INF),  # tuning forbade it
        (3, 1, -INF, 3),  # no finite change to speak of
    ],
)
@pytest.mark.parametrize("beta", [1.0, 0.5, 1.5])
def test_infinities_by_hand(base, expert, antiexpert, expected, beta):
    # A second, finite token shows that its neighbour's infinity does not touch it.
    mixed = mix(rows([base, 1]), [rows([expert, 5])], [rows([antiexpert, 2])], [1.0], beta=beta)
    np.testing.assert_array_equal(mixed, rows([expected, 2 + beta * (1 - 2) + (5 - 2)]))


def test_alpha_0_is_the_base_exactly_with_infinities():
    base = rows([1, -INF, 2, -INF])
    np.testing.assert_array_equal(mix(base, [rows([-INF, 1, 0, 0])], [rows([0, -INF, -INF, 0])], [0.0]), base)


def test_an_infinity_outside_the_filter():
    base, expert, antiexpert = rows([-INF, -1]), rows([-1, -2]), rows([-2, -3])
    keep = np.array([[False, False]])
    mixed = mix(base, [expert], [antiexpert], [1.0], keep=keep)
    np.testing.assert_array_equal(mixed, rows([-INF, -2]))


def test_an_undefined_gain_leaves_the_filter_in_force():
    base, antiexpert, other = rows([-9, -1]), rows([-2, -3]), rows([-INF, -1])
    expert = rows([-1, -2])
    keep = np.array([[False, False]])
    mixed = mix(base, [expert, base], [antiexpert, other], [1.0, 1.0], keep=keep)
    np.testing.assert_array_equal(mixed, expert)  # the second expert's gains are undefined and 0


# What is refused


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"alphas": [float("nan")]}, "finite"),
        ({"alphas": [float("inf")]}, "finite"),
        ({"beta": float("nan")}, "beta"),
        ({"beta": -1.0}, "beta"),
        ({"alphas": [1.0, 2.0]}, "alphas"),
        ({"antiexperts": []}, "antiexperts"),
        ({"experts": [np.zeros((1, 4), np.float32)]}, r"experts\[0\]"),
        ({"keep": np.ones((2, 3), bool)}, "keep"),
        ({"experts": [], "antiexperts": [], "alphas": [], "beta": 2.0}, "antiexpert"),
    ],
)
def test_wrong_arguments_are_named(change, words):
    zero = np.zeros((1, 3), np.float32)
    arguments = {"base": zero, "experts": [zero], "antiexperts": [zero], "alphas": [1.0]} | change
    with pytest.raises(ValueError, match=words):
        mix(**arguments)


# Distributions


@given(LOGITS, st.floats(-1e4, 1e4, width=32))
def test_log_softmax(logits, constant):
    expected = logits.astype(np.float64)
    expected = expected - np.log(np.exp(expected).sum(axis=-1, keepdims=True))
    np.testing.assert_allclose(log_softmax(logits), expected, atol=1e-5)
    moved = logits + constant  # far from 0: nothing overflows
    np.testing.assert_allclose(np.exp(log_softmax(moved)).sum(axis=-1), 1, atol=1e-5)


def test_log_softmax_keeps_infinities_and_works_in_place():
    logits = rows([0, -INF, 0], [-1e30, 1e30, 0])
    assert log_softmax(logits, out=logits) is logits
    half = np.float32(np.log(0.5))
    np.testing.assert_allclose(logits, [[half, -INF, half], [-2e30, 0, -1e30]], rtol=1e-6)


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (0.1, [0, 1, 0, 0]),
        (0.5, [0, 1, 0, 0]),
        (0.6, [0, 1, 0, 1]),
        (0.76, [1, 1, 0, 1]),
        (0.99, [1, 1, 1, 1]),
        (1.0, [1, 1, 1, 1]),
    ],
)
def test_top_p_by_hand(p, expected):
    np.testing.assert_array_equal(top_p_mask(np.log(rows([0.125, 0.5, 0.125, 0.25])), p), [expected])


def test_top_p_takes_equal_tokens_by_id_and_never_an_impossible_one():
    logprobs = np.log(np.full((1, 4), 0.25, np.float32))
    np.testing.assert_array_equal(top_p_mask(logprobs, 0.6), [[True, True, True, False]])
    possible = rows([-INF, np.log(0.5), -INF, np.log(0.5)])
    for p in (0.9, 1 - 1e-9, 1.0):
        np.testing.assert_array_equal(top_p_mask(possible, p), [[False, True, False, True]])


@given(st.integers(0, 2**32), st.sampled_from([0.01, 0.3, 1, 3, 10]), st.floats(0.01, 1))
def test_top_p_is_the_smallest_set(seed, scale, p):
    logprobs = log_softmax(random_rows(seed, n_rows=2, n=4000, scale=scale))
    for row, mask in zip(logprobs.astype(np.float64), top_p_mask(logprobs, p), strict=True):
        order = np.argsort(-row, kind="stable")
        chosen = np.count_nonzero(mask)
        assert mask[order[:chosen]].all()  # the most probable ones
        mass = np.exp(row[order])
        assert mass[:chosen].sum() >= p - 1e-5  # they reach p,
        assert p == 1 or mass[: chosen - 1].sum() < p + 1e-5  # and without the last they do not


@pytest.mark.parametrize("p", [0.0, -0.1, 1.1, float("nan")])
def test_impossible_p_and_tau_are_refused(p):
    for refuse in (lambda: top_p_mask(rows([0]), p), lambda: plausible(rows([0]), tau=p)):
        with pytest.raises(ValueError, match="at most 1"):
            refuse()


def test_plausible():
    base = np.log(rows([0.5, 0.3, 0.15, 0.05], [0.05, 0.05, 0.05, 0.85]))
    np.testing.assert_array_equal(plausible(base, tau=0.2), [[1, 1, 1, 0], [0, 0, 0, 1]])
    np.testing.assert_array_equal(plausible(base + 9, tau=0.2), [[1, 1, 1, 0], [0, 0, 0, 1]])  # logits too
    np.testing.assert_array_equal(plausible(base, top_p=0.7), [[1, 1, 0, 0], [0, 0, 0, 1]])
    np.testing.assert_array_equal(plausible(base, tau=0.7, top_p=0.7), [[1, 0, 0, 0], [0, 0, 0, 1]])
    np.testing.assert_array_equal(plausible(base, tau=1.0), [[1, 0, 0, 0], [0, 0, 0, 1]])
    assert plausible(base).all()
    assert not plausible(rows([0, -INF]), tau=1e-6)[0, 1]


@given(arrays(np.float32, 9, elements=st.sampled_from([-INF, 0, 1, 2])))
def test_rank_is_the_place_in_a_stable_sort(scores):
    order = np.argsort(-scores, kind="stable")
    assert [rank(scores, token) for token in order] == list(range(9))
