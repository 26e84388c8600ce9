"""How many threads evaluate: a policy that is tried on machines of arithmetic, without a clock."""

import json
from collections.abc import Callable

import numpy as np
import pytest

from eft_local.backends.base import ContextOptions, Rows
from eft_local.backends.llamacpp import Model, kernels
from eft_local.backends.llamacpp.threads import Threads, kind, ladder, read_times, times_file, write_times

Machine = Callable[[int], float]
"""From the number of threads to the seconds per row that a call takes with so many."""


def run(threads: Threads, machine: Machine, seconds: float, rows: int = 1) -> tuple[float, list[int]]:
    """Evaluate for so long; return the rows per second, and the number of threads of each call."""
    spent, used = 0.0, []
    while spent < seconds:
        used.append(threads.choose(rows))
        took = rows * machine(used[-1])
        threads.learn(rows, took)
        spent += took
    return len(used) * rows / spent, used


def best(machine: Machine, most: int) -> float:
    return 1 / min(map(machine, ladder(most)))


def tiny(n: int) -> float:
    """A model of the demo's size: threads wait longer for each other than they compute."""
    return (0.3e-3, 0.5e-3)[n - 1]


def large(n: int) -> float:
    """A model of 7B."""
    return 0.22 / n**0.85


def crowded(n: int) -> float:
    """The demo's size, where other programs use all cores."""
    return (0.6e-3, 20e-3)[n - 1]


def test_numbers_that_are_tried():
    assert ladder(1) == (1,)
    assert ladder(2) == (1, 2)
    assert ladder(6) == (1, 2, 3, 4, 6)
    assert ladder(16) == (1, 2, 3, 4, 6, 8, 12, 16)


def test_prompts_of_about_the_same_length_are_compared():
    assert [kind(rows) for rows in (1, 2, 15, 16, 17, 32, 33, 500)] == [1, 2, 15, 16, 32, 32, 64, 512]


@pytest.mark.parametrize(("machine", "right"), [(tiny, 1), (large, 2)])
def test_the_fastest_number_is_found_at_once(machine, right):
    threads = Threads(2)
    run(threads, machine, 1.0)
    speed, used = run(threads, machine, 30.0)
    assert used[-1] == right
    assert speed > 0.98 * best(machine, 2), "looking elsewhere costs next to nothing"


@pytest.mark.parametrize("cores", [3, 4, 8, 16, 24])
@pytest.mark.parametrize("right", [1, 2, 3, 4, 6, 8])
def test_the_fastest_number_is_found_on_many_cores(cores, right):
    def machine(n: int) -> float:
        return 1e-3 * (1 / n + n / right**2)  # the least is at `right`

    threads = Threads(cores)
    run(threads, machine, 10.0)
    speed, _ = run(threads, machine, 20.0)
    assert speed > 0.94 * best(machine, cores)


def test_a_machine_that_gets_busy_is_noticed_within_a_tenth_of_a_second():
    calm = {1: 25e-3, 2: 15e-3}
    busy = {1: 40e-3, 2: 250e-3}
    threads = Threads(2)
    run(threads, calm.__getitem__, 20.0)
    _, used = run(threads, busy.__getitem__, 20.0)
    assert used[:3].count(2) <= 2
    assert used.count(2) / len(used) < 0.01
    speed, used = run(threads, calm.__getitem__, 20.0)
    assert used[-1] == 2, "and that it is idle again"
    assert speed > 0.95 / calm[2]


def test_the_number_goes_up_again_though_one_thread_never_noticed():
    """One busy program on two cores leaves one for us: its end makes one thread no faster."""
    threads = Threads(2)
    run(threads, lambda n: (25e-3, 15e-3)[n - 1], 20.0)
    run(threads, lambda n: (25e-3, 60e-3)[n - 1], 20.0)
    _, used = run(threads, lambda n: (25e-3, 15e-3)[n - 1], 20.0)
    assert used[-1] == 2
    assert used.count(1) * 25e-3 < 8.0


def test_what_is_much_slower_is_hardly_ever_tried():
    threads = Threads(2)
    run(threads, crowded, 1.0)
    speed, _ = run(threads, crowded, 60.0)
    assert speed > 0.96 * best(crowded, 2)


def test_a_jump_of_all_numbers_alike_changes_nothing():
    threads = Threads(2)
    run(threads, large, 20.0)
    speed, used = run(threads, lambda n: 3 * large(n), 60.0)
    assert used[-1] == 2
    assert speed > 0.98 * best(large, 2) / 3


def test_each_number_of_rows_has_its_own_threads():
    """One row is too little work to share; what is known of it is where many rows begin."""
    threads = Threads(2)
    for _ in range(200):
        run(threads, tiny, 0.05)
        run(threads, large, 0.05, rows=64)
    assert (threads.choose(1), threads.choose(64)) == (1, 2)


def test_a_long_prompt_is_not_tried_with_fewer_threads():
    threads = Threads(2)
    _, used = run(threads, large, 60.0, rows=100)  # eleven seconds each
    assert set(used) == {2}


def test_one_core_leaves_no_choice():
    _, used = run(Threads(1), lambda n: 1e-3, 5.0)
    assert set(used) == {1}


def test_orders_stay():
    threads = Threads(2)
    ordered = threads.ordered(2, None)
    for _ in range(1000):
        assert ordered.choose(1) == 2
        ordered.learn(1, tiny(2))
    assert threads.times == {}, "nothing is learnt where nothing is chosen"
    run(ordered, tiny, 5.0, rows=8)  # type: ignore[arg-type]
    assert ordered.choose(8) == 1
    assert threads.ordered(None, 1).choose(8) == 1


def test_the_next_process_begins_with_what_was_learnt(tmp_path):
    threads = Threads(2)
    run(threads, tiny, 5.0)
    run(threads, large, 20.0, rows=64)
    path = tmp_path / "cache" / "times.json"
    write_times(path, threads.times)
    again = Threads(2, read_times(path))
    assert again.times == threads.times
    assert (again.choose(1), again.choose(64)) == (1, 2)
    _, used = run(again, tiny, 1.0)
    assert set(used) == {1}
    _, used = run(Threads(2, read_times(path)), crowded, 1.0)
    assert used[0] == 1, "known from the start"
    assert used.count(2) <= 2
    fewer = Threads(1, read_times(path))
    assert fewer.choose(64) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"1": 3}', '{"1": {"x": 2}}', '{"1": {"2": "a"}}'])
def test_what_cannot_be_read_is_learnt_again(tmp_path, text):
    path = tmp_path / "times.json"
    path.write_text(text)
    assert read_times(path) == {}
    write_times(path, {1: {2: 0.5}})
    assert read_times(path) == {1: {2: 0.5}}


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").touch()
    write_times(tmp_path / "file" / "times.json", {1: {1: 0.5}})


def test_a_file_is_written_only_for_news(tmp_path):
    path = tmp_path / "times.json"
    write_times(path, {1: {1: 0.5}})
    path.write_text(json.dumps({1: {1: 0.501}}))
    write_times(path, {1: {1: 0.5}})
    assert read_times(path) == {1: {1: 0.501}}
    write_times(path, {1: {1: 0.4}})
    assert read_times(path) == {1: {1: 0.4}}


def test_a_model_passes_on_what_it_has_learnt(ggufs, tmp_path, monkeypatch):
    monkeypatch.setenv("EFT_HOME", str(tmp_path))
    with Model.load(ggufs / "small.gguf", trusted=True) as model:
        model.threads.learn(1, 1.0)
        path = times_file(model.path, model.threads.most)
        assert not path.exists()
    assert read_times(path) == {1: {model.threads.most: 1.0}}
    with Model.load(ggufs / "small.gguf", trusted=True) as model:
        assert model.threads.times == {1: {model.threads.most: 1.0}}


@pytest.mark.parametrize("rows", [1, 2, 5, 40])
@pytest.mark.parametrize("held", [0, 700])
@pytest.mark.parametrize("flash", [False, True])
def test_logits_do_not_depend_on_the_number_of_threads(ggufs, rows, held, flash):
    if flash and isinstance(kernels.load(), str):
        pytest.skip("llama.cpp's own flash attention cuts a long cache into as many parts as there are threads")
    found = []
    with Model.load(ggufs / "base.gguf", trusted=True) as model:
        for threads in (1, 2, 3):
            with model.open(
                ContextOptions(n_ctx=1024, n_outputs=rows, n_threads=threads, flash_attention=flash)
            ) as context:
                if held:
                    context.submit([Rows(0, [30 + i % 50 for i in range(held)], 1)])
                context.submit([Rows(0, [40 + i % 30 for i in range(rows)], rows)])
                found.append(context.logits().copy())
    assert np.abs(found[0]).max() > 0.1
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_a_context_learns_and_obeys(ggufs):
    with Model.load(ggufs / "small.gguf", trusted=True) as model:
        model.threads = Threads(2)
        with model.open(ContextOptions(n_ctx=64)) as context:
            for _ in range(3):
                context.submit([Rows(0, [40])])
        assert model.threads._choices.keys() == {1}
        model.threads = Threads(2)
        with model.open(ContextOptions(n_ctx=64, n_threads=1)) as context:
            context.submit([Rows(0, [40])])
        assert not model.threads._choices
