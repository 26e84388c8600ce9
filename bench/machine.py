"""Where a benchmark ran, and whether what it loads has room there."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import psutil

from eft_local.backends.llamacpp.devices import build, devices
from eft_local.backends.llamacpp.library import default_threads, supports_gpu_offload
from eft_local.bench.shapes import TRIOS, scaled_bytes
from eft_local.errors import OutOfMemoryError
from eft_local.machine.memory import available
from eft_local.recipe import Recipe
from eft_local.version import __version__

_BESIDES = 1.35
"""Memory that a run takes, relative to its weights: caches of some 512 tokens for every role, several times."""


def machine(recipe: Recipe) -> dict[str, Any]:
    """Return the machine and the versions, ready for JSON. Memory in bytes.

    threads: that a role is evaluated with, where its own table does not say.
    """
    details = build()
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": psutil.cpu_count(logical=False),
        "threads": recipe.placement.threads or default_threads(),
        "ram": psutil.virtual_memory().total,
        "devices": [{key: value for key, value in asdict(device).items() if key != "free"} for device in devices()],
        "features": {backend: list(names) for backend, names in details.features.items()},
        "kernels": details.kernels,
        "llama.cpp": details.llama,
        "llama_cpp_python": details.llama_cpp_python,
        "python": platform.python_version(),
        "eft_local": __version__,
    }


def place(details: Mapping[str, Any]) -> str:
    """Return what `machine` found as a line for people."""
    names = (
        ", ".join(f"{device['description']} ({device['name']})" for device in details["devices"]) or details["system"]
    )
    return f"{names}; {details['cores']} cores, {details['threads']} threads; llama.cpp {details['llama.cpp']}"


def check_memory(recipe: Recipe, shape: str, quantization: str) -> None:
    """Raise OutOfMemoryError if a scaled recipe would not fit into the memory that is free; nothing is built for it.

    On a machine with a GPU llama.cpp decides what goes where, and reports it.
    """
    if supports_gpu_offload():
        return
    free = available().free
    need = _BESIDES * scaled_bytes(recipe, shape, quantization=quantization)
    if need <= free:
        return
    sizes = {name: _BESIDES * scaled_bytes(recipe, name, quantization=quantization) for name in TRIOS}
    fitting = [name for name, size in sizes.items() if size <= free]
    hint = f"choose --shape {max(fitting, key=sizes.__getitem__)}" if fitting else "close other programs"
    raise OutOfMemoryError(f"shape {shape} needs {need / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free; {hint}")
