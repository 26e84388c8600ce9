"""Exact answers: what a probe finds, how a way is chosen, and that answers are the same alone and in company."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from eft_local import Emulator, Recipe
from eft_local.backends.base import ContextOptions
from eft_local.backends.llamacpp import Context, Model, exactness_probe, file_probe, kernels
from eft_local.backends.llamacpp.exactness import Choice, Question, Verdict, Way, choose
from eft_local.backends.llamacpp.exactness_probe import ROOM, SEQUENCES, find, find_in_child, probe
from eft_local.bench.gguf_zeros import Shape
from eft_local.bench.studies.gguf_factory import ModelSpec, bpe, write_model
from eft_local.errors import Cancelled, ModelFileError, OutOfMemoryError, RecipeError
from tests.helpers.fake import FakeContext, FakeModel

EXACT, OTHER = Verdict(True), Verdict(False, "3 rows at once give other logits than one")
N_VOCAB = 258


class Disturbed(FakeContext):
    """Rows whose logits depend on their call where `disturbs` says so, of its sequences and their rows."""

    def __init__(self, disturbs):
        model = FakeModel(lambda held: np.float32(np.sin(np.arange(N_VOCAB) * (1 + sum(held) % 97))))
        super().__init__(model, ROOM, SEQUENCES, 4)
        self.disturbs = disturbs
        self.count = 0

    def submit(self, batch):
        self.count += sum(len(rows.tokens) for rows in batch)
        super().submit(batch)
        if self.disturbs({rows.sequence: len(rows.tokens) for rows in batch}):
            self._rows = np.nextafter(self._rows, np.float32(9))


def opener(model: Model) -> Callable[..., Context]:
    """What makes contexts on a model, of so much room."""
    return lambda **room: model.open(ContextOptions(**room))


@pytest.mark.parametrize(
    ("disturbs", "reason"),
    [
        (lambda rows: False, ""),
        (lambda rows: max(rows.values()) == 3, "3 rows at once give other logits than one"),
        (lambda rows: max(rows.values()) > 8, "16 rows at once give other logits than one"),
        (lambda rows: max(rows.values()) >= 65, "80 rows at once give other logits than 64"),
        (lambda rows: len(rows) > 1, "rows beside other sequences get other logits than alone"),
    ],
)
def test_a_probe_finds_what_changes_logits(disturbs, reason):
    context = Disturbed(disturbs)
    assert probe(context, N_VOCAB) == Verdict(not reason, reason)
    assert context.count <= exactness_probe.TOKENS
    assert reason or context.count == exactness_probe.TOKENS


def way(flash, seconds, verdict=EXACT, exactly=True):
    return Way(flash, exactly, verdict, seconds)


@pytest.mark.parametrize(
    ("ways", "wish", "flash", "exact", "price"),
    [
        ([way(False, 1.0), way(True, 2.0, OTHER)], "auto", False, True, 0.0),
        ([way(False, 1.04), way(True, 1.0, OTHER)], "auto", False, True, 0.04),
        ([way(False, 1.2), way(True, 1.0, OTHER)], "auto", True, False, 0.2),
        ([way(False, 1.2), way(True, 1.0, OTHER)], "always", False, True, 0.2),
        ([way(False, 1.04), way(True, 1.0, OTHER)], "never", True, False, 0.04),
        ([way(False, 1.2), way(True, 1.0)], "auto", True, True, 0.0),
        ([way("auto", None)], "auto", "auto", True, 0.0),
        ([way("auto", None, OTHER)], "always", "auto", False, 0.0),
    ],
)
def test_the_exact_way_is_taken_where_it_is_worth_its_price(ways, wish, flash, exact, price):
    chosen = choose(ways, wish)
    assert (chosen.way.flash, chosen.verdict.exact) == (flash, exact)
    assert chosen.price == pytest.approx(price)


def test_a_price_and_a_reason_are_reported():
    assert str(Choice(way(False, 1.0))) == "yes"
    assert str(Choice(way(False, 1.0), 0.2)) == "yes, at 20% more time"
    assert str(choose([way(True, 1.0, OTHER)], "auto")) == f"no, because {OTHER.reason}"
    assert str(choose([way(True, 1.0)], "never")) == 'no, because exact = "never"'


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A file that nobody has tried."""
    path = tmp_path_factory.mktemp("exactness") / "new.gguf"
    write_model(path, ModelSpec(Shape(n_embd=64, n_head=4, n_head_kv=2, n_ctx=512), bpe(), seed=5))
    return path


def question(path, **changes):
    return replace(Question((path,), (False, True), 256, "f16"), **changes)


def test_a_verdict_is_kept_until_something_changes(ggufs, tmp_path, monkeypatch):
    monkeypatch.setenv("EFT_HOME", str(tmp_path))
    requested = question(ggufs / "base.gguf")
    assert requested.recorded() is None
    with Model.load(ggufs / "base.gguf", trusted=True) as model:
        found = find(model, requested, opener(model))
        assert {each.flash for each in found} == {False, True}
        assert find(model, requested, None) == found == requested.recorded(), "it is not tried again"
    changes = {"context": 512}, {"kv_type": "f32"}, {"offload": 3}, {"flash": (False,)}
    for change in changes:
        assert replace(requested, **change).recorded() is None
    monkeypatch.setattr(kernels, "installed", lambda: "other kernels")
    assert requested.recorded() is None


def test_without_memory_there_is_no_verdict_to_keep(ggufs, tmp_path, monkeypatch):
    monkeypatch.setenv("EFT_HOME", str(tmp_path))

    def full(**_):
        raise OutOfMemoryError("full")

    with Model.load(ggufs / "base.gguf", trusted=True) as model:
        (found,) = find(model, question(ggufs / "base.gguf", flash=(False,)), full)
        assert not found.verdict.exact
        assert question(ggufs / "base.gguf", flash=(False,)).recorded() is None


def test_a_child_finds_what_is_found_here(sound, tmp_path, monkeypatch):
    """And remembers that the file has passed: it is not tried twice."""
    monkeypatch.setenv("EFT_HOME", str(tmp_path))
    requested = question(sound, flash=(True,))
    find_in_child(requested)
    with Model.load(sound, trusted=True) as model:
        in_child = requested.recorded()
        requested.kept.unlink()
        assert find(model, requested, opener(model)) == in_child
    monkeypatch.setattr(file_probe, "run_child", None)
    with Model.load(sound):
        pass
    find_in_child(requested)


def test_a_question_goes_to_a_child_and_back(sound):
    requested = question(sound, offload=3, split=(1, 2), scale=0.5)
    assert Question.from_json(requested.to_json()) == requested


@pytest.mark.parametrize(
    ("said", "status", "outcome"),
    [
        ("", -6, "crashes llama.cpp (boom)"),
        ("", -9, "was killed"),
        ("sound", -9, "was killed"),
        ("sound", -6, "no, because trying it ended llama.cpp (boom)"),
        ("sound\n[{}", -6, "no, because trying it ended llama.cpp (boom)"),
    ],
)
def test_a_crash_while_trying_is_caught(sound, tmp_path, monkeypatch, said, status, outcome):
    """Before the file has passed it is the file's fault; afterwards the verdict is no, and kept."""
    monkeypatch.setenv("EFT_HOME", str(tmp_path))
    monkeypatch.setattr(file_probe, "run_child", lambda *_: file_probe.Ended(status, said, ("noise", "boom")))
    requested = question(sound, flash=(True,))
    if said and status != -9:
        find_in_child(requested)
        assert [str(way.verdict) for way in requested.recorded()] == [outcome]
    else:
        with pytest.raises((ModelFileError, OutOfMemoryError), match=re.escape(outcome)):
            find_in_child(requested)
        assert requested.recorded() is None


def test_trying_in_a_child_can_be_cancelled(sound, tmp_path, monkeypatch):
    monkeypatch.setenv("EFT_HOME", str(tmp_path))

    def cancel():
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        find_in_child(question(sound), cancel)


def test_an_emulator_tries_new_files_in_a_child(sound, tmp_path, monkeypatch):
    monkeypatch.setenv("EFT_HOME", str(tmp_path))
    monkeypatch.setattr(exactness_probe, "_tried", None)
    with Emulator.load(three(sound)) as emulator:
        assert emulator.exact == "yes" or isinstance(kernels.load(), str)


@pytest.mark.skipif(isinstance(kernels.load(), str), reason="our kernels are not in use here")
@pytest.mark.parametrize("flash", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_models_rows_have_the_same_bits_however_they_are_evaluated(ggufs, flash, threads):
    room = {"n_ctx": ROOM, "n_seq": SEQUENCES, "n_outputs": 4, "n_ubatch": 128}
    kernels.use_exact(True)
    with (
        Model.load(ggufs / "base.gguf", trusted=True) as model,
        model.open(
            ContextOptions(**room, flash_attention=flash, n_threads=threads, n_threads_batch=threads)
        ) as context,
    ):
        assert probe(context, model.n_vocab) == EXACT


def three(path, draft="off"):
    return Recipe.from_text(
        f"""
        context = 512
        draft = "{draft}"
        [base]
        model = "{path}"
        [antiexpert]
        model = "{path}"
        [experts.own]
        model = "{path}"
        prompt = "plain"
        [sampling]
        max_tokens = 24
        """
    )


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_one_model_in_all_roles_gives_its_own_answer(ggufs, temperature):
    requested = ["A", "What is a river, and where does it end?", "Hello there " * 20]
    with Emulator.load(three(ggufs / "tuned.gguf").replace(temperature=temperature, draft=8)) as loaded:
        answers = [loaded.chat(each, target="own", seed=3).tokens for each in requested]
        for draft in ("off", 1, 4, 8, "auto"):
            loaded.recipe = loaded.recipe.replace(draft=draft)
            assert [loaded.chat(each, seed=3).tokens for each in requested] == answers
            assert [each.tokens for each in loaded.chat(requested, seed=3, parallel=3)] == answers


def test_an_answer_says_whether_it_is_exact(ggufs):
    with Emulator.load(three(ggufs / "tuned.gguf").replace(exact="never")) as loaded:
        assert loaded.chat("A", max_tokens=1).exact == 'no, because of base: exact = "never"' == loaded.exact
    with Emulator.load(three(ggufs / "tuned.gguf").replace(exact="always")) as loaded:
        answer = loaded.chat("A", max_tokens=1)
        assert answer.exact == loaded.exact
        assert answer.exact == "yes" or answer.exact.startswith("no, because of base: ")
        with pytest.raises(RecipeError, match="cannot change"):
            loaded.recipe = loaded.recipe.replace(exact="auto")


def test_the_recipe_carries_the_wish(ggufs):
    recipe = three(ggufs / "tuned.gguf")
    assert recipe.exact == "auto"
    assert "exact" not in recipe.to_toml()
    assert Recipe.from_text(recipe.replace(exact="always").to_toml()).exact == "always"
    with pytest.raises(RecipeError, match="exact"):
        recipe.replace(exact="sometimes")
