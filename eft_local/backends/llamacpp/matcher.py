"""What llguidance allows next: an answer in the making that must match a JSON schema or a Lark grammar."""

from __future__ import annotations

from weakref import WeakKeyDictionary, ref

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from eft_local.backends.base import Vocabulary
from eft_local.backends.tokenize import verbatim
from eft_local.errors import ConstraintError, UsageError
from eft_local.recipe.json_schema import compiled, one_line

_tokenizers: WeakKeyDictionary[Vocabulary, LLTokenizer] = WeakKeyDictionary()


class Matcher:
    """Implements `sampler.Constraint`: the tokens with which an answer can still become what is allowed."""

    def __init__(self, vocabulary: Vocabulary, grammar: str, law: str) -> None:
        """grammar: llguidance's own form. law: what it is called."""
        self._law = law
        self._matcher = LLMatcher(
            tokenizer(vocabulary), grammar, log_level=0, limits=LLParserLimits(verbose_errors=False)
        )
        self._mask: npt.NDArray[np.bool_] | None = None

    @classmethod
    def of_schema(cls, vocabulary: Vocabulary, schema: str) -> Matcher:
        """schema: text of a JSON schema. Raises: UsageError for one that cannot be enforced."""
        return cls(vocabulary, compiled(schema), "JSON schema")

    @classmethod
    def of_lark(cls, vocabulary: Vocabulary, grammar: str) -> Matcher:
        """grammar: Lark text. Raises: UsageError for one that llguidance does not accept."""
        matcher = cls(vocabulary, LLMatcher.grammar_from_lark(grammar), "grammar")
        if matcher._matcher.is_error():
            raise UsageError(f"llguidance does not accept the grammar: {one_line(matcher._matcher.get_error())}")
        return matcher

    def allowed(self, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
        """Return which of these tokens may come next, [n]; text that is certain comes in its usual tokens.

        Raises: ConstraintError where it takes more steps than llguidance's limits allow.
        """
        if self._mask is None:
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            self._check()
            self._mask = np.unpackbits(bits, bitorder="little").view(np.bool_)
        return self._mask[ids]

    def accept(self, token: int) -> bool:
        """Extend the answer. Return whether the token is allowed; one that is not changes nothing."""
        if self._matcher.is_stopped():  # complete: only an end may follow
            return bool(self.allowed(np.array([token], np.int32))[0])
        if not self._matcher.validate_tokens([token]):
            self._check()
            return False
        self._mask = None
        accepted = self._matcher.consume_token(token)
        self._check()
        return accepted

    def clone(self) -> Matcher:
        twin = Matcher.__new__(Matcher)
        twin._law, twin._matcher, twin._mask = self._law, self._matcher.deep_copy(), self._mask
        return twin

    def close(self) -> None:
        """Nothing is to be freed by hand."""

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ConstraintError(
                f"the {self._law} cannot be followed any further: {one_line(self._matcher.get_error())}; simplify it"
            )


def tokenizer(vocabulary: Vocabulary) -> LLTokenizer:
    """Return llguidance's view of a vocabulary, made once: the bytes of every token, and those that end an answer."""
    if vocabulary not in _tokenizers:
        _tokenizers[vocabulary] = _tokenizer(vocabulary)
    return _tokenizers[vocabulary]


def _tokenizer(vocabulary: Vocabulary) -> LLTokenizer:
    ids = range(vocabulary.n_tokens)
    ends = [token for token in ids if vocabulary.is_eog(token)]
    # A vocabulary that cannot end an answer gets an end that no model offers.
    tokens = [vocabulary.piece(token) for token in ids] + ([] if ends else [b""])
    wrapper = TokenizerWrapper(_Tokens(vocabulary, tokens))
    made = LLTokenizer(wrapper, eos_token=ends or [len(ids)], slices=LLTokenizer.json_slices())
    wrapper.tokens = ()  # copied; the wrapper stays for its call
    return made


class _Tokens:
    """What llguidance's wrapper requires of a tokenizer. It must not keep the vocabulary alive, which keeps it."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, tokens: list[bytes]) -> None:
        self.tokens = tokens
        self.eos_token_id = 0  # unread: LLTokenizer gets all ends
        self._vocabulary = ref(vocabulary)

    def __call__(self, text: str | bytes) -> list[int]:
        vocabulary = self._vocabulary()
        assert vocabulary is not None, "the model is closed"
        return verbatim(vocabulary, text if isinstance(text, str) else text.decode())
