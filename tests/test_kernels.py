"""Our matrix kernel: the bits of llama.cpp's, in its place, or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eft_local.bench.gguf_factory import ModelSpec, Shape, bpe, write_model
from eft_local.llama import Model, kernels
from eft_local.llama.kernels import Kernels, product, random_factors
from eft_local.protocols import Rows

LOADED = kernels.load()
pytestmark = pytest.mark.skipif(
    isinstance(LOADED, str), reason=f"{LOADED}; eft-local's kernels are for Linux on x86-64 CPUs with AVX2"
)


@pytest.fixture
def pair() -> Iterator[Kernels]:
    """Our kernel and llama.cpp's, as they are installed."""
    assert isinstance(LOADED, Kernels)
    theirs = LOADED.theirs
    LOADED.use(ours=True)
    yield LOADED
    LOADED.theirs = theirs
    LOADED.use(ours=True)


def expected(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The product from what the formats mean, in float64."""
    nibbles = weights["nibbles"].reshape(*weights.shape, 2, 8, 8)  # half of the bytes, column, byte
    signed = np.stack([nibbles & 15, nibbles >> 4], axis=2).astype(np.int8)  # low ones: weights 0 … 15, high: 16 … 31
    signed = np.where(signed > 7, signed - 16, signed)
    columns = signed.transpose(0, 4, 1, 2, 3, 5).reshape(8 * len(weights), weights.shape[1], 32)
    rows = values["bytes"].reshape(*values.shape, 4, 4, 8).transpose(0, 3, 1, 2, 4)
    rows = rows.reshape(4 * len(values), values.shape[1], 32)
    sums = np.einsum("rbk,cbk->rcb", rows.astype(np.int64), columns.astype(np.int64))
    of_rows = values["scale"].astype(np.float64).transpose(0, 2, 1).reshape(len(rows), -1)
    of_columns = weights["scale"].astype(np.float64).transpose(0, 2, 1).reshape(len(columns), -1)
    return np.einsum("rcb,rb,cb->rc", sums, of_rows, of_columns)


shapes = {
    "rows": st.integers(1, 9).map(lambda n: 4 * n),
    "columns": st.integers(1, 5).map(lambda n: 8 * n),
    "n": st.sampled_from([32, 64, 96, 4096, 4128, 8224]),
}


@settings(max_examples=40, deadline=None)
@given(**shapes, greatest=st.booleans())
def test_the_bits_are_llama_cpps(rows, columns, n, greatest):
    factors = random_factors(rows, columns, n, greatest=greatest)
    np.testing.assert_array_equal(product(LOADED.ours, *factors), product(LOADED.theirs, *factors))


@settings(max_examples=20, deadline=None)
@given(**shapes)
def test_they_are_the_product(rows, columns, n):
    factors = random_factors(rows, columns, n)
    exact = expected(*factors)
    np.testing.assert_allclose(product(LOADED.ours, *factors), exact, atol=1e-5 * np.abs(exact).max())


def test_the_greatest_sums_do_not_overflow():
    """All products of one half of a block as great as they get, and those of the other half as small."""
    weights, values = random_factors(4, 8, 32)
    for nibbles in (0x77, 0x88, 0x78, 0x87):
        for low, high in ((127, 127), (127, -127), (-127, 127), (-127, -127)):
            weights["nibbles"] = nibbles
            values["bytes"] = np.resize(np.repeat([low, high], 4), 128)  # the halves of eight bytes
            np.testing.assert_array_equal(
                product(LOADED.ours, weights, values), product(LOADED.theirs, weights, values)
            )


def test_a_kernel_that_differs_in_one_bit_is_not_used(pair, monkeypatch):
    own = pair.theirs

    def differs(n, s, bs, weights, values, rows, columns):
        own(n, s, bs, weights, values, rows, columns)
        first = np.ctypeslib.as_array((kernels.ctypes.c_uint32 * 1).from_address(s))
        first ^= 1

    assert pair.agree()
    pair.theirs = kernels._GEMM(differs)
    assert not pair.agree()
    monkeypatch.setattr(kernels, "load", lambda: pair)
    assert kernels.installed.__wrapped__() == "llama.cpp's own (eft-local's differ from them)"
    factors = random_factors(4, 8, 32)
    np.testing.assert_array_equal(product(pair.ours, *factors), product(pair.theirs, *factors))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Iterator[Model]:
    path = tmp_path_factory.mktemp("kernels") / "q4.gguf"
    write_model(path, ModelSpec(Shape(n_embd=64, n_ff=128), bpe(), seed=1, quantization="Q4_0"))
    with Model.load(path, mmap=False) as opened:
        yield opened


def test_llama_cpp_calls_it(pair, model):
    """Under its own function's name stands ours, which hands over to what is asked from no rows on: a spy."""
    asked = []
    own = pair.theirs

    def spy(n, s, bs, weights, values, rows, columns):
        asked.append(rows)
        own(n, s, bs, weights, values, rows, columns)

    pair.theirs = kernels._GEMM(spy)
    with model.open(n_ctx=32, n_outputs=12, n_threads=1) as context:
        logits = {}
        for ours in (True, False):
            pair.use(ours=ours)
            assert not asked
            context.submit([Rows(0, list(range(5, 17)), outputs=12)])
            logits[ours] = context.logits().copy()
            context.rewind(0, 0)
    assert set(asked) == {12}
    np.testing.assert_array_equal(logits[True], logits[False])


def answering(code: str, **environment: str) -> str:
    code = f"{code}\nfrom eft_local.llama import kernels\nprint(kernels.installed())"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env=os.environ | environment,
    )
    return ran.stdout.strip()


def test_who_answers_is_told():
    assert answering("", EFT_KERNELS="") == kernels.OURS
    assert answering("", EFT_KERNELS="off") == "llama.cpp's own (EFT_KERNELS=off)"
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
