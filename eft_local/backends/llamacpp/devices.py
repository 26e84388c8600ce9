"""What this llama.cpp can do and where it can compute: version, build features, devices with their memory."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import psutil

from eft_local.backends.llamacpp import kernels, library
from eft_local.machine.memory import Device, available

KINDS = ("cpu", "gpu", "integrated gpu", "accelerator", "meta")
"""Names for ggml's `enum ggml_backend_dev_type`, in its order (ggml-backend.h)."""


@dataclass(frozen=True, slots=True)
class Build:
    """How llama.cpp was built.

    features: by backend ("CPU", "CUDA"), what it was compiled with.  kernels: whose matrix kernels the CPU runs.
    """

    llama: str
    llama_cpp_python: str
    ggml: str
    features: dict[str, tuple[str, ...]]
    gpu_offload: bool
    mmap: bool
    mlock: bool
    rpc: bool
    kernels: str


def build() -> Build:
    """Return what llama.cpp reports about itself; "unknown" where this version has no such function."""
    library.start()
    return Build(
        llama=_text(llama_cpp, "llama_version"),
        llama_cpp_python=llama_cpp.__version__,
        ggml=" ".join(_ggml_text(name) for name in ("ggml_version", "ggml_commit")),
        features=parse_features(_text(llama_cpp, "llama_print_system_info")),
        gpu_offload=bool(llama_cpp.llama_supports_gpu_offload()),
        mmap=bool(llama_cpp.llama_supports_mmap()),
        mlock=bool(llama_cpp.llama_supports_mlock()),
        rpc=bool(llama_cpp.llama_supports_rpc()),
        kernels=kernels.installed(),
    )


def parse_features(line: str) -> dict[str, tuple[str, ...]]:
    """Read llama.cpp's system info line: "CUDA : ARCHS = 890 | CPU : AVX2 = 1 | FMA = 0 | ".

    A feature with the value 1 is given by its name, one with another value as NAME=VALUE, and 0 is left out.
    """
    features: dict[str, list[str]] = {}
    backend = "CPU"
    for part in line.split("|"):
        before, colon, after = part.partition(" : ")
        if colon:
            backend = before.strip()
        name, equals, value = (after if colon else part).partition("=")
        name, value = name.strip(), value.strip()
        if equals and value != "0":
            features.setdefault(backend, []).append(name if value == "1" else f"{name}={value}")
    return {backend: tuple(names) for backend, names in features.items()}


def devices() -> tuple[Device, ...]:
    """Return the devices that ggml has registered; empty when libggml cannot be found beside llama.cpp."""
    library.start()
    count = _ggml("ggml_backend_dev_count", ctypes.c_size_t)
    get = _ggml("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
    name = _ggml("ggml_backend_dev_name", ctypes.c_char_p, ctypes.c_void_p)
    description = _ggml("ggml_backend_dev_description", ctypes.c_char_p, ctypes.c_void_p)
    kind = _ggml("ggml_backend_dev_type", ctypes.c_int, ctypes.c_void_p)
    size_pointer = ctypes.POINTER(ctypes.c_size_t)
    memory = _ggml("ggml_backend_dev_memory", None, ctypes.c_void_p, size_pointer, size_pointer)
    if not (count and get and name and description and kind and memory):
        return ()

    def describe(index: int) -> Device:
        handle = get(index)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        memory(handle, ctypes.byref(free), ctypes.byref(total))
        number = kind(handle)
        # ggml calls all memory of the machine free
        ours = available() if KINDS[number : number + 1] == ("cpu",) else None
        return Device(
            name=name(handle).decode(errors="replace"),
            description=description(handle).decode(errors="replace"),
            kind=KINDS[number] if 0 <= number < len(KINDS) else f"type {number}",
            free=ours.free if ours else free.value,
            total=total.value,
            limit=ours.limit if ours else "its memory",
        )

    return tuple(describe(index) for index in range(count()))


def places() -> tuple[Device, ...]:
    """Return the devices that models can be put on: those that ggml reports, or at least this machine's RAM."""
    found = devices()
    if any(device.kind == "cpu" for device in found):
        return found
    ours = available()
    return (Device("CPU", "RAM", "cpu", ours.free, int(psutil.virtual_memory().total), ours.limit), *found)


def _text(library: Any, name: str) -> str:
    function = getattr(library, name, None)
    text: bytes = (function() if function else None) or b"unknown"
    return text.decode(errors="replace").strip()


def _ggml_text(name: str) -> str:
    function = _ggml(name, ctypes.c_char_p)
    text: bytes = (function() if function else None) or b"unknown"
    return text.decode(errors="replace")


def _ggml(name: str, result: Any, *arguments: Any) -> Any:
    """Return ggml's function `name` with its C types set, or None where no library has it."""
    for ggml in _libraries():
        function = getattr(ggml, name, None)
        if function is not None:
            function.restype, function.argtypes = result, arguments
            return function
    return None


def _libraries() -> Iterator[ctypes.CDLL]:
    """Yield the ggml libraries that llama_cpp has already loaded: the registry's and the devices'."""
    folder = Path(llama_cpp.__file__).parent / "lib"
    prefix, suffixes = ("", (".dll",)) if sys.platform == "win32" else ("lib", (".so", ".dylib"))
    for stem in ("ggml", "ggml-base"):
        for suffix in suffixes:
            path = folder / f"{prefix}{stem}{suffix}"
            if path.is_file():
                yield ctypes.CDLL(str(path))
