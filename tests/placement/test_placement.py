"""Each role where the recipe puts it: types of caches, flash attention, mapping and locking, together and apart."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from eft_local import Emulator, Recipe
from eft_local.backends.llamacpp import library
from eft_local.backends.llamacpp.estimate import UBATCH_CPU
from eft_local.bench.gguf_zeros import Shape
from eft_local.bench.studies.gguf_factory import ModelSpec, write_model
from eft_local.engine import loading
from eft_local.engine.loading import Library, mixed_roles
from eft_local.errors import ModelNotFoundError, OutOfMemoryError, RecipeError, UnsupportedModelError
from eft_local.machine.memory import RAM, Available, Device
from eft_local.placement import shortage as refusal
from eft_local.placement import survey

GB = 10**9
TRIO = """
context = 200
{top}
[base]
model = "base.gguf"
{base}
[antiexpert]
model = "small.gguf"
{antiexpert}
[experts.tuned]
model = "tuned.gguf"
prompt = "plain"
{expert}
[sampling]
temperature = 0
max_tokens = 4
"""


def trio(folder: Path, **tables: str) -> Recipe:
    keys = dict.fromkeys(("top", "base", "antiexpert", "expert"), "") | tables
    return Recipe.from_text(TRIO.format(**keys), folder)


def caches(lines: list[str]) -> list[tuple[str, str]]:
    """The types of keys and values, and whether flash attention was asked for, of each context."""
    types = [found[1] for line in lines if (found := re.search(r"K \((\w+)\):.*V \(\1\)", line))]
    attention = [found[1] for line in lines if (found := re.search(r"flash_attn += (\w+)", line))]
    return list(zip(types, attention, strict=True))


def test_each_role_has_its_own_cache_and_attention(tmp_path):
    for name in ("base", "small", "tuned"):
        write_model(tmp_path / f"{name}.gguf", ModelSpec(Shape(n_embd=64, n_head=2, n_head_kv=1)))
    recipe = trio(
        tmp_path,
        top='kv_type = "bf16"',
        antiexpert='kv_type = "f32"\nflash_attention = false',
        expert='kv_type = "q8_0"\nflash_attention = true\nmmap = false\nmlock = true',
    )
    with library.listening() as heard, Emulator.load(recipe) as emulator:
        options = [line for line in heard if "llama_kv_cache: size" in line or "flash_attn  " in line]
        # Where a recipe leaves the choice, and attention cannot be timed with this cache, it is the plain one.
        assert caches(options)[-3:] == [("bf16", "disabled"), ("f32", "disabled"), ("q8_0", "enabled")]
        assert emulator.chat("hello").tokens
        placed = {name: loaded.placement for name, loaded in emulator.models.roles.items()}
    assert placed["tuned"].mlock
    assert not placed["tuned"].mmap
    assert placed["base"].mmap
    assert {each.ubatch for each in placed.values()} == {UBATCH_CPU}


def test_a_cache_that_llama_cpp_cannot_make_is_reported_before_anything_is_loaded(ggufs):
    with pytest.raises(UnsupportedModelError, match=r"does not suit .*base\.gguf.* heads have 16; set kv_type"):
        Emulator.load(trio(ggufs, base='kv_type = "q8_0"'))


@pytest.mark.parametrize(
    ("top", "role"),
    [('kv_type = "q4_0"', "flash_attention = false"), ("flash_attention = false", 'kv_type = "q4_0"')],
)
def test_a_quantised_cache_without_flash_attention_is_refused_wherever_the_keys_stand(ggufs, top, role):
    with pytest.raises(RecipeError, match=r"\[base\].*quantises the cache only with flash attention"):
        trio(ggufs, top=top, base=role)


def test_auto_maps_what_is_used_as_it_lies_in_the_file(tmp_path, monkeypatch):
    shape = Shape(n_embd=64, n_ff=128)
    for name, quantization in (("base", "Q4_0"), ("small", "Q8_0"), ("tuned", "F16")):
        write_model(tmp_path / f"{name}.gguf", ModelSpec(shape, quantization=quantization))
    loaded = {}
    load = loading.Model.load
    monkeypatch.setattr(
        loading.Model, "load", lambda path, **keys: loaded.update({path.stem: keys["mmap"]}) or load(path, **keys)
    )
    recipe = trio(tmp_path)
    needed = {
        each.roles[0]: each.estimate.repacks
        for each in survey.loads(survey.role_files(recipe, mixed_roles(recipe)), 200, 8)
    }
    with Emulator.load(recipe):
        pass
    assert loaded == {"base": not needed["base"], "small": not needed["antiexpert"], "tuned": True}
    with Emulator.load(trio(tmp_path, top="mmap = true", expert="mmap = false")):
        pass
    assert loaded == {"base": True, "small": True, "tuned": False}


def test_the_recipe_s_layers_go_where_the_plan_puts_them(ggufs, monkeypatch):
    """A machine with two GPUs, as far as the plan knows; llama.cpp has none and puts all of it into RAM."""
    options = {}
    load = loading.Model.load

    def watch(path, *, n_gpu_layers, split, **keys):
        options[path.stem] = (n_gpu_layers, tuple(split))
        return load(path, n_gpu_layers=0, split=(), **keys)

    monkeypatch.setattr(loading.Model, "load", watch)
    cpu = Device("CPU", "", "cpu", 8 * GB, 8 * GB, RAM)
    two = (cpu, Device("A", "", "gpu", 2 * GB, 2 * GB), Device("B", "", "gpu", 4 * GB, 4 * GB))
    monkeypatch.setattr(loading, "places", lambda: two)
    with Emulator.load(trio(ggufs)) as emulator:
        assert options == {"base": (4, (0, 4)), "small": (3, (0, 3)), "tuned": (3, (0, 3))}
        assert {each.placement.ubatch for each in emulator.models.roles.values()} == {512}
    with Emulator.load(trio(ggufs, base="offload = 2", antiexpert="offload = 0\nubatch = 32")) as emulator:
        assert options == {"base": (2, (0, 2)), "small": (0, ()), "tuned": (3, (0, 3))}
        assert emulator.models.roles["antiexpert"].placement.ubatch == 32


def test_layers_become_llama_cpp_s_parameters():
    alone = library.gpu_params(5, (0, 5))
    assert (alone["n_gpu_layers"], alone["main_gpu"], alone["split_mode"]) == (5, 1, 0)
    spread = library.gpu_params(5, (2, 3))
    assert (spread["n_gpu_layers"], spread["split_mode"], list(spread["tensor_split"][:2])) == (5, 1, [2.0, 3.0])
    none = library.gpu_params(0)
    assert (none["n_gpu_layers"], none["main_gpu"], none["split_mode"]) == (0, -1, 0)
    assert library.gpu_params(-1) == {"n_gpu_layers": -1}


def test_roles_that_share_weights_are_one_load(ggufs):
    recipe = trio(ggufs)
    recipe = replace(recipe, antiexpert=recipe.base)
    base, tuned = survey.loads(survey.role_files(recipe, mixed_roles(recipe)), 200, 8)
    assert base.roles == ("base", "antiexpert")
    assert len(base.contexts) == 1
    assert base.contexts[0].sequences == 2
    apart = replace(recipe, antiexpert=replace(recipe.base, overrides={"kv_type": "f32"}))
    base, tuned = survey.loads(survey.role_files(apart, mixed_roles(apart)), 200, 8)
    assert [each.roles for each in base.contexts] == [("base",), ("antiexpert",)]
    assert tuned.roles == ("tuned",)


def test_all_missing_models_are_named(ggufs):
    recipe = trio(ggufs)
    missing = replace(recipe, base=replace(recipe.base, model="org/Base:Q4_K_M"))
    with pytest.raises(ModelNotFoundError, match="eft pull"):
        survey.role_files(missing, mixed_roles(missing))
    more = replace(missing, antiexpert=replace(recipe.base, model="org/Small:Q8_0"))
    with pytest.raises(ModelNotFoundError) as caught:
        survey.role_files(more, mixed_roles(more))
    assert "2 models are missing (base: org/Base:Q4_K_M, antiexpert: org/Small:Q8_0)" in str(caught.value)
    assert "eft pull" in str(caught.value)


def test_nothing_stays_open_of_what_does_not_fit(ggufs, monkeypatch):
    monkeypatch.setattr(loading, "places", lambda: (Device("CPU", "", "cpu", 1000, 1000, RAM),))
    opened = []
    monkeypatch.setattr(loading.Model, "load", lambda *_, **__: opened.append(1))
    recipe = trio(ggufs)
    with pytest.raises(OutOfMemoryError, match="not enough memory for base, antiexpert, tuned"):
        Library().load(recipe, mixed_roles(recipe))
    assert opened == []


def test_answers_side_by_side_that_would_not_fit_are_refused(ggufs, monkeypatch):
    with Emulator.load(trio(ggufs)) as emulator:
        monkeypatch.setattr(refusal, "available", lambda: Available(1000, RAM))
        with pytest.raises(OutOfMemoryError, match="write fewer answers side by side"):
            emulator.chat(["a", "b"], parallel=2)
        monkeypatch.undo()
        assert len(emulator.chat(["a", "b"], parallel=2)) == 2
