"""Our matrix kernels: every row gets the bits that llama.cpp gives it alone, or they are not used at all."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eft_local.backends.base import ContextOptions, Rows
from eft_local.backends.llamacpp import Model, kernels
from eft_local.backends.llamacpp.kernels import KINDS, Kernels, one_by_one, product, products, random_factors
from eft_local.backends.llamacpp.kernels.products import WEIGHTS
from eft_local.bench.gguf_zeros import Shape
from eft_local.bench.studies.gguf_factory import ModelSpec, bpe, write_model

LOADED = kernels.load()
pytestmark = pytest.mark.skipif(
    isinstance(LOADED, str), reason=f"{LOADED}; eft-local's kernels are for Linux on x86-64 CPUs with AVX2"
)


@pytest.fixture
def pair() -> Iterator[Kernels]:
    """Our kernels and llama.cpp's, as they are installed."""
    assert isinstance(LOADED, Kernels)
    theirs = dict(LOADED.theirs)
    yield LOADED
    LOADED.theirs = theirs
    for kind in KINDS:
        LOADED.use(kind, ours=True)


def expected(kind: str, weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The product from what the formats mean, in float64."""
    blocks, size = weights.shape[1], KINDS[kind].block
    if kind == "Q4_0":
        bytes_of_columns = weights["nibbles"].reshape(-1, blocks, 1, 2, 8, 8)  # …, first or last bytes, column, byte
    else:
        bytes_of_columns = weights["nibbles"].reshape(-1, blocks, 4, 4, 8, 8)
    nibbles = np.stack([bytes_of_columns & 15, bytes_of_columns >> 4], axis=3).astype(np.int64)
    columns = np.moveaxis(nibbles, 5, 1).reshape(8 * len(weights), blocks, size)
    rows = np.moveaxis(values["bytes"], 3, 1).reshape(4 * len(values), blocks, size).astype(np.int64)

    def scales(array: np.ndarray) -> np.ndarray:
        return np.moveaxis(array.astype(np.float64), 2, 1).reshape(-1, blocks, 1)

    if kind == "Q4_0":  # signed
        weighed = scales(weights["scale"]) * np.where(columns > 7, columns - 16, columns)
    else:
        parts = np.moveaxis(np.apply_along_axis(six_bits, 3, weights["parts"].reshape(-1, blocks, 8, 12)), 4, 1)
        parts = parts.reshape(8 * len(weights), blocks, 8, 2).repeat(32, axis=2)
        weighed = scales(weights["scale"]) * parts[..., 0] * columns - scales(weights["least"]) * parts[..., 1]
    return np.einsum("rbk,cbk->rc", scales(values["scale"]) * rows, weighed)


def six_bits(twelve: np.ndarray) -> np.ndarray:
    """Scale and minimum of a part, [2, column], of ggml's twelve bytes for eight columns."""
    first, last, both = twelve[:4].astype(int), twelve[4:8].astype(int), twelve[8:].astype(int)
    scales = [*(first & 63), *((both & 15) | (first >> 6) << 4)]
    return np.array([scales, [*(last & 63), *(both >> 4 | (last >> 6) << 4)]])


shapes = {
    "kind": st.sampled_from(list(KINDS)),
    "rows": st.integers(1, 9).map(lambda n: 4 * n),
    "columns": st.integers(1, 5).map(lambda n: 8 * n),
    "blocks": st.sampled_from([1, 2, 3, 17, 33]),
}


@settings(max_examples=40, deadline=None)
@given(**shapes, of_32=st.sampled_from([1, 3, 4, 8]), greatest=st.booleans())
def test_every_row_has_the_bits_of_llama_cpps_kernel_for_one_row(kind, rows, columns, blocks, of_32, greatest):
    n = 32 * of_32 * blocks if kind == "Q4_0" else 256 * blocks
    factors = random_factors(kind, rows, columns, n, greatest=greatest)
    np.testing.assert_array_equal(
        product(kind, LOADED.ours[kind], *factors), one_by_one(kind, LOADED.one[kind], *factors)
    )


@settings(max_examples=20, deadline=None)
@given(**shapes)
def test_they_are_the_product(kind, rows, columns, blocks):
    factors = random_factors(kind, rows, columns, blocks * KINDS[kind].block)
    exact = expected(kind, *factors)
    np.testing.assert_allclose(product(kind, LOADED.ours[kind], *factors), exact, atol=1e-4 * np.abs(exact).max())


def test_the_greatest_sums_do_not_overflow():
    """All products of one half of a block as great as they get, and those of the other half as small."""
    weights, values = random_factors("Q4_0", 4, 8, 32)
    for nibbles in (0x77, 0x88, 0x78, 0x87):
        for low, high in ((127, 127), (127, -127), (-127, 127), (-128, -128)):
            weights["nibbles"] = nibbles
            values["bytes"] = np.resize(np.repeat([low, high], 4), 8)  # the halves of eight bytes
            ours, theirs = (product("Q4_0", each["Q4_0"], weights, values) for each in (LOADED.ours, LOADED.theirs))
            np.testing.assert_array_equal(ours, theirs)


def test_rows_longer_than_ours_go_to_llama_cpp():
    factors = random_factors("Q4_K", 4, 8, 257 * 256)
    ours, theirs = (product("Q4_K", each["Q4_K"], *factors) for each in (LOADED.ours, LOADED.theirs))
    np.testing.assert_array_equal(ours, theirs)


def test_a_kernel_that_differs_in_one_bit_is_not_used(pair, monkeypatch):
    own = pair.one["Q4_K"]

    def differs(n, s, bs, weights, values, rows, columns):
        own(n, s, bs, weights, values, rows, columns)
        ctypes.c_uint32.from_address(s).value ^= 1

    assert all(pair.agree(kind) for kind in KINDS)
    monkeypatch.setitem(pair.one, "Q4_K", kernels.GEMM(differs))
    assert not pair.agree("Q4_K")
    monkeypatch.setattr(kernels, "load", lambda: pair)
    assert kernels.installed.__wrapped__().startswith("eft-local's own for Q4_0, F16")
    factors = random_factors("Q4_K", 4, 8, 256)
    answer = product("Q4_K", pair.ours["Q4_K"], *factors)
    np.testing.assert_array_equal(answer, product("Q4_K", pair.theirs["Q4_K"], *factors))


# ------------------------------------------------------------------------------------------------- products.c


def decoded(name: str, weights: np.ndarray) -> np.ndarray:
    """The weights as numbers, by the gguf package, which does without llama.cpp."""
    if name == "F32":
        return weights.view(np.float32)
    return gguf.quants.dequantize(weights, gguf.GGMLQuantizationType[name])


@pytest.mark.parametrize("name", WEIGHTS)
@settings(max_examples=8, deadline=None)
@given(columns=st.integers(1, 70), rows=st.integers(2, 70), blocks=st.integers(1, 4))
def test_rows_get_together_what_they_get_alone(name, columns, rows, blocks):
    assert LOADED.products.exact(name, columns, rows, 256 * blocks)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize(("columns", "rows", "blocks"), [(8, 1, 1), (11, 3, 2), (36, 37, 3)])
def test_several_rows_are_the_product(name, columns, rows, blocks):
    """To the precision of rows that are quantised by the block: 8 bits, of which a product has many."""
    weights, values = products.random_factors(name, columns, rows, 256 * blocks)
    exact = values.astype(np.float64) @ decoded(name, weights).astype(np.float64).T
    scale = np.abs(values) @ np.abs(decoded(name, weights)).T
    np.testing.assert_array_less(np.abs(LOADED.products.product(name, weights, values) - exact), 0.006 * scale + 1e-6)


def test_llama_cpp_alone_is_not_exact():
    """What all this is for; and that the switch switches."""
    try:
        LOADED.products.use(exact=False)
        assert not LOADED.products.exact("F16", 36, 37, 768)
        assert not LOADED.products.exact("Q6_K", 36, 37, 768)
    finally:
        LOADED.products.use(exact=True)
    assert LOADED.products.exact("F16", 36, 37, 768)
    assert LOADED.products.exact("Q6_K", 36, 37, 768)


def test_a_way_that_is_not_exact_is_not_taken(monkeypatch):
    """Rows are then computed one after the other, and said to be."""
    own = products.Products.exact

    def exact(self, name, *sizes):
        return name != "Q6_K" and own(self, name, *sizes)

    monkeypatch.setattr(products.Products, "exact", exact)
    assert LOADED.products._exact_way("Q6_K") == 0
    assert LOADED.products._exact_way("Q5_K") == 1
    LOADED.products.use(exact=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Iterator[Model]:
    path = tmp_path_factory.mktemp("kernels") / "q4.gguf"
    write_model(path, ModelSpec(Shape(n_embd=64, n_ff=128), bpe(), seed=1, quantization="Q4_0"))
    with Model.load(path, mmap=False) as opened:
        yield opened


def test_llama_cpp_calls_it(pair, model):
    """Under its own function's name stands ours, which hands over to what is asked from no rows on: a spy."""
    requested = []
    own = pair.theirs["Q4_0"]

    def spy(n, s, bs, weights, values, rows, columns):
        requested.append(rows)
        own(n, s, bs, weights, values, rows, columns)

    pair.theirs["Q4_0"] = kernels.GEMM(spy)
    with model.open(ContextOptions(n_ctx=32, n_outputs=12, n_threads=1)) as context:
        logits = {}
        for ours in (True, False):
            pair.use("Q4_0", ours=ours)
            assert not requested
            context.submit([Rows(0, list(range(5, 17)), outputs=12)])
            logits[ours] = context.logits().copy()
            context.rewind(0, 0)
    assert set(requested) == {12}
    np.testing.assert_array_equal(logits[True], logits[False])


def answering(code: str, **environment: str) -> str:
    code = f"{code}\nfrom eft_local.backends.llamacpp import kernels\nprint(kernels.installed())"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env=os.environ | environment,
    )
    return ran.stdout.strip()


def test_who_answers_is_reported():
    assert answering("", EFT_KERNELS="").startswith("eft-local's own for Q4_0, Q4_K")
    assert answering("", EFT_KERNELS="off") == "llama.cpp's own (EFT_KERNELS=off)"
    # Hidden from llama.cpp's library, ours are as if that had been linked to its own functions.
    hidden = answering("import ctypes; ctypes.RTLD_GLOBAL = ctypes.RTLD_LOCAL", EFT_KERNELS="")
    assert hidden == "llama.cpp's own (its library does not call eft-local's)"
    assert answering("import llama_cpp", EFT_KERNELS="") == "llama.cpp's own (llama_cpp was imported before eft_local)"


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("importlib.util.find_spec", "others are not compiled for this machine"),
        ("pathlib.Path.is_file", "its library is not where it was expected"),
    ],
)
def test_without_kernels_llama_cpp_answers_as_ever(monkeypatch, broken, reason):
    monkeypatch.delitem(sys.modules, "llama_cpp")
    monkeypatch.setattr(broken, lambda *arguments: None)
    assert kernels.load.__wrapped__() == reason
