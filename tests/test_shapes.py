"""Scaled copies of models: the same function, the same tokens, the size that was asked for."""

from __future__ import annotations

import itertools
from dataclasses import replace
from math import prod

import numpy as np
import pytest
from gguf import GGUFReader

from eft_local.backends.base import ContextOptions, Rows
from eft_local.backends.llamacpp import Model
from eft_local.backends.tokenize import verbatim
from eft_local.backends.vocabulary import compare
from eft_local.bench import shapes, widening
from eft_local.bench.gguf_zeros import Shape
from eft_local.bench.shapes import SHAPES, TRIOS, Trio, scaled_bytes, scaled_model, scaled_recipe, unwidened
from eft_local.bench.studies.gguf_factory import ModelSpec, bpe, write_model
from eft_local.emulator import Emulator
from eft_local.engine.mix import mix
from eft_local.errors import ModelNotFoundError, OutputError, UnsupportedModelError, UsageError
from eft_local.evals.questions import read_questions
from eft_local.hub.references import demo_questions, find_recipe, resolve_model
from eft_local.recipe import Recipe
from tests.helpers.reference_llama import ReferenceLlama

DEMO = {name: resolve_model(f"demo:{name}", None) for name in ("base", "small", "assistant", "base-tuned")}
TEXT = "Question: What is the capital of Peru?\nAnswer: The capital of Peru is Lima. It borders Chile and Brazil."

# Wider, deeper, more heads that share fewer key-value heads, wider inside: the second with longer heads and, for the
# demo's base, too few key-value heads.
ALIKE = Shape(n_embd=384, n_layer=6, n_head=8, n_head_kv=4, n_ff=768, head=64)
LONGER = Shape(n_embd=448, n_layer=5, n_head=6, n_head_kv=2, n_ff=736, head=128)
TRIO = Trio(large=LONGER, small=ALIKE)
N_VOCAB = 6000


@pytest.fixture(autouse=True)
def _unprobed(monkeypatch):
    """A probe is a process for every new file, and these files are our own."""
    monkeypatch.setattr("eft_local.backends.llamacpp.model.probe_file", lambda *_: None)
    monkeypatch.setattr("eft_local.engine.loading.find_in_child", lambda *_: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("scaled")


def llama_logits(path, tokens):
    """Return the logits at every position, without the flash kernel's float16 and the cache's."""
    with (
        Model.load(path, trusted=True) as model,
        model.open(
            ContextOptions(n_ctx=256, n_outputs=len(tokens), n_threads=1, kv_type="f32", flash_attention=False)
        ) as context,
    ):
        context.submit([Rows(0, tokens, outputs=len(tokens))])
        return context.logits().copy()


@pytest.fixture(scope="module")
def tokens():
    with Model.load(DEMO["base"], trusted=True) as model:
        return model.vocabulary.tokenize(TEXT, add_special=True, parse_special=False)


# The function


HEADS_OF_64 = Shape(n_embd=96, n_head=8, n_head_kv=4, head=64)
CASES = {
    "longer heads, grouped alike": (Shape(), replace(HEADS_OF_64, n_embd=128, n_layer=3, n_ff=96)),
    "four queries shared one, two do": (Shape(n_head=4, n_head_kv=1), HEADS_OF_64),
    "four queries shared one, each has its own": (Shape(n_head=4, n_head_kv=1), replace(HEADS_OF_64, n_head=4)),
    "too few are shared": (Shape(n_head=4, n_head_kv=4), replace(HEADS_OF_64, n_head=12, n_head_kv=1)),
    "heads longer than the shape's": (Shape(head=80), replace(HEADS_OF_64, n_embd=512, n_head=16, n_head_kv=8)),
    "tied": (Shape(tied=True, n_head=2, rope_base=5e4), replace(HEADS_OF_64, head=128)),
    "no whole blocks": (Shape(n_embd=48, n_head=3, n_head_kv=3, n_ff=50), replace(HEADS_OF_64, n_head=3, n_head_kv=3)),
}


@pytest.mark.parametrize(("source", "target"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("added", [0, 7])
def test_a_copy_in_any_shape_computes_what_its_source_does(tmp_path, source, target, added):
    n = len(bpe().texts)
    path = write_model(tmp_path / "source.gguf", ModelSpec(source, seed=5))
    copy = scaled_model(path, target, vocabulary=n + added, quantization="F32", folder=tmp_path)
    tokens = np.random.default_rng(1).integers(0, n, 60).tolist()
    logits = ReferenceLlama(copy).logits(tokens)
    np.testing.assert_allclose(logits[:, :n], ReferenceLlama(path).logits(tokens), atol=2e-4)
    np.testing.assert_allclose(llama_logits(copy, tokens)[:, :n], logits[:, :n], atol=2e-3)
    assert logits.shape[1] == n + added
    assert (logits[:, n:] < logits[:, :n].min() - 100).all()


# What may differ: sums are rounded in another order, about 1e-5 of a logit. Activations are rounded to 127 steps where
# they meet quantised weights, and to 2048 where they meet F16: where one falls on the other side of a step, logits move
# by up to a few tenths, or hundredths. That is rare for quantised weights (here mostly all bits are equal).
STEP = {"F32": 1e-4, "F16": 0.05, "Q8_0": 0.5, "Q4_0": 0.5}


@pytest.mark.parametrize("quantization", STEP)
@pytest.mark.parametrize(("name", "shape"), [("base", LONGER), ("small", ALIKE)])
def test_logits_are_the_unwidened_models_at_the_same_quantisation(folder, tokens, name, shape, quantization):
    copy = scaled_model(DEMO[name], shape, vocabulary=N_VOCAB, quantization=quantization, folder=folder)
    own = llama_logits(unwidened(DEMO[name], quantization, head=shape.head, folder=folder), tokens)
    scaled = llama_logits(copy, tokens)
    difference = np.abs(scaled[:, : own.shape[1]] - own)
    assert difference.max() < STEP[quantization]
    assert (scaled[:, own.shape[1] :].max(axis=1) < own.min(axis=1) - 100).all()


@pytest.mark.parametrize("name", ["base", "small"])
def test_unwidened_is_the_source(folder, tokens, name):
    """The demo's base is Q8_0 already: not a bit may change. The others are F16, and their heads get longer."""
    quantization, tolerance = ("Q8_0", 0) if name == "base" else ("F16", 0.1)
    own = llama_logits(unwidened(DEMO[name], quantization, folder=folder), tokens)
    np.testing.assert_allclose(own, llama_logits(DEMO[name], tokens), atol=tolerance)


# Recipes


def held_out(kind, count):
    questions = read_questions(demo_questions()).select(split="held-out", kind=kind, limit=count)
    return [each.question for each in questions.items]


def answer(emulator, question, **options):
    """Return an answer's tokens, and the lead of each over the next in the scores it was chosen by."""
    own = {"expert": "assistant"}.get(options["target"], options["target"])
    steps = [step for step in emulator.stream_chat(question, top=2, **options) if step.token is not None]
    leads = []
    for step in steps:
        first, second = sorted((each.roles[own].logprob for each in step.candidates), reverse=True)[:2]
        leads.append(first - second)
    return [step.token for step in steps], leads


def assert_same(ours, theirs, leads, step):
    """Tokens are equal; where they part, it is over a lead that rounding can turn."""
    parted = next((i for i, (a, b) in enumerate(itertools.zip_longest(ours, theirs)) if a != b), None)
    assert parted is None or leads[parted] < step


@pytest.mark.parametrize(("quantization", "count"), [("Q4_0", 12), ("Q8_0", 4), ("F16", 4)])
def test_the_scaled_trio_says_what_the_unwidened_one_says(folder, quantization, count):
    # With one kind of attention: only the wide models' heads share keys, so that by themselves they would have another.
    recipe = find_recipe("demo").replace(threads=1, flash_attention=False)
    options = {"quantization": quantization, "folder": folder}
    with (
        Emulator.load(scaled_recipe(recipe, TRIO, vocabulary=N_VOCAB, **options)) as scaled,
        Emulator.load(shapes.unwidened_recipe(recipe, shape=TRIO, **options)) as own,
    ):
        answers = 0
        for question in held_out("short", count) + held_out("long", 1):
            for only in ("eft", "base", "antiexpert", "expert"):
                limit = {"target": only, "max_tokens": 100 if only == "eft" else 12}
                expected, leads = answer(own, question, **limit)
                given, _ = answer(scaled, question, **limit)
                assert_same(given, expected, leads, STEP[quantization])
                answers += given == expected
        assert answers > 0.95 * 4 * (count + 1)


def test_added_tokens_are_common_to_all_roles_and_never_win(folder, tokens):
    """Not even where the experts' delta is for them: their distance from the rest differs from model to model."""
    for name, alphas in (("demo", (-1, 0, 0.5, 1, 1.5, 3)), ("demo-down", (0.5, 1, 2))):
        recipe = scaled_recipe(find_recipe(name), TRIO, vocabulary=N_VOCAB, folder=folder)
        (expert,) = recipe.experts.values()
        models = [Model.load(role.model, trusted=True) for role in (recipe.base, recipe.antiexpert, expert)]
        base, antiexpert, tuned = [llama_logits(model.path, tokens) for model in models]
        for alpha in alphas:
            for beta in (0.5, 1, 1.5):
                z = mix(base, [tuned], [antiexpert], [alpha], beta)
                assert (z[:, 4096:].max(axis=1) < z[:, :4096].max(axis=1) - 30).all()
        first, *others = [model.vocabulary for model in models]
        assert [compare(first, other).width for other in others] == [N_VOCAB] * 2
        assert not np.any(first.attributes()[4096:] & 2)  # llama.cpp's LLAMA_TOKEN_ATTR_UNUSED
        assert verbatim(first, "<extra_5000>")[0] < 4096
        with Model.load(DEMO["base"], trusted=True) as source:
            assert verbatim(first, TEXT) == verbatim(source.vocabulary, TEXT)
        for model in models:
            model.close()


def test_roles_keep_what_they_are_and_change_their_models(folder):
    recipe = Recipe.from_text(
        '[base]\nmodel = "demo:base"\nthreads = 1\n'
        '[experts.a]\nmodel = "demo:assistant"\nalpha = 0.3\n[experts.a.antiexpert]\nmodel = "demo:small"\n'
        '[experts.b]\nmodel = "demo:cautious"\n[antiexpert]\nmodel = "demo:small"\n'
        '[sampling]\ntemperature = 0.5\n[compare.c]\nmodel = "demo:base-tuned"\n'
    )
    scaled = scaled_recipe(recipe, TRIO, vocabulary=N_VOCAB, folder=folder)
    a = scaled.experts["a"]
    assert scaled.antiexpert is not None
    assert a.antiexpert is not None
    assert a.antiexpert.model == scaled.antiexpert.model  # one file, loaded once
    assert (scaled.base.overrides, a.alpha, a.prompt) == (recipe.base.overrides, 0.3, recipe.experts["a"].prompt)
    assert (scaled.sampling, scaled.compare, scaled.context) == (recipe.sampling, {}, recipe.context)
    layers = {name: key(role.model, "block_count") for name, role in scaled.named_roles()}
    assert layers == {"base": 5, "antiexpert": 6, "experts.a": 6, "experts.a.antiexpert": 6, "experts.b": 6}


def key(path, name):
    return GGUFReader(path).get_field(f"llama.{name}").contents()


def test_down_scaling_keeps_the_base_small(folder):
    scaled = scaled_recipe(find_recipe("demo-down"), TRIO, vocabulary=None, folder=folder)
    assert key(scaled.base.model, "embedding_length") == ALIKE.n_embd
    assert key(scaled.antiexpert.model, "embedding_length") == LONGER.n_embd


def test_a_named_shape_names_the_recipe(folder):
    scaled = scaled_recipe(find_recipe("demo"), "0.5b", vocabulary=None, folder=folder)
    assert scaled.name == "demo-0.5b"
    assert key(scaled.base.model, "block_count") == TRIOS["0.5b"].large.n_layer
    assert scaled_bytes(find_recipe("demo"), "0.5b", vocabulary=None) == sum(
        Model.load(role.model, trusted=True).size for _, role in scaled.named_roles()
    )


# Sizes


def test_shapes_have_the_real_models_parameters():
    """As their makers publish them; Qwen's 27,648 biases are left out."""

    def parameters(name, n_vocab, tied=False):
        return sum(prod(shape) for _, shape in replace(SHAPES[name], tied=tied).tensors(n_vocab))

    assert parameters("70b", 32_000) == 68_976_648_192
    assert parameters("7b", 32_000) == 6_738_415_616
    assert parameters("1b", 32_000) == 1_100_048_384
    assert parameters("0.5b", 151_936, tied=True) == 494_032_768 - 27_648
    assert parameters("0.1b", 49_152, tied=True) == 134_515_008


def test_a_7b_copy_has_the_shapes_size_and_takes_no_room(folder):
    copy = scaled_model(DEMO["base"], "7b", folder=folder, vocabulary=None)
    tensors = {tensor.name: list(tensor.shape[::-1]) for tensor in GGUFReader(copy).tensors}
    assert tensors == {name: list(shape) for name, shape in SHAPES["7b"].tensors(4096)}
    assert [key(copy, name) for name in ("attention.head_count", "attention.head_count_kv")] == [32, 32]
    status = copy.stat()
    assert status.st_size > 3.6e9
    if hasattr(status, "st_blocks"):
        assert status.st_blocks * 512 < 0.05e9


# Files


def test_a_copy_is_written_once(tmp_path):
    def copy(source, shape=ALIKE, **options):
        return scaled_model(source, shape, **({"vocabulary": None, "folder": tmp_path} | options))

    first = copy(DEMO["small"])
    written = first.stat().st_mtime_ns
    assert copy(DEMO["small"]) == first
    same = tmp_path / "small.gguf"
    same.write_bytes(DEMO["small"].read_bytes())
    assert copy(same) == first
    assert first.stat().st_mtime_ns == written
    same.write_bytes(DEMO["assistant"].read_bytes())
    others = [
        copy(same),
        copy(DEMO["small"], vocabulary=N_VOCAB),
        copy(DEMO["small"], vocabulary=N_VOCAB, padding=-30.0),
        copy(DEMO["small"], replace(ALIKE, n_layer=7)),
        copy(DEMO["small"], quantization="Q8_0"),
    ]
    assert len({first, *others}) == 6


def test_copies_are_kept_in_the_users_cache(home):
    assert unwidened(DEMO["small"]).is_relative_to(home / "cache" / "bench")


def test_a_copy_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    def fail(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(widening, "_put", fail)
    with pytest.raises(OutputError, match="No space left on device"):
        scaled_model(DEMO["small"], ALIKE, vocabulary=None, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(OutputError, match="cannot write"):
        unwidened(DEMO["small"], folder=file / "folder")


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": "7"}, 'shape "7" is unknown; the nearest one is "7b"'),
        ({"vocabulary": "150k"}, 'vocabulary "150k" is unknown; the nearest one is "152k"'),
        ({"quantization": "q4_0"}, 'quantization "q4_0" is unknown; the nearest one is "Q4_0"'),
        ({"vocabulary": 4000}, "4000 tokens are too few for .*base.gguf, which needs 4096"),
        ({"shape": replace(ALIKE, n_embd=256)}, "256 dimensions are too few for .*base.gguf, which needs 288"),
        ({"shape": replace(ALIKE, n_layer=3)}, "3 layers are too few"),
        (
            {"shape": replace(ALIKE, head=1024)},
            "heads of 1024 dimensions are too long for .*base.gguf, whose own have 64",
        ),
        ({"shape": replace(ALIKE, n_ff=512)}, "512 feed-forward dimensions are too few"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        scaled_model(DEMO["base"], **({"shape": ALIKE, "vocabulary": N_VOCAB, "folder": tmp_path} | options))
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_trio_is_refused():
    with pytest.raises(UsageError, match='shape "7" is unknown; the nearest one is "7b"'):
        scaled_recipe(find_recipe("demo"), "7")
    with pytest.raises(UsageError, match=r'shape "0\.1b" is unknown'):
        scaled_bytes(find_recipe("demo"), "0.1b")


def test_other_architectures_are_refused(ggufs, tmp_path):
    with pytest.raises(UnsupportedModelError, match="architecture mamba; only a llama"):
        scaled_model(ggufs / "mamba.gguf", ALIKE, folder=tmp_path)
    stretched = write_model(tmp_path / "stretched.gguf", ModelSpec(metadata={"llama.rope.scaling.type": "linear"}))
    with pytest.raises(UnsupportedModelError, match=r"no plain llama \(rope.scaling.type linear\)"):
        scaled_model(stretched, ALIKE, folder=tmp_path)
    with pytest.raises(ModelNotFoundError):
        unwidened(tmp_path / "none.gguf")
