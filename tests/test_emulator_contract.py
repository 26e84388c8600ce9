"""What faces and services rely on, held by the emulator (on the demo) and by the fake that their tests use."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest

from eft_local import Emulator
from eft_local.engine.request import Options
from eft_local.engine.stream import Stream
from eft_local.engine.targets import targets_of
from eft_local.hub.references import find_recipe
from tests.helpers.fake_emulator import FakeEmulator, FakeStream

QUESTION = "Tell me about Peru."
AnyEmulator = Emulator | FakeEmulator


@pytest.fixture(scope="module", params=[Emulator, FakeEmulator])
def emulator(request: pytest.FixtureRequest) -> Iterator[AnyEmulator]:
    FakeEmulator.loaded = []
    with request.param.load(find_recipe("demo").replace(threads=1, temperature=0), target=("eft", "base")) as emulator:
        yield emulator


def parameters(function: object) -> set[str]:
    return {name for name in inspect.signature(function).parameters if name != "self"}  # type: ignore[arg-type]


@pytest.mark.parametrize(("fake", "real"), [(FakeEmulator, Emulator), (FakeStream, Stream)])
def test_the_fake_has_nothing_that_the_real_one_lacks(fake: type, real: type) -> None:
    options = set(Options.__annotations__)
    for name in ("load", "prepare", "follow", "stream_chat", "chat", "cancel", "close", "wait", "change", "targets"):
        if hasattr(fake, name):
            ours, theirs = getattr(fake, name), getattr(real, name)
            if callable(ours):
                surplus = parameters(ours) - parameters(theirs) - options - {"options", "prompt", "target"}
                assert not surplus, (name, surplus)


def test_targets(emulator: AnyEmulator) -> None:
    assert set(emulator.targets) == set(targets_of(emulator.recipe))


def test_a_stream_ends_with_the_only_step_that_has_a_reason(emulator: AnyEmulator) -> None:
    stream = emulator.stream_chat(QUESTION, target="base", seed=3, recipe=emulator.recipe.replace(max_tokens=4))
    steps = list(stream)
    assert [step.finish_reason for step in steps[:-1]] == [None] * (len(steps) - 1)
    assert steps[-1].finish_reason in ("stop", "length")
    assert all(step.token is not None for step in steps[:-1])


def test_who_follows_gets_each_step_and_then_the_answer(emulator: AnyEmulator) -> None:
    steps = []
    stream = emulator.follow(QUESTION, steps.append, seed=5, top=3)
    answer = stream.wait()
    assert answer.seed == 5
    assert answer.finish_reason == steps[-1].finish_reason == "stop"
    assert answer.text == "".join(step.text for step in steps)
    assert stream.answer.text == answer.text
    assert set(answer.prompt_tokens) >= {"base"}
    assert answer.tokens == tuple(step.token for step in steps[: len(answer.tokens)])


def test_a_prefix_is_no_part_of_what_is_written(emulator: AnyEmulator) -> None:
    whole = emulator.chat(QUESTION, seed=1)
    rest = emulator.chat(QUESTION, seed=1, prefix=whole.tokens[:2])
    assert whole.text.endswith(rest.text)
    assert len(rest.text) < len(whole.text)


def test_a_cancelled_answer_keeps_what_was_written(emulator: AnyEmulator) -> None:
    steps = []

    def on_step(step: object) -> None:
        steps.append(step)
        if len(steps) == 1:
            emulator.cancel()

    answer = emulator.follow(QUESTION, on_step).wait()
    assert answer.finish_reason == "cancelled"
    assert answer.text == "".join(step.text for step in steps)
    assert emulator.chat(QUESTION).finish_reason == "stop"


def test_a_list_gets_a_list_and_progress(emulator: AnyEmulator) -> None:
    finished: list[int] = []
    answers = emulator.chat([QUESTION, QUESTION], seed=1, max_tokens=2, progress=finished.append)
    assert finished == [1, 2]
    assert [answer.finish_reason for answer in answers] == ["length"] * 2
    assert all(0 < len(answer.tokens) <= 2 for answer in answers)


def test_cancelling_nothing_does_nothing(emulator: AnyEmulator) -> None:
    emulator.cancel()
    assert emulator.chat(QUESTION).finish_reason == "stop"
