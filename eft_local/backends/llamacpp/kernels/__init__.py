"""Matrix kernels in the place of llama.cpp's own: what several rows cost on an x86-64 CPU, and that they stay exact.

`kernels.c` (interleaved weights: Q4_0, Q4_K), `products.c` (all others) and `attention.c` are compiled with the package
where they can be. Their functions have the names of llama.cpp's: loaded first, they are what llama.cpp's library finds.
They must give every row the bits that llama.cpp gives it alone, and that is tried in each process before they may
answer; otherwise, and with EFT_KERNELS=off, llama.cpp's own do.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from eft_local.backends.llamacpp.kernels import products
from eft_local.backends.llamacpp.kernels.attention import OURS, Attention, suits
from eft_local.backends.llamacpp.kernels.ggml import F32, Ggml
from eft_local.backends.llamacpp.kernels.products import WEIGHTS, Products

GEMM = ctypes.CFUNCTYPE(
    None,
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_int,
    ctypes.c_int,
)
"""The type of a kernel: n, s, bs, weights, rows, nr, nc; see kernels.c."""

_NEWEST = "eft_kernels_called"  # a function that older sources do not have
_NEVER = 2**31 - 1
_VNNI_ROWS = 16
"""From so many rows on llama.cpp's kernels for AVX512-VNNI unpack weights once for all of them, as ours do."""


@dataclass(frozen=True)
class Kind:
    """A type of weights, and how llama.cpp keeps eight columns of its blocks, and four rows of values for them.

    name: of the kernel.  one: of llama.cpp's for one row.  block: weights in a block of one column.
    greatest: two nibbles that weigh most.
    """

    name: str
    one: str
    block: int
    greatest: int
    weights: np.dtype[np.void]
    values: np.dtype[np.void]


KINDS: Mapping[str, Kind] = {
    "Q4_0": Kind(
        "ggml_gemm_q4_0_8x8_q8_0",
        "ggml_gemv_q4_0_8x8_q8_0",
        32,
        0x77,
        np.dtype([("scale", "<f2", 8), ("nibbles", "u1", 128)]),
        np.dtype([("scale", "<f2", 4), ("bytes", "i1", (4, 4, 8))]),
    ),
    "Q4_K": Kind(
        "ggml_gemm_q4_K_8x8_q8_K",
        "ggml_gemv_q4_K_8x8_q8_K",
        256,
        0xFF,
        np.dtype([("scale", "<f2", 8), ("least", "<f2", 8), ("parts", "u1", 96), ("nibbles", "u1", 1024)]),
        np.dtype([("scale", "<f4", 4), ("bytes", "i1", (32, 4, 8)), ("sums", "<i2", (4, 4, 4))]),
    ),
}
"""The order is that of kernels.c."""


class Kernels:
    """Our kernels and llama.cpp's own, by kind: functions of the same arguments.

    one: llama.cpp's functions for one row, whose bits all should have.  products: those of other types of weights.
    attention: flash attention.
    """

    def __init__(self, compiled: ctypes.CDLL, folder: Path) -> None:
        """folder: of llama.cpp's libraries; for a kind that they have no kernel for there are none."""
        self._compiled, self._ggml = compiled, Ggml(folder)
        library = self._ggml.library
        common = {kind: each for kind, each in KINDS.items() if hasattr(library, each.name)}
        self.ours = {kind: ctypes.cast(getattr(compiled, each.name), GEMM) for kind, each in common.items()}
        self.theirs = {kind: ctypes.cast(getattr(library, each.name), GEMM) for kind, each in common.items()}
        self.one = {kind: ctypes.cast(getattr(library, each.one), GEMM) for kind, each in common.items()}
        self.products = Products(compiled, self._ggml)
        self.attention = Attention(compiled, self._ggml)

    def use_exact(self, exact: bool) -> None:
        """Give every row the bits that it gets alone, or leave several rows to llama.cpp. Not during an evaluation."""
        self.products.use(exact=exact)
        self.attention.use(exact=exact)

    def use(self, kind: str, *, ours: bool) -> None:
        """Let our kernel answer from now on, or llama.cpp's. Not while a model is evaluated."""
        theirs_from = 0
        if ours:
            many_by_them = self._compiled.eft_kernels_vnni() and self.agree(kind, self.theirs[kind])
            theirs_from = _VNNI_ROWS if many_by_them else _NEVER
        self._ask(kind, theirs_from)

    def agree(self, kind: str, gemm: Any = None) -> bool:
        """Whether our kernel, or another, gives the bits of one row to any number, with the greatest values too."""
        self._ask(kind, _NEVER)
        tried = [random_factors(kind, rows, 8, 512) for rows in (4, 8, 12, 16)]
        tried += [random_factors(kind, 20, 16, 4352), random_factors(kind, 4, 8, 256, greatest=True)]
        return all(
            np.array_equal(product(kind, gemm or self.ours[kind], *factors), one_by_one(kind, self.one[kind], *factors))
            for factors in tried
        )

    def called(self, kind: str) -> bool:
        """Whether llama.cpp's library finds our kernel: that depends on how it was linked."""
        weights, values = products.random_factors(kind, 16, 8, 512)
        number, bit = WEIGHTS[kind].ggml, 1 << list(KINDS).index(kind)
        with self._ggml.interleaved(number, (512, 16), weights) as left, self._ggml.graph() as graph:
            if left is None:
                return False
            self._compiled.eft_kernels_called()
            graph.compute(graph.operation("ggml_mul_mat", left, graph.tensor(F32, (512, 8), values)), (8, 16))
            return bool(self._compiled.eft_kernels_called() & bit)

    def _ask(self, kind: str, theirs_from: int) -> None:
        self._compiled.eft_kernels_use(list(KINDS).index(kind), self.theirs[kind], theirs_from)


@cache
def installed() -> str:
    """Put the kernels into the place of llama.cpp's, once, before it is loaded; return for what, or why not."""
    kernels = load()
    if isinstance(kernels, str):
        return f"llama.cpp's own ({kernels})"
    agreed = [kind for kind in kernels.ours if kernels.agree(kind)]
    for kind in kernels.ours:
        kernels.use(kind, ours=kind in agreed)
    called = [kind for kind in agreed if kernels.called(kind)]
    called += [kind for kind in kernels.products.ours if kind not in called]
    if kernels.attention.exact == OURS:
        called.append("attention")
    if not called:
        why = "its library does not call eft-local's" if agreed else "eft-local's differ from them"
        return f"llama.cpp's own ({why})"
    return f"eft-local's own for {' and '.join(filter(None, (', '.join(called[:-1]), called[-1])))}"


def use_exact(exact: bool) -> None:
    """Give every row the bits that it gets alone (the beginning), or leave several rows to llama.cpp.

    For the whole process, and not while a model is evaluated. Without kernels of ours llama.cpp's answer anyway.
    """
    kernels = load()
    if not isinstance(kernels, str):
        kernels.use_exact(exact)


def attends(widths: Collection[int]) -> bool:
    """Whether flash attention is computed by ours, with a cache in F16 and heads of so many numbers."""
    kernels = load()
    return not isinstance(kernels, str) and kernels.attention.exact == OURS and all(map(suits, widths))


def row_by_row() -> tuple[str, ...]:
    """Types of weights of which several rows are computed one after the other, to be exact: that has a price."""
    kernels = load()
    return () if isinstance(kernels, str) else kernels.products.row_by_row


@cache
def load() -> Kernels | str:
    """Load the kernels before llama.cpp; return why not where that is not possible."""
    if os.environ.get("EFT_KERNELS", "").lower() == "off":
        return "EFT_KERNELS=off"
    ours, theirs = (
        importlib.util.find_spec("eft_local.backends.llamacpp.kernels._kernels"),
        importlib.util.find_spec("llama_cpp"),
    )
    if not sys.platform.startswith("linux") or ours is None or ours.origin is None:
        return "others are not compiled for this machine"
    folder = Path(theirs.origin or "").parent / "lib" if theirs else Path()
    if "llama_cpp" in sys.modules:
        return "llama_cpp was imported before eft_local"
    if not (folder / "libggml-cpu.so").is_file():
        return "its library is not where it was expected"
    try:
        compiled = ctypes.CDLL(ours.origin)
        if not hasattr(compiled, _NEWEST):
            return "ours were compiled from older sources; install eft-local again"
        if not compiled.eft_kernels_supported():
            return "this CPU has no AVX2"
        return Kernels(ctypes.CDLL(ours.origin, mode=ctypes.RTLD_GLOBAL), folder)
    except (OSError, AttributeError) as error:  # a function that is not there: another llama.cpp
        return " ".join(str(error).split())


def random_factors(
    kind: str, rows: int, columns: int, n: int, *, greatest: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return so many columns of n weights and rows of n values, as llama.cpp keeps them.

    greatest: nibbles and bytes are all those that make the greatest sums.
    """
    weights = np.empty((columns // 8, n // KINDS[kind].block), KINDS[kind].weights)
    values = np.empty((rows // 4, n // KINDS[kind].block), KINDS[kind].values)
    for array in (weights, values):
        for name in array.dtype.names or ():
            noise = _noise(f"{kind} {rows} {columns} {n} {name}", array[name].size).reshape(array[name].shape)
            array[name] = noise / 100 if array[name].dtype.kind == "f" else noise.astype(array[name].dtype)
    values["bytes"] = np.maximum(values["bytes"], -127)  # as rows are quantised
    if greatest:
        weights["nibbles"] = KINDS[kind].greatest
        values["bytes"] = 127
    if "sums" in (values.dtype.names or ()):
        values["sums"] = _sums(values["bytes"])
    return weights, values


def _noise(seed: str, count: int) -> np.ndarray:
    """Return so many signed bytes; NumPy's generators would take 7 MB of every process."""
    return np.frombuffer(hashlib.shake_128(seed.encode()).digest(count), np.int8)


def _sums(values: np.ndarray) -> np.ndarray:
    """Return the sums of sixteen bytes: [rows / 4, blocks, 4, row, 4]."""
    sixteens: np.ndarray = values.reshape(*values.shape[:2], 4, 4, 2, 4, 8).sum(axis=(4, 6), dtype=np.int16)
    return sixteens.swapaxes(3, 4)


def product(kind: str, gemm: Any, weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return float32 [rows, columns] of factors as `random_factors` returns them."""
    result = np.zeros((4 * len(values), 8 * len(weights)), np.float32)
    rows, columns = result.shape
    n = KINDS[kind].block * weights.shape[1]
    gemm(n, result.ctypes.data, columns, weights.ctypes.data, values.ctypes.data, rows, columns)
    return result


def one_by_one(kind: str, one: Any, weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the same product, made by a function for one row."""
    result = np.zeros((4 * len(values), 8 * len(weights)), np.float32)
    n = KINDS[kind].block * weights.shape[1]
    for row, content in zip(result, rows_of(kind, values), strict=True):
        one(n, row.ctypes.data, row.size, weights.ctypes.data, content.ctypes.data, 1, row.size)
    return result


def rows_of(kind: str, values: np.ndarray) -> np.ndarray:
    """Return interleaved rows one after the other, [rows, blocks]: as block_q8_0 and block_q8_K are."""
    fours = KINDS[kind].values
    names = fours.names or ()
    sums = [("sums", "<i2", 16)] if "sums" in names else []
    form = np.dtype([("scale", fours["scale"].base), ("bytes", "i1", KINDS[kind].block), *sums])
    rows = np.empty((len(values), 4, values.shape[1]), form)
    for row in range(4):
        rows["scale"][:, row] = values["scale"][..., row]
        for name in names[1:]:
            rows[name][:, row] = values[name][:, :, :, row].reshape(rows[name][:, row].shape)
    return rows.reshape(4 * len(values), -1)
