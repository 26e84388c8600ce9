"""Flash attention whose rows have the bits that they have alone, in the place of llama.cpp's: see attention.c.

It is tried in each process before it may answer; where it is not what it should be, llama.cpp's reference
implementation answers, which is as exact and slower.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod

import numpy as np

from eft_local.backends.llamacpp.kernels.ggml import F16, F32, Ggml
from eft_local.backends.llamacpp.kernels.products import noise

THEIRS, REFERENCE, OURS = range(3)  # as in attention.c
_WIDEST = 256
_CALLED = 8  # the bit of `eft_kernels_called`
_NEAR = 1e-2
"""What ours may be off, of values within ± 1; llama.cpp adds up in F16."""


def suits(width: int) -> bool:
    """Whether ours computes heads of so many numbers."""
    return width % 8 == 0 and 0 < width <= _WIDEST


@dataclass(frozen=True)
class Case:
    """What is attended to: heads of `width` numbers; each row may look at the cells up to its own, the last at all.

    bias: of ALiBi at most.  softcap: of scores, 0 for none.  sinks: whether heads have a sink.
    """

    width: int
    heads: int
    kv_heads: int
    rows: int
    cells: int
    bias: float = 0.0
    softcap: float = 0.0
    sinks: bool = False
    window: int = 0
    scale: float = field(default=4.0, repr=False)

    @property
    def queries(self) -> np.ndarray:
        """float32 [heads, rows, width]."""
        return self._noise("queries", self.heads, self.rows, self.width)

    @property
    def keys(self) -> np.ndarray:
        """float16 [kv_heads, cells, width]."""
        return self._noise("keys", self.kv_heads, self.cells, self.width).astype(np.float16)

    @property
    def values(self) -> np.ndarray:
        """float16 [kv_heads, cells, width]."""
        return self._noise("values", self.kv_heads, self.cells, self.width).astype(np.float16)

    @property
    def mask(self) -> np.ndarray:
        """float16 [rows, cells]: 0 where a row may look, −∞ elsewhere; with a bias, how far back a cell is."""
        back = np.arange(self.cells - self.rows, self.cells)[:, None] - np.arange(self.cells)
        hidden = (back < 0) | ((back >= self.window) if self.window else False)
        return np.where(hidden, -np.inf, -np.abs(back) if self.bias else 0).astype(np.float16)

    @property
    def sink(self) -> np.ndarray:
        """float32 [heads]."""
        return self._noise("sinks", self.heads)

    def _noise(self, name: str, *shape: int) -> np.ndarray:
        return noise(f"{name} {shape}", prod(shape)).astype(np.float32).reshape(shape) / 128


_TRIED = (
    Case(width=64, heads=6, kv_heads=2, rows=7, cells=96),
    Case(width=40, heads=2, kv_heads=1, rows=3, cells=37),
)


class Attention:
    """Who computes flash attention in this process."""

    def __init__(self, compiled: ctypes.CDLL, ggml: Ggml) -> None:
        """compiled: ours, loaded for all to see before llama.cpp's."""
        self._compiled, self._ggml = compiled, ggml
        compiled.eft_attention_begin(ctypes.cast(ggml.library.ggml_compute_forward_flash_attn_ext, ctypes.c_void_p))
        compiled.eft_kernels_called()
        agree = all(map(self.agrees, _TRIED))
        self.exact = OURS if agree and compiled.eft_kernels_called() & _CALLED else REFERENCE
        self.use(exact=True)

    def use(self, *, exact: bool) -> None:
        """Give each row what it gets alone, or leave that to llama.cpp. Not during an evaluation."""
        self.let(self.exact if exact or self.exact == OURS else THEIRS)  # ours is faster, too

    def let(self, who: int) -> None:
        """Let one of `THEIRS`, `REFERENCE`, `OURS` attend. Not during an evaluation."""
        self._compiled.eft_attention_use(who)

    def agrees(self, case: Case) -> bool:
        """Whether ours gives each row the same bits alone and together, with one thread and two, near llama.cpp's."""
        together = self.compute(OURS, case)
        apart = np.concatenate([self.compute(OURS, case, (i, i + 1)) for i in range(case.rows)])
        places = sorted({0, 2, case.rows})
        in_parts = np.concatenate([self.compute(OURS, case, part, threads=2) for part in pairwise(places)])
        return (
            np.array_equal(together, apart)
            and np.array_equal(together, in_parts)
            and np.allclose(together, self.compute(REFERENCE, case), atol=_NEAR)
        )

    def compute(self, who: int, case: Case, part: tuple[int, int] | None = None, threads: int = 1) -> np.ndarray:
        """Return float32 [rows, heads, width], computed by ggml. part: the first row and the one after the last."""
        first, end = part or (0, case.rows)
        rows = end - first
        self.let(who)
        with self._ggml.graph() as graph:
            queries = graph.tensor(F32, (case.width, rows, case.heads), case.queries[:, first:end])
            keys, values = (
                graph.tensor(F16, (case.width, case.cells, case.kv_heads), each) for each in (case.keys, case.values)
            )
            mask = graph.tensor(F16, (case.cells, rows), case.mask[first:end])
            numbers = (case.scale / case.width**0.5, case.bias, case.softcap)
            result = graph.operation(
                "ggml_flash_attn_ext", queries, keys, values, mask, *(ctypes.c_float(each) for each in numbers)
            )
            if case.sinks:
                self._ggml.library.ggml_flash_attn_ext_add_sinks(result, graph.tensor(F32, (case.heads,), case.sink))
            return graph.compute(result, (rows, case.heads, case.width), threads)
