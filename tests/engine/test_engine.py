"""Requests side by side: each gets what it would get alone, whoever joins, leaves or fails beside it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eft_local import Emulator, Sampling
from eft_local.engine.engine import Engine
from eft_local.engine.request import Options, Request
from eft_local.engine.sequence import Sequence as Answering
from eft_local.errors import ContextOverflowError, EvaluationError
from eft_local.hub.references import find_recipe
from tests.helpers.fake import FakeModel, emulator, noise, recipe, trio

FRAME = "These are questions with answers. Answer like them, in one word. "
PROMPTS = ("hello", "Hello?", "x", FRAME + "one", FRAME + "two", FRAME * 2 + "and a long one")
FAKE_OPTIONS: tuple[Options, ...] = (
    {},
    {"target": "base"},
    {"target": "helpful", "sampling": Sampling(temperature=1.0, max_tokens=9)},
    {"alpha": -1.5},
    {"beta": 2.0, "sampling": Sampling(temperature=0.7, top_k=5, max_tokens=12)},
    {"recipe": recipe(draft=3)},
    {"recipe": recipe(draft=2, draft_source="ngram", temperature=0.9, draft_rule="rejection")},
    {"recipe": recipe(conservative_filter=0.5, plausibility_mask=0.1)},
)
DEMO = find_recipe("demo").replace(threads=1, max_tokens=12, temperature=0)
DEMO_OPTIONS: tuple[Options, ...] = (
    {},
    {"target": "base"},
    {"target": "expert", "sampling": Sampling(temperature=1.0, max_tokens=9)},
    {"alpha": 0.3, "recipe": DEMO.replace(draft="off")},
    {"beta": 1.5, "recipe": DEMO.replace(draft=4, draft_source="proxy")},
    {"sampling": Sampling(json_schema='{"enum": ["Lima", "Rome", "Oslo"]}', max_tokens=12)},
    {"sampling": Sampling(grammar='root ::= "The " [a-z ]+ "."', temperature=0.8, max_tokens=12)},
    {"recipe": DEMO.replace(plausibility_top_p=0.8, draft="off", temperature=0.9)},
)
QUESTIONS = ("What is the capital of Peru?", "What is the capital of Chile?", "Who are you?", "Name a metal.")


@pytest.fixture(scope="module")
def fake() -> Iterator[Emulator]:
    """Room for three requests side by side."""
    with emulator(trio()) as loaded:
        loaded.engine.cache.reserve(loaded.models.roles, parallel=3, outputs=8)
        yield loaded


@pytest.fixture(scope="module")
def demo() -> Iterator[Emulator]:
    with Emulator.load(DEMO, parallel=3) as loaded:
        yield loaded


def run(engine: Engine, joins: Sequence[tuple[int, Request]], leaves: dict[int, int]) -> list[Answering]:
    """Let requests join before the rounds that are named, and those in `leaves` leave before theirs; return them."""
    made: dict[int, Answering] = {}
    number = 0
    while len(made) < len(joins) or not engine.idle:
        for index, (start, request) in enumerate(joins):
            if index not in made and start <= number:
                made[index] = engine.add(request)
        engine.abort([made[index] for index, end in leaves.items() if index in made and end == number])
        engine.step()
        number += 1
    return [made[index] for index in range(len(joins))]


requests = st.tuples(
    st.integers(0, 25),  # the round in which it joins
    st.integers(0, len(PROMPTS) - 1),
    st.integers(0, len(FAKE_OPTIONS) - 1),
    st.integers(0, 3),  # its seed
    st.booleans(),  # whether somebody follows it
)


@cache
def alone(prompt: int, options: int, seed: int) -> tuple[int, ...]:
    with emulator(trio()) as loaded:
        return loaded.chat(PROMPTS[prompt], **FAKE_OPTIONS[options], seed=seed).tokens


@settings(max_examples=200, deadline=None)
@given(st.lists(requests, min_size=1, max_size=8), st.dictionaries(st.integers(0, 7), st.integers(0, 30), max_size=3))
def test_joining_and_leaving_at_any_moment_changes_no_answer(fake, schedule, leaves):
    joins = [
        (start, fake.models.request(PROMPTS[prompt], FAKE_OPTIONS[options] | {"seed": seed}, followed=followed))
        for start, prompt, options, seed, followed in schedule
    ]
    for index, made in enumerate(run(fake.engine, joins, leaves)):
        _, prompt, options, seed, _ = schedule[index]
        expected = alone(prompt, options, seed)
        if made.finish_reason == "cancelled":
            assert index in leaves
            assert tuple(made.tokens) == expected[: len(made.tokens)]
        else:
            assert tuple(made.tokens) == expected
    for context in fake.engine.cache.contexts:
        assert context.idle
        assert all(context.evaluator.tokens[each.number] == each.cached for each in context.sequences)


def demo_answers(loaded: Emulator) -> dict[tuple[int, int], tuple[int, ...]]:
    return {
        (question, options): loaded.chat(QUESTIONS[question], **DEMO_OPTIONS[options], seed=5).tokens
        for question in range(len(QUESTIONS))
        for options in range(len(DEMO_OPTIONS))
    }


@pytest.fixture(scope="module")
def demo_alone(demo: Emulator) -> dict[tuple[int, int], tuple[int, ...]]:
    return demo_answers(demo)


demo_requests = st.tuples(st.integers(0, 10), st.integers(0, 3), st.integers(0, len(DEMO_OPTIONS) - 1), st.booleans())


@settings(max_examples=20, deadline=None)
@given(
    st.lists(demo_requests, min_size=2, max_size=8), st.dictionaries(st.integers(0, 7), st.integers(0, 9), max_size=2)
)
def test_so_it_is_on_real_models(demo, demo_alone, schedule, leaves):
    joins = [
        (start, demo.models.request(QUESTIONS[question], DEMO_OPTIONS[options] | {"seed": 5}, followed=followed))
        for start, question, options, followed in schedule
    ]
    for index, made in enumerate(run(demo.engine, joins, leaves)):
        expected = demo_alone[schedule[index][1], schedule[index][2]]
        whole = made.finish_reason != "cancelled"
        assert whole or index in leaves
        assert tuple(made.tokens) == (expected if whole else expected[: len(made.tokens)])


def test_eight_with_other_targets_strengths_samplers_and_grammars(demo, demo_alone):
    demo.engine.cache.reserve(demo.models.roles, parallel=8, room=100, outputs=8)
    joins = [
        (0, demo.models.request(QUESTIONS[i % 4], options | {"seed": 5})) for i, options in enumerate(DEMO_OPTIONS)
    ]
    made = run(demo.engine, joins, {})
    assert [tuple(each.tokens) for each in made] == [demo_alone[i % 4, i] for i in range(len(DEMO_OPTIONS))]
    texts = ["".join(each.text) for each in made]
    assert texts[5].strip() in ('"Lima"', '"Rome"', '"Oslo"')
    assert texts[6].startswith("The ")


def test_a_prefix_that_many_share_is_evaluated_once():
    frame = FRAME * 2
    prompts = [frame + tail for tail in ("one", "two", "three", "four", "five", "six")]
    expected = [emulator(trio()).chat(prompt).tokens for prompt in prompts]
    models = trio()
    with emulator(models) as loaded:
        made = loaded.chat(prompts, parallel=6)
        assert [answer.tokens for answer in made] == expected
        first, *others = [answer.evaluated_tokens["base"] for answer in made]
        assert first == made[0].prompt_tokens["base"] > 130
        assert max(others) < 30, "the frame is copied, what follows is read"
        assert sum(models["base"].evaluated for _ in range(1)) < 2 * first + 6 * 40


def test_a_prefix_of_an_earlier_answer_is_found_wherever_it_is():
    """Two conversations by turns, with room for two requests: each continues where it was."""
    own = [emulator(trio(), recipe(context=400)) for _ in range(2)]
    with emulator(trio(), recipe(context=400)) as loaded:
        loaded.engine.cache.reserve(loaded.models.roles, parallel=2)
        talks: list[list[dict[str, str]]] = [[], []]
        for turn in range(3):
            for number, talk in enumerate(talks):
                talk.append({"role": "user", "content": f"{'ab'[number] * 20} question {turn}"})
                answer = loaded.chat(talk)
                by_itself = own[number].chat(talk)
                assert answer.tokens == by_itself.tokens
                assert not turn or answer.evaluated_tokens == by_itself.evaluated_tokens
                talk.append({"role": "assistant", "content": answer.text})


def test_a_long_prompt_comes_in_beside_an_answer_that_is_followed():
    """It is read in parts: the answer gets a token in every round meanwhile, and both are what they are alone."""
    long = "word " * 120
    settings_ = recipe(context=1000, max_tokens=60)
    expected = [emulator(trio(), settings_).chat(prompt).tokens for prompt in ("hello", long)]
    with emulator(trio(), settings_) as loaded:
        loaded.engine.cache.reserve(loaded.models.roles, parallel=2)
        engine = loaded.engine
        followed = engine.add(loaded.models.request("hello", {}, followed=True))
        for _ in range(3):
            engine.step()
        reading = engine.add(loaded.models.request(long, {}))
        lengths = []
        while not reading.tokens and not engine.idle:
            lengths.append(len(followed.tokens))
            engine.step()
        while not engine.idle:
            engine.step()
    assert len(lengths) > 3
    assert lengths == list(range(lengths[0], lengths[0] + len(lengths))), "no round without a token"
    assert [tuple(each.tokens) for each in (followed, reading)] == expected


@pytest.mark.parametrize("model", ["base", "small", "tuned"])
def test_a_request_that_fails_ends_alone(model):
    """One prompt breaks a model whenever it is evaluated; the others are what they are without it."""

    def broken(seed: int):
        table = noise(seed)

        def failing(tokens):
            if b"poison" in bytes(token for token in tokens if token < 128):
                raise EvaluationError("poisoned")
            return table(tokens)

        return failing

    models = {name: FakeModel(noise(seed)) for seed, name in enumerate(("base", "small", "tuned"))}
    models[model] = FakeModel(broken(("base", "small", "tuned").index(model)))
    expected = [emulator(trio()).chat(prompt).tokens for prompt in ("hello", "x")]
    with emulator(models) as loaded:
        loaded.engine.cache.reserve(loaded.models.roles, parallel=3, outputs=8)
        engine = loaded.engine
        made = {name: engine.add(loaded.models.request(name, {})) for name in ("hello", "poison", "x")}
        errors = {}
        while not engine.idle:
            errors |= {id(output.sequence): output.error for output in engine.step() if output.error}
        assert [tuple(made[name].tokens) for name in ("hello", "x")] == expected
        assert list(errors) == [id(made["poison"])]
        assert isinstance(errors[id(made["poison"])], EvaluationError)


def test_sixty_four_threads_use_one_emulator():
    prompts = [f"question {number}" for number in range(64)]
    expected = {prompt: emulator(trio()).chat(prompt, seed=1).tokens for prompt in prompts}
    with emulator(trio()) as loaded:
        loaded.engine.cache.reserve(loaded.models.roles, parallel=5)
        found: dict[str, tuple[int, ...]] = {}

        def ask(number: int) -> None:
            prompt = prompts[number]
            if number % 3 == 0:
                stream = loaded.stream_chat(prompt, seed=1)
                found[prompt] = tuple(step.token for step in stream if step.token is not None)
            elif number % 3 == 1:
                found[prompt] = loaded.chat(prompt, seed=1).tokens
            else:
                loaded.stream_chat(prompt, seed=1).close()
                with pytest.raises(ContextOverflowError):
                    loaded.chat("x" * 300)
                found[prompt] = loaded.chat([prompt, "other"], seed=1)[0].tokens

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert loaded.engine.idle
    assert found == expected


@pytest.mark.asyncio
async def test_under_asyncio():
    expected = [emulator(trio()).chat(prompt, seed=1).tokens for prompt in ("hello", "x", "more")]
    with emulator(trio()) as loaded:
        answers = await asyncio.gather(*(loaded.achat(prompt, seed=1) for prompt in ("hello", "x")))
        assert [answer.tokens for answer in answers] == expected[:2]
        steps = [step.token async for step in loaded.stream_chat("more", seed=1)]
        assert tuple(steps) == expected[2]
        stream = loaded.stream_chat("more", max_tokens=1000)
        await anext(stream)
        await stream.aclose()
        assert loaded.engine.idle
        task = asyncio.create_task(loaded.achat("hello", max_tokens=1000))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await loaded.achat("x", seed=1)).tokens == expected[1]


def test_raw_prompts_and_token_ids():
    with emulator(trio()) as loaded:
        text = loaded.generate("one two")
        ids = loaded.models.request("one two", {}, raw=True).prompts["base"]
        assert loaded.generate(ids).tokens == text.tokens
        assert loaded.generate(["one two", "x"])[0].tokens == text.tokens
        assert [answer.tokens for answer in loaded.generate([ids, ids])] == [text.tokens] * 2
        assert tuple(step.token for step in loaded.stream_generate("one two")) == text.tokens
        logged = loaded.generate("one two", statistics=True)
        assert logged.tokens == text.tokens
        assert logged.logprobs is not None
        assert len(logged.logprobs) == len(logged.tokens)
        assert logged.logprobs == pytest.approx([step.logprob for step in loaded.stream_generate("one two", top=1)])


def test_scores_of_many_continuations():
    with emulator(trio()) as loaded:
        texts = ["and so on", "x", "and then", ""]
        scores = loaded.score("hello", texts)
        for text, score in zip(texts, scores, strict=True):
            assert score.logprobs == pytest.approx(emulator(trio()).score("hello", text).logprobs, abs=1e-5)
        likeliest = loaded.chat("hello", max_tokens=3).text
        assert [score.greedy for score in loaded.score("hello", [likeliest, "x"])] == [True, False]


def test_an_answer_is_drafted_for_after_a_batch_without_drafts() -> None:
    """The batch's context gives one row of logits of each answer: it is smaller, but does not suffice for a draft."""

    def drafted(each: Emulator) -> list[bool]:
        return [step.drafted for step in each.stream_chat("hello", recipe=recipe(draft=4, max_tokens=12), seed=1)]

    models = trio(tuned=noise(2), small=noise(3), base=noise(2))
    with emulator(models, recipe(draft=4, max_tokens=12)) as fresh:
        expected = drafted(fresh)
    assert any(expected)
    with emulator(models, recipe(draft=4, max_tokens=12)) as each:
        each.chat(["a", "b", "c"], recipe=recipe(draft="off", max_tokens=40), parallel=3)
        assert drafted(each) == expected
