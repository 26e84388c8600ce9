"""Small graphs of ggml, computed in this process: what llama.cpp's library really does with an operation."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

F32, F16 = 0, 1
"""ggml_type."""

_MEMORY = 1 << 24  # bytes; what is not used takes none
_RETURN_POINTERS = (
    "ggml_init", "ggml_get_data", "ggml_new_tensor", "ggml_new_graph", "ggml_mul_mat", "ggml_flash_attn_ext",
    "ggml_backend_reg_get_proc_address", "ggml_backend_reg_dev_get", "ggml_backend_buft_alloc_buffer",
    "ggml_backend_buffer_get_base",
)  # fmt: skip
_RETURN_SIZES = ("ggml_backend_buft_get_alloc_size", "ggml_nbytes")

Tensor = ctypes.c_void_p
_IGNORE = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda level, text, data: None)


class _Memory(ctypes.Structure):
    """ggml_init_params."""

    _fields_ = (("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class Ggml:
    """The library of ggml in a folder: `libggml-cpu`, by way of which `libggml-base` is found as well.

    That is loaded here under its own name only, for a wheel holds copies of it, and each would be another library.
    """

    def __init__(self, folder: Path) -> None:
        self.library = ctypes.CDLL(str(folder / "libggml-cpu.so"))
        for name in _RETURN_POINTERS:
            getattr(self.library, name).restype = ctypes.c_void_p
        for name in _RETURN_SIZES:
            getattr(self.library, name).restype = ctypes.c_size_t
        self.library.ggml_backend_buft_name.restype = ctypes.c_char_p
        self.library.ggml_backend_cpu_reg.restype = ctypes.c_void_p
        self.library.ggml_cpu_init()

    @contextmanager
    def graph(self) -> Iterator[Graph]:
        """Yield a graph; its tensors are gone afterwards."""
        # Not by malloc, which would keep all later pieces of up to this size for itself when they are freed.
        memory = mmap.mmap(-1, _MEMORY)
        view = ctypes.c_char.from_buffer(memory)
        context = ctypes.c_void_p(self.library.ggml_init(_Memory(_MEMORY, ctypes.addressof(view), False)))
        try:
            yield Graph(self, context)
        finally:
            self.library.ggml_free(context)
            del view
            memory.close()

    @contextmanager
    def interleaved(self, kind: int, shape: Sequence[int], content: np.ndarray) -> Iterator[Tensor | None]:
        """Yield weights as llama.cpp keeps them for a CPU with kernels of its own, columns interleaved; None if it
        has no such place.

        shape, content: as `Graph.tensor`.
        """
        ggml = self.library
        places = self._interleaving()
        place = next((each for each in places if ggml.ggml_backend_buft_name(Tensor(each)) == b"CPU_REPACK"), None)
        if place is None:
            yield None
            return
        context = ctypes.c_void_p(ggml.ggml_init(_Memory(1 << 12, None, True)))
        sizes = (ctypes.c_int64 * len(shape))(*shape)
        tensor = Tensor(ggml.ggml_new_tensor(context, kind, len(shape), sizes))
        size = ggml.ggml_backend_buft_get_alloc_size(Tensor(place), tensor)
        buffer = ctypes.c_void_p(ggml.ggml_backend_buft_alloc_buffer(Tensor(place), ctypes.c_size_t(size)))
        try:
            start = ctypes.c_void_p(ggml.ggml_backend_buffer_get_base(buffer))
            ggml.ggml_backend_tensor_alloc(buffer, tensor, start)
            data = content.tobytes()
            with self._silence():
                ggml.ggml_backend_tensor_set(tensor, data, ctypes.c_size_t(0), ctypes.c_size_t(len(data)))
            yield tensor
        finally:
            ggml.ggml_backend_buffer_free(buffer)
            ggml.ggml_free(context)

    @contextmanager
    def _silence(self) -> Iterator[None]:
        """Keep ggml from reporting that it interleaves."""
        log, data = ctypes.c_void_p(), ctypes.c_void_p()
        self.library.ggml_log_get(ctypes.byref(log), ctypes.byref(data))
        self.library.ggml_log_set(_IGNORE, None)
        try:
            yield
        finally:
            self.library.ggml_log_set(log, data)

    def _interleaving(self) -> Iterator[int]:
        """Yield the kinds of buffers that the CPU has besides the plain one."""
        registry = ctypes.c_void_p(self.library.ggml_backend_cpu_reg())
        device = ctypes.c_void_p(self.library.ggml_backend_reg_dev_get(registry, ctypes.c_size_t(0)))
        address = self.library.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
        if address:
            found = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(address)(device)
            for place in found or ():
                if not place:
                    return
                yield place


class Graph:
    """Tensors, and operations on them."""

    def __init__(self, ggml: Ggml, context: ctypes.c_void_p) -> None:
        self._ggml, self._context = ggml, context

    def tensor(self, kind: int, shape: Sequence[int], content: np.ndarray) -> Tensor:
        """Return a tensor. shape: as ggml has it, what lies next to each other first; content: its bytes, in order."""
        ggml = self._ggml.library
        sizes = (ctypes.c_int64 * len(shape))(*shape)
        tensor = Tensor(ggml.ggml_new_tensor(self._context, kind, len(shape), sizes))
        ctypes.memmove(ggml.ggml_get_data(tensor), content.tobytes(), content.nbytes)
        return tensor

    def operation(self, name: str, *arguments: object) -> Tensor:
        """Return the result of an operation, which is not computed yet."""
        return Tensor(getattr(self._ggml.library, name)(self._context, *arguments))

    def compute(self, result: Tensor, shape: Sequence[int], threads: int = 1) -> np.ndarray:
        """Compute; return float32 of that shape, as NumPy has it."""
        ggml = self._ggml.library
        graph = ctypes.c_void_p(ggml.ggml_new_graph(self._context))
        ggml.ggml_build_forward_expand(graph, result)
        self._ggml.library.ggml_graph_compute_with_ctx(self._context, graph, threads)
        size = 4 * int(np.prod(shape))
        return np.frombuffer(ctypes.string_at(ggml.ggml_get_data(result), size), np.float32).reshape(shape)
