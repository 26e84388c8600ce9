"""Rows that nobody asked for, where they make an evaluation cheaper: they leave no trace."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eft_local.engine.cache import Cache, Part
from eft_local.engine.kv import KVSequence
from eft_local.engine.speculative.costs import RowCosts
from eft_local.errors import Cancelled
from tests.helpers.fake import emulator, recipe, trio


class Fours(RowCosts):
    """Whole fours cost no more than what is in them."""

    def __init__(self) -> None:
        super().__init__([1, 2], [1.0, 1.0])
        self.learnt: list[int] = []

    def cheapest(self, n: int) -> int:
        return n + -n % 4

    def learn(self, n: int, seconds: float) -> None:
        self.learnt.append(n)


def begun(costs: RowCosts | None, *, context: int = 60, count: int = 2, outputs: int = 8) -> list[KVSequence]:
    """Sequences of one context, with a prompt in each that is evaluated."""
    role = emulator(trio()).models.roles["base"]
    cache = Cache(context)
    cache.reserve({"base": role}, parallel=count, outputs=outputs)
    sequences = []
    for number in range(count):
        taken = cache.admit({"base": [5 + number, 6, 7]}, {"base": context}, outputs)
        assert taken is not None
        sequences.append(taken["base"])
    cache.evaluate([Part(sequence) for sequence in sequences])
    sequences[0].context.costs = costs
    return sorted(sequences, key=lambda sequence: sequence.number)


def evaluate(sequences: list[KVSequence], outputs: list[int]) -> list[np.ndarray]:
    parts = [Part(sequence, rows) for sequence, rows in zip(sequences, outputs, strict=True)]
    return Cache(60).evaluate(parts)


def tokens(sequences: list[KVSequence]) -> list[list[int]]:
    return [sequences[0].context.evaluator.tokens[sequence.number] for sequence in sequences]


def evaluated(sequences: list[KVSequence]) -> list[int]:
    return [sequences[0].context.evaluator.evaluated[sequence.number] for sequence in sequences]


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=3))
def test_they_change_neither_logits_nor_what_is_held(lengths):
    costs = Fours()
    found = []
    for sequences in (begun(costs, count=len(lengths)), begun(None, count=len(lengths))):
        for sequence, length in zip(sequences, lengths, strict=True):
            sequence.pending += range(20, 20 + length)
        before = sum(evaluated(sequences))
        logits = evaluate(sequences, lengths)
        found.append(([part.copy() for part in logits], tokens(sequences)))
        assert [len(part) for part in logits] == lengths
        # Rows of several sequences are as many of each: more of one would be a pass of their own.
        alone = sequences[0].context.costs is not None and len(lengths) == 1
        assert sum(evaluated(sequences)) - before == (costs.cheapest(sum(lengths)) if alone else sum(lengths))
        assert not any(sequence.pending for sequence in sequences)
    (more, held), (exact, as_ever) = found
    for ours, theirs in zip(more, exact, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert held == as_ever
    even = [sum(lengths) if len(lengths) > 1 else costs.cheapest(sum(lengths))]
    assert costs.learnt == (even if len(set(lengths)) == 1 else [])


def test_a_prompt_gets_none():
    costs = Fours()
    sequences = begun(costs)
    sequences[0].pending += [20, 21, 22]
    evaluate(sequences[:1], [1])
    assert evaluated(sequences) == [6, 3]
    assert not costs.learnt


@pytest.mark.parametrize("tight", [{"context": 4}, {"outputs": 1}])
def test_there_are_none_without_room(tight):
    sequences = begun(Fours(), **tight)
    for sequence in sequences:
        sequence.pending.append(20)
        evaluate([sequence], [1])
    assert evaluated(sequences) == [4, 4]


def test_an_evaluation_that_is_stopped_leaves_all_as_it_was():
    sequences = begun(Fours())
    for sequence in sequences:
        sequence.pending.append(20)
    sequences[0].context.evaluator.abort()
    with pytest.raises(Cancelled):
        evaluate(sequences, [1, 1])
    sequences[0].context.evaluator.resume()
    evaluate(sequences, [1, 1])
    assert tokens(sequences) == [sequence.cached for sequence in sequences]
    assert [held[1:] for held in tokens(sequences)] == [[6, 7, 20], [6, 7, 20]]


@pytest.mark.parametrize("temperature", [0, 1])
def test_answers_are_those_without(monkeypatch, temperature):
    monkeypatch.setattr(RowCosts, "cheapest", lambda self, n: n + -n % 4 if n > 1 else n)
    requested = ["one", "three", "fifteen"]
    with emulator(trio(), recipe(temperature=temperature, seed=3, max_tokens=12)) as plain:
        expected = [answer.tokens for answer in plain.chat(requested, parallel=3)]
        single = plain.chat("one").tokens
    with emulator(trio(), recipe(temperature=temperature, seed=3, max_tokens=12, draft="auto")) as drafting:
        assert [answer.tokens for answer in drafting.chat(requested, parallel=3)] == expected
        assert drafting.chat("one").tokens == single


def test_costs_are_measured_after_a_cache_that_is_full():
    sequence = begun(None, context=10)[0]
    sequence.pending += [8, 9, 10, 11, 12, 13, 14]
    evaluate([sequence], [1])
    sequence.pending.append(15)
    assert sequence.context.time_rows(sequence, 8) >= 0.0
    assert len(sequence.cached) == 2, "after them eight have room"
    assert sequence.cached + sequence.pending == [sequence.cached[0], 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
    assert tokens([sequence]) == [sequence.cached]
