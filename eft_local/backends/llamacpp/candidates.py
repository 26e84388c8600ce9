"""llama.cpp's array of candidates, laid over NumPy memory."""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


def pointer(candidates: npt.NDArray[np.void]) -> Any:
    """Return where candidates lie. Keep them alive for as long as it is used."""
    return ctypes.cast(candidates.ctypes.data, llama_cpp.llama_token_data_p)


def token_data_array(first: Any, size: int) -> llama_cpp.llama_token_data_array:
    """Return the array of `size` candidates, in no order, that begins at a pointer."""
    return llama_cpp.llama_token_data_array(data=first, size=size, selected=-1, sorted=False)
