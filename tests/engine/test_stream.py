"""How answers begin, go on and end, on fakes: every step, every interruption, every count."""

import gc
import signal
from itertools import product

import numpy as np
import pytest

from eft_local.backends.base import ContextOptions, Rows
from eft_local.bench.lockstep import lockstep
from eft_local.emulator import Emulator
from eft_local.engine.step import Step
from eft_local.errors import (
    ContextOverflowError,
    EvaluationError,
    PromptError,
    RecipeError,
    UsageError,
)
from eft_local.recipe import Expert, Recipe, Role
from tests.helpers.fake import BOS, END, PLAIN, AsciiVocabulary, FakeModel, emulator, noise, recipe, says, trio

ROLES = ("base", "antiexpert", "helpful")
MODELS = ("base", "small", "tuned")
PROMPT_TOKENS = len("<Question: hello\nAnswer:") + 0  # BOS stands for "<"
SAMPLED = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def speaking(text: str, recipe_: Recipe | None = None, **of_base) -> Emulator:
    """An emulator that says `text` and ends: base and antiexpert agree, and the expert decides."""
    models = trio(base=says("", **of_base), small=says(""), tuned=says(text))
    return emulator(models, recipe_ or recipe(max_tokens=50))


def consistent(each: Emulator) -> bool:
    """Whether every cache holds exactly the tokens that its list says."""
    return all(
        context.evaluator.tokens[sequence.number] == sequence.cached
        for context in each.engine.cache.contexts
        for sequence in context.sequences
    )


def cached(each: Emulator) -> dict[str, list[int]]:
    """What the first context of each role's model holds."""
    of_model = {context.role.role.model: context for context in reversed(each.engine.cache.contexts)}
    return {role: of_model[name].sequences[0].cached for role, name in zip(ROLES, MODELS, strict=True)}


def assert_as_new(each: Emulator, models: dict[str, FakeModel], **options) -> None:
    """Whatever came before, answers and what they cost are those of an emulator without a past."""
    assert consistent(each)
    for prompt in ("hello", "Hello?"):  # a common beginning, and one that differs behind "Question: "
        expected = {}
        for name, held in cached(each).items():
            wanted = each.models.request(prompt, {}).prompts[name]
            common = next(
                (i for i, pair in enumerate(zip(held, wanted, strict=False)) if pair[0] != pair[1]),
                min(len(held), len(wanted)),
            )
            expected[name] = len(wanted) - min(common, len(wanted) - 1)
        before = {name: model.evaluated for name, model in models.items()}
        answer = each.chat(prompt, seed=1, **options)
        fresh_models = {
            name: FakeModel(model.table, model.vocabulary, model.recurrent) for name, model in models.items()
        }
        fresh = emulator(fresh_models, each.recipe).chat(prompt, seed=1, **options)
        assert (answer.text, answer.tokens, answer.finish_reason) == (
            fresh.text,
            fresh.tokens,
            fresh.finish_reason,
        )
        assert answer.evaluated_tokens == expected
        # The token that was chosen last is never evaluated.
        written = len(answer.tokens) + (answer.finish_reason == "stop") - 1
        spent = {name: model.evaluated - before[name] for name, model in models.items()}
        assert spent == {
            model: expected[role] + written for role, model in zip(ROLES, ("base", "small", "tuned"), strict=True)
        }
        assert consistent(each)


def test_an_answer_and_its_numbers():
    each = speaking(" yes.")
    steps = list(each.stream_chat("hello", statistics=True))
    assert "".join(step.text for step in steps) == " yes."
    assert [step.text for step in steps] == [" ", "y", "e", "s", ".", ""]
    assert [step.finish_reason for step in steps] == [None] * 5 + ["stop"]
    assert steps[-1].token == END
    answer = speaking(" yes.").chat("hello")
    assert answer.text == " yes."
    assert answer.tokens == tuple(b" yes.")
    assert answer.finish_reason == "stop"
    assert answer.prompt_tokens == dict.fromkeys(ROLES, PROMPT_TOKENS)
    assert answer.evaluated_tokens == answer.prompt_tokens
    assert set(answer.timings) == set(ROLES)
    timed = sum(each.prompt_ms + each.generation_ms for each in answer.timings.values())
    assert all(each.prompt_ms > 0 and each.generation_ms > 0 for each in answer.timings.values())
    assert answer.overhead_ms > 0
    assert timed > 0
    assert answer.tokens_per_second > 0


def test_steps_of_chat_have_no_statistics():
    seen: list[Step] = []
    answer = speaking("ab").chat("hello", on_step=seen.append)
    assert [step.token for step in seen] == [*answer.tokens, END]
    assert all(step.roles == {} and step.change is None and step.top_changed is None for step in seen)
    assert all(step.logprob is None and not step.drafted for step in seen)


@pytest.mark.parametrize("options", [{}, {"statistics": True}, {"statistics": True, "top": 3}])
def test_statistics(options):
    models = trio()
    each = emulator(models, recipe(alpha=0.7, beta=1.2))
    tokens = list(each.models.request("hello", {}).prompts["base"])
    for step in each.stream_chat("hello", **options):
        logits = {
            role: models[name].table(tuple(tokens)).astype(np.float64)
            for role, name in zip(ROLES, ("base", "small", "tuned"), strict=True)
        }
        base, small, tuned = logits.values()
        logits["eft"] = small + 1.2 * (base - small) + 0.7 * (tuned - small)
        logprobs = {name: row - np.log(np.exp(row).sum()) for name, row in logits.items()}
        if options:
            assert list(step.roles) == [*ROLES, "eft"]
            for name, view in step.roles.items():
                order = np.argsort(-logprobs[name], kind="stable")
                assert view.rank == list(order).index(step.token)
                assert view.logprob == pytest.approx(logprobs[name][step.token], abs=1e-4)
                for candidate in step.candidates:
                    seen = candidate.roles[name]
                    assert seen.rank == list(order).index(candidate.token)
                    assert seen.logprob == pytest.approx(logprobs[name][candidate.token], abs=1e-4)
            likeliest = list(np.argsort(-logprobs["eft"], kind="stable")[: options.get("top", 0)])
            favourite = int(logprobs["base"].argmax())
            assert [each.token for each in step.candidates][: len(likeliest)] == likeliest
            others = {step.token, favourite} if likeliest else set()
            assert {each.token for each in step.candidates} == {*likeliest, *others}
            ranks = [each.roles["eft"].rank for each in step.candidates]
            assert ranks == sorted(ranks)
            for candidate in step.candidates:
                token = candidate.token
                assert candidate.piece == AsciiVocabulary().piece(token)
                assert candidate.ends == (token == END)
                of_base, of_small, of_tuned = (logprobs[name][token] for name in ROLES)
                assert candidate.behaviour == pytest.approx(0.7 * (of_tuned - of_small), abs=1e-4)
                assert candidate.scale == pytest.approx(1.2 * (of_base - of_small), abs=1e-4)
            change = 0.5 * np.abs(np.exp(logprobs["base"]) - np.exp(logprobs["eft"])).sum()
            assert step.change == pytest.approx(change, abs=1e-5)
            assert step.change > 0.01
            assert step.top_changed == (base.argmax() != logits["eft"].argmax())
            assert step.logprob == pytest.approx(logprobs["eft"][step.token], abs=1e-4)
        else:
            assert step.roles == {}
            assert step.logprob is step.change is step.top_changed is None
        tokens.append(step.token)


def test_statistics_of_one_role_alone():
    for step in emulator(trio()).stream_chat("hello", target="expert", top=2):
        assert list(step.roles) == ["helpful"]
        assert [each.roles["helpful"].rank for each in step.candidates] == [0, 1]
        assert all(each.behaviour is each.scale is None for each in step.candidates)
        assert step.roles["helpful"].rank == 0
        assert step.change is step.top_changed is None


def test_candidates_of_a_tie_are_in_the_order_of_rank():
    flat = {name: (lambda tokens: np.zeros(END + 1, np.float32)) for name in ("base", "small", "tuned")}
    step = next(emulator(trio(**flat)).stream_chat("hello", top=3))
    assert [each.token for each in step.candidates] == [0, 1, 2]
    assert [each.roles["eft"].rank for each in step.candidates] == [0, 1, 2]
    assert step.token == 0
    assert [view.rank for view in step.roles.values()] == [0] * 4


def test_masked_tokens_are_no_candidates():
    step = next(emulator(trio(), recipe(plausibility_mask=0.9)).stream_chat("hello", top=200))
    assert 0 < len(step.candidates) < 10
    assert all(np.isfinite(each.roles["eft"].logprob) for each in step.candidates)


@pytest.mark.parametrize("speaker", ["base", "tuned"])
def test_an_end_of_base_or_expert_ends(speaker):
    """Their vocabularies may call different tokens an end; what the antiexpert calls one does not matter."""
    models = {
        name: FakeModel(says("abc", then=ord("#")), AsciiVocabulary(ends=[ord("#")] if name == speaker else [END]))
        for name in ("base", "small", "tuned")
    }
    answer = emulator(models).chat("hello", max_tokens=6)
    assert (answer.text, answer.finish_reason) == ("abc", "stop")


def test_an_end_of_the_antiexpert_alone_is_a_token_like_any_other():
    models = {
        name: FakeModel(says("abc", then=ord("#")), AsciiVocabulary(ends=[ord("#")] if name == "small" else [END]))
        for name in ("base", "small", "tuned")
    }
    answer = emulator(models).chat("hello", max_tokens=6)
    assert (answer.text, answer.finish_reason) == ("abc###", "length")
    assert emulator(models).chat("hello", max_tokens=6, target="antiexpert").finish_reason == "stop"


@pytest.mark.parametrize(
    ("stop", "text", "tokens", "reason"),
    [
        (["\n"], "one", 4, "stop"),
        (["e\nt"], "on", 5, "stop"),
        (["wo", "\ntwo"], "one", 7, "stop"),
        (["o\nx", "absent"], "one\ntwo", 7, "stop"),
        (["o!"], "one\ntwo", 7, "stop"),
    ],
)
def test_stop_strings(stop, text, tokens, reason):
    answer = speaking("one\ntwo", recipe(stop=stop, max_tokens=50)).chat("hello")
    assert (answer.text, len(answer.tokens), answer.finish_reason) == (text, tokens, reason)


def test_length_shows_what_a_stop_string_held_back():
    each = speaking("one\ntwo", recipe(stop=["\n\n"], max_tokens=4))
    steps = list(each.stream_chat("hello", statistics=True))
    assert "".join(step.text for step in steps) == "one\n"
    assert steps[-1].finish_reason == "length"
    assert each.chat("hello").text == "one\n"
    assert each.chat("hello", max_tokens=2).tokens == tuple(b"on")
    assert [each.chat("hello", max_tokens=n).finish_reason for n in (6, 7, 8)] == ["length", "length", "stop"]


def test_a_stop_string_may_begin_in_the_prefix():
    each = speaking("one\n\ntwo", recipe(stop=["\n\n"], max_tokens=50))
    answer = each.chat("hello", prefix=tuple(b"one\n"))
    assert (answer.text, answer.tokens, answer.finish_reason) == ("", tuple(b"\n"), "stop")
    assert each.chat("hello", prefix=tuple(b"one\n\nt")).text == "wo"


def test_half_a_character_is_never_shown():
    class Bytes(AsciiVocabulary):
        def piece(self, token: int) -> bytes:
            return {ord("1"): b"\xc3", ord("2"): b"\xa9"}.get(token, super().piece(token))

    models = {name: FakeModel(says("a12b1", then=END), Bytes()) for name in ("base", "small", "tuned")}
    each = emulator(models, recipe(max_tokens=50))
    assert [step.text for step in each.stream_chat("hello", statistics=True)] == ["a", "", "é", "b", "", ""]
    assert each.chat("hello").text == "aéb"


@pytest.mark.parametrize("longest", ["base", "helpful"])
def test_the_context_ends_where_the_longest_prompt_meets_it(longest):
    long = PLAIN.__class__("few-shot", examples=(("q", "a"),) * 2)
    roles = recipe()
    changes = (
        {"base": Role(model="base", prompt=long)}
        if longest == "base"
        else {"experts": {"helpful": Expert(model="tuned", prompt=long)}}
    )
    roles = roles.replace(**changes)
    prompt = len(emulator(trio(), roles).models.request("hello", {}).prompts[longest])
    for room in range(4):
        each = emulator(trio(), roles.replace(context=prompt + room, max_tokens=50))
        steps = list(each.stream_chat("hello", statistics=True))
        assert [step.finish_reason for step in steps] == [None] * room + ["context"]
        assert all(step.token is not None for step in steps)
        assert [each.chat("hello", max_tokens=room + 1).finish_reason] == ["length"]
        batch = each.chat(["hello", "hello"])
        assert [answer.finish_reason for answer in batch] == ["context"] * 2
        assert consistent(each)
    each = emulator(trio(), roles.replace(context=prompt - 1))
    with pytest.raises(ContextOverflowError, match=f"prompt of {longest} has {prompt} tokens.* {prompt - 1}"):
        each.chat("hello")
    assert each.chat("hell").text
    with pytest.raises(ContextOverflowError):
        each.chat("hell", prefix=[65])


def test_a_prompt_that_does_not_fit_is_reported_before_the_batch_begins():
    models = trio()
    with pytest.raises(ContextOverflowError):
        emulator(models).chat(["hello", "x" * 300], parallel=1)
    assert models["base"].evaluated == 0


def test_score_and_the_context():
    each = emulator(trio(), recipe(context=PROMPT_TOKENS + 3))
    assert len(each.score("hello", "abcd").tokens) == 4, "the last token is not evaluated"
    with pytest.raises(ContextOverflowError):
        each.score("hello", "abcde")
    assert consistent(each)


FAILURES = list(product(("base", "small", "tuned"), (1, 2, 4)))


@pytest.mark.parametrize(("model", "count"), FAILURES)
@pytest.mark.parametrize("recurrent", [False, True])
def test_a_failed_evaluation_leaves_no_trace(model, count, recurrent):
    models = {name: FakeModel(noise(seed), recurrent=recurrent) for seed, name in enumerate(("base", "small", "tuned"))}
    each = emulator(models)
    each.chat("something before")
    models[model].failures = {count: EvaluationError("broken")}
    with pytest.raises(EvaluationError, match="broken"):
        each.chat("hello")
    models[model].failures = {count: EvaluationError("broken")}
    batch = each.chat(["hello", "more", "third"], parallel=2)  # one by one it goes well
    assert [answer.tokens for answer in batch] == [emulator(trio()).chat(q).tokens for q in ("hello", "more", "third")]
    assert each.engine.idle
    models[model].failures = {1: EvaluationError("broken")}
    with pytest.raises(EvaluationError, match="broken"):
        each.score("hello", "abc")
    if recurrent:
        return_ = each.chat("hello").tokens
        assert return_ == emulator(trio()).chat("hello").tokens
    else:
        assert_as_new(each, models)


@pytest.mark.parametrize("after", [1, 2, 5])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_what_a_listener_raises_comes_back_to_it(after, error):
    models = trio()
    each = emulator(models)
    heard = []

    def listen(step: Step) -> None:
        heard.append(step)
        if len(heard) == after:
            raise error

    with pytest.raises(error):
        each.chat("hello", on_step=listen)
    assert len(heard) == after
    assert_as_new(each, models)


def test_ctrl_c_while_an_answer_is_waited_for(monkeypatch):
    """It comes to the main thread, which then waits until the request holds nothing any more."""
    models = trio()
    each = emulator(models)
    models["tuned"].failures = {3: lambda: signal.raise_signal(signal.SIGINT)}
    with pytest.raises(KeyboardInterrupt):
        each.chat("hello", max_tokens=100)
    assert each.engine.idle
    assert_as_new(each, models)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_abandoned_stream_leaves_no_trace(after):
    models = trio()
    each = emulator(models)
    stream = each.stream_chat("hello", statistics=True)
    for _ in range(after):
        next(stream)
    stream.close()
    assert each.engine.idle
    assert_as_new(each, models)
    for _ in zip(range(after), each.stream_chat("hello", max_tokens=100), strict=False):
        pass
    gc.collect()  # nobody refers to the stream any more: it stops by itself
    assert_as_new(each, models)


@pytest.mark.parametrize(("model", "count"), FAILURES)
def test_a_cancelled_answer_keeps_its_text_and_ends_with_one_closing_step(model, count):
    models = trio()
    each = emulator(models)
    models[model].failures = {count: each.cancel}
    steps = list(each.stream_chat("hello", statistics=True))
    assert [step.finish_reason for step in steps] == [None] * (count - 1) + ["cancelled"]
    assert steps[-1] == Step(None, "", finish_reason="cancelled")
    models[model].failures = {count: each.cancel}
    answer = each.chat("hello")
    assert answer.finish_reason == "cancelled"
    assert answer.tokens == tuple(step.token for step in steps[:-1])
    assert answer.text == "".join(step.text for step in steps)
    assert_as_new(each, models)


def test_cancel_between_steps_and_when_nothing_runs():
    models = trio()
    each = emulator(models)
    each.cancel()
    steps = lockstep(each, "hello")
    next(steps)
    each.engine.abort(each.engine.running)
    assert [step.finish_reason for step in steps] == ["cancelled"]
    each.cancel()
    assert_as_new(each, models)


def test_a_cancelled_answer_shows_what_a_stop_string_held_back():
    each = speaking("one\ntwo", recipe(stop=["\n\n"], max_tokens=50))
    seen = []
    for step in lockstep(each, "hello"):
        seen.append(step.text)
        if len(seen) == 4:
            each.engine.abort(each.engine.running)
    assert "".join(seen) == "one\n"


def test_a_cancelled_batch():
    """One answer was finished, two were begun, two were waiting."""
    models = trio(tuned=noise(2, ends=False))
    each = emulator(models, recipe(max_tokens=20))
    models["tuned"].failures = {3: each.cancel}
    counts = []
    batch = each.chat(["a", "b", "c", "d", "e"], parallel=3, max_tokens=20, progress=counts.append)
    assert [answer.finish_reason for answer in batch] == ["cancelled"] * 5
    assert [len(answer.tokens) for answer in batch] == [2, 2, 2, 0, 0]
    assert counts == [1, 2, 3, 4, 5]
    assert all(set(answer.prompt_tokens) == set(ROLES) for answer in batch)
    whole = each.chat(["a", "b", "c", "d", "e"], parallel=3, max_tokens=20)
    assert [answer.finish_reason for answer in whole] == ["length"] * 5
    assert [answer.tokens[:2] for answer in whole[:3]] == [answer.tokens for answer in batch[:3]]


def test_a_cancelled_score_raises():
    models = trio()
    each = emulator(models)
    models["small"].failures = {2: each.cancel}
    with pytest.raises(Exception, match="stopped"):
        each.score("hello", "abcdefghijkl")
    assert_as_new(each, models)


def test_refill_gives_freed_slots_to_waiting_prompts():
    """Answers of different lengths; three slots, seven prompts."""
    models = trio(**{name: noise(seed, ends=True) for seed, name in enumerate(("base", "small", "tuned"))})

    def lengthy(tokens):
        row = noise(2)(tokens)
        row[END] = 12 if sum(tokens) % 7 == 0 else -50
        return row

    models["tuned"].table = lengthy
    each = emulator(models, recipe(max_tokens=40))
    prompts = ["a", "bb", "ccc", "dddd", "eeeee", "f", "gg"]
    alone = [each.chat(prompt) for prompt in prompts]
    assert len({len(answer.tokens) for answer in alone}) > 3
    for options in ({}, SAMPLED | {"seed": 5}):
        each.recipe = each.recipe.replace(**options)
        alone = [each.chat(prompt) for prompt in prompts]
        for parallel in (1, 3, 7, 100):
            batch = each.chat(prompts, parallel=parallel)
            assert [answer.tokens for answer in batch] == [answer.tokens for answer in alone]
            assert models["base"].contexts[-1].n_seq >= min(parallel, 7)
            assert len([context for context in models["base"].contexts if not context.closed]) <= 2
            assert consistent(each)


def test_generate_without_prompts_and_with_wrong_numbers():
    each = emulator(trio())
    assert each.chat([]) == []
    assert each.chat(["hello"])[0].tokens == each.chat("hello").tokens
    with pytest.raises(UsageError, match="parallel = 0"):
        each.chat(["a"], parallel=0)
    with pytest.raises(UsageError, match="1 prefixes were given for 2 prompts"):
        each.chat(["a", "b"], prefix=[()])


def test_seeds():
    each = emulator(trio(), recipe(**SAMPLED))
    first = each.chat("hello", seed=3)
    assert each.chat("hello", seed=3).tokens == first.tokens
    assert each.chat("hello", seed=4).tokens != first.tokens
    assert first.seed == 3
    drawn = each.chat("hello")
    assert drawn.seed != each.chat("hello").seed
    assert each.chat("hello", seed=drawn.seed).tokens == drawn.tokens
    each.recipe = each.recipe.replace(seed=4)
    assert each.chat("hello").tokens == each.chat("hello", seed=4).tokens
    assert each.chat("hello", seed=np.int64(2**62)).tokens == each.chat("hello", seed=2**62).tokens


@pytest.mark.parametrize("seed", ["3", 3.5, [3]])
def test_a_seed_is_a_whole_number(seed):
    for call in (emulator(trio()).chat, emulator(trio()).stream_chat):
        with pytest.raises(UsageError, match="seed"):
            call("hello", seed=seed)


@pytest.mark.parametrize("max_tokens", [0, -1, 1.5, "8"])
def test_max_tokens_is_a_positive_whole_number(max_tokens):
    with pytest.raises(UsageError, match="max_tokens"):
        emulator(trio()).chat("hello", max_tokens=max_tokens)


@pytest.mark.parametrize("prompt", ["", "  \n", None, [], 5, [{"role": "user"}]])
def test_prompts_that_are_none(prompt):
    each = emulator(trio())
    for call in (each.chat, each.stream_chat, lambda p: each.chat(["fine", p]), lambda p: each.score(p, "x")):
        if prompt == [] and call == each.chat:
            assert each.chat(prompt) == [], "no conversations, no answers"
            continue
        with pytest.raises(PromptError):
            call(prompt)
    assert each.chat("hello").text


def test_others_wait_their_turn_while_an_answer_is_written():
    """There is room for one: what else is asked for comes after it, and is what it would be alone."""
    models = trio()
    each = emulator(models)
    expected = [emulator(trio()).chat(prompt).tokens for prompt in ("hello", "Hello?")]
    streams = [each.stream_chat(prompt) for prompt in ("hello", "Hello?")]
    alone = each.chat("hello", target="base")
    score = each.score("hello", "x")
    assert [tuple(step.token for step in stream) for stream in streams] == expected
    assert alone.tokens == emulator(trio()).chat("hello", target="base").tokens
    assert score.logprobs == pytest.approx(emulator(trio()).score("hello", "x").logprobs)
    assert_as_new(each, models)


def test_an_exception_of_the_consumer_frees_the_emulator():
    models = trio()
    each = emulator(models)

    def fail(*_) -> None:
        raise ZeroDivisionError

    try:
        each.chat("hello", on_step=fail)
    except ZeroDivisionError:
        each.chat("hello")
    try:
        each.chat(["hello"], progress=fail)
    except ZeroDivisionError:
        each.chat("hello")
    assert each.engine.idle
    assert_as_new(each, models)


CHANGES = [
    {"alpha": -2.0},
    {"beta": 0.0},
    {"conservative_filter": 0.05},
    {"plausibility_mask": 1.0},
    {"plausibility_top_p": 0.01},
    {"logit_bias": {"65": 60.0}},
    {"temperature": 3.0, "top_k": 0, "seed": 1},
    {"frequency_penalty": -500.0, "repeat_last_n": -1},
]


@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: next(iter(changes)))
def test_a_changed_recipe_acts_from_the_next_token_on(changes):
    """Before the change the steps are those of the old recipe, after it those of the new one with a prefix."""
    old = recipe(max_tokens=12, seed=8)
    whole = emulator(trio(), old).chat("hello").tokens
    each = emulator(trio(), old)
    tokens = []
    for step in lockstep(each, "hello"):
        tokens.append(step.token)
        if len(tokens) == 5:
            each.engine.change(each.engine.running[0], old.replace(**changes))
    rest = emulator(trio(), old.replace(**changes)).chat("hello", prefix=tokens[:5], seed=8, max_tokens=7)
    assert tuple(tokens) == whole[:5] + rest.tokens
    assert tuple(tokens) != whole


def test_changed_limits_act_from_the_next_token_on():
    for limit, length in ((3, 6), (7, 7)):
        each = speaking("0123456789")
        tokens = []
        for step in lockstep(each, "hello"):
            tokens.append(step.token)
            if len(tokens) == 5:
                each.engine.change(each.engine.running[0], each.recipe.replace(max_tokens=limit))
        assert (len(tokens), step.finish_reason) == (length, "length")
    each, text = speaking("0123456789"), ""
    for step in lockstep(each, "hello"):
        text += step.text
        if text == "0123":
            each.engine.change(each.engine.running[0], each.recipe.replace(stop=["78"]))
    assert text == "0123456"
    assert step.finish_reason == "stop"


def test_other_models_need_another_emulator():
    each = emulator(trio())
    kept = each.recipe
    for changes in (
        {"base": Role(model="other")},
        {"context": 7},
        {"experts": {"x": Expert(model="tuned", prompt=PLAIN)}},
    ):
        with pytest.raises(RecipeError):
            each.recipe = kept.replace(**changes)
        assert each.recipe is kept


def test_an_end_token_that_only_the_base_calls_unused_can_be_said():
    """Tuned models give reserved tokens a meaning; padding is what nobody uses."""

    class Reserved(AsciiVocabulary):
        def attributes(self) -> np.ndarray:
            kinds = super().attributes()
            kinds[END] = 1 << 1
            return kinds

    models = trio(**{name: says("ab") for name in ("base", "small", "tuned")})
    models["base"] = FakeModel(says("ab"), Reserved())
    assert emulator(models).chat("hello").finish_reason == "stop"
    for name in models:
        models[name] = FakeModel(says("ab"), Reserved())
    assert END not in emulator(models).chat("hello").tokens
    assert emulator(models).chat("hello").finish_reason == "length"


def test_logits_are_read_before_the_next_submit():
    """The fake turns old views into NaN, so whatever kept one would have failed above; here the fake is checked."""
    model = FakeModel(noise(1))
    context = model.open(ContextOptions(n_ctx=50, n_seq=1, n_outputs=1))
    context.submit([Rows(0, [BOS, 1])])
    kept = context.logits()
    context.submit([Rows(0, [2])])
    assert np.isnan(kept).all()
    np.testing.assert_array_equal(context.logits()[0], noise(1)((BOS, 1, 2)))


def test_steps_that_are_kept_keep_no_logits():
    with emulator(trio(base=says("one two"), small=noise(1), tuned=says("one two"))) as loaded:
        steps = list(loaded.stream_chat("hello", top=3))
        tables = [step.candidates._table for step in steps]
    sizes = [value.nbytes for table in tables for value in vars(table).values() if isinstance(value, np.ndarray)]
    assert steps[0].candidates[0].roles["base"].rank >= 0
    assert not any({"_steps", "_evidence"} & set(vars(table)) for table in tables)
    assert max(sizes) < 1000
