"""llama.cpp without us: one model evaluated with its own functions, and a watch on what our own code asks of it."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, cast

import llama_cpp

from eft_local.backends.base import Adapter
from eft_local.backends.llamacpp import Model
from eft_local.backends.llamacpp.context import KV_TYPES
from eft_local.backends.llamacpp.library import default_threads, fill
from eft_local.engine.engine import Engine, Schedule
from eft_local.engine.kv import common_prefix
from eft_local.engine.loading import LoadedRole
from eft_local.errors import EvaluationError, OutOfMemoryError
from eft_local.recipe import Placement

_FLASH_ATTENTION = {"auto": -1, False: 0, True: 1}
_decode = llama_cpp.llama_decode  # the function itself: a watch does not see what is evaluated here


class BareContext:
    """One sequence on one model, evaluated as a C program would: the limit of what anybody can reach on this machine.

    Only what the placement says is set; everything else is llama.cpp's default.
    """

    def __init__(
        self,
        model: Model,
        placement: Placement,
        n_ctx: int,
        adapter: Adapter | None = None,
        adapter_scale: float = 1.0,
    ) -> None:
        """n_ctx: tokens that it has room for. Raises: OutOfMemoryError."""
        threads = placement.threads or default_threads()
        params = fill(
            llama_cpp.llama_context_default_params(),
            n_ctx=n_ctx,
            n_batch=n_ctx,
            n_threads=threads,
            n_threads_batch=placement.threads_batch or threads,
            type_k=KV_TYPES[placement.kv_type],
            type_v=KV_TYPES[placement.kv_type],
            flash_attn_type=_FLASH_ATTENTION[placement.flash_attention],
        )
        self._path = model.path
        self._held: list[int] = []
        self._handle = llama_cpp.llama_init_from_model(model.handle, params)
        if not self._handle:
            raise OutOfMemoryError(f"no memory for a context of {n_ctx} tokens on {model.path}; close other programs")
        if adapter is not None:
            adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(adapter.handle)
            llama_cpp.llama_set_adapters_lora(self._handle, adapters, 1, (ctypes.c_float * 1)(adapter_scale))

    @classmethod
    def of(cls, role: LoadedRole, n_ctx: int) -> BareContext:
        """Make one for what a role runs on."""
        return cls(cast(Model, role.model), role.placement, n_ctx, role.adapter, role.role.lora_scale)

    def hold(self, tokens: Sequence[int]) -> None:
        """Make tokens all that is held; what is common at the beginning stays. Raises: EvaluationError."""
        memory = llama_cpp.llama_get_memory(self._handle)
        kept = common_prefix(self._held, tokens)
        if not llama_cpp.llama_memory_seq_rm(memory, 0, kept, -1):  # a recurrent state starts over
            llama_cpp.llama_memory_clear(memory, True)
            kept = 0
        del self._held[kept:]
        if kept < len(tokens):
            self.evaluate(tokens[kept:])

    def evaluate(self, tokens: Sequence[int]) -> float:
        """Append tokens, with the logits of the last one; return the seconds. Raises: EvaluationError."""
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        batch = llama_cpp.llama_batch_get_one(array, len(tokens))
        started = time.perf_counter()
        status = _decode(self._handle, batch)
        llama_cpp.llama_synchronize(self._handle)
        seconds = time.perf_counter() - started
        if status:
            raise EvaluationError(f"llama.cpp failed to evaluate {len(tokens)} tokens on {self._path} ({status})")
        self._held += tokens
        return seconds

    def close(self) -> None:
        if self._handle:
            llama_cpp.llama_free(self._handle)
            self._handle = None

    def __enter__(self) -> BareContext:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(slots=True)
class Watch:
    """What was requested while it was watched.

    seconds: spent inside llama.cpp's evaluations and samplers.
    rows: of the watched role's logits, for the first of the answers, in each evaluation that had any. What is
    evaluated after them only because more rows are sooner done was not requested.
    """

    seconds: float = 0.0
    rows: list[int] = field(default_factory=list)

    def clear(self) -> None:
        self.seconds = 0.0
        self.rows.clear()


@contextmanager
def watched(role: str) -> Iterator[Watch]:
    """Watch every call that our own code makes to llama.cpp in here, and the rows that it wants of a role.

    A base that drafts are checked on gives a row more than tokens were drafted, so its rows show the drafts' lengths.
    """
    watch = Watch()
    evaluate = Engine._evaluate  # of a round: it knows what was drafted, and for whom

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def measure(*arguments: Any) -> Any:
            started = time.perf_counter()
            result = call(*arguments)
            watch.seconds += time.perf_counter() - started
            return result

        return measure

    def counted(engine: Engine, schedule: Schedule) -> None:
        first = schedule.extensions[:1]
        watch.rows += [len(each.draft.tokens) + 1 for each in first if role in each.sequence.kv]
        evaluate(engine, schedule)

    calls = {name: getattr(llama_cpp, name) for name in _CALLS}
    for name, call in calls.items():
        setattr(llama_cpp, name, timed(call))
    Engine._evaluate = counted  # type: ignore[method-assign, assignment]
    try:
        yield watch
    finally:
        Engine._evaluate = evaluate  # type: ignore[method-assign]
        for name, call in calls.items():
            setattr(llama_cpp, name, call)


_CALLS = ("llama_decode", "llama_get_logits", "llama_sampler_apply")
