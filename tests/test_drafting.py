"""Drafts change the speed of an answer and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake import emulator, noise, recipe, trio

from eft_local import Emulator, Recipe
from eft_local.emulator.draft_length import AdaptiveLength
from eft_local.emulator.row_costs import RowCosts
from eft_local.errors import RecipeError

PROMPTS = ("hello", "there they were", "my friend, what is it?")
SETTINGS = (
    {"temperature": 0},
    {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
    {"temperature": 0.9, "repeat_penalty": 1.3, "dry_multiplier": 0.5},
    {"temperature": 0.9, "top_k": 5, "xtc_probability": 0.5},
    {"temperature": 1.0, "grammar": "root ::= [a-z ]+"},
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
        loaded.generate(PROMPTS, seed=3, max_tokens=24, parallel=parallel)
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
        for source in ("expert", "proxy", "ngram"):
            for length in (1, 4, 16):
                loaded.recipe = plain.replace(draft=length, draft_source=source)
                assert answers(loaded) == expected, (source, length)
            assert answers(loaded, parallel=2) == expected, source


def test_an_expert_that_is_its_own_mixture_is_always_right() -> None:
    """Base and antiexpert alike at α = 1: the mixture is the expert, and every draft is accepted."""
    same = trio(base=noise(1), small=noise(1))
    with emulator(same, recipe(draft=4, temperature=1.0)) as loaded:
        steps = list(loaded.stream("hello", seed=1, max_tokens=31))
    assert [step.drafted for step in steps] == [False, *[True, True, True, True, False] * 6]


def test_a_changed_alpha_acts_from_the_next_token_of_an_accepted_draft(trio_recipe: Recipe) -> None:
    plain = trio_recipe.replace(temperature=0)
    with Emulator.load(plain.replace(draft=8)) as loaded:
        drafted, expected = [], []
        for made, draft in ((drafted, 8), (expected, "off")):
            loaded.recipe = plain.replace(draft=draft)
            for number, step in enumerate(loaded.stream("hello", max_tokens=12)):
                made.append(step.token)
                if number == 4:
                    loaded.recipe = loaded.recipe.replace(alpha=-2.0)
    assert drafted == expected


@pytest.mark.parametrize("stop_after", [1, 2, 3, 7])
def test_an_abandoned_drafted_answer_leaves_nothing_behind(trio_recipe: Recipe, stop_after: int) -> None:
    with Emulator.load(trio_recipe.replace(draft=6, temperature=1.0)) as loaded:
        expected = loaded.chat("there", seed=5, max_tokens=20).tokens
        steps = loaded.stream("hello", seed=5)
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


@pytest.mark.parametrize("draft", [0, 17, -1, "on", True, 1.5])
def test_a_draft_length_that_cannot_be_is_refused(trio_recipe: Recipe, draft: object) -> None:
    with pytest.raises(RecipeError, match="draft = "):
        trio_recipe.replace(draft=draft)


FLAT = RowCosts((1, 16), (0.1, 0.1))
STEEP = RowCosts((1, 16), (0.1, 1.6))
SMALL = RowCosts((1, 16), (0.01, 0.02))


def taught(length: AdaptiveLength, drafted: int, accepted: int, times: int = 200) -> AdaptiveLength:
    for _ in range(times):
        length.observe(drafted, accepted)
    return length


def test_rows_that_cost_nothing_and_drafts_that_are_right_make_long_drafts() -> None:
    assert taught(AdaptiveLength([SMALL], [FLAT]), 15, 15).choose(1) == 15


def test_rows_at_full_price_make_no_drafts() -> None:
    assert AdaptiveLength([SMALL], [STEEP]).choose(1) == 0


def test_wrong_drafts_end_drafting_until_they_are_forgotten() -> None:
    length = taught(AdaptiveLength([SMALL], [RowCosts((1, 2, 16), (0.1, 0.19, 0.5))]), 4, 0)
    assert length.choose(1) == 0
    assert taught(length, 0, 0, times=500).choose(1) > 0


def test_many_answers_side_by_side_leave_less_to_win() -> None:
    costs = RowCosts((1, 8, 16, 32), (0.1, 0.12, 0.3, 0.6))
    alone, together = (taught(AdaptiveLength([SMALL], [costs]), 7, 6).choose(live) for live in (1, 8))
    assert alone > together


def test_costs_between_and_beyond_the_measured_rows_are_on_the_lines_through_them() -> None:
    costs = RowCosts((1, 2, 4), (1.0, 3.0, 4.0))
    assert [costs(n) for n in (1, 2, 3, 4, 6)] == [1.0, 3.0, 3.5, 4.0, 5.0]


@pytest.mark.parametrize("draft", [3, "auto", "off"])
def test_drafts_are_written_to_the_recipe_and_read_back(trio_recipe: Recipe, draft: object) -> None:
    changed = trio_recipe.replace(draft=draft, draft_source="proxy")
    assert Recipe.from_text(changed.to_toml(), changed.folder).replace(name=changed.name) == changed
