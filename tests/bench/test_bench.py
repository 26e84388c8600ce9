"""The benchmark: ratios of invented timings in closed form, the schedule, and one short run on the demo models."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import llama_cpp
import pytest

from eft_local.backends.base import Rows
from eft_local.backends.llamacpp import Context, Model
from eft_local.bench import figure, machine, report
from eft_local.bench.bare import BareContext, watched
from eft_local.bench.measure import BATCHES, MAX_TOKENS, STEP_TOKENS, Measurement, Plan
from eft_local.bench.results import Answers, Benchmark, Memory, PromptTime, Run, TokenTime, fixed, spread
from eft_local.bench.schedule import Part, interleave, rotated
from eft_local.bench.studies import turns
from eft_local.bench.studies.turns import Turn
from eft_local.emulator import Emulator
from eft_local.engine.engine import Engine
from eft_local.engine.loading import Library, LoadedRole, mixed_roles
from eft_local.engine.speculative.costs import RowCosts
from eft_local.errors import Cancelled, OutOfMemoryError, UsageError
from eft_local.evals.questions import read_questions
from eft_local.hub.references import demo_questions, find_recipe
from eft_local.machine.cores import CoreUse
from eft_local.recipe import Placement, Recipe

README = (Path(__file__).parents[2] / "bench" / "README.md").read_text(encoding="utf-8")


PROMPT = {"base": 300, "antiexpert": 200, "assistant": 200}


def run(ms: float, steps: int = 10, drafts: tuple[int, ...] = (), accepted: int = 0, token: int = 7) -> Run:
    return Run((token,) * steps, steps, ms * steps / 1000, drafts, accepted)


def question(plain: float, auto: float, base: float, k3: float, steps: int = 10) -> dict[str, Run]:
    return {
        "base": run(base, steps),
        "plain": run(plain, steps),
        "k=3": run(k3, steps, (3, 3, 2), 7),
        "auto": run(auto, steps, (3, 0, 5), 6),
    }


def token_time(step: float, inside: float = 0.0) -> TokenTime:
    return TokenTime(step / 1000, inside / 1000, {"base": 0.08, "antiexpert": 0.01, "assistant": 0.01})


def answers(kind: str = "long") -> Answers:
    questions = [question(100, 50, 75, 40), question(100, 25, 50, 40), question(120, 60, 60, 60)]
    return Answers(kind, questions, [token_time(100, 99), token_time(110, 108), token_time(104, 103.5)])


def benchmark(*kinds: str) -> Benchmark:
    block = {
        (contender, size): float(size * scale) for contender, scale in (("plain", 2), ("auto", 3)) for size in BATCHES
    }
    return Benchmark(
        about={
            "command": "eft bench",
            "recipe": "demo-7b",
            "shape": "7b",
            "quantization": "Q4_0",
            "alpha": {"assistant": 1.0},
            "beta": 1.0,
            "draft_source": "expert",
            "machine": {"cores": 2, "threads": 2, "devices": [], "system": "Linux", "llama.cpp": "1"},
        },
        answers={kind: answers(kind) for kind in kinds},
        batches=[block, {key: speed * (2 if key[1] == 8 else 1) for key, speed in block.items()}],
        prompts=[PromptTime(2.0, {"base": 1.5, "antiexpert": 0.2, "assistant": 0.2}, PROMPT)],
        memory=Memory({"base": 4_000_000_000, "antiexpert": 250_000_000}, 4_250_000_000, 9_000_000_000),
        parts={"long answers": (1.0, 2.0)},
        seconds=66.0,
    )


# Closed forms


def test_a_spread_has_the_quartiles_of_its_samples() -> None:
    assert spread([4, 1, 3, 2, 5]).as_dict() == {"median": 3, "q1": 2, "q3": 4, "n": 5}
    assert spread([7]).as_dict() == {"median": 7, "q1": 7, "q3": 7, "n": 1}
    with pytest.raises(UsageError, match="--minutes"):
        spread([])


def test_ratios_are_taken_question_by_question() -> None:
    measured = answers()
    assert measured.speed_over("auto", "plain").as_dict() == pytest.approx({"median": 2, "q1": 2, "q3": 3, "n": 3})
    assert measured.speed_over("auto", "base").median == pytest.approx(1.5)
    assert measured.speed("plain").median == pytest.approx(10)
    assert measured.ms("auto").median == pytest.approx(50)


def test_the_best_fixed_length_is_the_one_with_the_least_time_in_all() -> None:
    assert answers().best_fixed() == "k=3"
    slow = [question(100, 50, 75, 90, steps=1), question(100, 50, 75, 110, steps=30)]
    assert Answers("long", slow, []).best_fixed() == "plain"


def test_a_plain_token_is_compared_with_its_own_three_evaluations() -> None:
    measured = answers()
    assert measured.plain_over_roles().median == pytest.approx(1.04)
    assert measured.overhead_ms().median == pytest.approx(1.0)
    assert measured.role_ms("base").median == pytest.approx(80)


def test_drafts_are_counted_over_all_questions() -> None:
    drafts = answers().drafts("auto")
    assert (drafts.drafted, drafts.accepted, drafts.lengths) == (24, 18, {0: 3, 3: 3, 5: 3})
    assert drafts.acceptance == 0.75
    assert drafts.tokens_per_round == pytest.approx(30 / 9)
    assert answers().drafts("plain").acceptance is None


def test_answers_that_differ_from_the_plain_one_are_counted() -> None:
    same = question(100, 50, 75, 40)
    other = same | {"auto": run(50, token=8)}
    assert Answers("long", [same, other, other], []).same_as_plain("auto") == 1


def test_batches_and_prompts_are_speeds() -> None:
    measured = benchmark("long")
    assert measured.batch_over_one("plain", 8).median == pytest.approx((8 + 16) / 2)
    assert measured.batch_speed("auto", 4).median == pytest.approx(12)
    assert measured.prompt_over_llama().median == pytest.approx(1.9 / 2)
    assert measured.prompt_speed("base").median == pytest.approx(200)


def test_a_length_of_nothing_is_plain() -> None:
    assert [fixed(0), fixed(15)] == ["plain", "k=15"]


# The schedule


class Clock:
    """Parts take the seconds that they say."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def part(self, name: str, share: float, cost: float, least: int = 1, most: int = 100) -> Part:
        def measure(number: int) -> None:
            self.log.append(f"{name}{number}")
            self.now += cost

        return Part(name, share, least, most, measure)


def test_what_is_owed_is_measured_however_long_it_takes() -> None:
    clock = Clock()
    interleave([clock.part("a", 1, 50, least=2), clock.part("b", 1, 10, least=1)], 5.0, clock=clock)
    assert sorted(clock.log) == ["a0", "a1", "b0"]


def test_a_block_begins_only_where_it_fits_into_the_time() -> None:
    clock = Clock()
    interleave([clock.part("a", 1, 30), clock.part("b", 1, 8)], 100.0, clock=clock)
    assert 100 - 8 < clock.now <= 100


def test_parts_get_their_shares_in_turns() -> None:
    clock = Clock()
    interleave([clock.part("a", 3, 1), clock.part("b", 1, 1)], 40.0, clock=clock)
    assert [name[0] for name in clock.log].count("a") == 30
    assert "bb" not in "".join(name[0] for name in clock.log)


def test_no_part_is_measured_more_often_than_it_may() -> None:
    clock = Clock()
    interleave([clock.part("a", 1, 1, most=3)], 1000.0, clock=clock)
    assert clock.log == ["a0", "a1", "a2"]


def test_every_system_comes_at_every_place_of_the_order() -> None:
    names = ["plain", "k=1", "k=3", "auto"]
    orders = [rotated(names, number) for number in range(2 * len(names))]
    assert all(sorted(order) == sorted(names) for order in orders)
    for name in names:
        assert {order.index(name) for order in orders} == {0, 1, 2, 3}


# The report


def test_json_holds_exactly_what_is_documented() -> None:
    section = README.partition("`--json` prints one object:")[2].partition("**`.venv")[0]
    documented = set(re.findall(r"`(\w+)`", section))
    found = report.as_dict(benchmark("long", "short"))
    contender, role = found["contenders"]["auto"], found["roles"]["base"]
    nested = {*contender, *role, *found["spread"]["overhead_ms"]}
    assert {*found, *nested} == documented - {"auto"}
    assert set(found["short"]) < set(found)
    assert set(found["short"]["spread"]) == set(found["short"]) & set(found["spread"])
    assert report.as_dict(benchmark("short"))["short"] is None


def test_json_has_the_medians_as_numbers() -> None:
    found = report.as_dict(benchmark("long", "short"))
    assert found["speculative_over_plain"] == pytest.approx(2)
    assert found["batch8_over_1"] == pytest.approx(12)
    assert found["short"]["speculative_over_base"] == pytest.approx(1.5)
    assert found["auto_over_best_fixed"] == found["spread"]["auto_over_best_fixed"]["median"] == pytest.approx(1)
    assert found["parts"] == {"long answers": {"blocks": 2, "seconds": 3.0}}
    assert found["contenders"]["base"]["same_as_plain"] is None


def test_the_text_reports_both_kinds_on_80_columns() -> None:
    text = report.text(benchmark("long", "short"))
    assert "Long answers: 3 questions, 10 tokens each" in text
    assert "Short answers" in text
    assert re.search(r"^auto +20\.0 \[18\.3-30\.0\] +2\.00 \[2\.00-3\.00\] +1\.50 \[", text, re.MULTILINE)
    assert "auto ÷ best fixed length (k=3): 1.00" in text
    assert "lengths that auto drafted: 0 (33 %), 3 (33 %), 5 (33 %)" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


@pytest.mark.parametrize(("cores", "reported"), [(None, False), (CoreUse(0.2, 2), False), (CoreUse(1.26, 2), True)])
def test_a_busy_machine_is_reported_of(cores: CoreUse | None, reported: bool) -> None:
    measured = replace(benchmark("long"), cores=cores)
    assert ("The machine was busy: other programs used 1.3 of 2 cores" in report.text(measured)) is reported
    assert report.as_dict(measured)["cores"] == (cores and cores.as_dict())


def test_the_text_reports_which_answers_differ_and_which_questions_were_left_out() -> None:
    measured = benchmark("long")
    odd = [question(100, 50, 75, 40) | {"auto": run(50, token=8)}]
    measured.answers["long"] = Answers("long", odd, measured.answers["long"].tokens, skipped=2)  # type: ignore[index]
    text = report.text(measured)
    assert "answers equal to plain's, of 1: auto 0; all with the others" in text
    assert "left out: 2 questions" in text


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_picture_is_drawn(suffix: str) -> None:
    content = figure.picture(figure.draw(benchmark("long", "short")), Path(f"speed.{suffix}"))
    assert content.startswith(b"\x89PNG" if suffix == "png" else b"<?xml")


# On the demo models


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return find_recipe("demo").replace(temperature=0, threads=1)  # more of them wait for each other on a busy machine


@pytest.fixture(scope="module")
def roles(recipe: Recipe) -> Iterator[Mapping[str, LoadedRole]]:
    library = Library()
    yield library.load(recipe, mixed_roles(recipe))
    library.close()


def measurement(recipe: Recipe, roles: Mapping[str, LoadedRole], **plan: Any) -> Measurement:
    return Measurement(recipe, roles, read_questions(demo_questions()), Plan(**{"seconds": 0.0, "limit": 1} | plan))


@pytest.fixture(scope="module")
def measured(recipe: Recipe, roles: Mapping[str, LoadedRole]) -> Benchmark:
    with measurement(recipe, roles, limit=2, lengths=(1, 3)) as running:
        assert not running.is_complete
        running.run()
        assert running.is_complete
        return running.result({}, 1.0)


def test_every_system_answers_every_question_alike(measured: Benchmark) -> None:
    assert list(measured.answers) == ["long", "short"]
    for kind, found in measured.answers.items():
        assert found.contenders == ("base", "plain", "k=1", "k=3", "auto")
        assert len(found.questions) + found.skipped == 2
        for contender in found.contenders[1:]:
            assert found.same_as_plain(contender) == len(found.questions)
        for runs in found.questions:
            assert len(runs["plain"].tokens) <= MAX_TOKENS[kind]
            assert {each.steps for each in runs.values()} == {runs["plain"].steps}
            assert all(each.seconds > 0 for each in runs.values())


def test_the_lengths_of_drafts_are_seen_in_the_bases_rows(measured: Benchmark) -> None:
    for found in measured.answers.values():
        for runs in found.questions:
            for length in (1, 3):
                each = runs[fixed(length)]
                assert max(each.drafts) == length
                assert 0 < each.accepted <= sum(each.drafts)
                # A round gives its accepted tokens and one of its own, unless the answer ends with an accepted one.
                assert each.steps <= each.accepted + len(each.drafts) <= each.steps + 1
            for contender in ("plain", "base"):
                assert runs[contender].drafts == (0,) * runs[contender].steps


def test_tokens_batches_and_prompts_are_timed(measured: Benchmark) -> None:
    for found in measured.answers.values():
        assert 2 <= len(found.tokens) <= 2 * (STEP_TOKENS - 1)
        for each in found.tokens:
            assert 0 < each.inside < each.step
            assert set(each.roles) == {"base", "antiexpert", "assistant"}
    assert [set(block) for block in measured.batches] == [{(s, n) for s in ("plain", "auto") for n in BATCHES}]
    assert [200 < each.tokens["base"] <= 256 for each in measured.prompts] == [True]
    assert {name: len(each) for name, each in measured.parts.items()} == {
        **dict.fromkeys(("long answers", "long tokens", "short answers", "short tokens"), 2),
        "batches": 1,
        "prompts": 1,
    }


def test_a_stopped_measurement_raises(recipe: Recipe, roles: Mapping[str, LoadedRole]) -> None:
    with measurement(recipe, roles) as running:

        def stop(text: str) -> None:
            if text.startswith("1 long"):
                running.cancel()

        with pytest.raises(Cancelled):
            running.run(stop)
        assert not running.is_complete


def test_a_bare_context_holds_what_it_is_reported(
    roles: Mapping[str, LoadedRole], monkeypatch: pytest.MonkeyPatch
) -> None:
    role = roles["base"]
    assert isinstance(role.model, Model)
    calls: list[list[int]] = []
    with BareContext(role.model, Placement(), 64) as bare:
        evaluate = bare.evaluate
        monkeypatch.setattr(bare, "evaluate", lambda tokens: calls.append(list(tokens)) or evaluate(tokens))
        for tokens in ([5, 6, 7], [5, 6, 7, 8], [5, 6], [5, 9]):
            bare.hold(tokens)
        assert calls == [[5, 6, 7], [8], [9]]
        memory = llama_cpp.llama_get_memory(bare._handle)
        assert llama_cpp.llama_memory_seq_pos_max(memory, 0) == 1


def test_a_watch_counts_the_bases_rows_and_then_lets_go(recipe: Recipe, roles: Mapping[str, LoadedRole]) -> None:
    before = llama_cpp.llama_decode, Engine._evaluate
    with Emulator(recipe.replace(draft="off"), roles) as emulator, watched("base") as watch:
        emulator.chat("What is the capital of Peru?", max_tokens=3)
    assert watch.rows == [1, 1, 1]
    assert watch.seconds > 0
    assert before == (llama_cpp.llama_decode, Engine._evaluate)


def test_rows_that_are_evaluated_for_their_price_alone_are_no_drafts(
    recipe: Recipe, roles: Mapping[str, LoadedRole], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RowCosts, "cheapest", lambda costs, n: n if n == 1 else 4)
    with Emulator(recipe, roles) as emulator:
        for draft in (1, "auto", 1):  # the first opens contexts that have room for any draft
            emulator.recipe = emulator.recipe.replace(draft=draft)
            emulator.chat("What is the capital of Peru?", max_tokens=2)
        before = Context.submit
        evaluated: list[int] = []

        def submit(context: Context, batch: list[Rows]) -> None:
            evaluated.append(sum(len(each.tokens) for each in batch))
            before(context, batch)

        monkeypatch.setattr(Context, "submit", submit)
        with watched("base") as watch:
            emulator.chat("What is the capital of Peru?", max_tokens=5)
    assert set(watch.rows) == {1, 2}
    assert 4 in evaluated


# The machine


def test_the_machine_is_described(recipe: Recipe) -> None:
    details = machine.machine(recipe.replace(threads=3))
    assert details["threads"] == 3
    assert details["llama.cpp"] in machine.place(details)
    assert details["cores"] >= 1


def test_a_shape_without_room_is_refused_with_one_that_fits(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    class Free:
        available = 3_000_000_000

    sizes = {"0.5b": 0.5e9, "1b": 1e9, "7b": 4e9, "70b": 40e9}
    monkeypatch.setattr(machine, "scaled_bytes", lambda recipe, shape, quantization: sizes[shape])
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: Free)
    monkeypatch.setattr(machine, "supports_gpu_offload", lambda: False)
    machine.check_memory(recipe, "1b", "Q4_0")
    with pytest.raises(OutOfMemoryError, match=r"shape 7b needs 5\.4 GB of memory, 3\.0 GB are free; .* --shape 1b"):
        machine.check_memory(recipe, "7b", "Q4_0")
    Free.available = 1_000
    with pytest.raises(OutOfMemoryError, match="close other programs"):
        machine.check_memory(recipe, "0.5b", "Q4_0")


# Turns of a chat


def turn(new: int, old: int, first_ms: float, anew_ms: float | None = None) -> Turn:
    tokens = {"base": old + new, "assistant": old}
    return Turn(tokens, {"base": new, "assistant": new // 2}, first_ms, first_ms / 2, anew_ms)


def test_the_fit_reports_new_text_from_old() -> None:
    pairs = [(50, 0), (10, 100), (40, 300), (20, 700), (80, 1000)]
    made = [turn(new, old, 30 + 5 * new + 2 * new * old / 1000, 100.0) for new, old in pairs]
    found = turns.fit(made)
    assert (found.constant, found.per_new, found.per_new_and_1000_old) == pytest.approx((30, 5, 2))
    assert found.over_bare == pytest.approx(2)
    assert found.new_correlation > 0.95 > 0.7 > found.old_correlation
    text = turns.report(made)
    assert "first token ≈ 30 ms + 5.00 ms per new token" in text
    assert "anew, a conversation of 1080 tokens takes 100 ms, here 590 ms" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_turn_evaluates_what_is_new(recipe: Recipe, roles: Mapping[str, LoadedRole]) -> None:
    found = turns.measure(recipe.replace(context=1024), roles, turns=4, every=4)
    for earlier, second in pairwise(found):
        for name, tokens in second.prompt_tokens.items():
            assert tokens > earlier.prompt_tokens[name]
            assert second.evaluated_tokens[name] <= tokens - earlier.prompt_tokens[name]
    assert [each.anew_ms is None for each in found] == [False, True, True, False]
    assert all(each.first_ms > 0 < each.bare_ms for each in found)
    assert figure.picture(turns.draw(found, "turns"), Path("turns.png")).startswith(b"\x89PNG")
    assert set(turns.as_dict(recipe, {}, found)) == {"recipe", "machine", "turns", "fit"}


def test_the_soak_runs_through_the_whole_app() -> None:
    command = [sys.executable, "-m", "eft_local.bench.studies.soak", "--fake", "2", "--demo", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr
    assert {name: part["turns"] for name, part in json.loads(done.stdout).items()} == {"fake": 2, "demo": 1}
