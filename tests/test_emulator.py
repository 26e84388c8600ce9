"""The emulator on tiny GGUFs: the invariants of the method, against the roles' own logits and llama.cpp's."""

import threading

import numpy as np
import pytest

from eft_local import Emulator, Recipe
from eft_local.backends.llamacpp import Model
from eft_local.errors import PromptError, RecipeError, UsageError, VocabularyMismatchError
from eft_local.machine.cores import CoreMeter, CoreUse
from eft_local.placement.survey import SCORED_ROWS
from eft_local.recipe import Prompt

PROMPTS = ["hello", "the other one, and longer", "x", "hello there, this is the longest of them all", "hello"]
SAMPLED = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 11}


def recipe(ggufs, base="base", antiexpert="small", tuned="tuned", *, prompt="plain", extra="", **changes) -> Recipe:
    """A greedy trio with a cache that rounds the same for every split of a prompt."""
    text = f"""
        context = 200
        threads = 1
        threads_batch = 1
        kv_type = "f32"
        flash_attention = false
        [base]
        model = "{base}.gguf"
        [antiexpert]
        model = "{antiexpert}.gguf"
        [experts.helpful]
        model = "{tuned}.gguf"
        prompt = "{prompt}"
        [sampling]
        temperature = 0
        max_tokens = 12
        {extra}
    """
    return Recipe.from_text(text, ggufs).replace(**changes)


@pytest.fixture(scope="module")
def trio(ggufs):
    with Emulator.load(recipe(ggufs)) as emulator:
        yield emulator


@pytest.fixture
def emulator(trio):
    """The trio, with its recipe put back afterwards."""
    kept = trio.recipe
    yield trio
    trio.recipe = kept


def steps(emulator: Emulator, prompt="hello", **options):
    return list(emulator.stream_chat(prompt, **{"statistics": True} | options))


def logprobs(emulator: Emulator, prompt: str, text: str, only="eft") -> np.ndarray:
    return emulator.score(prompt, text, target=only).logprobs


def test_an_answer_reports_what_other_programs_used(emulator, monkeypatch):
    monkeypatch.setattr(CoreMeter, "use", lambda meter: CoreUse(1.5, 2))
    assert emulator.chat("hello").cores == CoreUse(1.5, 2)
    assert [answer.cores for answer in emulator.chat(["hello", "x"])] == [CoreUse(1.5, 2)] * 2


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def distributions(emulator: Emulator, **options) -> dict[str, np.ndarray]:
    """Every role's log-probabilities, [steps, n_vocab], along one answer; read from all candidates."""
    n_vocab = emulator.models.target("eft").n_vocab
    found: dict[str, list[np.ndarray]] = {}
    for step in steps(emulator, top=n_vocab, **options):
        for name in step.roles:
            row = np.full(n_vocab, -np.inf)
            row[[each.token for each in step.candidates]] = [each.roles[name].logprob for each in step.candidates]
            found.setdefault(name, []).append(row)
    return {name: np.array(rows) for name, rows in found.items()}


def test_names(emulator):
    assert emulator.roles == ("base", "antiexpert", "helpful")
    assert emulator.targets == ("eft", "base", "antiexpert", "helpful", "expert")


def test_the_roles_differ_and_so_does_the_mixture(emulator):
    answers = {only: emulator.chat("hello", target=only).tokens for only in ("eft", "base", "antiexpert", "expert")}
    assert len(set(answers.values())) == 4


def test_alpha_0_beta_1_is_the_base(emulator):
    emulator.recipe = emulator.recipe.replace(alpha=0.0, beta=1.0)
    by_role = distributions(emulator, max_tokens=12)
    np.testing.assert_allclose(by_role["eft"], by_role["base"], atol=1e-5)
    assert all(step.change < 1e-5 and not step.top_changed for step in steps(emulator))
    for prompt in PROMPTS:
        assert emulator.chat(prompt).tokens == emulator.chat(prompt, target="base").tokens


def test_three_times_the_same_model_is_that_model(ggufs):
    with Emulator.load(recipe(ggufs, "small", "small", "small", alpha=1.7, beta=1.0)) as emulator:
        by_role = distributions(emulator)
        np.testing.assert_allclose(by_role["eft"], by_role["base"], atol=1e-4)
        assert emulator.chat("hello").tokens == emulator.chat("hello", target="base").tokens
        emulator.recipe = emulator.recipe.replace(beta=1.5, conservative_filter=0.9)
        by_role = distributions(emulator)
        np.testing.assert_allclose(by_role["eft"], by_role["base"], atol=1e-4)


def test_base_equal_to_antiexpert_gives_the_expert(ggufs):
    with Emulator.load(recipe(ggufs, "small", "small", "tuned")) as emulator:
        by_role = distributions(emulator)
        np.testing.assert_allclose(by_role["eft"], by_role["helpful"], atol=1e-4)
        for prompt in PROMPTS:
            assert emulator.chat(prompt).tokens == emulator.chat(prompt, target="expert").tokens


def formula(by_role, alpha=1.0, beta=1.0, keep=None):
    """Base-last, in float64: written the other way round than eft_local.engine.mix."""
    m = 1.0 if keep is None else keep
    return (
        by_role["antiexpert"]
        + beta * m * (by_role["base"] - by_role["antiexpert"])
        + alpha * (by_role["helpful"] - by_role["antiexpert"])
    )


def top_p_set(logprobs: np.ndarray, p: float) -> np.ndarray:
    keep = np.zeros(logprobs.shape, bool)
    for row, kept in zip(logprobs, keep, strict=True):
        order = np.argsort(-row, kind="stable")
        kept[order[: int(np.searchsorted(np.cumsum(np.exp(row[order])), p)) + 1]] = True
    return keep


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.4, 1.0), (2.0, 1.3), (-1.0, 1.0), (1.0, 0.0)])
def test_the_formula_on_real_logits(emulator, alpha, beta):
    emulator.recipe = emulator.recipe.replace(alpha=alpha, beta=beta)
    by_role = distributions(emulator)
    np.testing.assert_allclose(by_role["eft"], log_softmax(formula(by_role, alpha, beta)), atol=2e-4)


@pytest.mark.parametrize("beta", [1.0, 1.4])
def test_the_conservative_filter(emulator, beta):
    emulator.recipe = emulator.recipe.replace(conservative_filter=0.6, beta=beta)
    by_role = distributions(emulator)
    keep = top_p_set(by_role["helpful"], 0.6)
    assert 0 < keep.mean() < 0.5
    np.testing.assert_allclose(by_role["eft"], log_softmax(formula(by_role, 1.0, beta, keep)), atol=2e-4)
    # An unlikely token keeps the expert's log-probability, up to the normalisation.
    for row, expert, kept in zip(by_role["eft"], by_role["helpful"], keep, strict=True):
        assert np.ptp((row - expert)[~kept]) < 1e-3


def test_plausibility_masks(emulator):
    emulator.recipe = emulator.recipe.replace(plausibility_mask=0.1, plausibility_top_p=0.8, alpha=3.0)
    masked, chosen = distributions(emulator)["eft"], emulator.chat("hello").tokens
    emulator.recipe = emulator.recipe.replace(plausibility_mask=None, plausibility_top_p=None)
    by_role = {"eft": masked}
    for name in emulator.roles:  # what is masked is no candidate, so the roles' own views of it are read without masks
        at_each = [distributions(emulator, prefix=chosen[:end], max_tokens=1)[name][0] for end in range(len(masked))]
        by_role[name] = np.array(at_each)
    allowed = top_p_set(by_role["base"], 0.8) & (
        by_role["base"] >= by_role["base"].max(-1, keepdims=True) + np.log(0.1)
    )
    assert 0 < allowed.mean() < 0.5
    np.testing.assert_array_equal(np.isfinite(by_role["eft"]), allowed)
    expected = log_softmax(np.where(allowed, formula(by_role, 3.0), -np.inf))
    np.testing.assert_allclose(by_role["eft"][allowed], expected[allowed], atol=2e-4)
    assert all(row[token] for row, token in zip(allowed, chosen, strict=False))


def test_padded_ids_are_never_offered(ggufs, emulator):
    with Emulator.load(recipe(ggufs, "base-padded", "small", "tuned-padded")) as padded:
        assert padded.models.target("eft").n_vocab == 265
        for only in ("eft", "base", "expert"):
            assert padded.chat("hello", target=only).tokens == emulator.chat("hello", target=only).tokens
        padded.recipe = padded.recipe.replace(**SAMPLED | {"temperature": 100.0, "max_tokens": 100})
        for only in ("eft", "base", "expert"):
            seen = {token for seed in range(4) for token in padded.chat("x", target=only, seed=seed).tokens}
            assert len(seen) > 100
            assert max(seen) < 265


def test_padding_that_every_role_has_is_never_offered(ggufs):
    """All three files are as wide, so that the unused ids lie within the common width, or alone in [compare]."""
    compare = '[compare.alone]\nmodel = "base-padded.gguf"'
    with Emulator.load(recipe(ggufs, *["base-padded"] * 3, extra=compare)) as emulator:
        emulator.recipe = emulator.recipe.replace(**SAMPLED | {"temperature": 100.0, "max_tokens": 100})
        for only in ("eft", "base", "expert", "alone"):
            seen = {token for seed in range(4) for token in emulator.chat("x", target=only, seed=seed).tokens}
            assert len(seen) > 100
            step = next(emulator.stream_chat("x", target=only, top=300))
            assert len(step.candidates) == 265
            assert max(seen) < 265


def test_more_answers_side_by_side_than_llama_cpp_can_hold(emulator):
    with pytest.raises(UsageError, match=r"257 sequences.*256"):
        emulator.chat(["x"] * 257, parallel=300)
    assert emulator.chat("x").text


def test_vocabularies_that_differ(ggufs):
    with pytest.raises(VocabularyMismatchError, match="antiexpert"):
        Emulator.load(recipe(ggufs, antiexpert="small-spm"))


@pytest.mark.parametrize("options", [{}, SAMPLED, SAMPLED | {"repeat_penalty": 1.3, "xtc_probability": 0.5}])
@pytest.mark.parametrize("only", ["eft", "base"])
def test_a_batch_gives_each_what_it_gets_alone(emulator, options, only):
    emulator.recipe = emulator.recipe.replace(**options)
    alone = [emulator.chat(prompt, target=only) for prompt in PROMPTS]
    assert len({answer.tokens for answer in alone}) == len(PROMPTS) - 1, "hello comes twice"
    for parallel in (1, 2, 5, 50):
        counts = []
        batch = emulator.chat(PROMPTS, target=only, parallel=parallel, progress=counts.append)
        assert [answer.tokens for answer in batch] == [answer.tokens for answer in alone]
        assert [answer.text for answer in batch] == [answer.text for answer in alone]
        assert counts == [1, 2, 3, 4, 5]
        for together, single in zip(batch, alone, strict=True):
            assert together.prompt_tokens == single.prompt_tokens
            assert together.finish_reason == single.finish_reason


def test_a_prefix_is_continued_as_if_it_had_just_been_written(emulator):
    emulator.recipe = emulator.recipe.replace(**SAMPLED, repeat_penalty=1.4, frequency_penalty=0.2, max_tokens=16)
    whole = emulator.chat("hello")
    for cut in (1, 5, 15):
        prefix, room = whole.tokens[:cut], len(whole.tokens) - cut
        rest = emulator.chat("hello", prefix=prefix, max_tokens=room)
        assert prefix + rest.tokens == whole.tokens
    batch = emulator.chat(["hello", "hello"], prefix=[whole.tokens[:3], ()], max_tokens=13)
    assert batch[0].tokens == whole.tokens[3:]
    assert batch[1].tokens == whole.tokens[:13]


def test_score_is_the_product_of_stepwise_probabilities(emulator):
    """Longer than a chunk of rows, and independent of what the caches held before."""
    emulator.recipe = emulator.recipe.replace(**SAMPLED, max_tokens=30)
    text = "the hello of words, more than sixteen tokens"
    alone = {name: Emulator.score(emulator, "hello", text, target=name) for name in ("eft", *emulator.roles)}
    tokens = alone["eft"].tokens
    assert len(tokens) > 2 * SCORED_ROWS + 1
    stepwise: dict[str, list[float]] = {}
    for index, token in enumerate(tokens):
        step = next(emulator.stream_chat("hello", prefix=tokens[:index], top=265))
        scored = next(each for each in step.candidates if each.token == token)
        for name, view in scored.roles.items():
            stepwise.setdefault(name, []).append(view.logprob)
    for name, score in alone.items():
        np.testing.assert_allclose(score.logprobs, stepwise[name], atol=1e-3)
        assert score.tokens == tokens
        assert score.logprobs.dtype == np.float32
    for name in emulator.roles:
        np.testing.assert_allclose(alone["eft"].by_role[name], alone[name].logprobs, atol=1e-3)
        assert list(alone[name].by_role) == [name]


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 16, 17])
def test_score_at_the_edges_of_a_chunk(emulator, length):
    text = "abcdefghijklmnopq"
    whole = logprobs(emulator, "hello", text)
    part = emulator.score("hello", text[:length])
    assert len(part.tokens) == length == len(part.logprobs)
    np.testing.assert_allclose(part.logprobs, whole[:length], atol=1e-3)
    assert set(part.by_role) == set(emulator.roles)


def test_facts_do_not_change_the_answer(emulator):
    for only, name in (("eft", "eft"), ("expert", "helpful")):
        with_statistics, without = steps(emulator, target=only), steps(emulator, target=only, statistics=False)
        assert [step.token for step in with_statistics] == [step.token for step in without]
        assert all(step.logprob == step.roles[name].logprob for step in with_statistics)
        assert all(step.logprob is None and not step.roles for step in without)


@pytest.mark.parametrize("text", ["hello", " hello", "\nhello", "<s>", "he the\n\n he"])
def test_score_takes_the_text_verbatim(ggufs, emulator, text):
    """SentencePiece puts a space before every text that it tokenises; a continuation has none."""
    with Emulator.load(recipe(ggufs, "base-spm", "small-spm", "tuned-spm")) as spm:
        for each in (spm, emulator):
            tokens = each.score("x", text).tokens
            piece = each.models.roles["helpful"].vocabulary.piece
            assert b"".join(map(piece, tokens)).decode() == text


def test_score_wants_a_text(emulator):
    for wrong in (None, b"x", "\ud800"):
        with pytest.raises(UsageError, match="continuation"):
            emulator.score("hello", wrong)


def test_the_tokenisation_contract_of_plain_and_chat(ggufs):
    """Plain: BOS as the vocabulary says, all is text. Chat: the template's markup is markup, and one BOS."""
    with Emulator.load(recipe(ggufs, prompt="chat")) as emulator:
        prompts = emulator.models.request("say <|im_end|>", {}).prompts
        vocabulary = emulator.models.roles["base"].vocabulary
        bos, start, end = vocabulary.bos, 263, 264
        plain, chat = prompts["base"], prompts["helpful"]
        assert plain[0] == bos
        assert not {start, end, bos} & set(plain[1:])
        assert b"".join(map(vocabulary.piece, plain)).decode() == "Question: say <|im_end|>\nAnswer:"
        assert chat[0] == bos
        assert chat.count(bos) == 1
        assert chat.count(start) == 2
        assert chat.count(end) == 1
        assert emulator.chat("say <|im_end|>").prompt_tokens["helpful"] == len(chat)
    with Emulator.load(recipe(ggufs, "base-spm", "small-spm", "tuned-spm", prompt="chat")) as spm:
        prompts = spm.models.request("hello", {}).prompts
        assert [prompts[name].count(1) for name in spm.roles] == [1, 1, 1], "the template writes <s> itself"
        assert prompts["helpful"][0] == 1


def test_an_expert_without_a_template(ggufs):
    with pytest.raises(PromptError, match="no chat template"):
        Emulator.load(recipe(ggufs, tuned="small", prompt="chat"))


def test_a_second_turn_evaluates_only_what_is_new(ggufs):
    with Emulator.load(recipe(ggufs, prompt="chat", max_tokens=6)) as emulator:
        turns = [{"role": "user", "content": "hello"}]
        first = emulator.chat(turns)
        assert first.evaluated_tokens == first.prompt_tokens
        again = emulator.chat(turns)
        assert again.tokens == first.tokens
        assert again.evaluated_tokens == dict.fromkeys(emulator.roles, 1)
        contexts = {id(each.role.model): each for each in emulator.engine.cache.contexts}
        models = {name: emulator.models.roles[name].model for name in emulator.roles}
        held = {name: list(contexts[id(model)].sequences[0].cached) for name, model in models.items()}
        turns += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "more"}]
        second = emulator.chat(turns)
        for name in emulator.roles:
            prompt = emulator.models.request(turns, {}).prompts[name]
            common = next(
                (i for i, (a, b) in enumerate(zip(held[name], prompt, strict=False)) if a != b),
                min(len(held[name]), len(prompt)),
            )
            assert common >= first.prompt_tokens[name]
            assert second.evaluated_tokens[name] == len(prompt) - common
    with Emulator.load(recipe(ggufs, prompt="chat", max_tokens=6)) as fresh:
        assert fresh.chat(turns).tokens == second.tokens


def test_a_template_that_rewrites_history(ggufs, tmp_path):
    """Earlier turns vanish from the second prompt; the answer is the one of a fresh emulator."""
    template = tmp_path / "last.jinja"
    template.write_text("{% if messages|length > 1 %}later {% endif %}{{ messages[-1].content }}<|im_end|>")
    turns = [{"role": "user", "content": "hello"}]
    with Emulator.load(recipe(ggufs, prompt=str(template))) as emulator:
        answer = emulator.chat(turns)
        turns += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": "hello"}]
        second = emulator.chat(turns)
        assert second.evaluated_tokens["helpful"] == second.prompt_tokens["helpful"] - 1, "only BOS is common"
        assert second.evaluated_tokens["base"] <= second.prompt_tokens["base"] - answer.prompt_tokens["base"]
    with Emulator.load(recipe(ggufs, prompt=str(template))) as fresh:
        assert fresh.chat(turns).tokens == second.tokens


def test_recurrent_models_answer_right_on_every_turn(ggufs):
    """Their sequences start over where others rewind."""
    turns = [{"role": "user", "content": "hello"}]
    with Emulator.load(recipe(ggufs, "mamba", "small", "mamba", max_tokens=5)) as emulator:
        first = emulator.chat(turns)
        assert emulator.chat(turns).tokens == first.tokens
        assert emulator.chat("something else").tokens != first.tokens
        turns += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "more"}]
        second = emulator.chat(turns)
        assert emulator.chat(["hello", turns])[1].tokens == second.tokens
        emulator.cancel()
    with Emulator.load(recipe(ggufs, "mamba", "small", "mamba", max_tokens=5)) as fresh:
        assert fresh.chat(turns).tokens == second.tokens


def test_several_experts_and_their_own_antiexperts(ggufs):
    extra = """
        [experts.kind]
        model = "kind.gguf"
        prompt = "plain"
        alpha = 0.5
        [experts.kind.antiexpert]
        model = "tuned.gguf"
    """
    with Emulator.load(recipe(ggufs, extra=extra)) as emulator:
        assert emulator.roles == ("base", "antiexpert", "helpful", "kind", "kind.antiexpert")
        assert set(emulator.targets) == {"eft", "expert", *emulator.roles}
        for alphas, beta in (({"helpful": 1.0, "kind": 0.5}, 1.0), ({"helpful": -0.3, "kind": 1.1}, 1.2)):
            emulator.recipe = emulator.recipe.replace(alpha=alphas, beta=beta)
            by_role = distributions(emulator)
            expected = formula(by_role, alphas["helpful"], beta)
            expected += alphas["kind"] * (by_role["kind"] - by_role["kind.antiexpert"])
            np.testing.assert_allclose(by_role["eft"], log_softmax(expected), atol=3e-4)
        with_expert = emulator.chat("hello", target="expert")
        assert with_expert.tokens == emulator.chat("hello", target="helpful").tokens
        np.testing.assert_allclose(by_role["helpful"], by_role["kind.antiexpert"], atol=1e-4)


def test_a_file_is_loaded_once_however_many_roles_use_it(ggufs, monkeypatch):
    loads = []
    load = Model.load
    monkeypatch.setattr(Model, "load", lambda path, **options: loads.append(path.name) or load(path, **options))
    extra = '[experts.kind]\nmodel = "../GGUFS/small.gguf"\nprompt = "plain"\n[compare.again]\nmodel = "small.gguf"'
    extra = extra.replace("GGUFS", ggufs.name)
    with Emulator.load(recipe(ggufs, "small", "small", "tuned", extra=extra)) as emulator:
        assert sorted(loads) == ["small.gguf", "tuned.gguf"]
        assert emulator.chat("hello", target="again").tokens == emulator.chat("hello", target="base").tokens
        assert sorted(loads) == ["small.gguf", "tuned.gguf"]
        assert len(emulator.engine.cache.contexts) == 2, "roles on the same weights are sequences of one context"


def test_compare_models_are_loaded_when_requested(ggufs, monkeypatch):
    loads = []
    load = Model.load
    monkeypatch.setattr(Model, "load", lambda path, **options: loads.append(path.name) or load(path, **options))
    compare = '[compare.other]\nmodel = "base-spm.gguf"\n[compare.gone]\nmodel = "gone.gguf"'
    with Emulator.load(recipe(ggufs, extra=compare)) as emulator:
        assert "base-spm.gguf" not in loads
        assert emulator.targets == ("eft", "base", "antiexpert", "helpful", "expert", "other", "gone")
        other = emulator.chat("hello", target="other")
        assert "base-spm.gguf" in loads
        assert emulator.chat("hello", target="other").tokens == other.tokens
        assert list(other.prompt_tokens) == ["other"]
        assert emulator.chat(["x", "hello"], target="other")[1].tokens == other.tokens
        assert loads.count("base-spm.gguf") == 1
        with pytest.raises(Exception, match=r"gone\.gguf"):
            emulator.chat("hello", target="gone")
        assert emulator.chat("hello").tokens, "the emulator is not stuck"


@pytest.mark.parametrize("only", ["eftt", "", "compare", None])
def test_an_unknown_target(emulator, only):
    for call in (
        lambda: emulator.chat("hello", target=only),
        lambda: emulator.stream_chat("hello", target=only, statistics=True),
        lambda: emulator.chat(["hello"], target=only),
        lambda: emulator.score("hello", "x", target=only),
    ):
        with pytest.raises(UsageError, match=r"base, antiexpert, helpful"):
            call()


def test_prefix_tokens_that_do_not_exist(ggufs, emulator):
    for wrong in (265, -1, 10**9):
        with pytest.raises(UsageError, match=str(wrong)):
            emulator.chat("hello", prefix=[wrong])
        with pytest.raises(UsageError, match=str(wrong)):
            emulator.chat(["hello"], target="base", prefix=[[5, wrong]])
    with pytest.raises(UsageError, match="whole number"):
        emulator.chat("hello", prefix=["5"])


def test_changed_prompts_act_from_the_next_answer_on(ggufs, tmp_path, emulator):
    before = emulator.chat("hello")
    changed = emulator.recipe.replace(
        base=type(emulator.recipe.base)(model="base.gguf", prompt=Prompt("few-shot", examples=(("a", "b"),)))
    )
    emulator.recipe = changed
    after = emulator.chat("hello")
    assert after.prompt_tokens["base"] > before.prompt_tokens["base"]
    assert after.prompt_tokens["helpful"] == before.prompt_tokens["helpful"]
    with pytest.raises(PromptError, match="no chat template"):
        emulator.recipe = changed.replace(base=type(changed.base)(model="base.gguf", prompt=Prompt("chat")))
    assert emulator.recipe is changed
    assert emulator.chat("hello").tokens == after.tokens


def test_changes_that_need_a_reload(ggufs, emulator):
    kept = emulator.recipe
    for changes in (
        {"context": 300},
        {"kv_type": "f16"},
        {"base": type(kept.base)(model="small.gguf")},
        {"folder": ggufs.parent},
    ):
        with pytest.raises(RecipeError, match=r"Emulator\.load"):
            emulator.recipe = kept.replace(**changes)
        assert emulator.recipe is kept


def test_cancel_from_another_thread_keeps_the_text(emulator):
    expected = emulator.chat("hello", max_tokens=150)
    started = threading.Event()

    def on_step(_) -> None:
        started.set()

    def cancel() -> None:
        started.wait()
        emulator.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    answers = [emulator.chat("hello", max_tokens=150, on_step=on_step) for _ in range(1)]
    thread.join()
    assert expected.tokens[: len(answers[0].tokens)] == answers[0].tokens
    assert answers[0].finish_reason in ("cancelled", expected.finish_reason)
    assert emulator.chat("hello", max_tokens=150).tokens == expected.tokens


def test_a_closed_emulator_says_so(ggufs):
    emulator = Emulator.load(recipe(ggufs, "small", "small", "tuned"))
    suspended, fresh = emulator.stream_chat("hello", statistics=True), emulator.stream_chat("x", statistics=True)
    next(suspended)
    emulator.close()
    emulator.close()
    for call in (
        lambda: emulator.chat("hello"),
        lambda: emulator.stream_chat("hello", statistics=True),
        lambda: emulator.chat(["hello"]),
        lambda: emulator.score("hello", "x"),
    ):
        with pytest.raises(Exception, match="closed"):
            call()
    for stopped in (suspended, fresh):
        assert [step.finish_reason for step in stopped][-1] == "cancelled", "what was written can still be read"
    emulator.cancel()


def test_the_window_of_minus_one_is_the_whole_answer(emulator):
    """An answer whose every token is charged for having occurred never repeats one."""
    emulator.recipe = emulator.recipe.replace(
        presence_penalty=1000.0, repeat_last_n=-1, max_tokens=150, logit_bias={"262": -100, "264": -100}
    )
    tokens = emulator.chat("hello").tokens
    assert len(tokens) == len(set(tokens)) > 100


def test_load_cancelled_and_load_progress(ggufs):
    seen = []
    Emulator.load(recipe(ggufs), progress=lambda name, part: seen.append((name, part))).close()
    assert {name for name, _ in seen} == {"base", "antiexpert", "helpful"}
    assert [part for name, part in seen if name == "base"][-1] == 1
    with pytest.raises(Exception, match="cancelled"):
        Emulator.load(recipe(ggufs), progress=lambda name, part: name != "helpful")
