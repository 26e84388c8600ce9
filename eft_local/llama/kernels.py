"""A faster matrix kernel in the place of llama.cpp's own: what several rows of Q4_0 weights cost on an x86-64 CPU.

`kernels.c` is compiled with the package where it can be. Its function has the name of llama.cpp's: loaded first, it is
the one that llama.cpp's library finds. It must give the same bits, and that is tried each time before it may answer;
otherwise, and with EFT_KERNELS=off, llama.cpp's own does.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

OURS = "eft-local's own for Q4_0"
_GEMM = ctypes.CFUNCTYPE(
    None,
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_int,
    ctypes.c_int,
)
_NAME = "ggml_gemm_q4_0_8x8_q8_0"
_NEVER = 2**31 - 1
_VNNI_ROWS = 16
"""From so many rows on llama.cpp's kernel for AVX512-VNNI unpacks weights once for all of them, as ours does."""


class Kernels:
    """Our kernel and llama.cpp's own: functions of the same arguments and, if they agree, of the same results."""

    def __init__(self, compiled: ctypes.CDLL, library: ctypes.CDLL) -> None:
        self._compiled = compiled
        self.ours = ctypes.cast(getattr(compiled, _NAME), _GEMM)
        self.theirs = ctypes.cast(getattr(library, _NAME), _GEMM)

    def use(self, *, ours: bool) -> None:
        """Let our kernel answer from now on, or llama.cpp's. Not while a model is evaluated."""
        rows = (_VNNI_ROWS if self._compiled.eft_kernels_vnni() else _NEVER) if ours else 0
        self._compiled.eft_kernels_use(self.theirs, rows)

    def agree(self) -> bool:
        """Whether both give the same bits, for any number of rows and for the greatest values."""
        self._compiled.eft_kernels_use(self.theirs, _NEVER)
        return all(
            np.array_equal(product(self.ours, *factors), product(self.theirs, *factors))
            for rows in range(4, 40, 4)
            for factors in (random_factors(rows, 16, 4224), random_factors(rows, 16, 64, greatest=True))
        )


@cache
def installed() -> str:
    """Put the kernels into the place of llama.cpp's, once, before it is loaded; return whose answer."""
    kernels = load()
    if isinstance(kernels, str):
        return f"llama.cpp's own ({kernels})"
    agreed = kernels.agree()
    kernels.use(ours=agreed)
    return OURS if agreed else "llama.cpp's own (eft-local's differ from them)"


@cache
def load() -> Kernels | str:
    """Load the kernels before llama.cpp; return why not where that is not possible."""
    if os.environ.get("EFT_KERNELS", "").lower() == "off":
        return "EFT_KERNELS=off"
    ours, theirs = importlib.util.find_spec("eft_local.llama._kernels"), importlib.util.find_spec("llama_cpp")
    if not sys.platform.startswith("linux") or ours is None or ours.origin is None:
        return "others are not compiled for this machine"
    library = Path(theirs.origin or "").parent / "lib" / "libggml-cpu.so" if theirs else Path()
    if "llama_cpp" in sys.modules:
        return "llama_cpp was imported before eft_local"
    if not library.is_file():
        return "its library is not where it was expected"
    try:
        compiled = ctypes.CDLL(ours.origin, mode=ctypes.RTLD_GLOBAL)
        if not compiled.eft_kernels_supported():
            return "this CPU has no AVX2"
        return Kernels(compiled, ctypes.CDLL(str(library)))
    except (OSError, AttributeError) as error:
        return " ".join(str(error).split())


def random_factors(rows: int, columns: int, n: int, *, greatest: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return so many columns of n weights and rows of n values, as llama.cpp keeps them (see kernels.c).

    greatest: all of the values that make the greatest sums.
    """
    dice = np.random.default_rng([rows, columns, n])
    weights = np.empty((columns // 8, n // 32), [("scale", "<f2", 8), ("nibbles", "u1", 128)])
    values = np.empty((rows // 4, n // 32), [("scale", "<f2", 4), ("bytes", "i1", 128)])
    for array in (weights, values):
        array["scale"] = dice.normal(size=array["scale"].shape)
    weights["nibbles"] = 0x77 if greatest else dice.integers(0, 256, weights["nibbles"].shape)
    values["bytes"] = dice.choice([-127, 127]) if greatest else dice.integers(-127, 128, values["bytes"].shape)
    return weights, values


def product(gemm: Any, weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return float32 [rows, columns] of factors as `random_factors` returns them."""
    result = np.zeros((4 * len(values), 8 * len(weights)), np.float32)
    rows, columns = result.shape
    gemm(32 * weights.shape[1], result.ctypes.data, columns, weights.ctypes.data, values.ctypes.data, rows, columns)
    return result
