"""A context: a cache of several token sequences on one model, and the evaluation that extends them."""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import llama_cpp
import numpy as np

from eft_local.backends.base import ContextOptions, Floats, Rows
from eft_local.backends.llamacpp import library, waits
from eft_local.backends.llamacpp.calls import Row, calls
from eft_local.errors import (
    Cancelled,
    ContextOverflowError,
    EvaluationError,
    OutOfMemoryError,
    UnsupportedModelError,
    UsageError,
)

if TYPE_CHECKING:
    from eft_local.backends.llamacpp.model import Model

KV_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30}
_FLASH_ATTENTION = {"auto": -1, False: 0, True: 1}
_BLOCKS = re.compile(r"cache type (?P<kv_type>\w+) with block size (?P<block>\d+) does not divide \w+=(?P<head>\d+)")
_ABORTED = 2
_NO_SLOT = 1


def context_params(options: ContextOptions) -> llama_cpp.llama_context_params:
    """Return all of a context's parameters that its size in memory depends on."""
    n_seq = options.n_seq
    n_outputs = max(options.n_outputs, n_seq)  # each sequence has a row in the graphs that it reserves
    n_batch = max(options.n_batch, n_outputs)  # all rows with logits are read after one evaluation
    return library.fill(
        llama_cpp.llama_context_default_params(),
        n_ctx=options.n_ctx * n_seq,
        n_batch=n_batch,
        n_ubatch=min(options.n_ubatch, n_batch),
        n_seq_max=n_seq,
        n_outputs_max=n_outputs,
        n_outputs_max_per_seq=n_outputs,
        type_k=KV_TYPES[options.kv_type],
        type_v=KV_TYPES[options.kv_type],
        flash_attn_type=_FLASH_ATTENTION[options.flash_attention],
        # A stream for each sequence: where its tokens lie in one cache, and beside what, would change its logits.
        kv_unified=False,
        swa_full=True,  # a pruned sliding window could not be rewound
    )


def unsuitable_cache(path: Path) -> UnsupportedModelError | None:
    """Return what is wrong if llama.cpp has just refused a context whose KV type does not go with this model."""
    reason = library.last_complaint()
    if blocks := _BLOCKS.search(reason):
        return UnsupportedModelError(
            f'kv_type = "{blocks["kv_type"]}" does not suit {path}: it holds numbers in blocks of {blocks["block"]}, '
            f'and the model\'s heads have {blocks["head"]}; set kv_type = "f16" for it'
        )
    if "requires flash_attn" in reason:
        return UnsupportedModelError(
            f'llama.cpp quantises the cache of {path} only with flash attention; set kv_type = "f16" for it'
        )
    return None


class Context:
    """Implements `base.Evaluator` on llama.cpp. Not for two threads at once, but for `abort`."""

    def __init__(self, model: Model, options: ContextOptions) -> None:
        """Make room for sequences of tokens. Without numbers of threads, `Model.threads` chooses.

        Raises: OutOfMemoryError; UsageError for an unknown KV type or more sequences than llama.cpp can hold;
        UnsupportedModelError for a KV type that does not suit the model.
        """
        n_seq = options.n_seq
        if options.kv_type not in KV_TYPES:
            raise UsageError(f"unknown KV cache type {options.kv_type!r}; use one of {', '.join(KV_TYPES)}")
        if n_seq > (most := llama_cpp.llama_max_parallel_sequences()):
            raise UsageError(f"{n_seq} sequences in one context; llama.cpp holds {most}: write fewer side by side")
        self.model = model
        self.n_seq = n_seq
        self.n_vocab = model.n_vocab
        self.n_outputs = max(options.n_outputs, n_seq)
        self._lengths = [0] * n_seq
        self._stop = library.StopFlag()
        self._rows = 0
        self._logits: Floats = np.empty((0, 0), np.float32)
        self._threads = model.threads.ordered(options.n_threads, options.n_threads_batch or options.n_threads)
        params = library.fill(
            context_params(options),
            abort_callback=self._stop.callback,
            abort_callback_data=self._stop.data,
        )
        library.forget_complaints()
        self.handle = llama_cpp.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise unsuitable_cache(model.path) or OutOfMemoryError(
                f"llama.cpp could not make a context of {n_seq * options.n_ctx} tokens for {model.path} "
                f"({library.last_complaint() or 'no reason given'}); try a smaller context, "
                'kv_type = "q8_0", or fewer layers on the GPU'
            )
        if options.adapter is not None:
            handles = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(options.adapter.handle)
            llama_cpp.llama_set_adapters_lora(self.handle, handles, 1, (ctypes.c_float * 1)(options.adapter_scale))
        self._fills = model.capabilities.rewinds
        self._memory = llama_cpp.llama_get_memory(self.handle)
        self.n_ctx = int(llama_cpp.llama_n_ctx_seq(self.handle))
        self._batch = _Batch(int(llama_cpp.llama_n_batch(self.handle)))

    def length(self, sequence: int) -> int:
        return self._lengths[sequence]

    def submit(self, batch: Sequence[Rows]) -> None:
        self._check_open()
        outputs = sum(rows.outputs for rows in batch)
        if outputs > self.n_outputs:
            raise UsageError(f"{outputs} rows of logits were requested; this context has room for {self.n_outputs}")
        for rows in batch:
            if rows.outputs > len(rows.tokens):
                raise UsageError("more rows of logits were requested than there are new tokens")
            length = self._lengths[rows.sequence] + len(rows.tokens)
            if length > self.n_ctx:
                raise ContextOverflowError(
                    f"{length} tokens do not fit into a context of {self.n_ctx}; "
                    "shorten the conversation or raise `context`"
                )
        touched = {rows.sequence for rows in batch}
        try:
            for call in calls(batch, self._lengths, room=self.n_ctx, size=self._batch.size, fill=self._fills):
                touched |= {row.sequence for row in call}
                self._decode(call)
            for rows in batch:
                self._lengths[rows.sequence] += len(rows.tokens)
            if len(batch) > 1 and self._fills:
                self._forget_fillings(touched)
        except BaseException:
            for sequence in touched:
                self.rewind(sequence, self._lengths[sequence])
            raise
        self._rows = outputs

    def logits(self) -> Floats:
        self._check_open()
        pointer = llama_cpp.llama_get_logits(self.handle)  # waits for the evaluation
        if self._stop:
            raise Cancelled("the evaluation was stopped")
        address = ctypes.addressof(pointer.contents)
        if self._logits.ctypes.data != address:  # llama.cpp's buffer, which it may move
            memory = (ctypes.c_float * (self.n_outputs * self.n_vocab)).from_address(address)
            self._logits = np.ndarray((self.n_outputs, self.n_vocab), np.float32, memoryview(memory))
        return self._logits[: self._rows]

    def rewind(self, sequence: int, length: int) -> int:
        """Forget everything beyond `length` tokens; return how many are left.

        Models with a recurrent state (Mamba, RWKV, hybrids) cannot drop the end of a sequence: they start over at 0.
        """
        self._check_open()
        if not llama_cpp.llama_memory_seq_rm(self._memory, sequence, length, -1):
            library.log.warning("%s cannot rewind; its sequence starts over", self.model.path.name)
            llama_cpp.llama_memory_seq_rm(self._memory, sequence, -1, -1)
            length = 0
        self._lengths[sequence] = min(self._lengths[sequence], length)
        return self._lengths[sequence]

    def copy(self, source: int, target: int) -> None:
        self._check_open()
        if source == target:
            return
        llama_cpp.llama_memory_seq_rm(self._memory, target, -1, -1)
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        self._lengths[target] = self._lengths[source]

    def abort(self) -> None:
        self._stop.set()

    def resume(self) -> None:
        self._stop.clear()

    def close(self) -> None:
        if self.handle:
            llama_cpp.llama_free(self.handle)
            self.handle = None

    def __enter__(self) -> Context:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if not self.handle:
            raise EvaluationError(f"the context on {self.model.path} is closed; load it again")

    def _forget_fillings(self, sequences: set[int]) -> None:
        for sequence in sequences:
            llama_cpp.llama_memory_seq_rm(self._memory, sequence, self._lengths[sequence], -1)

    def _decode(self, rows: list[Row]) -> None:
        if self._stop:
            raise Cancelled("the evaluation was stopped")
        waits.watch().look()
        threads = self._threads.choose(len(rows))
        llama_cpp.llama_set_n_threads(self.handle, threads, threads)
        started = time.perf_counter()
        status = llama_cpp.llama_decode(self.handle, self._batch.fill(rows))
        if status == _ABORTED:
            raise Cancelled("the evaluation was stopped")
        if status == _NO_SLOT:
            raise ContextOverflowError(f"the context of {self.n_ctx} tokens is full; raise `context`")
        if status != 0:
            raise EvaluationError(
                f"llama.cpp failed to evaluate {len(rows)} tokens on {self.model.path} (status {status}"
                f"{': ' + library.last_complaint() if library.last_complaint() else ''})"
            )
        self._threads.learn(len(rows), time.perf_counter() - started)


class _Batch:
    """One `llama_batch` of NumPy arrays, reused for every evaluation: no allocation per token."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._tokens = np.zeros(size, np.int32)
        self._positions = np.zeros(size, np.int32)
        self._counts = np.ones(size, np.int32)
        self._sequences = np.zeros(size, np.int32)
        self._wanted = np.zeros(size, np.int8)
        # seq_id is an array of pointers, one per token, into _sequences.
        self._pointers = self._sequences.ctypes.data + np.arange(size, dtype=np.uintp) * 4
        self._struct = llama_cpp.llama_batch(
            n_tokens=0,
            token=_pointer(self._tokens, llama_cpp.llama_token),
            embd=None,
            pos=_pointer(self._positions, llama_cpp.llama_pos),
            n_seq_id=_pointer(self._counts, ctypes.c_int32),
            seq_id=ctypes.cast(self._pointers.ctypes.data, ctypes.POINTER(ctypes.POINTER(llama_cpp.llama_seq_id))),
            logits=_pointer(self._wanted, ctypes.c_int8),
        )

    def fill(self, rows: list[Row]) -> llama_cpp.llama_batch:
        # Item by item: most batches have one row, and a prompt takes seconds to evaluate.
        for i, (token, position, sequence, wanted) in enumerate(rows):
            self._tokens[i] = token
            self._positions[i] = position
            self._sequences[i] = sequence
            self._wanted[i] = wanted
        self._struct.n_tokens = len(rows)
        return self._struct


def _pointer(array: np.ndarray[tuple[int], np.dtype[np.generic]], kind: type) -> ctypes._Pointer[ctypes._CData]:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))
