"""The seam: what the emulator needs from a model, and nothing more.

`llamacpp.Model`, `Context` and `LlamaVocabulary` implement these on llama.cpp; the fake of the tests implements them
with tables, so that loops and user interfaces are tested without a GGUF file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from eft_local.backends.specials import Specials

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Rows:
    """One sequence's share of a batch: append `tokens` to `sequence`, with logits of the last `outputs` of them."""

    sequence: int
    tokens: Sequence[int]
    outputs: int = 1


class TokenTable(Protocol):
    """What distinguishes two vocabularies; a file's header has it too."""

    def texts(self) -> list[bytes]:
        """Every token's text as the vocabulary stores it."""

    def attributes(self) -> npt.NDArray[np.int32]:
        """Every token's attribute bits (llama.cpp's `llama_token_attr`)."""


class Vocabulary(TokenTable, Protocol):
    """A model's tokens."""

    @property
    def n_tokens(self) -> int: ...

    @property
    def bos(self) -> int | None:
        """The beginning-of-sequence token, if the vocabulary has one."""

    @property
    def add_bos(self) -> bool:
        """Whether prompts begin with `bos`."""

    def is_eog(self, token: int) -> bool:
        """Whether this token ends a generation (EOS, end of turn, ...)."""

    def ends(self) -> Sequence[int]:
        """Every token that ends a generation; the one that the vocabulary names as such first."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...

    def piece(self, token: int) -> bytes:
        """The bytes that this token adds to a text; control tokens add none."""

    def specials(self) -> Specials:
        """Control, unknown and user-defined tokens."""


class Evaluator(Protocol):
    """Something that evaluates token ids to logits, with a cache for several sequences."""

    @property
    def n_vocab(self) -> int: ...

    @property
    def n_ctx(self) -> int:
        """Tokens that each sequence has room for."""

    def length(self, sequence: int) -> int:
        """Tokens of this sequence that the cache holds."""

    def submit(self, batch: Sequence[Rows]) -> None:
        """Evaluate new tokens at the end of their sequences; on a GPU this may return before the work is done.

        After an error or abort every sequence of the batch is as it was before.
        Raises: ContextOverflowError, EvaluationError, Cancelled (after `abort`).
        """

    def logits(self) -> Floats:
        """Logits of the last `submit`, float32 [sum of outputs, n_vocab] in batch order.

        A view, valid until the next `submit`. Waits for the evaluation. Raises: Cancelled.
        """

    def rewind(self, sequence: int, length: int) -> int:
        """Forget everything of this sequence beyond `length` tokens; return how many are left.

        A model with a recurrent state cannot drop the end of a sequence: it starts over at 0.
        """

    def copy(self, source: int, target: int) -> None:
        """Make `target` hold the same tokens as `source`."""

    def abort(self) -> None:
        """Stop a running evaluation soon; callable from any thread. Lasts until `resume`."""

    def resume(self) -> None:
        """Allow evaluations again."""

    def close(self) -> None:
        """Free everything."""


class Adapter(Protocol):
    """Low-rank changes to a model's weights, for those of its contexts that are made with them."""

    @property
    def handle(self) -> Any:
        """What the model knows it by."""

    @property
    def path(self) -> Path:
        """Its file."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a model and its contexts can do.

    rewinds: whether the end of a sequence can be dropped, and a sequence copied up to any place; a recurrent state
        cannot.
    caps_logits: whether logits are soft-capped, so that they are on a scale of their own.
    """

    rewinds: bool = True
    caps_logits: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextOptions:
    """How a context is made.

    n_ctx: tokens that each of its `n_seq` sequences has room for.
    n_outputs: rows of logits at a time; each is a buffer of n_vocab floats.
    n_batch, n_ubatch: tokens that one call may have, and that are computed together.
    n_threads, n_threads_batch: for calls of one row and of more; None for what is fastest.
    kv_type: how numbers of the cache are kept.  flash_attention: True, False or "auto".
    adapter: one that was loaded for this model; adapter_scale: times what it changes.
    """

    n_ctx: int
    n_seq: int = 1
    n_outputs: int = 1
    n_batch: int = 2048
    n_ubatch: int = 512
    n_threads: int | None = None
    n_threads_batch: int | None = None
    kv_type: str = "f16"
    flash_attention: bool | str = "auto"
    adapter: Adapter | None = None
    adapter_scale: float = 1.0


class LanguageModel(Protocol):
    """Weights that contexts can be made from."""

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def vocabulary(self) -> Vocabulary: ...

    @property
    def path(self) -> Path | None:
        """Its file; None for a model without one."""

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of its own chat template, if it has one."""

    def open(self, options: ContextOptions) -> Evaluator:
        """Make a context. Raises: OutOfMemoryError; UsageError, UnsupportedModelError for options it cannot have."""

    def close(self) -> None:
        """Free the weights; every context and adapter must be closed before."""
