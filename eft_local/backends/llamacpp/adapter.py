"""A LoRA adapter: low-rank changes to a model's weights, which contexts add while they evaluate."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import llama_cpp

from eft_local import locations
from eft_local.backends.llamacpp import library
from eft_local.backends.llamacpp.file_probe import probe_file
from eft_local.backends.llamacpp.model import Model
from eft_local.errors import ModelFileError, OutOfMemoryError
from eft_local.gguf.adapter import check_adapter


class Adapter:
    """Implements `base.Adapter` on llama.cpp. Close it after its contexts and before its model.

    A context that is made with it computes with W + scale · alpha / rank · B·A in place of W; the model's own weights
    stay as they are, also for contexts that were made without it.
    """

    def __init__(self, handle: Any, model: Model, path: Path) -> None:
        self.handle = handle
        self.model = model
        self.path = path

    @classmethod
    def load(
        cls,
        model: Model,
        path: str | os.PathLike[str],
        *,
        trusted: bool = False,
        waiting: Callable[[], None] = lambda: None,
    ) -> Adapter:
        """Load a GGUF adapter for a model; not for two threads at once.

        trusted: do without the test load in a child process that it otherwise gets when it is loaded for the first
            time.
        waiting: called while the test load lasts; what it raises ends it.
        Raises: ModelNotFoundError, ModelFileError (damaged, refused, or for another model), UnsupportedModelError (an
            activated LoRA), OutOfMemoryError.
        """
        path = Path(path)
        check_adapter(path, model.path)
        if not trusted:
            probe_file(model.path, locations.cached("probes"), waiting, adapter=path)
        return cls.load_unprobed(model, path)

    @classmethod
    def load_unprobed(cls, model: Model, path: Path) -> Adapter:
        """Load an adapter as the test load does."""
        library.forget_complaints()
        handle = llama_cpp.llama_adapter_lora_init(model.handle, os.fsencode(path))
        if handle:
            return cls(handle, model, path)
        reason = library.last_complaint() or "no reason given"
        if "alloc" in reason:
            raise OutOfMemoryError(f"not enough memory for the LoRA adapter {path} ({reason}); use a smaller model")
        raise ModelFileError(
            f"llama.cpp refused the LoRA adapter {path} for {model.path.name}: {reason}; use one made for this model"
        )

    def close(self) -> None:
        if self.handle and self.model.handle:  # a model frees its adapters
            llama_cpp.llama_adapter_lora_free(self.handle)
        self.handle = None

    def __enter__(self) -> Adapter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
