"""llama.cpp through `eft_local.backends.llamacpp` against NumPy: one model, and the mixture of three."""

from __future__ import annotations

import numpy as np
import pytest

from eft_local.backends.base import ContextOptions, Rows
from eft_local.backends.llamacpp import Model
from eft_local.bench.gguf_zeros import Shape
from eft_local.bench.studies.gguf_factory import ModelSpec, bpe, write_model
from eft_local.engine.mix import mix
from tests.helpers.reference_llama import ReferenceLlama

N_SEQUENCES, LENGTH = 9, 250  # 2,250 positions

SMALL = Shape(n_embd=32, n_layer=2, n_head=4, n_head_kv=2, n_ff=64)
SPECS = {
    "base": ModelSpec(shape=Shape(n_embd=64, n_layer=3, n_head=8, n_head_kv=2, n_ff=160, rope_base=50000.0), seed=1),
    "antiexpert": ModelSpec(shape=SMALL, seed=2),
    "expert": ModelSpec(shape=SMALL, seed=3),
    "tied": ModelSpec(shape=Shape(n_head=2, n_head_kv=2, tied=True), tokens=bpe().padded(5), seed=4),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {name: write_model(folder / f"{name}.gguf", spec) for name, spec in SPECS.items()}


@pytest.fixture(scope="module")
def prompts():
    """Return different token sequences per role, as roles have different prompts."""
    n_tokens = len(bpe().texts)
    return np.random.default_rng(0).integers(0, n_tokens, (3, N_SEQUENCES, LENGTH)).tolist()


def llama_logits(path, sequences, **options):
    """Logits at every position, all sequences in one context; exact unless options say otherwise."""
    options = {"kv_type": "f32", "flash_attention": False} | options  # the flash kernel rounds to float16
    room = {"n_ctx": len(sequences) * LENGTH, "n_seq": len(sequences), "n_outputs": LENGTH, "n_threads": 1}
    with Model.load(path) as model, model.open(ContextOptions(**room, **options)) as context:
        rows = []
        for sequence, tokens in enumerate(sequences):
            context.submit([Rows(sequence, tokens, outputs=len(tokens))])
            rows.append(context.logits().copy())
    return np.concatenate(rows)


def reference_logits(path, sequences):
    reference = ReferenceLlama(path)
    return np.concatenate([reference.logits(tokens) for tokens in sequences])


def assert_agree(logits, expected, tolerance=1e-3):
    assert logits.shape == expected.shape
    assert len(expected) >= 2000
    assert expected.std() > 1  # logits that differ, so that agreement means something
    assert np.abs(logits - expected).max() <= tolerance
    assert (logits.argmax(axis=-1) == expected.argmax(axis=-1)).mean() >= 0.999


@pytest.mark.parametrize("name", SPECS)
def test_logits_of_one_model(files, prompts, name):
    assert_agree(llama_logits(files[name], prompts[0]), reference_logits(files[name], prompts[0]))


def test_logits_with_the_settings_that_recipes_have_by_default(files, prompts):
    logits = llama_logits(files["base"], prompts[0], kv_type="f16", flash_attention=False)
    assert_agree(logits, reference_logits(files["base"], prompts[0]), tolerance=1e-2)


def test_logits_with_flash_attention(files, prompts):
    """Its way that is the same for any number of rows adds values up in F16, as llama.cpp does for one row."""
    logits = llama_logits(files["base"], prompts[0], kv_type="f16", flash_attention=True)
    assert np.abs(logits - reference_logits(files["base"], prompts[0])).max() <= 3e-2


def test_logits_of_the_mixture(files, prompts):
    roles = dict(zip(("base", "expert", "antiexpert"), prompts, strict=True))
    alpha, beta = 0.7, 1.3
    ours = {role: llama_logits(files[role], tokens) for role, tokens in roles.items()}
    mixed = mix(ours["base"], [ours["expert"]], [ours["antiexpert"]], [alpha], beta=beta)
    base, expert, antiexpert = (
        reference_logits(files[role], tokens).astype(np.float64) for role, tokens in roles.items()
    )
    assert_agree(mixed, antiexpert + beta * (base - antiexpert) + alpha * (expert - antiexpert))


def test_the_reference_sees_no_later_position(files, prompts):
    reference = ReferenceLlama(files["base"])
    tokens = prompts[0][0][:20]
    changed = [*tokens[:10], *reversed(tokens[10:])]
    np.testing.assert_array_equal(reference.logits(tokens)[:10], reference.logits(changed)[:10])
