"""Prompts beside answers that are followed: they get their share of the time, and no more."""

from __future__ import annotations

import pytest

from eft_local.engine.scheduler import AT_ONCE, PromptPace


@pytest.mark.parametrize("plain", [0.001, 0.02, 1.0])
@pytest.mark.parametrize("fixed", [0.0, 0.5, 10.0])  # what a part costs in any case, in rounds
@pytest.mark.parametrize("each", [0.001, 0.1, 3.0])  # what each of its tokens costs, in rounds
def test_answers_keep_half_of_their_speed_and_prompts_come_in(plain, fixed, each):
    pace, left, read, answers = PromptPace(), 4000, 0.0, 0.0
    parts = []
    for _ in range(100_000):
        tokens = min(left, pace.chunk(beside=True))
        spent = plain * (fixed + each * tokens) if tokens else 0.0
        pace.learn(plain + spent, tokens)
        left -= tokens
        answers += plain
        read += spent
        parts.append(tokens)
        if not left:
            break
    assert left == 0, "it is read whole, whatever it costs"
    longest = max(parts)
    assert read <= answers + plain * (fixed + each * longest)
    assert longest <= AT_ONCE
    if fixed + each * longest > 250 and plain * (fixed + each * longest) > 1:
        assert longest <= 32, "long pauses are for what cannot be had shorter"


def test_nothing_is_saved_up_while_no_prompt_waits():
    pace = PromptPace()
    for _ in range(1000):
        pace.learn(0.01, 0)
    first = pace.chunk(beside=True)
    pace.learn(0.01 + 0.1, first)
    assert pace.chunk(beside=True) == 0


def test_without_a_listener_a_prompt_comes_in_at_once():
    assert PromptPace().chunk(beside=False) == AT_ONCE
