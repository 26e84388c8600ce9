"""llama.cpp as a library: started once, its log sent to `logging`, its parameter structs set without typos."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import llama_cpp
import psutil

from eft_local.notices import notice

log = logging.getLogger("eft_local.backends.llamacpp")

# ggml_log_level: 1 debug, 2 info, 3 warn, 4 error, 5 continues the line before
_LEVELS = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}
_CONTINUED = 5

Struct = TypeVar("Struct", bound=ctypes.Structure)


class _LogBridge(threading.local):
    """Sends llama.cpp's log lines to `logging` and remembers a thread's last complaints for its error messages."""

    def __init__(self) -> None:
        self.complaints: deque[str] = deque(maxlen=20)
        self.heard: list[str] | None = None
        self._level = logging.DEBUG

    def write(self, level: int, text: bytes | None, _user: int | None) -> None:
        if level != _CONTINUED:
            self._level = _LEVELS.get(level, logging.DEBUG)
        line = (text or b"").decode("utf-8", "replace").strip()
        if not line:
            return
        if self._level >= logging.WARNING:
            self.complaints.append(line)
        if self.heard is not None:
            self.heard.append(line)
        # llama.cpp's own errors become exceptions of ours: in the log they are detail, not news.
        log.log(min(self._level, logging.INFO), line)


_bridge = _LogBridge()
_callback = llama_cpp.llama_log_callback(_bridge.write)  # llama.cpp keeps the pointer only: it must live on
_starting = threading.Lock()


def start() -> None:
    """Start llama.cpp's backends once in this process, with its log going to `log`."""
    with _starting:  # models load in several threads
        _start()


@cache
def _start() -> None:
    llama_cpp.llama_log_set(_callback, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()


def forget_complaints() -> None:
    """Forget warnings so far, so that `last_complaint` speaks of what comes next."""
    _bridge.complaints.clear()


def last_complaint() -> str:
    """The most telling recent line of llama.cpp's log, or an empty string."""
    lines = [line for line in _bridge.complaints if "error" in line.lower() or "failed" in line.lower()]
    return (lines or list(_bridge.complaints) or [""])[0]


@contextmanager
def listening() -> Iterator[list[str]]:
    """Collect every line that llama.cpp logs in this thread; who listens already hears them as well."""
    heard: list[str] = []
    before, _bridge.heard = _bridge.heard, heard
    try:
        yield heard
    finally:
        _bridge.heard = before
        if before is not None:
            before += heard


# llama.cpp's warnings that speak of worse answers; of the others, some are about speed, some about what it has mended.
# It also warns of a missing pre-tokenizer and of a context beyond training, which `header` and `loading` do with names.
_OF_QUALITY = re.compile(
    r"not in special_eog_ids|control-looking token|bad special token|default special token|EOG token id"
    r"|newline token|suboptimal|may be degraded"
)


def warn_of_quality(path: Path, lines: Sequence[str]) -> None:
    """Pass on, once each, what llama.cpp said of a file that makes for worse answers. lines: from `listening`."""
    said = [line.partition(": ")[2] or line for line in lines if _OF_QUALITY.search(line)]
    looking = [line for line in said if line.startswith("control-looking")]
    if len(looking) > 1:
        more = f" ({len(looking) - 1} more likewise)"
        said = [line for line in said if line not in looking[1:]]
        said[said.index(looking[0])] = looking[0] + more
    for line in said:
        notice("%s: llama.cpp warns: %s", path.name, " ".join(line.split()))


def fill(struct: Struct, **values: Any) -> Struct:
    """Set fields of a ctypes struct; unlike ctypes, refuse a name that the struct does not have."""
    fields = {field[0] for field in struct._fields_}
    for name, value in values.items():
        if name not in fields:
            raise AttributeError(f"{type(struct).__name__} of this llama.cpp has no field {name!r}")
        setattr(struct, name, value)
    return struct


def gpu_params(layers: int, split: Sequence[int] = ()) -> dict[str, Any]:
    """Return the model parameters that put so many layers (all: -1) on GPUs, `split` of them on each.

    The output counts as one layer, the last; the first of them stay in RAM. Without layers no GPU is used at all.
    """
    if layers == 0:
        return {"n_gpu_layers": 0, "split_mode": llama_cpp.LLAMA_SPLIT_MODE_NONE, "main_gpu": -1}
    used = [index for index, count in enumerate(split) if count]
    if len(used) == 1:
        return {"n_gpu_layers": layers, "split_mode": llama_cpp.LLAMA_SPLIT_MODE_NONE, "main_gpu": used[0]}
    if not used:
        return {"n_gpu_layers": layers}
    shares = (ctypes.c_float * llama_cpp.llama_max_devices())(*split)
    return {"n_gpu_layers": layers, "split_mode": llama_cpp.LLAMA_SPLIT_MODE_LAYER, "tensor_split": shares}


def supports_gpu_offload() -> bool:
    """Whether this build of llama.cpp can put layers on a GPU."""
    start()
    return bool(llama_cpp.llama_supports_gpu_offload())


def default_threads() -> int:
    """Physical cores this process may use: more threads than that make llama.cpp slower."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))


class StopFlag:
    """A flag that llama.cpp polls while it computes, without ever entering Python.

    The abort callback is libc's `strlen` on a one-byte buffer: an empty string is 0 (continue), `x` is 1 (stop). A
    Python callback would be called for every node of every graph and take the interpreter lock each time.
    """

    def __init__(self) -> None:
        libc = ctypes.cdll.msvcrt if sys.platform == "win32" else ctypes.CDLL(None)
        self.callback = ctypes.cast(libc.strlen, llama_cpp.ggml_abort_callback)
        self._buffer = ctypes.create_string_buffer(2)
        self.data = ctypes.cast(self._buffer, ctypes.c_void_p)

    def __bool__(self) -> bool:
        return bool(self._buffer[0] != b"\0")

    def set(self) -> None:
        self._buffer[0] = b"x"

    def clear(self) -> None:
        self._buffer[0] = b"\0"
