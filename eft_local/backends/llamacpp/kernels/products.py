"""Matrix products whose results do not depend on how many rows are evaluated at once, in the place of llama.cpp's.

`products.c` is compiled with the package where it can be. Its functions have the names of llama.cpp's kernels for
several rows: loaded first, they are what llama.cpp's library finds. For each type of weights it is tried in each
process which way of computing several rows gives each the bits that it gets alone; where none does, products are
computed row by row, which is as exact, and slower.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from eft_local.backends.llamacpp.kernels.ggml import F32, Ggml

_TYPES = 64
_ROW_BY_ROW, _SEVERAL_HERE, _THEIRS, _ONE_HERE_8, _ONE_HERE_16 = range(5)  # as in products.c
_CALLED = 4  # the bit of `eft_kernels_called`
_FUNCTIONS = ("llamafile_sgemm", "ggml_compute_forward_mul_mat_tiled", "ggml_compute_forward_mul_mat_id_tiled")
_TRIED = ((24, 2, 256), (20, 9, 512), (36, 37, 768))
"""Columns, rows, and numbers in each, of the products that are tried."""


@dataclass(frozen=True)
class Weights:
    """How ggml keeps weights of one type, and how products with several rows may be computed.

    ggml: the type's number there.  block: weights in a block.  bytes: that it takes.  scales: where they are, in F16.
    ways: of products.c, the fastest first; if none is exact, row by row.
    """

    ggml: int
    block: int
    bytes: int
    scales: tuple[int, ...]
    ways: tuple[int, ...]


WEIGHTS: Mapping[str, Weights] = {
    "F32": Weights(0, 1, 4, (), ()),
    "F16": Weights(1, 1, 2, (), (_ONE_HERE_16, _ONE_HERE_8)),
    "BF16": Weights(30, 1, 2, (), (_ONE_HERE_16, _ONE_HERE_8)),
    "Q4_0": Weights(2, 32, 18, (0,), (_THEIRS,)),
    "Q5_0": Weights(6, 32, 22, (0,), (_THEIRS,)),
    "Q8_0": Weights(8, 32, 34, (0,), (_THEIRS,)),
    "IQ4_NL": Weights(20, 32, 18, (0,), (_THEIRS,)),
    "Q2_K": Weights(10, 256, 84, (80, 82), (_SEVERAL_HERE,)),
    "Q3_K": Weights(11, 256, 110, (108,), (_SEVERAL_HERE,)),
    "Q4_K": Weights(12, 256, 144, (0, 2), (_SEVERAL_HERE,)),
    "Q5_K": Weights(13, 256, 176, (0, 2), (_SEVERAL_HERE,)),
    "Q6_K": Weights(14, 256, 210, (208,), (_SEVERAL_HERE,)),
    "IQ4_XS": Weights(23, 256, 136, (0,), (_SEVERAL_HERE,)),
}
"""Types of weights for which llama.cpp has kernels for several rows.

F32 has no way of ours: whether llama.cpp calls its kernel for several rows depends on how the values lie in memory.
"""


class Products:
    """How products with several rows are computed, by type of weights."""

    def __init__(self, compiled: ctypes.CDLL, ggml: Ggml) -> None:
        """compiled: ours, loaded for all to see before llama.cpp's."""
        self._compiled, self._ggml = compiled, ggml
        self._compiled.eft_products_begin(
            *(ctypes.cast(getattr(ggml.library, name), ctypes.c_void_p) for name in _FUNCTIONS)
        )
        compiled.eft_kernels_called()
        self._exact = {name: self._exact_way(name) for name in WEIGHTS}
        self._called = bool(compiled.eft_kernels_called() & _CALLED)
        self.use(exact=True)

    @property
    def ours(self) -> tuple[str, ...]:
        """Types of weights whose products are computed by functions of ours, if with one row only."""
        if not self._called:
            return ()
        return tuple(name for name, way in self._exact.items() if way not in (_ROW_BY_ROW, _THEIRS))

    @property
    def row_by_row(self) -> tuple[str, ...]:
        """Types of weights for which exactness has a price: several rows are computed one after the other."""
        return tuple(name for name, way in self._exact.items() if way == _ROW_BY_ROW) if self._called else ()

    def use(self, *, exact: bool) -> None:
        """Compute several rows so that each gets what it gets alone, or as llama.cpp does. Not during an evaluation."""
        self._set(self._exact if exact else dict.fromkeys(WEIGHTS, _THEIRS), tiled=not exact)

    def _exact_way(self, name: str) -> int:
        for way in WEIGHTS[name].ways:
            if way == _ONE_HERE_16 and not self._compiled.eft_products_sixteen_lanes():
                continue
            self._set({name: way}, tiled=False)
            if all(self.exact(name, *sizes) for sizes in _TRIED):
                return way
        return _ROW_BY_ROW

    def _set(self, ways: Mapping[str, int], *, tiled: bool) -> None:
        numbers = {WEIGHTS[name].ggml: way for name, way in ways.items()}
        # Types that are not listed are computed row by row: llama.cpp has no other way for them, but for its tiled one.
        self._compiled.eft_products_use(bytes(numbers.get(number, 0) for number in range(_TYPES)), ctypes.c_bool(tiled))

    def exact(self, name: str, columns: int, rows: int, length: int) -> bool:
        """Whether random rows with random weights give the same bits together, in twos, and alone."""
        weights, values = random_factors(name, columns, rows, length)
        together = self.product(name, weights, values)
        alone = np.concatenate([self.product(name, weights, values[i : i + 1]) for i in range(rows)])
        in_twos = np.concatenate([self.product(name, weights, values[i : i + 2]) for i in range(0, rows, 2)])
        return np.array_equal(together, alone) and np.array_equal(together, in_twos)

    def product(self, name: str, weights: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Return float32 [rows, columns], computed by ggml, of weights and values as from `random_factors`."""
        rows, length = values.shape
        with self._ggml.graph() as graph:
            left = graph.tensor(WEIGHTS[name].ggml, (length, len(weights)), weights)
            right = graph.tensor(F32, (length, rows), values)
            return graph.compute(graph.operation("ggml_mul_mat", left, right), (rows, len(weights)))


def random_factors(name: str, columns: int, rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return weights as ggml keeps them, uint8 [columns, bytes], and values, float32 [rows, length]."""
    form = WEIGHTS[name]
    values = noise(f"values {rows} {length}", rows * length).astype(np.float32).reshape(rows, length) / 128
    blocks = length // form.block
    if form.block == 1:
        floats = noise(f"{name} {columns} {length}", columns * length).astype(np.float32).reshape(columns, length) / 100
        if name == "BF16":
            return (floats.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8), values
        return floats.astype(np.float16 if name == "F16" else np.float32).view(np.uint8), values
    weights = noise(f"{name} {columns} {length}", columns * blocks * form.bytes).view(np.uint8)
    weights = weights.reshape(columns, blocks, form.bytes).copy()
    for place in form.scales:
        scales = (weights[..., place : place + 1].astype(np.float32) + 1) / 1000
        weights[..., place : place + 2] = scales.astype(np.float16).view(np.uint8)
    return weights.reshape(columns, -1), values


def noise(seed: str, count: int) -> np.ndarray:
    """Return so many signed bytes; NumPy's generators would take 7 MB of every process."""
    return np.frombuffer(hashlib.shake_128(seed.encode()).digest(count), np.int8)
