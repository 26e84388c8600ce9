"""Rows that nobody asked for, where they make an evaluation cheaper: they leave no trace."""

from __future__ import annotations

import numpy as np
import pytest
from fake import emulator, recipe, trio
from hypothesis import given, settings
from hypothesis import strategies as st

from eft_local.engine.cache import Slots
from eft_local.engine.speculative.costs import RowCosts
from eft_local.errors import Cancelled


class Fours:
    """Advises whole fours."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int]] = []

    def cheapest(self, name: str, rows: int) -> int:
        return rows + -rows % 4

    def learn(self, name: str, rows: int, seconds: float) -> None:
        self.heard.append((name, rows))


def slots(advice: Fours | None, *, context: int = 60, count: int = 2, outputs: int = 8) -> Slots:
    """Slots of a base, with a prompt in each that is evaluated."""
    made = Slots({"base": emulator(trio())._roles["base"]}, context=context, slots=count, outputs=outputs)
    for slot in range(count):
        made.begin(slot, {"base": [5 + slot, 6, 7]})
    made.evaluate(range(count), ["base"], [1] * count)
    made.advice = advice
    return made


def tokens(made: Slots) -> list[list[int]]:
    return made._groups[0].evaluator.tokens


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=3))
def test_they_change_neither_logits_nor_what_is_held(lengths):
    advice = Fours()
    found = []
    for made in (slots(advice, count=len(lengths)), slots(None, count=len(lengths))):
        for slot, length in enumerate(lengths):
            made.push(slot, ["base"], list(range(20, 20 + length)))
        before = sum(made._groups[0].evaluator.evaluated)
        logits = made.evaluate(range(len(lengths)), ["base"], lengths)["base"]
        found.append(([part.copy() for part in logits], tokens(made), made._groups[0].evaluator.evaluated))
        assert [len(part) for part in logits] == lengths
        evaluated = sum(made._groups[0].evaluator.evaluated) - before
        # Rows of several sequences are as many of each: more of one would be a pass of their own.
        alone = made.advice is not None and len(lengths) == 1
        assert evaluated == (advice.cheapest("base", sum(lengths)) if alone else sum(lengths))
        assert not any(sequence.pending for sequence in made._sequences.values())
    (more, held, _), (exact, as_ever, _) = found
    for ours, theirs in zip(more, exact, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert held == as_ever
    even = [("base", evaluated if len(lengths) > 1 else advice.cheapest("base", evaluated))]
    assert advice.heard == (even if len(set(lengths)) == 1 else [])


def test_a_prompt_gets_none():
    advice = Fours()
    made = slots(advice)
    made.push(0, ["base"], [20, 21, 22])
    made.evaluate([0], ["base"], [1])
    assert made._groups[0].evaluator.evaluated == [6, 3]
    assert not advice.heard


@pytest.mark.parametrize("tight", [{"context": 4}, {"outputs": 1}])
def test_there_are_none_without_room(tight):
    made = slots(Fours(), **tight)
    for slot in range(2):
        made.push(slot, ["base"], [20])
    made.evaluate(range(2), ["base"], [1, 1])
    assert made._groups[0].evaluator.evaluated == [4, 4]


def test_an_evaluation_that_is_stopped_leaves_all_as_it_was():
    made = slots(Fours())
    for slot in range(2):
        made.push(slot, ["base"], [20])
    made.abort()
    with pytest.raises(Cancelled):
        made.evaluate(range(2), ["base"], [1, 1])
    assert tokens(made) == [[5, 6, 7], [6, 6, 7]]
    made.resume()
    made.evaluate(range(2), ["base"], [1, 1])
    assert tokens(made) == [[5, 6, 7, 20], [6, 6, 7, 20]]


@pytest.mark.parametrize("temperature", [0, 1])
def test_answers_are_those_without(monkeypatch, temperature):
    monkeypatch.setattr(RowCosts, "cheapest", lambda self, n: n + -n % 4 if n > 1 else n)
    asked = ["one", "three", "fifteen"]
    with emulator(trio(), recipe(temperature=temperature, seed=3, max_tokens=12)) as plain:
        expected = [answer.tokens for answer in plain.generate(asked, parallel=3)]
        single = plain.chat("one").tokens
    with emulator(trio(), recipe(temperature=temperature, seed=3, max_tokens=12, draft="auto")) as drafting:
        assert [answer.tokens for answer in drafting.generate(asked, parallel=3)] == expected
        assert drafting.chat("one").tokens == single


def test_costs_are_measured_behind_a_cache_that_is_full():
    made = slots(None, context=10)
    made.push(0, ["base"], [8, 9, 10, 11, 12, 13])
    made.evaluate([0], ["base"], [1])
    assert made.time_rows("base", 8) >= 0.0
    assert tokens(made) == [[5, 6], [6, 6, 7]]  # two are left: behind them eight have room
    assert made.begin(0, {"base": [5, 6, 7, 8]}) == {"base": 2}
