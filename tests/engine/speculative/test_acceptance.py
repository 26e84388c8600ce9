"""Both rules keep the mixture's distribution, and the test that says so notices rules that do not.

The demo models write, in the real loop; their logits are computed once for each sequence of tokens, so that tens of
thousands of answers take seconds and every one of them meets exactly the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from eft_local import Emulator
from eft_local.backends.base import Floats, Rows, Vocabulary
from eft_local.backends.llamacpp import Model, Sampler
from eft_local.backends.llamacpp import sampler as sampler_module
from eft_local.backends.llamacpp.noise import ACCEPTANCE, gumbel, uniform
from eft_local.bench.studies.goodness import END, Continuation, cells, chi_square_tail, fit
from eft_local.engine.cache import Cache
from eft_local.engine.engine import Engine
from eft_local.engine.loading import LoadedRole
from eft_local.engine.request import Request
from eft_local.engine.speculative.acceptance import RULES, DraftToken, Rejection, Rule, SharedNoise
from eft_local.engine.speculative.drafters import (
    Draft,
    Drafter,
    Drafting,
    DraftingSource,
    NgramDrafter,
    RoleDrafter,
    Round,
)
from eft_local.engine.speculative.length import FixedLength
from eft_local.hub.references import find_recipe
from eft_local.recipe.sampling import Sampling
from tests.helpers.fake import END as FAKE_END
from tests.helpers.fake import FakeModel, emulator, recipe, trio

FREE = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
SAMPLES = 20_000
ALARM = 1e-4
Table = Callable[[tuple[int, ...]], np.ndarray]


@pytest.fixture(scope="module")
def real() -> Iterator[Emulator]:
    recipe = find_recipe("demo").replace(alpha=0.5, draft=2, threads=1, kv_type="f32", flash_attention=False)
    with Emulator.load(recipe) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def demo(real: Emulator) -> Emulator:
    """The demo's roles with a memory: what follows a sequence of tokens is evaluated when it is first asked for."""
    roles = {
        name: LoadedRole(role.role, role.placement, FakeModel(remembering(role), role.vocabulary), role.template)
        for name, role in real.models.roles.items()
    }
    return Emulator(real.recipe, roles)


def remembering(role: LoadedRole) -> Table:
    context = role.open(n_ctx=200, n_seq=1, n_outputs=1)

    @cache
    def table(tokens: tuple[int, ...]) -> np.ndarray:
        context.rewind(0, 0)
        context.submit([Rows(0, tokens)])
        return context.logits()[0].copy()

    return table


@pytest.fixture(scope="module")
def hesitant() -> Iterator[Emulator]:
    """Models that write a, b and c, each with tastes of its own, and end soon."""

    def taste(seed: int) -> Table:
        liked = np.random.default_rng(seed).normal(0, 1.5, (256, 4))

        def table(tokens: tuple[int, ...]) -> np.ndarray:
            row = np.full(FAKE_END + 1, -1e4, np.float32)
            row[[*b"abc", FAKE_END]] = liked[tokens[-1]] + (0, 0, 0, 1)
            return row

        return table

    models = trio(base=taste(1), small=taste(2), tuned=taste(3))
    with emulator(models, recipe(draft=2, **FREE)) as loaded:
        yield loaded


class Story:
    """A prompt, the beginning of its answer, and how many tokens follow."""

    def __init__(self, prompt: str, begin: str, length: int) -> None:
        self.prompt, self.begin, self.length = prompt, begin, length

    def request(self, loaded: Emulator, seed: int = 0) -> Request:
        prefix = vocabulary(loaded).tokenize(self.begin, add_special=False, parse_special=False)
        return loaded.models.request(self.prompt, {"seed": seed, "max_tokens": self.length}, prefix)


def vocabulary(loaded: Emulator) -> Vocabulary:
    return loaded.models.request("x", {}).target.vocabulary


class Always(DraftingSource):
    """Drafts every answer in one way."""

    def __init__(self, drafting: Drafting) -> None:
        self._drafting = drafting

    def choose(self, answer: object, cache: Cache) -> Drafting:
        return self._drafting


UNKNOWN = Story("Who is the president of France?", " The", 4)
"""A question that the demo cannot answer: it hesitates at every second token. Draft tokens are accepted and rejected at
every place, and whole drafts are taken."""

LETTERS = Story("say", "", 5)


def sampled(loaded: Emulator, story: Story, drafting: Drafting, samples: int) -> list[Continuation]:
    """Continuations, each with a seed of its own."""
    first = story.request(loaded)
    loaded.chat([story.prompt] * 16, parallel=16, max_tokens=story.length + 8)  # makes room for so many side by side
    engine = Engine(loaded.engine.cache, Always(drafting))
    made = [engine.add(replace(first, seed=seed, outputs=1)) for seed in range(samples)]
    while not engine.idle:
        engine.step()
    return [(*each.tokens, END) if each.finish_reason == "stop" else tuple(each.tokens) for each in made]


def exact(loaded: Emulator, story: Story, samples: int = SAMPLES) -> dict[Continuation, float]:
    """Each continuation's probability, by the formula and by what the samplers are defined to do."""
    sequences = story.request(loaded).texts
    models = {name: loaded.models.roles[name].model for name in sequences}

    def following(continuation: Continuation) -> np.ndarray:
        base, antiexpert, expert = (
            models[name].table((*before, *continuation)).astype(np.float64) for name, before in sequences.items()
        )
        (alpha,) = loaded.recipe.alphas.values()
        return after_samplers(base + alpha * (expert - antiexpert), loaded.recipe.sampling)

    return cells(following, vocabulary(loaded).is_eog, story.length, least=5 / samples)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def after_samplers(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Top-p, XTC, then the temperature."""
    plain = np.argsort(-logits)
    if sampling.top_p < 1:
        plain = plain[: int(np.searchsorted(np.cumsum(softmax(logits)[plain]), sampling.top_p)) + 1]
    likely = int((softmax(logits[plain]) >= sampling.xtc_threshold).sum())
    without = plain[max(likely - 1, 0) :]  # all that are likely but the last of them
    probabilities = np.zeros(len(logits))
    for ids, share in ((plain, 1 - sampling.xtc_probability), (without, sampling.xtc_probability)):
        probabilities[ids] += share * softmax(logits[ids] / sampling.temperature)
    return probabilities


def drafts(loaded: Emulator, rule: Rule, drafter: Drafter | None = None, length: int = 2) -> Drafting:
    return Drafting(drafter or RoleDrafter(rule, next(iter(loaded.recipe.experts))), FixedLength(length), rule)


CASES = {
    "temperature 0.7": {"temperature": 0.7},
    "temperature 1": {"temperature": 1.0},
    "temperature 1, top-p 0.9": {"temperature": 1.0, "top_p": 0.9},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rule", RULES)
def test_answers_follow_the_mixture(demo: Emulator, rule: str, case: str) -> None:
    demo.recipe = demo.recipe.replace(**FREE | CASES[case])
    expected = exact(demo, UNKNOWN)
    assert sum(expected.values()) == pytest.approx(1)
    assert sum(mass * SAMPLES >= 5 for mass in expected.values()) > 10
    assert fit(sampled(demo, UNKNOWN, drafts(demo, RULES[rule]), SAMPLES), expected) > ALARM


@pytest.mark.parametrize("rule", RULES)
def test_answers_with_and_without_a_memory_are_the_same(real: Emulator, demo: Emulator, rule: str) -> None:
    """What is counted above is what real contexts write; a tie may fall otherwise, as kernels differ with the rows."""
    real.recipe = demo.recipe = demo.recipe.replace(**FREE, temperature=1.0, draft_rule=rule)
    made, remembered = (
        [each.chat(UNKNOWN.prompt, seed=seed, max_tokens=8).tokens for seed in range(100)] for each in (real, demo)
    )
    assert len(set(made)) > 25
    assert sum(left == right for left, right in zip(made, remembered, strict=True)) >= 97


@pytest.mark.parametrize("xtc", [0.0, 0.4])
@pytest.mark.parametrize("rule", RULES)
def test_answers_that_may_end_follow_the_mixture(hesitant: Emulator, rule: str, xtc: float) -> None:
    hesitant.recipe = hesitant.recipe.replace(**FREE, temperature=0.8, xtc_probability=xtc, xtc_threshold=0.15)
    expected = exact(hesitant, LETTERS)
    assert sum(mass for cell, mass in expected.items() if cell[-1] == END) > 0.2
    assert fit(sampled(hesitant, LETTERS, drafts(hesitant, RULES[rule]), SAMPLES // 4), expected) > ALARM


class TakesAll(Rejection):
    def choose(self, sampler: Sampler, scores: Floats, seed: int, position: int, draft_token: DraftToken | None) -> int:
        return draft_token.token if draft_token else sampler.pick(scores, seed, position)


class TakesWhatIsPossible(SharedNoise):
    def choose(self, sampler: Sampler, scores: Floats, seed: int, position: int, draft_token: DraftToken | None) -> int:
        if draft_token and sampler.distribution(scores, seed, position).of(draft_token.token) > 0.001:
            return draft_token.token
        return sampler.pick(scores, seed, position)


class RedrawsFromTheMixture(Rejection):
    def choose(self, sampler: Sampler, scores: Floats, seed: int, position: int, draft_token: DraftToken | None) -> int:
        token = super().choose(sampler, scores, seed, position, draft_token)
        return draft_token.token if draft_token and token == draft_token.token else sampler.pick(scores, seed, position)


class TurnsTheRatio(Rejection):
    def choose(self, sampler: Sampler, scores: Floats, seed: int, position: int, draft_token: DraftToken | None) -> int:
        if draft_token is None:
            return sampler.pick(scores, seed, position)
        p, q = sampler.distribution(scores, seed, position), draft_token.distribution
        if uniform(seed, position, ACCEPTANCE) * p.of(draft_token.token) < q.of(draft_token.token):
            return draft_token.token
        return (p.beyond(q) or p).draw(uniform(seed, position))


class UsesANumberTwice(Rejection):
    def propose(self, sampler: Sampler, scores: Floats, seed: int, position: int, start: int) -> DraftToken:
        distribution = sampler.distribution(scores, seed, position)
        return DraftToken(distribution.draw(uniform(seed, position, ACCEPTANCE)), distribution)


@pytest.mark.parametrize(
    "broken", [TakesAll, TakesWhatIsPossible, RedrawsFromTheMixture, TurnsTheRatio, UsesANumberTwice]
)
def test_a_broken_rule_would_be_noticed(demo: Emulator, broken: type[Rule]) -> None:
    demo.recipe = demo.recipe.replace(**FREE, temperature=1.0)
    assert fit(sampled(demo, UNKNOWN, drafts(demo, broken()), SAMPLES // 5), exact(demo, UNKNOWN)) < ALARM


@pytest.mark.parametrize("broken", [lambda *key: gumbel(*key[:2], 0 * key[2]), lambda *key: 1.3 * gumbel(*key)])
def test_a_broken_noise_would_be_noticed(
    demo: Emulator, broken: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler_module, "gumbel", broken)
    demo.recipe = demo.recipe.replace(**FREE, temperature=1.0)
    found = sampled(demo, UNKNOWN, drafts(demo, RULES["shared-noise"]), SAMPLES // 5)
    assert fit(found, exact(demo, UNKNOWN)) < ALARM


class HidesEnds(RoleDrafter):
    """Draws an end and drops it as a draft token that is not worth a row: what is offered depends on what was drawn."""

    def draft(self, now: Round, which: range) -> dict[int, Draft]:
        made = super().draft(now, which)
        for draft in made.values():
            del draft.draft_tokens[len(draft.tokens) :]
            draft.ended = False
        return made


def test_hidden_ends_would_be_noticed(hesitant: Emulator) -> None:
    hesitant.recipe = hesitant.recipe.replace(**FREE, temperature=0.8, xtc_probability=0.0)
    for rule, passes in ((RULES["shared-noise"], True), (RULES["rejection"], False)):
        drafting = drafts(hesitant, rule, HidesEnds(rule, "helpful"))
        found = sampled(hesitant, LETTERS, drafting, SAMPLES // 5)
        assert (fit(found, exact(hesitant, LETTERS)) > ALARM) == passes


def test_what_stood_before_is_a_draft_like_any_other(hesitant: Emulator) -> None:
    hesitant.recipe = hesitant.recipe.replace(**FREE, temperature=0.8, xtc_probability=0.0)
    story = Story("abcabacab", "ab", 4)
    for rule in RULES.values():
        found = sampled(hesitant, story, drafts(hesitant, rule, NgramDrafter(), length=3), SAMPLES // 5)
        assert fit(found, exact(hesitant, story)) > ALARM


def test_chi_square_tails() -> None:
    """From the usual tables."""
    for value, freedom, tail in ((3.841, 1, 0.05), (5.991, 2, 0.05), (16.266, 3, 0.001), (124.342, 100, 0.05)):
        assert chi_square_tail(value, freedom) == pytest.approx(tail, rel=2e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"top_p": 0.7},
        {"top_k": 9, "min_p": 0.05, "temperature": 1.4},
        {"typical_p": 0.6, "repeat_penalty": 1.5},
        {"top_k": 12, "xtc_probability": 0.5, "xtc_threshold": 0.05},
        {"top_p": 0.8, "grammar": 'root ::= [a-m] "."'},
        {"top_k": 5, "grammar": "root ::= [h-z]+", "temperature": 0.6},
        {"temperature": 0.0},
        {"temperature": 0.0, "grammar": "root ::= [h-z]+"},
        {"top_k": 3, "json_schema": '{"enum": [1, 23, 45, 67]}'},
    ],
)
def test_the_distribution_is_what_pick_draws_from(ggufs: Path, options: dict[str, object]) -> None:
    with Model.load(ggufs / "base.gguf") as model:
        vocabulary = model.vocabulary
        letters = [
            vocabulary.tokenize(each, add_special=False, parse_special=False)[0] for each in "abcdefghijklmnopqrst"
        ]
        scores = np.full(vocabulary.n_tokens, -20, np.float32)
        scores[letters] = np.random.default_rng(5).normal(0, 1.5, len(letters))
        sampler = Sampler(vocabulary, Sampling(**{"temperature": 1.0} | FREE | options), vocabulary.n_tokens, 64)
        for seen in letters[:6]:
            if not options.keys() & {"grammar", "json_schema"}:
                sampler.accept(seen)
        draws, total = [], np.zeros(vocabulary.n_tokens)
        for seed in range(4000):
            distribution = sampler.distribution(scores, seed, 2)
            assert distribution.probabilities.sum() == pytest.approx(1)
            total[distribution.ids] += distribution.probabilities / 4000
            draws.append((sampler.pick(scores, seed, 2),))
        expected = {(token,): float(total[token]) for token in np.flatnonzero(total)}
        assert set(draws) <= set(expected)
        assert len(expected) == 1 or fit(draws, expected) > ALARM
        sampler.close()


def test_a_rule_accepts_as_many_draft_tokens_as_the_distributions_have_in_common(hesitant: Emulator) -> None:
    """The rejection rule's share is Σ min(p, q), which nothing can exceed; shared noise comes close."""
    hesitant.recipe = hesitant.recipe.replace(**FREE, temperature=1.0, xtc_probability=0.0)
    p, q = (np.array(weights, np.float32) for weights in ((0.5, 0.3, 0.2), (0.2, 0.3, 0.5)))
    sampler = Sampler(vocabulary(hesitant), Sampling(temperature=1.0, **FREE), 3, 10)
    taken = {}
    for name, rule in RULES.items():
        draft_tokens = [rule.propose(sampler, np.log(q), seed, 7, 5) for seed in range(SAMPLES)]
        taken[name] = np.mean(
            [
                rule.choose(sampler, np.log(p), seed, 7, draft_token) == draft_token.token
                for seed, draft_token in enumerate(draft_tokens)
            ]
        )
    assert taken["rejection"] == pytest.approx(0.7, abs=0.012)
    # argmax of log p + noise and of log q + noise agree with probability Σᵢ 1 / Σⱼ max(pⱼ/pᵢ, qⱼ/qᵢ)
    common = sum(1 / np.maximum(p / p[i], q / q[i]).sum() for i in range(3))
    assert taken["shared-noise"] == pytest.approx(common, abs=0.012)
