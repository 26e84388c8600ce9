"""Drafts change the speed of an answer and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eft_local import Emulator, Recipe
from eft_local.engine.speculative.length import FixedLength, Outcome
from eft_local.errors import RecipeError
from eft_local.evals.questions import read_questions
from eft_local.hub.references import demo_questions, find_recipe
from eft_local.recipe import DRAFT_RULES, DRAFT_SOURCES, Expert
from tests.helpers.fake import PLAIN, FakeModel, emulator, noise, recipe, says, trio

PROMPTS = ("hello", "there they were", "my friend, what is it?")
SETTINGS = (
    {"temperature": 0},
    {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
    {"temperature": 0.9, "repeat_penalty": 1.3, "dry_multiplier": 0.5},
    {"temperature": 0.9, "top_k": 5, "xtc_probability": 0.5},
    {"temperature": 1.0, "grammar": "root ::= [a-z ]+"},
    {
        "temperature": 1.0,
        "json_schema": '{"items": {"enum": ["there", "the \\"end\\""]}, "type": "array", "minItems": 3}',
    },
    {"temperature": 0, "stop": ("t", "ll")},
    {"temperature": 0.8, "conservative_filter": 0.9, "plausibility_mask": 0.05, "beta": 1.3},
)


@pytest.fixture(scope="module")
def trio_recipe(ggufs: Path) -> Recipe:
    text = """
        context = 256
        threads = 1
        kv_type = "f32"           # with these two, kernels for one row and for many agree to 1e-6, so that ties
        flash_attention = false   # between tokens are as good as impossible
        [base]
        model = "base.gguf"
        [antiexpert]
        model = "small.gguf"
        [experts.helpful]
        model = "tuned.gguf"
    """
    return Recipe.from_text(text, ggufs)


def answers(loaded: Emulator, parallel: int | None = None) -> list[tuple[tuple[int, ...], str, str]]:
    made = (
        loaded.chat(PROMPTS, seed=3, max_tokens=24, parallel=parallel)
        if parallel
        else [loaded.chat(prompt, seed=3, max_tokens=24) for prompt in PROMPTS]
    )
    return [(answer.tokens, answer.text, answer.finish_reason) for answer in made]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_drafts_leave_every_answer_as_it_is(trio_recipe: Recipe, settings: dict[str, object], alpha: float) -> None:
    plain = trio_recipe.replace(alpha=alpha, **settings)
    with Emulator.load(plain.replace(draft=16)) as loaded:
        loaded.recipe = plain
        expected = answers(loaded)
        for source in DRAFT_SOURCES:
            for length in (1, 4, 16):
                loaded.recipe = plain.replace(draft=length, draft_source=source)
                assert answers(loaded) == expected, (source, length)
            assert answers(loaded, parallel=2) == expected, source


@pytest.fixture(scope="module")
def questions() -> list[str]:
    """304 held-out questions on the demo's facts, short and long: 19 for each length of drafts."""
    return [each.question for each in read_questions(demo_questions()).select(split="held-out", limit=304).items]


TIE = 0.02
"""In logits. With F16 weights llama.cpp rounds activations to 16 bits; sums of one row and of many, which differ in the
last bit, may be rounded apart, and the small models' logits are then up to 0.01 apart."""


def margin(loaded: Emulator, question: str, plain: tuple[int, ...], other: tuple[int, ...]) -> float:
    """How far apart the two likeliest tokens are, without drafts, where one answer leaves the other."""
    common = next((i for i, pair in enumerate(zip(plain, other, strict=False)) if len(set(pair)) > 1), None)
    common = min(len(plain), len(other)) if common is None else common
    step = next(loaded.stream_chat(question, prefix=plain[:common], max_tokens=1, top=2))
    first, second = (candidate.roles["eft"].logprob for candidate in step.candidates[:2])
    return first - second


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.5])
def test_greedy_answers_of_the_demo_are_the_same_token_for_token(questions: list[str], alpha: float) -> None:
    exact = find_recipe("demo").replace(
        alpha=alpha, temperature=0, max_tokens=20, threads=1, kv_type="f32", flash_attention=False
    )
    with Emulator.load(exact) as loaded:
        plain = [answer.tokens for answer in loaded.chat(questions, parallel=19)]
        assert len(set(plain)) > 200
        for source in ("expert", "proxy", "ngram") if alpha != 1.0 else DRAFT_SOURCES:
            differing = []
            for length in range(1, 17):
                loaded.recipe = exact.replace(draft=length, draft_source=source)
                requested, expected = questions[length - 1 :: 16], plain[length - 1 :: 16]
                drafted = loaded.chat(requested, parallel=19)
                differing += [
                    each for each in zip(requested, expected, drafted, strict=True) if each[1] != each[2].tokens
                ]
            loaded.recipe = exact
            margins = [margin(loaded, requested, expected, made.tokens) for requested, expected, made in differing]
            assert len(margins) <= 3
            assert max(margins, default=0) < TIE, source


@pytest.mark.parametrize("source", DRAFT_SOURCES)
def test_the_rejection_rule_leaves_greedy_answers_as_they_are(trio_recipe: Recipe, source: str) -> None:
    for options in ({}, {"repeat_penalty": 1.3}, {"grammar": "root ::= [a-z ]+"}):
        plain = trio_recipe.replace(temperature=0, **options)
        with Emulator.load(plain) as loaded:
            expected = answers(loaded)
            loaded.recipe = plain.replace(draft=4, draft_source=source, draft_rule="rejection")
            assert answers(loaded) == expected
            assert answers(loaded, parallel=3) == expected


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_rejection_rule_gives_a_seed_one_answer(trio_recipe: Recipe, settings: dict[str, object]) -> None:
    with Emulator.load(trio_recipe.replace(draft=4, draft_rule="rejection", **settings)) as loaded:
        first = answers(loaded)
        assert answers(loaded) == first
        assert answers(loaded, parallel=2) == first


class Counted(FakeModel):
    """Counts its evaluations."""

    evaluations = 0

    def on_submit(self, context: object) -> None:
        self.evaluations += 1
        super().on_submit(context)


def counted(**tables: Callable[..., object]) -> dict[str, Counted]:
    return {name: Counted(table) for name, table in tables.items()}


@pytest.mark.parametrize("rule", DRAFT_RULES)
def test_what_stood_before_is_drafted_at_once_and_the_rest_by_the_expert(rule: str) -> None:
    """The answer is the prompt's first letters again and then something else."""
    text = "abcdefghijklmnop" + "zyxwvuts"
    models = counted(base=says(text), small=says(text), tuned=says(text))
    requested = recipe(draft=8, draft_source="ngram+expert", draft_rule=rule, max_tokens=24)
    with emulator(models, requested) as loaded:
        steps = list(loaded.stream_chat("abcdefghijklmnop", statistics=True))
    assert "".join(step.text for step in steps) == text
    # 1: the prompt; 2 … 10, 11 … 16 and z: looked up; y: nothing stood before; then the expert's.
    assert [step.drafted for step in steps].count(True) >= 18
    assert models["base"].evaluations < 7
    assert models["tuned"].evaluations < 16


def test_the_heaviest_expert_drafts() -> None:
    models = counted(base=noise(1), small=noise(2), tuned=noise(3), other=noise(4))
    experts = {name: Expert(model=model, prompt=PLAIN) for name, model in (("helpful", "tuned"), ("kind", "other"))}
    both = recipe(draft=4, max_tokens=17, experts=experts)
    for alphas, heaviest in (((0.4, 0.6), "other"), ((0.6, 0.4), "tuned"), ((0.6, -1.0), "other")):
        with emulator(models, both.replace(alpha=dict(zip(experts, alphas, strict=True)))) as loaded:
            before = {name: model.evaluations for name, model in models.items()}
            loaded.chat("hello")
            spent = {name: model.evaluations - before[name] for name, model in models.items()}
            assert max(spent, key=lambda name: spent[name]) == heaviest
            assert spent["base"] == spent["small"]


def test_an_answer_that_begins_does_not_keep_others_from_drafts() -> None:
    texts = {ord("1"): says("no"), ord("2"): says("x" * 60)}

    def table(tokens: tuple[int, ...]) -> object:
        return next(texts[token] for token in tokens if token in texts)(tokens)

    models = counted(base=table, small=table, tuned=table)
    with emulator(models, recipe(draft=8, max_tokens=80)) as loaded:
        made = loaded.chat(["2", "1", "1", "1"], parallel=2)
    assert [answer.text for answer in made] == ["x" * 60, "no", "no", "no"]
    assert models["base"].evaluations == 1 + 60 // 9 + 1  # the first token, then nine at a time; the others beside it


@pytest.mark.parametrize("rule", DRAFT_RULES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    source=st.sampled_from(DRAFT_SOURCES),
    length=st.integers(1, 9),
    temperature=st.sampled_from([0.0, 0.5, 1.5]),
    failing=st.sampled_from(["base", "small", "tuned"]),
    moment=st.integers(1, 25),
    abandon=st.booleans(),
    parallel=st.integers(1, 3),
)
def test_whenever_an_answer_is_stopped_nothing_of_it_is_left(
    rule: str,
    source: str,
    length: int,
    temperature: float,
    failing: str,
    moment: int,
    abandon: bool,
    parallel: int,
) -> None:
    models = trio(small=noise(0))  # alike to the base: draft tokens are often right
    requested = recipe(draft=length, draft_source=source, draft_rule=rule, temperature=temperature, max_tokens=20)

    def next_turn(loaded: Emulator) -> list[tuple[int, ...]]:
        one = loaded.chat("hello there, hello", seed=4, max_tokens=9).tokens
        return [one, *(each.tokens for each in loaded.chat(["a", "bb", "a"], seed=4, parallel=2))]

    with emulator(models, requested) as loaded:
        expected = next_turn(loaded)
        if abandon:
            steps = loaded.stream_chat("hello and hello", seed=1, statistics=True)
            for _, _ in zip(range(moment), steps, strict=False):
                pass
            steps.close()
        else:
            models[failing].failures = {moment: loaded.cancel}
            if parallel > 1:
                stopped = loaded.chat(["hello", "hello and", "c"], seed=1, parallel=parallel)
            else:
                stopped = [loaded.chat("hello and hello", seed=1)]
            assert {answer.finish_reason for answer in stopped} <= {"cancelled", "length"}
            models[failing].failures = {}
        assert next_turn(loaded) == expected


def test_an_expert_that_is_its_own_mixture_is_always_right() -> None:
    """Base and antiexpert alike at α = 1: the mixture is the expert, and every draft is accepted."""
    same = trio(base=noise(1), small=noise(1))
    with emulator(same, recipe(draft=4, temperature=1.0)) as loaded:
        steps = list(loaded.stream_chat("hello", seed=1, max_tokens=31, statistics=True))
    assert [step.drafted for step in steps] == [False, *[True, True, True, True, False] * 6]


def test_a_changed_alpha_acts_from_the_next_round_on(trio_recipe: Recipe) -> None:
    plain = trio_recipe.replace(temperature=0, draft=8)
    changed = plain.replace(alpha=-2.0)
    with Emulator.load(plain) as loaded:
        whole = loaded.chat("hello", max_tokens=12).tokens
        engine = loaded.engine
        answer = engine.add(loaded.models.request("hello", {"max_tokens": 12}))
        while len(answer.tokens) < 4:
            engine.step()
        begun = tuple(answer.tokens)
        engine.change(answer, changed)
        while not engine.idle:
            engine.step()
        assert begun == whole[: len(begun)]
        assert len(begun) < 12
        rest = loaded.chat("hello", recipe=changed, prefix=begun, max_tokens=12 - len(begun)).tokens
        assert tuple(answer.tokens) == begun + rest


@pytest.mark.parametrize("stop_after", [1, 2, 3, 7])
@pytest.mark.parametrize("rule", DRAFT_RULES)
def test_an_abandoned_drafted_answer_leaves_nothing_behind(trio_recipe: Recipe, rule: str, stop_after: int) -> None:
    with Emulator.load(trio_recipe.replace(draft=6, draft_rule=rule, temperature=1.0)) as loaded:
        expected = loaded.chat("there", seed=5, max_tokens=20).tokens
        steps = loaded.stream_chat("hello", seed=5, statistics=True)
        for _ in range(stop_after):
            next(steps)
        del steps
        assert loaded.chat("there", seed=5, max_tokens=20).tokens == expected


@pytest.mark.parametrize("room", range(1, 9))
def test_drafts_stop_at_the_end_of_the_context(trio_recipe: Recipe, room: int) -> None:
    with Emulator.load(trio_recipe) as probe:
        longest = max(probe.chat("hello", max_tokens=1).prompt_tokens.values())
    plain = trio_recipe.replace(context=longest + room, temperature=0, max_tokens=None)
    results = []
    for draft in ("off", 6):
        with Emulator.load(plain.replace(draft=draft)) as loaded:
            answer = loaded.chat("hello")
            results.append((answer.tokens, answer.finish_reason))
    assert results[0] == results[1]


def test_auto_measures_once_and_keeps_what_it_measured(
    trio_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFT_HOME", str(tmp_path))
    with Emulator.load(trio_recipe.replace(temperature=0)) as loaded:
        expected = answers(loaded)
        loaded.recipe = loaded.recipe.replace(draft="auto")
        assert answers(loaded) == expected
        assert answers(loaded, parallel=3) == expected
    kept = {path: path.read_bytes() for path in (tmp_path / "cache" / "row-costs").iterdir()}
    assert len(kept) == 3
    with Emulator.load(trio_recipe.replace(temperature=0, draft="auto")) as loaded:
        assert answers(loaded) == expected
    assert {path: path.read_bytes() for path in (tmp_path / "cache" / "row-costs").iterdir()} == kept


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_draft_token_is_judged_and_the_one_that_is_not_drafted_as_well(
    trio_recipe: Recipe, monkeypatch: pytest.MonkeyPatch, temperature: float, length: int
) -> None:
    outcomes: list[Outcome] = []
    monkeypatch.setattr(FixedLength, "observe", lambda self, seen: outcomes.extend(seen))
    with Emulator.load(trio_recipe.replace(draft=length, temperature=temperature)) as loaded:
        for prompt in PROMPTS:
            outcomes.clear()
            tokens = loaded.chat(prompt, seed=3, max_tokens=24).tokens
            judged: dict[int, bool] = {}
            place = 1  # nobody drafts the first token: its time is the prompt's
            for outcome in outcomes:
                judged |= {place + row: row < outcome.accepted for row in range(outcome.judged)}
                if outcome.next_right is not None:
                    judged[place + outcome.accepted] = outcome.next_right
                place += outcome.accepted + 1
            assert judged.keys() >= set(range(1, len(tokens) - 1))
            for place, right in judged.items():
                expert = loaded.chat(prompt, seed=3, prefix=tokens[:place], max_tokens=1, target="helpful").tokens
                assert right == (expert == tokens[place : place + 1])


@pytest.mark.parametrize("draft", [0, 17, -1, "on", True, 1.5])
def test_a_draft_length_that_cannot_be_is_refused(trio_recipe: Recipe, draft: object) -> None:
    with pytest.raises(RecipeError, match="draft = "):
        trio_recipe.replace(draft=draft)


@pytest.mark.parametrize("draft", [3, "auto", "off"])
def test_drafts_are_written_to_the_recipe_and_read_back(trio_recipe: Recipe, draft: object) -> None:
    changed = trio_recipe.replace(draft=draft, draft_source="ngram+proxy", draft_rule="rejection")
    assert Recipe.from_text(changed.to_toml(), changed.folder).replace(name=changed.name) == changed
