"""llama.cpp's sampler chain applied to logits of ours, with draws keyed by (seed, position, token)."""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from typing import Any, Protocol

import llama_cpp
import numpy as np
import numpy.typing as npt

from eft_local.backends.base import Floats, Vocabulary
from eft_local.backends.llamacpp.candidates import CANDIDATE, pointer, token_data_array
from eft_local.backends.llamacpp.distribution import Distribution
from eft_local.backends.llamacpp.grammar import Grammar
from eft_local.backends.llamacpp.noise import CONSTRAINED, gumbel, key
from eft_local.backends.llamacpp.vocabulary import LlamaVocabulary
from eft_local.backends.ranking import best
from eft_local.backends.tokenize import verbatim
from eft_local.errors import ConstraintError, EvaluationError, UsageError
from eft_local.recipe.sampling import LARK, Sampling

_NOTHING_LEFT = "the models left no token to choose (their logits are NaN or all masked)"
_DRY_BREAKERS = (b"\n", b":", b'"', b"*")


class Constraint(Protocol):
    """What an answer must obey, and how far it has got: a grammar or a JSON schema. Close it before its model."""

    def allowed(self, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
        """Return which of these tokens may come next, [n]."""

    def accept(self, token: int) -> bool:
        """Extend the answer. Return whether the token is allowed; one that is not changes nothing."""

    def clone(self) -> Constraint:
        """Return a copy with a memory of its own. Close it."""

    def close(self) -> None:
        """Free everything."""


class Sampler:
    """Chooses the next token from mixed logits and remembers the answer so far (penalties, DRY, grammar or schema).

    `pick` leaves that memory alone; `accept` extends it. Close it before its model.
    """

    def __init__(self, vocabulary: Vocabulary, sampling: Sampling, n_vocab: int, window: int) -> None:
        """vocabulary: read by grammar, biases and DRY; n_vocab: width of the logits that `pick` gets.
        window: tokens that "the whole answer" (-1) means to the penalties.

        Raises: UsageError for a grammar, schema or bias that cannot be used.
        """
        self._sampling = sampling
        self._ids = np.arange(n_vocab, dtype=np.int32)
        self._candidates = np.zeros(n_vocab, CANDIDATE)
        self._ids_laid, self._logits_laid = self._candidates["id"], self._candidates["logit"]
        self._address = self._candidates.ctypes.data
        self._pointer = pointer(self._candidates)
        self._constraint: Constraint | None = None
        self._chain = self._temperature = None
        try:
            self._constraint = _constraint(vocabulary, sampling)
            self._chain = _chain(vocabulary, sampling, n_vocab, window)
            self._temperature = llama_cpp.llama_sampler_init_temp(sampling.temperature)
        except BaseException:
            self.close()
            raise
        first = llama_cpp.llama_sampler_chain_get(self._chain, 0)
        self._bare = not first
        # Where top-k comes first, the others need not be laid before it.
        self._enough = sampling.top_k if first and llama_cpp.llama_sampler_name(first) == b"top-k" else 0

    @property
    def greedy(self) -> bool:
        return self._sampling.temperature == 0

    def pick(self, scores: Floats, seed: int, position: int) -> int:
        """Return the next token for logits `scores` [n_vocab] at `position` in the answer.

        Raises: EvaluationError if nothing may be chosen.
        """
        self._check(scores)
        token = self._draw(scores, seed, position, constrained=False)
        if not self._allowed(np.array([token], np.int32))[0]:
            # As llama.cpp does: a grammar looks at every candidate only where the free choice breaks it.
            token = self._draw(scores, seed, position, constrained=True)
        return token

    def distribution(self, scores: Floats, seed: int, position: int) -> Distribution:
        """Return how likely `pick` is to give each token, for logits `scores` [n_vocab], whatever the noise.

        seed, position: XTC tosses its coin there, and the distribution is the one that is left.
        Raises: EvaluationError if nothing may be chosen.
        """
        if self.greedy:
            return Distribution.certain(self.pick(scores, seed, position))
        self._check(scores)
        free = _softmax(self._left(scores, seed, position, constrained=False))
        forbidden = ~self._allowed(free.ids)
        if not forbidden.any():
            return free
        return free.redrawn(forbidden, _softmax(self._left(scores, seed, position, constrained=True)))

    def lawful(self) -> npt.NDArray[np.bool_] | None:
        """Return which tokens the grammar or schema allows next, [n_vocab]; None where there is neither."""
        return self._allowed(self._ids) if self._constraint else None

    def accept(self, token: int) -> None:
        """Remember a chosen token. Raises: EvaluationError if the grammar or schema forbids it."""
        if self._constraint and not self._constraint.accept(token):
            raise ConstraintError(f"token {token} breaks the {self._law}")
        llama_cpp.llama_sampler_accept(self._chain, token)

    def clone(self) -> Sampler:
        """Return a copy with a memory of its own. Close it."""
        twin = copy.copy(self)
        twin._constraint = self._constraint.clone() if self._constraint else None
        for name in ("_chain", "_temperature"):
            sampler = getattr(self, name)
            setattr(twin, name, llama_cpp.llama_sampler_clone(sampler) if sampler else None)
        return twin

    def close(self) -> None:
        if self._constraint:
            self._constraint.close()
        for sampler in (self._chain, self._temperature):
            if sampler:
                llama_cpp.llama_sampler_free(sampler)
        self._constraint = self._chain = self._temperature = None

    @property
    def _law(self) -> str:
        """What the constraint is called."""
        return "grammar" if self._sampling.grammar is not None else "JSON schema"

    def _draw(self, scores: Floats, seed: int, position: int, *, constrained: bool) -> int:
        if self.greedy and self._bare:
            return int((self._restricted(scores) if constrained else scores).argmax())
        left = self._left(scores, seed, position, constrained=constrained)
        ids, logits = left["id"], left["logit"]
        if self.greedy or left.size == 1:
            return int(ids[logits == logits.max()].min())
        # Noise of its own, so that how likely a second draw is does not depend on what the first one was.
        purpose = (CONSTRAINED,) if constrained else ()
        return int(ids[np.argmax(logits + gumbel(seed, position, ids, *purpose))])

    def _left(self, scores: Floats, seed: int, position: int, *, constrained: bool) -> npt.NDArray[np.void]:
        """Return the candidates that all samplers leave, with logits at the temperature; valid until the next call."""
        array = self._fill(self._restricted(scores) if constrained else scores)
        llama_cpp.llama_sampler_apply(self._chain, array)
        if not self.greedy:
            if self._sampling.xtc_probability:
                with _xtc(self._sampling, seed, position) as xtc:
                    llama_cpp.llama_sampler_apply(xtc, array)
            llama_cpp.llama_sampler_apply(self._temperature, array)
        left = self._view(array)
        if not left.size or not isfinite(left["logit"].max()):
            raise EvaluationError(_NOTHING_LEFT)
        return left

    def _restricted(self, scores: Floats) -> Floats:
        """Return the scores of what the grammar or schema allows, −inf for the rest. Raises: EvaluationError."""
        restricted = np.where(self._allowed(self._ids), scores, np.float32(-np.inf))
        if not isfinite(restricted.max()):
            raise ConstraintError(f"no token may be chosen here: the {self._law} allows none of those that are left")
        return restricted

    def _fill(self, scores: Floats) -> Any:
        """Lay out the candidates: the best where only some of them count, or all."""
        ids = best(scores, self._enough) if self._enough else self._ids
        self._ids_laid[: ids.size] = ids
        self._logits_laid[: ids.size] = scores[ids] if self._enough else scores
        return ctypes.byref(token_data_array(self._pointer, ids.size))

    def _view(self, array: Any) -> npt.NDArray[np.void]:
        """The candidates that are left; samplers may shrink, reorder or move the array."""
        struct = array._obj
        address = ctypes.cast(struct.data, ctypes.c_void_p).value
        if address == self._address or not struct.size:
            return self._candidates[: struct.size]
        memory = (ctypes.c_char * (struct.size * CANDIDATE.itemsize)).from_address(address)
        return np.frombuffer(memory, CANDIDATE)

    def _allowed(self, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
        """Return which of these tokens the grammar or schema allows, [n]."""
        return self._constraint.allowed(ids) if self._constraint else np.ones(ids.size, np.bool_)

    @staticmethod
    def _check(scores: Floats) -> None:
        if not isfinite(scores.max()):  # NaN if any is: llama.cpp's sorting must not see one
            raise EvaluationError(_NOTHING_LEFT)


def _softmax(candidates: npt.NDArray[np.void]) -> Distribution:
    return Distribution.softmax(candidates["id"].copy(), candidates["logit"])


def _chain(vocabulary: Vocabulary, sampling: Sampling, n_vocab: int, window: int) -> Any:
    """llama.cpp's usual order; temperature and XTC follow in `_draw`, the draw itself is keyed noise."""
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    for sampler in _stages(vocabulary, sampling, n_vocab, window):
        llama_cpp.llama_sampler_chain_add(chain, sampler)
    return chain


def _stages(vocabulary: Vocabulary, s: Sampling, n_vocab: int, window: int) -> Iterator[Any]:
    if s.logit_bias:
        biases = [(_bias_token(vocabulary, text, n_vocab), bias) for text, bias in s.logit_bias.items()]
        table = (llama_cpp.llama_logit_bias * len(biases))(*biases)
        yield llama_cpp.llama_sampler_init_logit_bias(n_vocab, len(biases), table)
    if s.repeat_penalty != 1 or s.presence_penalty or s.frequency_penalty:
        last_n = s.repeat_last_n if s.repeat_last_n >= 0 else window
        yield llama_cpp.llama_sampler_init_penalties(
            n_vocab, last_n, s.repeat_penalty, s.frequency_penalty, s.presence_penalty
        )
    if s.dry_multiplier:
        last_n = s.dry_penalty_last_n if s.dry_penalty_last_n >= 0 else window
        breakers = (ctypes.c_char_p * len(_DRY_BREAKERS))(*_DRY_BREAKERS)
        yield llama_cpp.llama_sampler_init_dry(
            _llama(vocabulary).handle, s.dry_multiplier, s.dry_base, s.dry_allowed_length, last_n,
            breakers, len(_DRY_BREAKERS),
        )  # fmt: skip
    if s.temperature == 0:
        return  # greedy: what follows never removes the best candidate
    if s.top_k:
        yield llama_cpp.llama_sampler_init_top_k(s.top_k)
    if s.typical_p < 1:
        yield llama_cpp.llama_sampler_init_typical(s.typical_p, 1)
    if s.top_p < 1:
        yield llama_cpp.llama_sampler_init_top_p(s.top_p, 1)
    if s.min_p:
        yield llama_cpp.llama_sampler_init_min_p(s.min_p, 1)


@contextmanager
def _xtc(s: Sampling, seed: int, position: int) -> Iterator[Any]:
    """XTC tosses a coin per token: made anew for each position, its coin is keyed like every other draw."""
    coin = key(seed, position) & 0x7FFFFFFF  # all 32 bits set would mean a random seed to llama.cpp
    sampler = llama_cpp.llama_sampler_init_xtc(s.xtc_probability, s.xtc_threshold, 1, coin)
    try:
        yield sampler
    finally:
        llama_cpp.llama_sampler_free(sampler)


def _bias_token(vocabulary: Vocabulary, text: str, n_vocab: int) -> int:
    if text.isdecimal():
        token = int(text)
        if token >= n_vocab:
            raise UsageError(f"logit_bias names token {token}; the vocabulary has {n_vocab} tokens")
        return token
    tokens = verbatim(vocabulary, text)
    if len(tokens) != 1:
        tokens = vocabulary.tokenize(text, add_special=False, parse_special=True)
    if len(tokens) != 1 or tokens[0] >= n_vocab:
        raise UsageError(f"logit_bias names {text!r}, which is {len(tokens)} tokens, not one; name a token, or its id")
    return tokens[0]


def _constraint(vocabulary: Vocabulary, s: Sampling) -> Constraint | None:
    if s.grammar is not None and not s.grammar.lstrip().startswith(LARK):
        return Grammar(_llama(vocabulary), s.grammar)
    if s.grammar is not None or s.json_schema is not None:
        # llguidance is loaded only where it is needed.
        from eft_local.backends.llamacpp.matcher import Matcher

        if s.json_schema is not None:
            return Matcher.of_schema(vocabulary, s.json_schema)
        return Matcher.of_lark(vocabulary, str(s.grammar))
    return None


def _llama(vocabulary: Vocabulary) -> LlamaVocabulary:
    if not isinstance(vocabulary, LlamaVocabulary):
        raise UsageError("grammars and DRY read llama.cpp's own vocabulary; this one is not")
    return vocabulary
