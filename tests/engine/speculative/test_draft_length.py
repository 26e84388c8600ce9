"""Draft lengths against closed forms, and against every fixed length on invented answers with known costs."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eft_local.engine.speculative.costs import MEASURED_ROWS, RowCosts, _between, _measure
from eft_local.engine.speculative.length import AdaptiveLength, Calibration, DraftLength, FixedLength, Outcome

FREE = RowCosts((1, 2), (0.0, 0.0))
FLAT = RowCosts((1, 16), (0.1, 0.1))
STEEP = RowCosts((1, 16), (0.1, 1.6))
SMALL = RowCosts((1, 16), (0.01, 0.02))
KERNELS = RowCosts((1, 2, 3, 4, 5, 8, 16), tuple(0.12 * cost for cost in (1, 1.95, 2.6, 1.97, 3.1, 3.6, 4.8)))
"""A 7B model on two cores, in seconds: kernels work in fours."""


def draft(length: DraftLength, confidence: float, live: int = 1, *, free: bool = False) -> int:
    """Draft for `live` answers, always with the same confidence; return how many tokens the first gets."""
    length.begin(live, 15)
    active, tokens = set(range(live)), 0
    while active := length.extend(dict.fromkeys(active, confidence), free=free):
        tokens += 0 in active
    return tokens


def taught(length: AdaptiveLength, confidence: float, share: int, rounds: int = 200) -> AdaptiveLength:
    """Let a share of the drafted tokens, in percent, be right."""
    chance = random.Random(0)
    for _ in range(rounds):
        count = draft(length, confidence)
        accepted = 0
        while accepted < count and chance.random() * 100 < share:
            accepted += 1
        length.observe([Outcome(min(accepted + 1, count), accepted)])
    return length


def test_a_fixed_length_is_kept_to():
    length = FixedLength(5)
    assert [draft(length, sure) for sure in (0.0, 1.0)] == [5, 5]
    length.begin(3, 15)
    assert length.extend({0: 0.1, 2: 0.2}) == {0, 2}


def test_drafts_are_long_where_rows_cost_nothing_and_draft_tokens_are_right():
    assert draft(taught(AdaptiveLength([SMALL], [FLAT]), 0.99, 100), 0.99) == 15


def test_nothing_is_drafted_where_a_row_costs_an_evaluation():
    assert draft(AdaptiveLength([SMALL], [STEEP]), 0.99) == 0


def test_nothing_is_drafted_after_wrong_draft_tokens_and_something_again_afterwards():
    length = taught(AdaptiveLength([SMALL], [KERNELS]), 0.97, 0, rounds=30)
    assert draft(length, 0.97) == 0
    for _ in range(2000):  # tokens without a draft
        length.begin(1, 15)
        length.observe([Outcome(0, 0)])
    assert draft(length, 0.97) > 0


def compared(length: AdaptiveLength, confidence: float, right: bool, rounds: int) -> int:
    """Write tokens with draft tokens that are always right or always wrong; return how many were drafted."""
    drafted = 0
    for _ in range(rounds):
        if not length.begin(1, 15):
            length.observe([Outcome(0, 0)])
            continue
        count = 0
        while length.extend({0: confidence}):
            count += 1
        drafted += count
        length.observe([Outcome(count, count, True) if right else Outcome(min(1, count), 0, None if count else False)])
    return drafted


def test_tokens_that_are_not_drafted_show_when_drafts_pay_again():
    length = taught(AdaptiveLength([SMALL], [KERNELS]), 0.97, 0, rounds=30)
    assert draft(length, 0.97) == 0
    assert compared(length, 0.97, right=True, rounds=40) > 40


def test_tokens_that_are_not_drafted_keep_a_bad_draft_from_being_tried_again():
    length = AdaptiveLength([SMALL], [KERNELS])
    assert compared(length, 0.97, right=False, rounds=50) > 0
    assert compared(length, 0.97, right=False, rounds=2000) == 0


def test_a_draft_stops_before_a_token_of_low_confidence():
    length = AdaptiveLength([SMALL], [RowCosts((1, 16), (0.1, 0.5))])
    for _ in range(50):
        length.begin(1, 15)
        count = 0
        while count < 4 and length.extend({0: 0.995}):
            count += 1
        judged = count + bool(length.extend({0: 0.1}))
        length.observe([Outcome(judged, count)])
    length.begin(1, 15)
    assert [bool(length.extend({0: sure})) for sure in (0.995, 0.995, 0.01)] == [True, True, False]


def test_a_fourth_row_that_is_cheaper_than_a_third_is_taken():
    length = taught(AdaptiveLength([SMALL], [KERNELS]), 0.85, 80)
    assert draft(length, 0.85) % 4 == 3


def test_of_many_answers_the_likeliest_are_drafted():
    length = AdaptiveLength([SMALL], [RowCosts((1, 8, 9, 64), (0.1, 0.12, 0.6, 4.0))])  # the ninth row is dear
    length.begin(4, 15)
    longer = length.extend({0: 0.999, 1: 0.05, 2: 0.999, 3: 0.05})
    assert longer >= {0, 2}
    length.begin(8, 15)
    assert not length.extend(dict.fromkeys(range(8), 0.9))


def test_free_draft_tokens_cost_the_drafting_roles_rows_and_no_step():
    steps_are_dear = [RowCosts((1, 16), (1.0, 1.0))]
    assert draft(AdaptiveLength(steps_are_dear, [FLAT]), 0.9) == 0
    assert draft(AdaptiveLength(steps_are_dear, [FLAT], calibrations={True: Calibration()}), 0.9, free=True) == 15


def test_what_is_learnt_of_free_draft_tokens_is_kept_apart():
    length = AdaptiveLength([FREE], [KERNELS], calibrations={False: Calibration(), True: Calibration()})
    for _ in range(30):
        length.begin(1, 15)
        judged = len(length.extend({0: 0.97}, free=True))
        length.observe([Outcome(judged, 0)])
    assert draft(length, 0.97, free=True) == 0
    assert draft(length, 0.97) > 0


def test_nobody_drafts_where_the_best_draft_tokens_would_not_pay():
    hopeless = AdaptiveLength([SMALL], [STEEP])
    assert not hopeless.begin(1, 15)
    hopeful = AdaptiveLength([SMALL], [FLAT])
    assert hopeful.begin(1, 15)


def test_hopeless_drafts_are_thought_of_once_in_a_while_and_when_others_are_live():
    hopeless = AdaptiveLength([SMALL], [STEEP])
    requested: list[int] = []
    hopeless._could_pay = lambda live, free: requested.append(live) is not None
    assert not any(hopeless.begin(live, 15) for live in (1,) * 33 + (2,) * 17)
    assert requested == [1, 1, 2, 2]


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=60))
def test_a_calibration_is_a_probability(seen: list[tuple[float, bool]]):
    calibration = Calibration()
    for confidence, right in seen:
        calibration.observe([confidence], Outcome(1, int(right)))
        calibration.fade(1)
        assert all(0 < calibration.probability(value) < 1 for value in (0, 0.5, 0.97, 1))
        assert 0 < calibration.mean < 1


def test_a_calibration_learns_nothing_of_draft_tokens_that_nobody_judged():
    calibration = Calibration()
    calibration.observe([0.97, 0.7, 0.1], Outcome(2, 1))
    assert calibration.right[6] == 1
    assert calibration.wrong[3] == 1
    assert sum(calibration.right) + sum(calibration.wrong) == 2


# Against fixed lengths: answers whose draft tokens are right or wrong as invented, with the confidence of the draft.

Answer = Sequence[tuple[bool, float]]


def invented(seed: int, right_when_sure: float, right_when_not: float, sure: float = 0.7) -> list[Answer]:
    """Return 40 answers of 60 tokens: stretches where the draft is confident, and others."""
    chance = random.Random(seed)
    answers = []
    for _ in range(40):
        tokens = []
        for _ in range(60):
            value = 0.97 if chance.random() < sure else 0.3
            tokens.append((chance.random() < (right_when_sure if value > 0.5 else right_when_not), value))
        answers.append(tokens)
    return answers


def seconds_per_token(length: DraftLength, answers: Sequence[Answer], large: RowCosts, small: RowCosts) -> float:
    """Return what writing the answers would take: expert drafts, base and antiexpert check."""
    chance = random.Random(1)
    seconds = tokens = 0.0
    for answer in answers:
        place = 0
        while place < len(answer):
            length.begin(1, 15)
            drafted, right = 0, True
            while place + drafted < len(answer):
                hit, confidence = answer[place + drafted]
                if not length.extend({0: confidence if right else chance.choice((0.97, 0.3))}):
                    break
                right = right and hit
                drafted += 1
            accepted = 0
            while accepted < drafted and answer[place + accepted][0]:
                accepted += 1
            following = answer[place + drafted][0] if accepted == drafted < len(answer) - place else None
            length.observe([Outcome(min(accepted + 1, drafted), accepted, following)])
            seconds += (drafted + 1) * small(1) + large(drafted + 1) + small(drafted + 1)
            won = min(accepted + 1, len(answer) - place)
            place, tokens = place + won, tokens + won
    return seconds / tokens


@pytest.mark.parametrize("large", [KERNELS, FLAT, STEEP], ids=["kernels", "flat", "steep"])
@pytest.mark.parametrize("rates", [(0.98, 0.3), (0.9, 0.5), (0.7, 0.7), (0.5, 0.1)])
def test_no_fixed_length_is_faster_by_more_than_a_few_percent(large: RowCosts, rates: tuple[float, float]) -> None:
    answers = invented(0, *rates)
    fixed = min(seconds_per_token(FixedLength(k), answers, large, SMALL) for k in range(16))
    adaptive = seconds_per_token(AdaptiveLength([SMALL], [large, SMALL]), answers, large, SMALL)
    assert adaptive <= 1.05 * fixed


@pytest.mark.parametrize("large", [KERNELS, FLAT, STEEP], ids=["kernels", "flat", "steep"])
@pytest.mark.parametrize("sure", [0.0, 0.5, 1.0])
def test_a_draft_that_is_noise_costs_next_to_nothing(large: RowCosts, sure: float) -> None:
    answers = invented(2, 0.01, 0.01, sure)
    plain = seconds_per_token(FixedLength(0), answers, large, SMALL)
    adaptive = seconds_per_token(AdaptiveLength([SMALL], [large, SMALL]), answers, large, SMALL)
    assert adaptive <= plain / 0.97


# Row costs


def test_costs_between_and_beyond_what_was_measured_lie_on_straight_lines():
    costs = RowCosts((1, 2, 4), (1.0, 3.0, 4.0))
    assert [costs(n) for n in (1, 2, 3, 4, 6)] == [1.0, 3.0, 3.5, 4.0, 6.0]
    assert RowCosts((1, 3, 4), (1.0, 7.0, 4.0))(10) == 10.0  # the last step goes down


@pytest.mark.parametrize(("unit", "repeats"), [(1e-6, 5), (10.0, 1)])
def test_a_large_model_is_measured_fewer_times(unit: float, repeats: int) -> None:
    requested: list[int] = []

    def evaluate(rows: int) -> float:
        requested.append(rows)
        return unit * rows * (1 + len(requested) / 100)  # the machine grows slower

    seconds = _measure(MEASURED_ROWS, evaluate)
    assert requested == [1, *MEASURED_ROWS * repeats]
    assert seconds == [unit * rows * (1 + (place + 2) / 100) for place, rows in enumerate(MEASURED_ROWS)]


def test_costs_follow_what_evaluations_take():
    costs = RowCosts((1, 4, 8), (1.0, 2.0, 4.0))
    for _ in range(100):
        costs.learn(6, 6.0)
    assert costs(6) == pytest.approx(6.0, rel=0.01)
    assert costs(8) / costs(1) == pytest.approx(4.0)  # the others keep their proportions
    for rows in (0, 1, 2, 9):
        costs.learn(rows, 0.0)
        assert costs(4) > 0


def test_one_hiccup_is_not_believed():
    costs = RowCosts((1, 4, 8), (1.0, 2.0, 4.0))
    costs.learn(4, 1000.0)
    assert costs(4) < 2.5
    assert costs(8) < 4.2


def test_more_rows_are_evaluated_where_they_cost_less():
    costs = RowCosts(range(1, 9), (1.0, 2.0, 3.0, 1.5, 2.5, 3.5, 4.5, 2.6))
    assert [costs.cheapest(n) for n in range(1, 9)] == [1, 4, 4, 4, 5, 8, 8, 8], (
        "eight are not clearly cheaper than five"
    )
    assert RowCosts((1, 4), (2.0, 1.0)).cheapest(1) == 1, "a single row is left alone"


@given(st.lists(st.tuples(st.integers(1, 20), st.floats(0.1, 10)), max_size=20))
def test_what_is_learnt_of_rows_is_seen_in_which_are_cheapest(evaluations: list[tuple[int, float]]) -> None:
    costs = RowCosts(range(1, 13), [min(n, n % 4 + 2.0) for n in range(1, 13)])
    for rows, seconds in evaluations:
        costs.learn(rows, seconds)
        afresh = RowCosts(costs._rows, costs._seconds)
        assert [costs.cheapest(n) for n in range(1, 22)] == [afresh.cheapest(n) for n in range(1, 22)]


def test_what_was_measured_but_once_may_have_been_disturbed():
    """Of 1, 2, 3, 4, 5, 8, 12 and 16 rows, the one of eight: too dear, as its neighbours tell."""
    disturbed = {1: 1.0, 2: 2.0, 3: 3.0, 4: 1.5, 5: 2.5, 8: 3.5, 12: 2.5, 16: 3.5}
    for seconds, eight in ((disturbed, 2.0), (disturbed | {8: 1.75}, 1.75)):
        once = _measure(MEASURED_ROWS, lambda rows, seconds=seconds: seconds[rows])
        assert once == pytest.approx([eight if rows == 8 else seconds[rows] for rows in MEASURED_ROWS])
    quick = {rows: 0.01 * second for rows, second in disturbed.items()}
    assert _measure(MEASURED_ROWS, quick.__getitem__) == [quick[rows] for rows in MEASURED_ROWS]
    assert _measure((1, 2, 3), disturbed.__getitem__) == [1.0, 2.0, 3.0]


def test_rows_between_multiples_of_four_cost_what_the_fifth_does():
    costs = _between(MEASURED_ROWS, [1.0, 2.0, 3.0, 2.5, 3.25, 4.0, 5.0, 5.5])  # of 1, 2, 3, 4, 5, 8, 12 and 16 rows
    assert [costs(n) for n in (2, 6, 7, 8, 9, 15, 16)] == [2.0, 4.0, 4.75, 4.0, 4.75, 7.25, 5.5]
