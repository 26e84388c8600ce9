"""Whether a model's logits depend on what is evaluated together, and what that costs: tried once, then kept.

The same tokens are evaluated one at a time, in calls of 2 to 256 rows, behind and beside other sequences. Where every
row has the same bits each time, an answer is the same alone and in company, with drafts and without, and after a prompt
that came in one call or in several. What would break that shows here, whatever the device.

Both kinds of attention are tried where a recipe leaves the choice. Which is faster depends on the model and on how much
it looks at, so they are timed behind a long sequence; one that is put together from copies of a short one, as reading
so many tokens would take minutes.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import llama_cpp
import numpy as np

from eft_local import locations
from eft_local.errors import EvaluationError, OutOfMemoryError
from eft_local.llama import kernels, library
from eft_local.llama.context import KV_TYPES, context_params
from eft_local.llama.gguf import check_gguf
from eft_local.llama.products import WEIGHTS
from eft_local.llama.trial import identity
from eft_local.protocols import Evaluator, Floats, Rows

if TYPE_CHECKING:
    from eft_local.llama.model import Model

Attention = bool | Literal["auto"]
"""Whether with flash attention; "auto" where llama.cpp decides."""

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

_COPIED, _DEEP = 64, 1536
"""Tokens of the sequence that is copied, and of the one that is put together, at most."""
_PROMPT = 32  # rows, of which the time is a prompt's
_REPEATS, _REPEATS_OF_PROMPTS, _MOST_REPEATS = 5, 2, 50
_BUDGET = 0.1  # seconds of repeating more: of small models, which are soon done, little things disturb the times
_READ, _WRITTEN = 256, 128
"""Of an answer whose time is compared: tokens of its prompt, and its own."""
_TOLD = 0.005  # a price that is told
_WORTH = 1.05
"""How many times as long an answer may take to be exact, where a recipe says "auto"."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a model's logits have the same bits however rows are evaluated together.

    reason: what was otherwise when they did not; empty if they did.
    """

    exact: bool
    reason: str = ""

    def __str__(self) -> str:
        return "yes" if self.exact else f"no, because {self.reason}"


@dataclass(frozen=True, slots=True)
class Way:
    """One way of evaluating a model.

    flash: with flash attention; "auto" where llama.cpp decides.  exactly: with kernels that give each row the bits that
    it gets alone.  seconds: of an answer of some length, without drafts; None where there was nothing to compare with.
    """

    flash: Attention
    exactly: bool
    verdict: Verdict
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """The way that a role is evaluated.  price: what exactness costs, 0.1 for a tenth more time; 0 where it is had
    for nothing, or not to be had.
    """

    way: Way
    price: float = 0.0

    @property
    def verdict(self) -> Verdict:
        return self.way.verdict

    def __str__(self) -> str:
        cost = f", at {self.price:.0%} more time" if self.verdict.exact and self.price >= _TOLD else ""
        return f"{self.verdict}{cost}"


def choose(ways: Sequence[Way], wish: str) -> Choice:
    """Return the way that suits a recipe's `exact`.

    wish: "always", the fastest exact one; "never", the fastest; "auto", the exact one if it costs 5 % at most. Where
    none is exact it is the fastest.
    """

    def seconds(way: Way) -> float:
        return way.seconds or 1.0

    fastest = min(ways, key=seconds)
    exact = min((way for way in ways if way.verdict.exact), key=seconds, default=None)
    if exact is None:
        return Choice(fastest)
    times = max(1.0, seconds(exact) / seconds(fastest))
    if wish == "never" or (wish == "auto" and times > _WORTH):
        why = 'exact = "never"' if wish == "never" else f"it would take {times - 1:.0%} more time"
        return Choice(replace(fastest, verdict=Verdict(False, why)), times - 1)
    return Choice(exact, times - 1)


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


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked about: a model with its adapter, and how it is evaluated.

    flash: the kinds of attention that are possible.  context: tokens that its sequences hold.  kv_type: of the cache.
    settings: what else the answer depends on, such as the device.
    """

    files: tuple[Path, ...]
    flash: tuple[Attention, ...]
    context: int
    kv_type: str
    settings: tuple[object, ...]

    @property
    def kept(self) -> Path | None:
        """Where the answer is kept, if anywhere: for these files, this llama.cpp, these kernels, and this processor."""
        ours = find_spec("eft_local.llama._kernels")
        compiled = Path(ours.origin).stat() if ours and ours.origin else None
        facts = (
            identity(self.files), self.flash, min(self.context, _DEEP), self.kv_type, self.settings,
            kernels.installed(), compiled and (compiled.st_size, compiled.st_mtime_ns),
            llama_cpp.llama_print_system_info(), TOKENS,
        )  # fmt: skip
        return locations.cached("exactness", f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:32]}.json")

    def known(self) -> tuple[Way, ...] | None:
        """Return the ways that were found before."""
        path = self.kept
        with suppress(OSError, ValueError, TypeError, KeyError):
            kept = json.loads(path.read_bytes()) if path else None
            return kept and tuple(Way(**each | {"verdict": Verdict(**each["verdict"])}) for each in kept)
        return None

    def keep(self, ways: Sequence[Way]) -> None:
        path = self.kept
        if path is None:
            return
        with suppress(OSError):  # it is tried again next time
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{os.getpid()}.partial")
            partial.write_text(json.dumps([asdict(way) for way in ways]))
            partial.replace(path)


def find(model: Model, question: Question, open_context: Callable[..., Evaluator]) -> tuple[Way, ...]:
    """Return the ways of evaluating a model: as kept, or as found now.

    open_context: makes a context as it will be used, of n_ctx, n_seq, n_outputs and flash_attention.
    Raises: EvaluationError, Cancelled.
    """
    found = question.known()
    if found is None:
        try:
            found = tuple(_tried(model, question, open_context))
        except OutOfMemoryError:
            return tuple(Way(flash, True, Verdict(False, "there was no memory to try it")) for flash in question.flash)
        question.keep(found)
    return found


def _tried(model: Model, question: Question, open_context: Callable[..., Evaluator]) -> Iterator[Way]:
    """Yield the ways, the fastest first; those that are slower than an exact one are not tried for exactness."""
    times = {flash: _seconds(model, flash, question) if len(question.flash) > 1 else {} for flash in question.flash}
    exact = False
    for flash in sorted(question.flash, key=lambda flash: times[flash].get(True, 0.0)):
        if exact:
            verdict = Verdict(False, "it is slower than another way that is exact")
        elif model.keeps_recurrent_state:
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
    """Yield a function that evaluates rows behind a long sequence and returns the seconds; it stays as it is.

    The sequence is one of copies: in one cache for all sequences, cells of several may belong to one.
    """
    depth = min(question.context, _DEEP)
    copies = max(1, (depth - _COPIED) // _COPIED)
    params = library.fill(
        context_params(
            n_ctx=-(-(depth + _COPIED) // copies), n_seq=copies, n_outputs=1, n_batch=_COPIED, n_ubatch=_COPIED,
            kv_type=question.kv_type, flash_attention=flash,
        ),
        kv_unified=True, n_threads=1, n_threads_batch=1,
    )  # fmt: skip
    # Copies are rotated to their places, which llama.cpp ends the process at where keys are of some other types.
    movable = question.kv_type in ("f16", "f32") and not model.keeps_recurrent_state
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
