"""Experts that are tuned by their prompt alone: other sequences of a context that is there anyway."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eft_local import Emulator, Recipe
from eft_local.backends.base import ContextOptions, Rows
from eft_local.bench.gguf_zeros import Shape
from eft_local.bench.studies.gguf_factory import ModelSpec, bpe, write_model
from eft_local.engine.kv import ContextCache, KVSequence
from eft_local.engine.sequence import Sequence as Answering
from eft_local.engine.speculative import costs as row_costs
from eft_local.engine.speculative.costs import RowCosts, per_role
from eft_local.engine.speculative.drafters import DraftingSource
from eft_local.engine.speculative.length import AdaptiveLength
from eft_local.errors import RecipeError
from eft_local.prompts.render import conversation
from eft_local.recipe import Expert, Prompt, Role
from tests.helpers.fake import FakeContext, FakeModel, emulator, noise, recipe

SHOTS = Prompt("few-shot", examples=(("a?", "b."),))
QUESTION = "hello"


def prompted(model: str = "@antiexpert", **changes: object) -> Recipe:
    """The fakes' recipe with an expert on the weights of another role."""
    return recipe(experts={"helpful": Expert(model=model, prompt=SHOTS)}, **changes)


def models() -> dict[str, FakeModel]:
    return {name: FakeModel(noise(seed)) for seed, name in enumerate(("base", "small"))}


class Watched(FakeModel):
    """Remembers the sequences of each evaluation, with their rows."""

    def __init__(self, seed: int) -> None:
        super().__init__(noise(seed))
        self.batches: list[list[tuple[int, int]]] = []

    def open(self, options: ContextOptions) -> FakeContext:
        context = super().open(options)
        submit = context.submit

        def watched(batch: Sequence[Rows]) -> None:
            self.batches.append([(rows.sequence, len(rows.tokens)) for rows in batch])
            submit(batch)

        context.submit = watched
        return context


@pytest.mark.parametrize(("model", "shared"), [("@antiexpert", "small"), ("@base", "base")])
def test_a_prompted_expert_is_a_sequence_of_the_context_it_shares(model, shared):
    weights = {name: Watched(seed) for seed, name in enumerate(("base", "small"))}
    with emulator(weights, prompted(model)) as loaded:
        answer = loaded.chat(QUESTION)
        assert len(answer.tokens) == 8
        assert [len(each.contexts) for each in weights.values()] == [1, 1]
        assert weights[shared].contexts[0].n_seq == 2
        assert [len(batch) for batch in weights[shared].batches] == [2] * 8, "one evaluation, both roles' rows"
        assert weights[shared].batches[1:] == [[(0, 1), (1, 1)]] * 7
        for each in weights.values():
            each.batches.clear()
        loaded.chat(QUESTION, target="helpful")
        assert {len(batch) for batch in weights[shared].batches} == {1}, "alone it is evaluated alone"
    seeds = {"base": 0, "small": 1, "tuned": {"@base": 0, "@antiexpert": 1}[model]}
    apart = {name: FakeModel(noise(seed)) for name, seed in seeds.items()}
    with emulator(apart, recipe(experts={"helpful": Expert(model="tuned", prompt=SHOTS)})) as loaded:
        assert loaded.chat(QUESTION).tokens == answer.tokens, "as with weights of its own"


def aware(**changes: object) -> Recipe:
    """Context-aware decoding: base + alpha · (base that is shown something − base)."""
    shown = Expert(model="@base", prompt=SHOTS, alpha=1.5)
    return recipe(antiexpert=Role(model="@base"), experts={"helpful": shown}, **changes)


def test_an_antiexpert_that_is_the_base_is_evaluated_with_it():
    weights = {"base": Watched(0)}
    with emulator(weights, aware()) as loaded:
        assert loaded.roles == ("base", "helpful")
        assert loaded.targets == ("eft", "base", "helpful", "expert")
        steps = list(loaded.stream_chat(QUESTION, top=130))
        assert [len(batch) for batch in weights["base"].batches] == [2] * 8
        for step in steps:
            by_token = sorted(step.candidates, key=lambda each: each.token)
            by_role = {name: np.array([each.roles[name].logprob for each in by_token]) for name in step.roles}
            assert np.ptp(by_role["base"] + 1.5 * (by_role["helpful"] - by_role["base"]) - by_role["eft"]) < 1e-3
        plain = tuple(step.token for step in steps)
        for source in ("expert", "proxy", "ngram+proxy"):
            for draft in (3, "auto"):
                loaded.recipe = aware(draft=draft, draft_source=source)
                assert loaded.chat(QUESTION).tokens == plain
                assert [each.tokens for each in loaded.chat([QUESTION, QUESTION])] == [plain] * 2
        with pytest.raises(RecipeError, match=r"Emulator\.load"):
            loaded.recipe = aware().replace(base=Role(model="base", prompt=Prompt("plain", instructions="x")))


def test_an_antiexpert_on_the_base_with_another_prompt_is_a_role_of_its_own():
    for antiexpert, count in ((Role(model="@base", prompt=SHOTS), 3), (Role(model="@base"), 2)):
        own = Expert(model="@base", prompt=Prompt("plain", instructions="x"), antiexpert=antiexpert)
        with emulator({"base": FakeModel(noise(0))}, recipe(antiexpert=None, experts={"own": own})) as loaded:
            assert loaded.roles == ("base", "own", "own.antiexpert")[:count]
            assert len(loaded.chat(QUESTION).tokens) == 8


@pytest.mark.parametrize("model", ["@antiexpert", "@base"])
@pytest.mark.parametrize("source", ["expert", "proxy", "ngram", "ngram+expert", "ngram+proxy"])
def test_drafts_of_a_prompted_expert_leave_the_answer_as_it_is(model, source):
    with emulator(models(), prompted(model, max_tokens=24)) as loaded:
        plain = loaded.chat(QUESTION)
        scored = loaded.score(QUESTION, "and so on").logprobs
        for draft in (1, 5, "auto"):
            loaded.recipe = prompted(model, max_tokens=24, draft=draft, draft_source=source)
            assert loaded.chat(QUESTION).tokens == plain.tokens
            batch = loaded.chat([QUESTION, "x", QUESTION], parallel=2)
            assert [each.tokens for each in batch] == [plain.tokens, loaded.chat("x").tokens, plain.tokens]
        np.testing.assert_array_equal(loaded.score(QUESTION, "and so on").logprobs, scored)


def test_the_drafting_expert_is_evaluated_alone():
    weights = {name: Watched(seed) for seed, name in enumerate(("base", "small"))}
    with emulator(weights, prompted(draft=3, max_tokens=8)) as loaded:
        loaded.chat(QUESTION)
    expert_alone = [batch for batch in weights["small"].batches[1:] if len(batch) == 1 and batch[0][0] == 1]
    antiexpert_alone = [batch for batch in weights["small"].batches[1:] if len(batch) == 1 and batch[0][0] == 0]
    assert len(expert_alone) > len(antiexpert_alone) > 0
    assert {rows for batch in antiexpert_alone for _, rows in batch} & {4}, "all drafted tokens at once"


@pytest.fixture(scope="module")
def exact(ggufs: Path) -> Recipe:
    """Small random models, with a cache and kernels that round the same for every split of a batch."""
    text = """
        context = 256
        threads = 1
        kv_type = "f32"
        flash_attention = false
        [base]
        model = "base.gguf"
        [antiexpert]
        model = "small.gguf"
        [experts.shown]
        model = "@antiexpert"
        prompt = "few-shot"
        examples = [["the hello", "of words"]]
        [experts.told]
        model = "@base"
        prompt = "plain"
        instructions = "the one"
        alpha = -0.7
        [sampling]
        temperature = 0
        max_tokens = 12
    """
    return Recipe.from_text(text, ggufs)


def test_one_copy_of_weights_and_the_formula_of_separate_contexts(exact, ggufs):
    with Emulator.load(exact) as loaded:
        roles = loaded.models.roles
        assert roles["shown"].model is roles["antiexpert"].model
        assert roles["told"].model is roles["base"].model
        assert [len(context.sequences) for context in loaded.engine.cache.contexts] == [2, 2]
        answer = loaded.chat(QUESTION)
        rows = {}
        for name, role in roles.items():
            tokens = [*role.tokens(conversation(QUESTION)), *answer.tokens]
            with role.model.open(
                ContextOptions(n_ctx=256, n_outputs=20, n_threads=1, kv_type="f32", flash_attention=False)
            ) as alone:
                alone.submit([Rows(0, tokens, 13)])
                rows[name] = alone.logits()[:12, : loaded.models.target("eft").n_vocab].copy()
    mixed = rows["base"] + (rows["shown"] - rows["antiexpert"]) - 0.7 * (rows["told"] - rows["antiexpert"])
    assert tuple(mixed.argmax(-1).tolist()) == answer.tokens
    best = np.sort(mixed, -1)[:, -2:]
    assert (best[:, 1] - best[:, 0]).min() > 1e-3, "no ties: another formula would have given another answer"


@pytest.mark.parametrize("draft", [4, "auto"])
def test_batches_of_unequal_rows_in_shared_contexts(exact, draft):
    questions = [QUESTION, "the other one, and longer", "x"]
    with Emulator.load(exact) as loaded:
        plain = [loaded.chat(question).tokens for question in questions]
        loaded.recipe = exact.replace(draft=draft)
        assert [loaded.chat(question).tokens for question in questions] == plain
        assert [answer.tokens for answer in loaded.chat(questions, parallel=3)] == plain


def test_prompts_change_without_a_reload(exact):
    with Emulator.load(exact) as loaded:
        before = loaded.chat(QUESTION)
        reported = replace(
            exact.experts["told"], prompt=Prompt("plain", instructions="the hello of the words, and longer")
        )
        loaded.recipe = exact.replace(experts={**exact.experts, "told": reported})
        after = loaded.chat(QUESTION)
    assert after.prompt_tokens["told"] > before.prompt_tokens["told"]
    assert after.prompt_tokens["base"] == before.prompt_tokens["base"]


def test_other_places_are_other_contexts_and_copies(ggufs, caplog):
    text = """
        context = 64
        [base]
        model = "base.gguf"
        [antiexpert]
        model = "small.gguf"
        [experts.cache]
        model = "small.gguf"
        prompt = "plain"
        kv_type = "f32"
        [experts.read]
        model = "small.gguf"
        prompt = "plain"
        mmap = false
    """
    with Emulator.load(Recipe.from_text(text, ggufs)) as loaded:
        roles = loaded.models.roles
        assert roles["cache"].model is roles["antiexpert"].model
        assert roles["read"].model is not roles["antiexpert"].model
        assert len(loaded.engine.cache.contexts) == 4
    assert "small.gguf is loaded 2 times, as antiexpert and read place it differently" in caplog.text


# what drafting believes that rows cost


def test_roles_of_one_context_cost_its_rows_together(monkeypatch):
    measured = []

    def time_rows(context: ContextCache, sequence: KVSequence, rows: int) -> float:
        measured.append(context.role.role.model)
        return {"base": 10.0}.get(context.role.role.model, 1.0) + rows

    monkeypatch.setattr(ContextCache, "time_rows", time_rows)
    with emulator(models(), prompted(draft="auto")) as loaded:
        source, cache = DraftingSource(), loaded.engine.cache

        def lengths(**changes: object) -> AdaptiveLength:
            answer = Answering(loaded.models.request(QUESTION, {"recipe": loaded.recipe.replace(**changes)}))
            answer.begin(cache.admit(answer.texts, dict.fromkeys(answer.texts, 50), 1))
            length = source.choose(answer, cache).length
            for sequence in answer.kv.values():
                sequence.release()
            return length

        drafting = lengths()
        assert (drafting._drafting(1), drafting._drafting(4)) == (2.0, 5.0)
        assert drafting._rest(1) == 11.0 + 2.0
        assert set(measured) == {"base", "small"}, "one measurement for both roles of a context"
        assert lengths(draft_source="proxy")._drafting(3) == 1.0 + 6, "one evaluation of six rows"
        before = drafting._drafting(4)
        cache.contexts[1].costs.learn(4, 50.0)
        assert drafting._drafting(4) > before, "what is seen of one role is learnt for all in its context"


def test_costs_per_role():
    costs = RowCosts([1, 2, 4], [1.0, 1.5, 1.75])
    assert [per_role(costs, 2)(rows) for rows in (1, 2)] == [1.5, 1.75]


def test_costs_of_an_adapted_model_are_kept_apart(ggufs, tmp_path):
    from eft_local.bench.studies.gguf_factory import write_adapter

    write_adapter(tmp_path / "lora.gguf", ggufs / "small.gguf")
    text = f"""
        context = 64
        [base]
        model = "base.gguf"
        [antiexpert]
        model = "small.gguf"
        [experts.tuned]
        model = "@antiexpert"
        lora = "{tmp_path / "lora.gguf"}"
        prompt = "plain"
        [experts.prompted]
        model = "@antiexpert"
        prompt = "plain"
    """
    with Emulator.load(Recipe.from_text(text, ggufs)) as loaded:
        kept = {name: row_costs._cached(role) for name, role in loaded.models.roles.items()}
    assert kept["antiexpert"] == kept["prompted"]
    assert len(set(kept.values())) == 3


# vocabularies and scales


def test_widths_of_qwen_fit_together(tmp_path):
    """151,936 and 152,064 ids, of which 151,665 mean something."""
    tokens = bpe()
    words = [f"w{number}" for number in range(len(tokens.texts), 151_665)]
    tokens = replace(tokens, texts=tokens.texts + words, types=tokens.types + [1] * len(words))
    shape = Shape(n_layer=1)
    for name, width in (("base", 152_064), ("small", 151_936)):
        padded = tokens.padded(width - 151_665)
        write_model(tmp_path / f"{name}.gguf", ModelSpec(shape, padded, zero=True, quantization="Q4_0"))
    text = """
        context = 32
        [base]
        model = "base.gguf"
        [antiexpert]
        model = "small.gguf"
        [experts.told]
        model = "@antiexpert"
        prompt = "plain"
        instructions = "hello"
    """
    with Emulator.load(Recipe.from_text(text, tmp_path).replace(temperature=1, top_k=0, max_tokens=8)) as loaded:
        assert loaded.models.target("eft").n_vocab == 151_665
        for only, width in (("eft", 151_665), ("base", 151_665)):
            system = loaded.models.target(only)
            offered = system.mix(loaded.recipe, {name: np.zeros((1, 152_064), np.float32) for name in system.roles})
            assert len(offered) <= 152_064
            assert np.isneginf(offered[width:]).all()
        assert all(token < 151_665 for token in loaded.chat("hello", seed=1).tokens)


def test_down_scaling_is_the_same_formula():
    with Emulator.load("demo-down") as loaded:
        assert loaded.recipe.base.model == "demo:small"
        steps = list(loaded.stream_chat("What is the capital of Peru?", top=4096, max_tokens=3))
    for step in steps:
        by_token = sorted(step.candidates, key=lambda each: each.token)
        by_role = {name: np.array([each.roles[name].logprob for each in by_token]) for name in step.roles}
        mixed = by_role["base"] + by_role["large-tuned"] - by_role["antiexpert"]
        difference = mixed - by_role["eft"]
        assert np.ptp(difference) < 1e-3, "equal but for the normaliser"


def test_the_demo_of_a_prompted_expert():
    with Emulator.load("demo-prompted") as loaded:
        assert loaded.chat("What is the capital of Peru?").text == " The capital of Peru is Lima."
        assert loaded.chat("What is the capital of Peru?", target="shown").text != " The capital of Peru is Lima."
        assert [len(context.sequences) for context in loaded.engine.cache.contexts] == [1, 2]
        assert loaded.chat("What is the capital of Peru?", target="base-shown").finish_reason == "stop"
        assert loaded.models.roles["base-shown"].model is loaded.models.roles["base"].model
        assert len({id(role.model) for role in loaded.models.roles.values()}) == 2


def test_negative_weights_push_away():
    with emulator({name: FakeModel(noise(seed)) for seed, name in enumerate(("base", "small", "tuned"))}) as loaded:
        loaded.recipe = loaded.recipe.replace(alpha=-1.5)
        for step in loaded.stream_chat(QUESTION, top=130, max_tokens=4):
            by_token = sorted(step.candidates, key=lambda each: each.token)
            by_role = {name: np.array([each.roles[name].logprob for each in by_token]) for name in step.roles}
            mixed = by_role["base"] - 1.5 * (by_role["helpful"] - by_role["antiexpert"])
            assert np.ptp(mixed - by_role["eft"]) < 1e-3
