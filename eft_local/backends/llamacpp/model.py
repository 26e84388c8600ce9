"""A GGUF model: its weights, its vocabulary, its metadata."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import llama_cpp

from eft_local import locations
from eft_local.backends.base import Capabilities, ContextOptions
from eft_local.backends.llamacpp import library
from eft_local.backends.llamacpp.context import Context
from eft_local.backends.llamacpp.file_probe import probe_file
from eft_local.backends.llamacpp.threads import Threads, read_times, times_file, write_times
from eft_local.backends.llamacpp.vocabulary import LlamaVocabulary
from eft_local.errors import Cancelled, ModelFileError, OutOfMemoryError, UnsupportedModelError
from eft_local.gguf.checks import check_gguf
from eft_local.machine.memory import available

Progress = Callable[[float], bool | None]
"""Called with 0…1 while weights are loaded; returning False cancels the load."""


class Model:
    """Weights of one GGUF file, shared by every context that is made from them. Close it after these and adapters.

    threads: chooses how many evaluate, where a context does not say.
    """

    def __init__(self, handle: int, path: Path, on_gpu: bool = False) -> None:
        self.handle = handle
        self.path = path
        self.threads = Threads(library.default_threads())
        self._on_gpu = on_gpu  # in part: then llama.cpp computes after it has returned
        self._times: Path | None = None
        self.vocabulary = LlamaVocabulary(llama_cpp.llama_model_get_vocab(handle))
        self.metadata = _metadata(handle)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        n_gpu_layers: int = 0,
        split: Sequence[int] = (),
        mmap: bool = True,
        mlock: bool = False,
        trusted: bool = False,
        progress: Progress | None = None,
    ) -> Model:
        """Load the weights of a GGUF file.

        n_gpu_layers: layers to keep on GPUs, the output counted as one; -1 for all. split: how many on each GPU.
        trusted: do without the test load in a child process that a file otherwise gets when it is loaded for the first
        time (see `file_probe`).
        Raises: ModelNotFoundError, ModelFileError (damaged or refused), UnsupportedModelError (no decoder),
            OutOfMemoryError, Cancelled (progress returned False).
        """
        path = Path(path)
        check_gguf(path)
        watcher = _ProgressWatcher(progress)
        if not trusted:
            probe_file(path, locations.cached("probes"), watcher.poll)
        model = cls._open(path, watcher, load_mode=_load_mode(mmap, mlock), **library.gpu_params(n_gpu_layers, split))
        model._recall()
        return model

    @classmethod
    def load_unprobed(cls, path: Path) -> Model:
        """Load a file as the test load does: on the CPU, mapped and not repacked (that is, not copied)."""
        return cls._open(
            path,
            _ProgressWatcher(None),
            load_mode=_load_mode(mmap=True, mlock=False),
            use_extra_bufts=False,
            **library.gpu_params(0),
        )

    @classmethod
    def _open(cls, path: Path, watcher: _ProgressWatcher, **params: Any) -> Model:
        library.start()
        library.forget_complaints()
        filled = library.fill(llama_cpp.llama_model_default_params(), progress_callback=watcher.callback, **params)
        with library.listening() as heard:
            handle = llama_cpp.llama_model_load_from_file(os.fsencode(path), filled)
        if handle is None:
            raise watcher.failure or _load_error(path)
        model = cls(handle, path, bool(filled.n_gpu_layers) and library.supports_gpu_offload())
        if lacking := model._lacking():
            model.close()
            raise UnsupportedModelError(f"{path} {lacking}; use a model that generates text from left to right")
        library.warn_of_quality(path, heard)
        return model

    def _recall(self) -> None:
        """Begin with what other processes have learnt about threads, and pass it on when the model is closed."""
        if not self._on_gpu:
            self._times = times_file(self.path, self.threads.most)
            self.threads = Threads(self.threads.most, read_times(self._times))

    def _lacking(self) -> str:
        """Say why this model cannot generate, or would abort the process trying; empty if it can."""
        if not llama_cpp.llama_model_has_decoder(self.handle) or llama_cpp.llama_model_has_encoder(self.handle):
            return "is not a decoder-only model"
        if llama_cpp.llama_model_is_diffusion(self.handle):
            return "is a diffusion model"
        if self.vocabulary.needs_bytes_but_has_none:
            return "has a SentencePiece vocabulary without byte tokens, on which llama.cpp aborts"
        return ""

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of the model's own chat template."""
        return self.metadata.get("tokenizer.chat_template")

    @property
    def n_vocab(self) -> int:
        return self.vocabulary.n_tokens

    @property
    def n_layer(self) -> int:
        return int(llama_cpp.llama_model_n_layer(self.handle))

    @property
    def n_ctx_train(self) -> int:
        """Tokens of context that the model was trained with."""
        return int(llama_cpp.llama_model_n_ctx_train(self.handle))

    @property
    def n_params(self) -> int:
        return int(llama_cpp.llama_model_n_params(self.handle))

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return int(llama_cpp.llama_model_size(self.handle))

    @property
    def capabilities(self) -> Capabilities:
        """What its contexts can do. Mamba, RWKV and hybrids cannot rewind; Gemma-2 caps its logits."""
        handle = self.handle
        recurrent = bool(llama_cpp.llama_model_is_recurrent(handle) or llama_cpp.llama_model_is_hybrid(handle))
        capped = any(key.endswith(".final_logit_softcapping") for key in self.metadata)
        return Capabilities(rewinds=not recurrent, caps_logits=capped)

    def open(self, options: ContextOptions) -> Context:
        """Make a context on these weights; see `Context`."""
        if self._on_gpu:
            options = replace(options, n_threads=options.n_threads or self.threads.most)
        return Context(self, options)

    def close(self) -> None:
        if self.handle:
            llama_cpp.llama_model_free(self.handle)
            self.handle = 0
            if self._times:
                write_times(self._times, self.threads.times)

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _ProgressWatcher:
    """The C callback around a `Progress`; keeps what the Python side raised or requested."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self.failure: BaseException | None = None
        self.callback = llama_cpp.llama_progress_callback(self._report)

    def _report(self, fraction: float, _user: int | None) -> bool:
        if self._progress is None:
            return True
        try:
            if self._progress(fraction) is False:
                self.failure = Cancelled("loading was cancelled")
        except BaseException as error:  # an exception must not unwind through C++
            self.failure = error
        return self.failure is None

    def poll(self) -> None:
        """Check before loading begins. Raises: what the Python side raised or requested."""
        if not self._report(0.0, None) and self.failure:
            raise self.failure


def _load_mode(mmap: bool, mlock: bool) -> int:
    if mlock:
        return int(llama_cpp.LLAMA_LOAD_MODE_MMAP_MLOCK if mmap else llama_cpp.LLAMA_LOAD_MODE_MLOCK)
    return int(llama_cpp.LLAMA_LOAD_MODE_MMAP if mmap else llama_cpp.LLAMA_LOAD_MODE_NONE)


def _load_error(path: Path) -> Exception:
    reason = library.last_complaint() or "no reason given"
    if "alloc" in reason or "out of memory" in reason.lower():
        return OutOfMemoryError(
            f"not enough memory to load {path} ({reason}): its file has {path.stat().st_size / 1e9:.1f} GB, "
            f"{available().free / 1e9:.1f} GB of RAM are free; put fewer layers on the GPU (offload = N), "
            "or choose a smaller quantisation, or close other programs"
        )
    return ModelFileError(f"llama.cpp refused {path}: {reason}; download or convert the file again")


def _metadata(handle: int) -> dict[str, str]:
    def read(call: Any, index: int) -> str:
        size = 256
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = call(handle, index, buffer, size)
            if length < size:
                return buffer.raw[: max(length, 0)].decode("utf-8", "replace")
            size = length + 1

    count = llama_cpp.llama_model_meta_count(handle)
    return {
        read(llama_cpp.llama_model_meta_key_by_index, i): read(llama_cpp.llama_model_meta_val_str_by_index, i)
        for i in range(count)
    }
