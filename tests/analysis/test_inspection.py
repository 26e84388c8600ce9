"""Who decided each token: the statistics in closed form, the answers that are made of them, and how they are stored."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from math import exp, inf, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eft_local import Candidate, Emulator, RoleStatistics, Step
from eft_local.analysis import (
    CANDIDATES,
    Inspection,
    Place,
    Summary,
    by_position,
    chosen,
)
from eft_local.analysis.format import LEVELS, label, level, percent, printable, share, signed, sparkline
from eft_local.analysis.page import page
from eft_local.bench.lockstep import lockstep
from eft_local.engine import statistics
from eft_local.errors import HistoryError, UsageError
from eft_local.recipe import Expert, Prompt, Recipe, Role
from tests.helpers.fake import END, FakeModel, emulator, noise, recipe, says, trio

SAMPLED = {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 5}


def row(*probabilities: float) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.array(probabilities, np.float32))


def at(token: int = 0, top: int = 2, recipe_=None, ends=(), **rows: np.ndarray):
    """The statistics of one step, where a token's piece is its id in ASCII."""
    rows = {name: rows[name] for name in sorted(rows, key=lambda name: name == "eft")}
    evidence = statistics.Evidence(recipe_ or recipe(), rows, top, lambda token: b"%d" % token, ends.__contains__)
    return statistics.compute([Step(token, "", evidence=evidence)])[0]


def by_token(candidates: tuple[Candidate, ...]) -> dict[int, Candidate]:
    return {each.token: each for each in candidates}


# The table


def test_probabilities_ranks_deltas_and_change_of_four_tokens():
    rows = {
        "base": row(0.1, 0.2, 0.3, 0.4),
        "antiexpert": row(0.25, 0.25, 0.25, 0.25),
        "helpful": row(0.5, 0.1, 0.2, 0.2) + 3,  # logits: a constant changes nothing
    }
    # α = 1, β = 1: base · expert / antiexpert = .05, .02, .06, .08 (times four), so p = 5/21, 2/21, 6/21, 8/21.
    mixed = row(5, 2, 6, 8)
    found = at(token=1, top=1, **rows, eft=mixed)
    assert found.roles["eft"] == RoleStatistics(3, pytest.approx(log(2 / 21), abs=1e-6))
    assert found.roles["helpful"] == RoleStatistics(3, pytest.approx(log(0.1), abs=1e-6))
    assert found.roles["antiexpert"] == RoleStatistics(1, pytest.approx(log(0.25), abs=1e-6))
    assert [each.token for each in found.candidates] == [3, 1], (
        "the best, which is the base's favourite, and the chosen"
    )
    best = found.candidates[0]
    assert {name: view.rank for name, view in best.roles.items()} == {
        "base": 0,
        "antiexpert": 3,
        "helpful": 2,
        "eft": 0,
    }
    assert exp(best.roles["base"].logprob) == pytest.approx(0.4)
    assert best.behaviour == pytest.approx(log(0.2 / 0.25), abs=1e-6)
    assert best.scale == pytest.approx(log(0.4 / 0.25), abs=1e-6)
    assert found.top_changed is False
    base, mixture = np.array([0.1, 0.2, 0.3, 0.4]), np.array([5, 2, 6, 8]) / 21
    assert found.change == pytest.approx(np.maximum(base - mixture, 0).sum(), abs=1e-6)


def test_the_chosen_token_and_the_bases_first_choice_are_always_there_and_in_order():
    rows = dict.fromkeys(("antiexpert", "helpful"), row(*[1] * 6))
    found = at(token=4, top=2, base=row(1, 2, 9, 3, 1, 1), **rows, eft=row(9, 8, 1, 3, 2, 7))
    assert [each.token for each in found.candidates] == [0, 1, 4, 2]
    assert [each.roles["eft"].rank for each in found.candidates] == [0, 1, 4, 5]
    assert found.top_changed is True
    rows |= {"base": row(*[1] * 6), "eft": row(*[1] * 6)}
    assert at(top=0, **rows).candidates == ()


def test_deltas_are_those_of_the_formula_for_every_expert_and_filter():
    """antiexpert + scale + behaviour is the mixture's log-probability but for a constant, whatever the recipe."""
    models = {name: FakeModel(noise(seed)) for seed, name in enumerate(("base", "small", "tuned", "kind", "other"), 1)}
    two = Recipe(
        name="two",
        context=200,
        base=Role(model="base"),
        antiexpert=Role(model="small"),
        experts={
            "helpful": Expert(model="tuned", prompt=Prompt("plain"), alpha=0.7),
            "kind": Expert(model="kind", prompt=Prompt("plain"), alpha=-0.4, antiexpert=Role(model="other")),
        },
        beta=1.3,
        conservative_filter=0.6,
        sampling=recipe().sampling,
    )
    kept = set()
    for step in emulator(models, two).stream_chat("hello", top=END + 1, statistics=True):
        total = [
            each.roles["antiexpert"].logprob + each.scale + each.behaviour - each.roles["eft"].logprob
            for each in step.candidates
        ]
        assert len(total) == END + 1
        np.testing.assert_allclose(total, total[0], atol=2e-3)
        kept |= {each.scale != 0 for each in step.candidates}
    assert kept == {True, False}, "the filter ignores the scale delta of some tokens"


def test_what_is_impossible_stays_so_and_what_says_nothing_counts_as_0():
    found = at(
        top=4,
        base=row(0.5, 0.5, 0, 0),
        antiexpert=row(0.5, 0, 0.5, 0),
        helpful=row(0, 0.5, 0.5, 0),
        eft=row(0.5, 0.5, 1e-9, 1e-9),
    )
    deltas = {each.token: (each.behaviour, each.scale) for each in found.candidates}
    assert deltas == {0: (-inf, 0.0), 1: (0.0, 0.0), 2: (0.0, -inf), 3: (0.0, 0.0)}
    assert by_token(found.candidates)[2].roles["base"].logprob == -inf


def test_one_role_alone_has_no_deltas_and_no_change():
    found = at(token=2, top=1, base=row(1, 3, 2))
    assert [each.token for each in found.candidates] == [1, 2]
    assert all(each.behaviour is each.scale is None for each in found.candidates)
    assert found.change is found.top_changed is None


def test_candidates_say_what_they_add_and_whether_they_end():
    candidate = at(top=1, ends=(0,), base=row(1, 0.5)).candidates[0]
    assert (candidate.piece, candidate.text, candidate.ends) == (b"0", "0", True)
    assert Candidate(1, "Ā".encode()[:1], False, {}).text == "\\xc4"
    assert Candidate(1, b"a\xe2\x82", False, {}).text == "a\\xe2\\x82"


# Answers


def inspected(prompt: str = "hello", tables=None, recipe_=None, **options) -> tuple[Emulator, Inspection]:
    each = emulator(tables or trio(), recipe_ or recipe(max_tokens=12, **SAMPLED))
    return each, Inspection(tuple(each.stream_chat(prompt, top=CANDIDATES, **options)))


def test_an_inspection_is_the_answer():
    each, inspection = inspected()
    answer = each.chat("hello")
    assert inspection.tokens == answer.tokens
    assert inspection.text == answer.text
    assert inspection.roles == ("base", "antiexpert", "helpful", "eft")
    assert inspection.target == "eft"
    assert all(chosen(step) in step.candidates for step in inspection.steps)
    assert Inspection(tuple(each.stream_chat("hello", target="expert", statistics=True))).target == "helpful"
    assert Inspection().target == "eft"
    assert Inspection().tokens == ()


def test_statistics_worked_out_later_and_together_are_the_same():
    each, inspection = inspected()
    steps: list[Step] = []
    answer = each.follow("hello", steps.append, top=CANDIDATES).wait()
    assert answer.tokens == inspection.tokens
    assert all(step.evidence and not step.roles and not step.candidates for step in steps)
    assert statistics.compute(steps) == list(inspection.steps)
    assert [statistics.compute([step])[0] for step in steps] == list(inspection.steps)


def test_equal_scores_have_their_ids_order_under_every_role():
    found = at(token=3, top=2, base=row(0.2, 0.2, 0.2, 0.4), antiexpert=row(*[0.25] * 4), helpful=row(*[0.25] * 4),
                  eft=row(0.1, 0.4, 0.4, 0.1))  # fmt: skip
    assert [each.token for each in found.candidates] == [1, 2, 3]
    assert [each.roles["eft"].rank for each in found.candidates] == [0, 1, 3]
    assert [each.roles["base"].rank for each in found.candidates] == [2, 3, 0]
    assert [each.roles["helpful"].rank for each in found.candidates] == [1, 2, 3]


def test_an_answer_has_figures_while_it_is_written():
    each, inspection = inspected()
    stream = each.stream_chat("hello")
    assert stream.answer.finish_reason == "cancelled", "as if it were stopped now"
    lengths = [len(stream.answer.tokens) for _ in stream]
    assert all(length >= number for number, length in enumerate(lengths, 1))
    assert stream.answer == stream.wait()
    assert len(stream.answer.tokens) == len(inspection.tokens)


def test_an_end_token_is_a_step_and_no_token_of_the_answer():
    _, inspection = inspected(
        tables=trio(base=says("ab"), small=says("ab"), tuned=says("ab")), recipe_=recipe(max_tokens=9)
    )
    assert [step.token for step in inspection.steps] == [*b"ab", END]
    assert inspection.tokens == tuple(b"ab")
    assert label(chosen(inspection.steps[-1])) == "‹end›"


def view(change: float | None, *, top_changed: bool | None = None, token: int = 1) -> Step:
    return Step(token, "x", change=change, top_changed=top_changed if change is not None else None)


def test_summary_and_the_most_changed():
    changes = [0.5, 0.0, 0.9, 0.5]
    inspection = Inspection((*(view(change, top_changed=change > 0.4) for change in changes), Step(None, "")))
    assert inspection.summary() == Summary(tokens=4, changed_at=(0, 2, 3), mean_change=pytest.approx(0.475))
    assert (inspection.summary().changed, inspection.summary().share) == (3, 0.75)
    assert inspection.most_changed(3) == (2, 0, 3)
    assert inspection.most_changed(99) == (2, 0, 3, 1)
    assert Inspection((view(None),)).summary() == Summary(0, (), 0.0)
    assert Inspection().summary().share == 0.0


def test_changes_by_position():
    answers = [
        Inspection((view(1.0, top_changed=True), view(0.5, top_changed=False))),
        Inspection((view(0.5, top_changed=True),)),
        Inspection((view(0.0, top_changed=False), view(0.1, top_changed=True), view(0.2, top_changed=False))),
        Inspection(),
    ]
    places = by_position(answers)
    assert places == (
        Place(1, 3, 2, pytest.approx(0.5)),
        Place(2, 2, 1, pytest.approx(0.3)),
        Place(3, 1, 0, pytest.approx(0.2)),
    )
    assert places[0].share == pytest.approx(2 / 3)
    assert by_position([]) == ()


# Going on from another candidate


def test_a_branch_with_the_token_that_was_chosen_continues_as_the_answer_did():
    each, whole = inspected()
    for index in (0, 4, len(whole.steps) - 1):
        kept = whole.branch(index, whole.steps[index].token)
        assert kept.tokens == whole.tokens[: index + 1]
        assert kept.text == whole.text[: index + 1]
        assert [step.finish_reason for step in kept.steps] == [None] * (index + 1)
        if room := len(whole.tokens) - len(kept.tokens):
            again = kept.continued(each.stream_chat("hello", prefix=kept.tokens, max_tokens=room, top=CANDIDATES))
            assert again.tokens == whole.tokens
            assert again.text == whole.text
            assert [step.finish_reason for step in again.steps] == [step.finish_reason for step in whole.steps]
            assert again.summary().changed_at == whole.summary().changed_at


def test_a_branch_takes_another_candidate_with_what_is_known_of_it():
    each, whole = inspected()
    other = next(each for each in whole.steps[3].candidates if each.token != whole.steps[3].token)
    kept = whole.branch(3, other.token)
    assert kept.tokens == (*whole.tokens[:3], other.token)
    assert kept.text == whole.text[:3] + other.text
    assert kept.steps[:3] == whole.steps[:3]
    assert kept.steps[3].roles == other.roles
    assert kept.steps[3].logprob == other.roles["eft"].logprob
    assert (kept.steps[3].change, kept.steps[3].candidates) == (whole.steps[3].change, whole.steps[3].candidates)
    on = kept.continued(each.stream_chat("hello", prefix=kept.tokens, top=1))
    assert on.tokens == (*kept.tokens, *each.chat("hello", prefix=kept.tokens).tokens)


def test_a_branch_to_an_end_token_ends_the_answer():
    _, whole = inspected(recipe_=recipe(max_tokens=4))
    kept = whole.branch(2, whole.steps[2].candidates[1].token)
    assert kept.steps[-1].finish_reason is None
    step = whole.steps[2]
    ending = replace(step, candidates=(*step.candidates, Candidate(END, b"", True, step.roles)))
    ended = Inspection((*whole.steps[:2], ending)).branch(2, END)
    assert ended.steps[-1].finish_reason == "stop"
    assert ended.tokens == whole.tokens[:2]
    assert ended.text == whole.text[:2]


def test_a_branch_shows_what_a_stop_string_had_held_back():
    tables = trio(base=says("a\nbcd"), small=says("a\nbcd"), tuned=says("a\nbcd"))
    _, whole = inspected(tables=tables, recipe_=recipe(max_tokens=4, stop=["\n\n"]))
    assert [step.text for step in whole.steps] == ["a", "", "\nb", "c"]
    assert whole.branch(1, ord("\n")).text == "a\n"


def test_a_branch_that_cannot_be_taken():
    _, whole = inspected()
    with pytest.raises(UsageError, match=r"no token 12 in an answer of 12"):
        whole.branch(12, 0)
    with pytest.raises(UsageError, match="no token -1"):
        whole.branch(-1, 0)
    with pytest.raises(UsageError, match=r"token 999 is none of the 1\d candidates of step 0"):
        whole.branch(0, 999)


def test_what_continues_a_cancelled_answer_keeps_what_it_held_back():
    each = emulator(trio(base=says("ab\n\n"), small=says("ab\n\n"), tuned=says("ab\n\n")), recipe(stop=["\n\n\n"]))
    steps = []
    for step in lockstep(each, "hello", top=1):
        steps.append(step)
        if len(steps) == 3:
            each.engine.abort(each.engine.running)
    stopped = Inspection(tuple(steps))
    assert (stopped.steps[-1].token, stopped.steps[-1].text, stopped.text) == (None, "\n", "ab\n")
    assert stopped.tokens == tuple(b"ab\n")
    on = stopped.continued(each.stream_chat("hello", prefix=stopped.tokens, top=1))
    assert on.text == "ab\n\n"
    assert on.tokens == tuple(b"ab\n\n")
    assert [step.finish_reason for step in on.steps] == [None] * 4 + ["stop"]


# Storage

logprobs = st.floats(-100, 0) | st.just(-inf)
by_role = st.fixed_dictionaries(
    {name: st.builds(RoleStatistics, st.integers(0, 200_000), logprobs) for name in ("base", "eft")}
)
candidates = st.builds(
    Candidate,
    st.integers(0, 200_000),
    st.binary(max_size=6),
    st.booleans(),
    by_role,
    st.none() | st.floats(-90, 90) | st.just(-inf),
    st.none() | st.floats(-90, 90) | st.just(-inf),
)
steps = st.builds(
    Step,
    st.none() | st.integers(0, 200_000),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    st.none() | logprobs,
    st.booleans(),
    st.just({}) | by_role,
    st.lists(candidates, max_size=4).map(tuple),
    st.none() | st.floats(0, 1),
    st.none() | st.booleans(),
    st.sampled_from([None, "stop", "length", "context", "cancelled"]),
)


def rounded(value: float | None) -> float | None:
    return value if value is None or value == -inf else round(1000 * value) / 1000


def rounded_statistics(by_role) -> dict[str, RoleStatistics]:
    return {name: RoleStatistics(each.rank, rounded(each.logprob)) for name, each in by_role.items()}


def rounded_step(step: Step) -> Step:
    of_candidates = tuple(
        Candidate(
            each.token,
            each.piece,
            each.ends,
            rounded_statistics(each.roles),
            rounded(each.behaviour),
            rounded(each.scale),
        )
        for each in step.candidates
    )
    return Step(
        step.token,
        step.text,
        rounded(step.logprob),
        step.drafted,
        rounded_statistics(step.roles),
        of_candidates,
        rounded(step.change),
        step.top_changed,
        step.finish_reason,
    )


@given(st.lists(steps, max_size=5).map(tuple))
def test_what_is_stored_comes_back_to_a_thousandth(steps):
    stored = Inspection(steps).dumps()
    loaded = Inspection.loads(stored)
    assert loaded.steps == tuple(map(rounded_step, steps))
    assert loaded.dumps() == stored


def test_the_demos_answers_are_stored_in_few_bytes():
    with Emulator.load("demo") as each:
        inspection = Inspection(tuple(each.stream_chat("Tell me about Peru", top=CANDIDATES)))
    stored = inspection.dumps()
    assert len(inspection.steps) > 60
    assert len(stored) < 300 * len(inspection.steps)
    loaded = Inspection.loads(stored)
    assert loaded.text == inspection.text
    assert loaded.tokens == inspection.tokens
    assert loaded.summary().changed_at == inspection.summary().changed_at
    assert 0 in loaded.summary().changed_at, "the experts begin the answer"
    assert loaded.summary().share < 0.25


def altered(**changes: object) -> bytes:
    columns = json.loads(zlib.decompress(Inspection((view(0.5, top_changed=True),)).dumps()))
    return zlib.compress(json.dumps(columns | changes).encode())


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"not compressed",
        Inspection((view(0.5),)).dumps()[:-9],
        zlib.compress(b"not json"),
        zlib.compress(b"[]"),
        zlib.compress(b"{}"),
        zlib.compress(b'"\xff"'),
        altered(token=[]),
        altered(candidates=[1]),
        altered(logprob=["x"]),
        altered(roles={"base": {}}),
        altered(candidate=None),
    ],
    ids=range(12),
)
def test_damaged_statistics_are_reported_as_such(damaged):
    with pytest.raises(HistoryError, match="damaged"):
        Inspection.loads(damaged)


def test_statistics_of_a_later_version_are_not_guessed_at():
    with pytest.raises(HistoryError, match=r"version 2.* reads 1"):
        Inspection.loads(altered(version=2))


# Signs


def test_tints_begin_where_they_say():
    assert [level(change) for change in (None, 0.0, 0.0999, *LEVELS, 1.0)] == [0, 0, 0, 1, 2, 3, 4, 4]


@pytest.mark.parametrize(
    ("changes", "width", "bars"),
    [
        ([], 10, ""),
        ([0.5], 0, ""),
        ([0.0, 0.12, 0.13, 0.5, 0.99, 1.0], 10, "▁▁▂▅██"),
        ([1.0, 0.0, 0.5, 0.5], 2, "▅▅"),
        ([1.0, 0.0, 0.0, 0.0, 1.0], 2, "▅▃"),
    ],
)
def test_a_sparkline_holds_means(changes, width, bars):
    assert sparkline(changes, width) == bars


def test_every_change_falls_on_one_bar():
    for width in range(1, 12):
        for count in range(1, 30):
            assert len(sparkline([0.3] * count, width)) == min(width, count)


@pytest.mark.parametrize(
    ("probability", "shown"),
    [
        (1.0, "100.0"),
        (0.123, "12.3"),
        (0.0999, "9.99"),
        (0.09999, "10.0"),
        (0.0001, "0.01"),
        (0.00009, "<0.01"),
        (0.0, "0.00"),
    ],
)
def test_probabilities(probability, shown):
    assert percent(log(probability) if probability else -inf) == shown


def test_shares_have_the_digits_that_are_wanted():
    assert [share(part) for part in (0.0, 0.005, 0.126, 1.0)] == ["0 %", "0 %", "13 %", "100 %"]
    assert share(0.126, digits=1) == "12.6 %"


def test_control_characters_do_nothing_to_a_terminal():
    assert printable("a\x1b[2J\tb\n\x9b") == "a\\x1b[2J\tb\n\\x9b"


@pytest.mark.parametrize(
    ("delta", "shown"),
    [(1.234, "+1.23"), (-0.5, "−0.50"), (0.001, "0.00"), (-0.001, "0.00"), (-inf, "−∞"), (inf, "+∞")],
)
def test_deltas_have_signs(delta, shown):
    assert signed(delta) == shown


@pytest.mark.parametrize(
    ("piece", "shown"),
    [
        (b" Lima", "␣Lima"),
        (b"\n\t", "⏎⇥"),
        (b"\x1b[31m", "\\x1b[31m"),
        ("\u202eabc".encode(), "\\u202eabc"),
        ("é日".encode(), "é日"),
        (b"\xe2\x96", "\\xe2\\x96"),
        (b"", "‹control›"),
    ],
)
def test_labels_show_what_cannot_be_seen(piece, shown):
    assert label(Candidate(1, piece, False, {})) == shown
    assert label(Candidate(1, piece, True, {})) == "‹end›"


# The page, as text; test_inspect_html.py opens it in a browser


def test_nothing_that_a_model_writes_is_markup():
    evil = "</script><script>alert(1)</script>"
    roles = {"base": RoleStatistics(0, 0.0), "eft": RoleStatistics(0, 0.0)}
    candidate = Candidate(1, evil.encode(), False, roles, 0.0, 0.0)
    step = Step(1, evil, 0.0, roles=roles, candidates=(candidate,), change=0.3, top_changed=True)
    html = page(Inspection((step,)), title=evil, question=evil, details={evil: evil})
    assert html.count("<script>") == 1, "the page's own"
    assert html.count("&lt;/script&gt;&lt;script&gt;alert(1)") >= 6


def test_a_page_needs_nothing_from_elsewhere():
    _, whole = inspected()
    html = page(whole, title="t", question="q", details={})
    for foreign in ("http:", "https:", "src=", "<link", "@import", "url("):
        assert foreign not in html


def test_control_characters_do_not_reach_the_page():
    step = Step(1, "a\x00\x1b\ud800b")
    html = page(Inspection((step,)), title="t", question="q", details={})
    assert "a\\x00\\x1b\\ud800b" in html
    assert not {"\x00", "\x1b"} & set(html)
