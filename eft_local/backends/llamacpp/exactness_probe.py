"""Tries whether a model's logits depend on what is evaluated together, and times the ways of evaluating it.

The same tokens are evaluated one at a time, in calls of 2 to 264 rows, after and beside other sequences. What would
break exactness shows here, whatever the device.

Both kinds of attention are tried where a recipe leaves the choice. Which is faster depends on the model and on how much
it looks at, so they are timed after a long sequence; one that is put together from copies of a short one, as reading
so many tokens would take minutes.

All this happens in a child process where a file is new, the one that tests whether it is sound (see `file_probe`): what
llama.cpp asserts about a model that nobody has thought of must not end ours.
"""

from __future__ import annotations

import ctypes
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from math import inf
from typing import Any

import llama_cpp
import numpy as np

from eft_local import locations
from eft_local.backends.base import ContextOptions, Evaluator, Floats, Rows
from eft_local.backends.llamacpp import file_probe, kernels, library
from eft_local.backends.llamacpp.adapter import Adapter
from eft_local.backends.llamacpp.context import KV_TYPES, context_params
from eft_local.backends.llamacpp.exactness import DEEP, Attention, Question, Verdict, Way, ways_from, ways_to
from eft_local.backends.llamacpp.kernels.products import WEIGHTS
from eft_local.backends.llamacpp.model import Model
from eft_local.errors import EftError, EvaluationError, OutOfMemoryError
from eft_local.gguf.checks import check_gguf

SEQUENCES, ROOM = 3, 512
"""What a context that is tried has: so many sequences with room for so many tokens each."""

_ALONE = 16
"""Tokens that are evaluated one at a time …"""
_FEW = (2, 3, 4, 8)
"""… and in calls of so many rows."""
_MIDDLE, _LONG = 80, 264
"""Tokens in calls of up to 64 rows, and in one call; the longer are more than what llama.cpp looks at in one piece."""
_BESIDE = 6
"""Tokens that are evaluated one at a time beside others."""
TOKENS = _ALONE + len(_FEW) * _ALONE + _MIDDLE + _LONG + 3 * _BESIDE + _BESIDE // 2
"""That are evaluated in all to find out."""

_COPIED = 64
"""Tokens of the sequence that is copied."""
_PROMPT = 32  # rows, of which the time is a prompt's
_REPEATS, _REPEATS_OF_PROMPTS, _MOST_REPEATS = 5, 2, 50
_BUDGET = 0.1  # seconds of repeating more: of small models, which are soon done, little things disturb the times
_READ, _WRITTEN = 256, 128
"""Of an answer whose time is compared: tokens of its prompt, and its own."""


def probe(context: Evaluator, n_vocab: int) -> Verdict:
    """Evaluate `TOKENS` tokens in an empty context for `SEQUENCES` sequences of `ROOM` tokens.

    Raises: EvaluationError, Cancelled.
    """
    tokens = [(7919 * place + 101) % n_vocab for place in range(_LONG)]

    def evaluate(sequence: int, count: int, *others: Rows) -> Floats:
        """Append a sequence's next tokens; return the logits of its last row."""
        start = context.length(sequence)
        context.submit([Rows(sequence, tokens[start : start + count]), *others])
        row: Floats = context.logits()[0].copy()
        return row

    def in_calls(sequence: int, rows: int, end: int) -> list[Floats]:
        return [evaluate(sequence, min(rows, end - start)) for start in range(context.length(sequence), end, rows)]

    alone = in_calls(0, 1, _ALONE)
    if not all(np.isfinite(row).any() for row in alone):
        return Verdict(False, "its logits are no numbers")
    for count in _FEW:
        context.rewind(1, 0)
        if not _same(in_calls(1, count, _ALONE), [*alone[count - 1 :: count], alone[-1]]):
            return Verdict(False, f"{count} rows at once give other logits than one")
    context.rewind(1, 0)
    if not _same(in_calls(1, _ALONE, _ALONE), alone[-1:]):
        return Verdict(False, f"{_ALONE} rows at once give other logits than one")
    (middle,) = in_calls(1, 64, _MIDDLE)
    if not _same(in_calls(2, _MIDDLE, _MIDDLE), [middle]):
        return Verdict(False, f"{_MIDDLE} rows at once give other logits than 64")
    in_calls(2, _LONG, _LONG)
    context.rewind(0, _ALONE - _BESIDE)
    for place in range(_ALONE - _BESIDE, _ALONE):
        context.rewind(2, _LONG - 2)
        others = Rows(1, tokens[:1]), Rows(2, tokens[-2:][: 1 + place % 2])
        if not _same([evaluate(0, 1, *others)], [alone[place]]):
            return Verdict(False, "rows beside other sequences get other logits than alone")
    return Verdict(True)


def _same(rows: Sequence[Floats], expected: Sequence[Floats]) -> bool:
    return all(np.array_equal(row, other, equal_nan=True) for row, other in zip(rows, expected, strict=False))


OpenContext = Callable[..., Evaluator]
"""Makes a context as it will be used, of n_ctx, n_seq, n_outputs and flash_attention."""

_SOUND = "sound"  # what the child says when the files have passed


def find(model: Model, question: Question, open_context: OpenContext) -> tuple[Way, ...]:
    """Return the ways of evaluating a model: as kept, or as found now.

    Raises: EvaluationError, Cancelled.
    """
    found = question.recorded()
    if found is None:
        try:
            found = tuple(_tried(model, question, open_context))
        except OutOfMemoryError:
            return tuple(Way(flash, True, Verdict(False, "there was no memory to try it")) for flash in question.flash)
        question.keep(found)
    return found


def find_in_child(question: Question, waiting: Callable[[], None] = lambda: None) -> None:
    """Find the ways in a child process, and keep them; it tries whether the files are sound on the way.

    For files that are not loaded here yet: there is memory for them once. waiting: called while the child works; what
    it raises ends the child. Does nothing where they are known, or nothing can be kept.
    Raises: ModelFileError if files crashed the child, or made it hang; OutOfMemoryError if it was killed.
    """
    if question.kept is None or question.recorded() is not None:
        return
    code = "from eft_local.backends.llamacpp import exactness_probe; exactness_probe.answer()"
    ended = file_probe.run_child(code, [question.to_json()], question.files, waiting)
    sound, _, answer = ended.said.partition("\n")
    if sound != _SOUND or ended.status == -signal.SIGKILL:  # for want of memory: that is no verdict to keep
        file_probe.judge(ended, question.files[-1])
        return
    file_probe.remember(question.files, locations.cached("probes"))
    if not ended.status and answer:
        question.keep(ways_from(answer))
    elif ended.status:
        verdict = Verdict(False, f"trying it ended llama.cpp ({ended.reason})")
        question.keep([Way(flash, True, verdict) for flash in question.flash])


def answer() -> None:
    """Answer the question sys.argv[1], in a child process: say that its files are sound, then the ways.

    A refusal is no crash: loading the files will say why.
    """
    question = Question.from_json(sys.argv[1])
    path, *adapters = question.files
    try:
        model = Model.load(path, n_gpu_layers=question.offload, split=question.split, mmap=question.mmap, trusted=True)
        with model, Adapter.load(model, adapters[0], trusted=True) if adapters else nullcontext() as adapter:
            file_probe.evaluate(model, adapter)
            print(_SOUND, flush=True)

            def open_context(**room: Any) -> Evaluator:
                return model.open(ContextOptions(
                    n_batch=question.batch, n_ubatch=question.ubatch, kv_type=question.kv_type,
                    adapter=adapter, adapter_scale=question.scale, **room,
                ))  # fmt: skip

            print(ways_to(tuple(_tried(model, question, open_context))), flush=True)
    except EftError:
        return


def _tried(model: Model, question: Question, open_context: Callable[..., Evaluator]) -> Iterator[Way]:
    """Yield the ways, the fastest first; those that are slower than an exact one are not tried for exactness."""
    times = {flash: _seconds(model, flash, question) if len(question.flash) > 1 else {} for flash in question.flash}
    exact = False
    for flash in sorted(question.flash, key=lambda flash: times[flash].get(True, 0.0)):
        if exact:
            verdict = Verdict(False, "it is slower than another way that is exact")
        elif not model.capabilities.rewinds:
            verdict = Verdict(False, "its state cannot be rewound, so it was not tried")
        else:
            with closing(open_context(n_ctx=ROOM, n_seq=SEQUENCES, n_outputs=4, flash_attention=flash)) as context:
                verdict = probe(context, model.n_vocab)
            exact = verdict.exact
        yield Way(flash, True, verdict, times[flash].get(True))
        if False in times[flash]:
            yield Way(flash, False, Verdict(False, "llama.cpp's own kernels are faster"), times[flash][False])


def _seconds(model: Model, flash: Attention, question: Question) -> dict[bool, float]:
    """Return the seconds of an answer after many tokens, on one core, with exact kernels and with llama.cpp's own.

    Empty where a sequence cannot be put together.
    """
    ways = (True, False) if _has_price(question) else (True,)
    with _deep(model, flash, question) as evaluate:
        if evaluate is None:
            return {}
        singles: dict[bool, float] = dict.fromkeys(ways, inf)
        prompts = dict(singles)
        spent, turn = 0.0, 0
        try:
            while turn < _REPEATS or (spent < _BUDGET and turn < _MOST_REPEATS):
                for exactly in ways:
                    kernels.use_exact(exactly)
                    single, prompt = evaluate(1), inf
                    if turn < _REPEATS_OF_PROMPTS or spent < _BUDGET:
                        prompt = evaluate(_PROMPT)
                        spent += prompt
                    singles[exactly] = min(singles[exactly], single)
                    prompts[exactly] = min(prompts[exactly], prompt)
                    spent += single
                turn += 1
        finally:
            kernels.use_exact(True)
    return {exactly: prompts[exactly] * _READ / _PROMPT + singles[exactly] * _WRITTEN for exactly in ways}


def _has_price(question: Question) -> bool:
    """Whether rows are computed one after the other, to be exact, by a type of weights or of the cache."""
    slow = {WEIGHTS[name].ggml for name in kernels.row_by_row()}
    matrices = {tensor.kind for tensor in check_gguf(question.files[0]).tensors.values() if len(tensor.shape) > 1}
    return bool(slow & (matrices | {KV_TYPES[question.kv_type]}))


@contextmanager
def _deep(model: Model, flash: Attention, question: Question) -> Iterator[Callable[[int], float] | None]:
    """Yield a function that evaluates rows after a long sequence and returns the seconds; it stays as it is.

    The sequence is one of copies: in one cache for all sequences, cells of several may belong to one.
    """
    depth = min(question.context, DEEP)
    copies = max(1, (depth - _COPIED) // _COPIED)
    params = library.fill(
        context_params(ContextOptions(
            n_ctx=-(-(depth + _COPIED) // copies), n_seq=copies, n_outputs=1, n_batch=_COPIED, n_ubatch=_COPIED,
            kv_type=question.kv_type, flash_attention=flash,
        )),
        kv_unified=True, n_threads=1, n_threads_batch=1,
    )  # fmt: skip
    # Copies are rotated to their places, which llama.cpp ends the process at where keys are of some other types.
    movable = question.kv_type in ("f16", "f32") and model.capabilities.rewinds
    context = llama_cpp.llama_init_from_model(model.handle, params) if movable else None
    if not context:
        yield None
        return
    batch = llama_cpp.llama_batch_init(_COPIED, 0, 1)
    memory = llama_cpp.llama_get_memory(context)
    try:

        def evaluate(rows: int, start: int) -> float:
            batch.n_tokens = rows
            for i in range(rows):
                batch.token[i], batch.pos[i] = (7919 * i + 101) % model.n_vocab, start + i
                batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, i == rows - 1
            # Of this thread alone, which does all the work: what else runs on the machine must not decide.
            started = time.thread_time()
            if llama_cpp.llama_decode(context, batch):
                raise EvaluationError(f"llama.cpp failed to evaluate {rows} tokens on {model.path}")
            return time.thread_time() - started

        def again(rows: int) -> float:
            end = llama_cpp.llama_memory_seq_pos_max(memory, 0) + 1
            seconds = evaluate(rows, end)
            llama_cpp.llama_memory_seq_rm(memory, 0, end, -1)
            return seconds

        evaluate(_COPIED, 0)
        if llama_cpp.llama_memory_can_shift(memory):
            _lengthen(context, memory, copies)
        again(1)  # the copies are moved to their places
        yield again
    finally:
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)


def _lengthen(context: int, memory: int, copies: int) -> None:
    """Append copies of the first sequence to it."""
    size = llama_cpp.llama_state_seq_get_size(context, 0)
    state = (ctypes.c_uint8 * size)()
    llama_cpp.llama_state_seq_get_data(context, state, size, 0)
    for copy in range(1, copies):
        if not llama_cpp.llama_state_seq_set_data(context, state, size, copy):
            return
        llama_cpp.llama_memory_seq_add(memory, copy, 0, -1, _COPIED * copy)
        llama_cpp.llama_memory_seq_cp(memory, copy, 0, -1, -1)
