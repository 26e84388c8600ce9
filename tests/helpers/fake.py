"""The seam without a GGUF: a model whose logits are a function of the tokens so far, and emulators made of such."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np

from eft_local.backends.base import Capabilities, ContextOptions, Rows
from eft_local.backends.specials import Special, Specials
from eft_local.emulator import Emulator
from eft_local.engine.loading import LoadedRole, mixed_roles
from eft_local.errors import Cancelled, ContextOverflowError, UsageError
from eft_local.prompts.markup import Template
from eft_local.recipe import Expert, Prompt, Recipe, Role

NORMAL, CONTROL, UNUSED = 1 << 2, 1 << 3, 1 << 1

BOS, END = 128, 129
"""Ids behind the 128 ASCII characters, which are their own ids."""

Table = Callable[[tuple[int, ...]], np.ndarray]
"""From all tokens of a sequence to the logits of what comes next, float32 [n_tokens]."""


class AsciiVocabulary:
    """A token per ASCII character, BOS, END, and `padding` unused ids."""

    bos = BOS
    add_bos = True

    def __init__(self, padding: int = 0, ends: Sequence[int] = (END,)) -> None:
        self.n_tokens = END + 1 + padding
        self._ends = frozenset(ends)

    def is_eog(self, token: int) -> bool:
        return token in self._ends

    def ends(self) -> list[int]:
        return sorted(self._ends)

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        parts = text.split("<end>") if parse_special else [text]
        tokens = [BOS] if add_special else []
        for index, part in enumerate(parts):
            tokens += ([END] if index else []) + list(part.encode("ascii"))
        return tokens

    def piece(self, token: int) -> bytes:
        return bytes([token]) if token < BOS else b""

    def texts(self) -> list[bytes]:
        padding = [b"[PAD%d]" % token for token in range(END + 1, self.n_tokens)]
        return [*(bytes([token]) for token in range(BOS)), b"<begin>", b"<end>", *padding]

    def attributes(self) -> np.ndarray:
        padding = self.n_tokens - END - 1
        return np.array([NORMAL] * BOS + [CONTROL] * 2 + [UNUSED] * padding, np.int32)

    def specials(self) -> Specials:
        return Specials([Special("<end>", END, CONTROL)])


class FakeContext:
    """Implements `base.Evaluator`. What `logits` returned turns into NaN with the next `submit`."""

    def __init__(self, model: FakeModel, n_ctx: int, n_seq: int, n_outputs: int) -> None:
        self.model = model
        self.n_vocab = model.vocabulary.n_tokens
        self.n_ctx = n_ctx
        self.n_seq = n_seq
        self.n_outputs = n_outputs
        self.tokens: list[list[int]] = [[] for _ in range(n_seq)]
        self.evaluated = [0] * n_seq
        self.closed = False
        self._stopped = False
        self._rows = np.empty((0, self.n_vocab), np.float32)

    def length(self, sequence: int) -> int:
        return len(self.tokens[sequence])

    def submit(self, batch: Sequence[Rows]) -> None:
        assert not self.closed
        self._rows.fill(np.nan)
        self.model.on_submit(self)
        if self._stopped:
            raise Cancelled("the evaluation was stopped")
        if any(len(self.tokens[rows.sequence]) + len(rows.tokens) > self.n_ctx for rows in batch):
            raise ContextOverflowError("the fake context is full")
        if sum(rows.outputs for rows in batch) > self.n_outputs:
            raise UsageError("too many rows of logits")
        found = []
        for rows in batch:
            assert 0 <= rows.outputs <= len(rows.tokens)
            held = self.tokens[rows.sequence]
            held += rows.tokens
            self.evaluated[rows.sequence] += len(rows.tokens)
            ends = range(len(held) - rows.outputs + 1, len(held) + 1)
            found += [self.model.table(tuple(held[:end])) for end in ends]
        self._rows = np.array(found, np.float32)

    def logits(self) -> np.ndarray:
        if self._stopped:
            raise Cancelled("the evaluation was stopped")
        return self._rows

    def rewind(self, sequence: int, length: int) -> int:
        if self.model.recurrent and length < len(self.tokens[sequence]):
            length = 0
        del self.tokens[sequence][length:]
        return len(self.tokens[sequence])

    def copy(self, source: int, target: int) -> None:
        self.tokens[target] = list(self.tokens[source])

    def abort(self) -> None:
        self._stopped = True

    def resume(self) -> None:
        self._stopped = False

    def close(self) -> None:
        self.closed = True


class FakeModel:
    """Implements `base.LanguageModel`.

    failures: what the n-th submit from now (1 is the next) raises, or calls before it evaluates.
    """

    path = None
    chat_template = None

    def __init__(self, table: Table, vocabulary: AsciiVocabulary | None = None, recurrent: bool = False) -> None:
        self.table = table
        self.vocabulary = vocabulary or AsciiVocabulary()
        self.recurrent = recurrent
        self.capabilities = Capabilities(rewinds=not recurrent)
        self.contexts: list[FakeContext] = []
        self.failures: dict[int, BaseException | Callable[[], None]] = {}

    def open(self, options: ContextOptions) -> FakeContext:
        self.contexts.append(FakeContext(self, options.n_ctx, options.n_seq, options.n_outputs))
        return self.contexts[-1]

    def close(self) -> None:
        assert all(context.closed for context in self.contexts)

    def on_submit(self, context: FakeContext) -> None:
        due = self.failures.pop(1, None)
        self.failures = {count - 1: failure for count, failure in self.failures.items()}
        if isinstance(due, BaseException):
            # What came before a failure may have changed any sequence's end; a recurrent one is lost then.
            for sequence in range(context.n_seq if self.recurrent else 0):
                context.tokens[sequence].clear()
            raise due
        if due:
            due()

    @property
    def evaluated(self) -> int:
        """Tokens that all its contexts have evaluated."""
        return sum(sum(context.evaluated) for context in self.contexts)


def noise(seed: int, n_tokens: int = END + 1, ends: bool = False) -> Table:
    """Random logits for every sequence, always the same ones; the answer never ends by itself unless `ends`."""

    @lru_cache(maxsize=1 << 15)  # an answer alone and in company asks for the same rows
    def table(tokens: tuple[int, ...]) -> np.ndarray:
        row = np.random.default_rng([seed, *tokens]).standard_normal(n_tokens).astype(np.float32) * 3
        if not ends:
            row[END] = -50
        return row

    return table


def says(text: str, prompt_end: str = ":", score: float = 20.0, then: int = END) -> Table:
    """Continue the last `prompt_end` with `text`, character by character, then the token `then`."""
    script = [*text.encode("ascii"), then]

    def table(tokens: tuple[int, ...]) -> np.ndarray:
        last = max(index for index, token in enumerate(tokens) if token == ord(prompt_end))
        row = np.zeros(END + 1, np.float32)
        row[script[min(len(tokens) - last - 1, len(script) - 1)]] = score
        return row

    return table


PLAIN = Prompt("plain")


def recipe(**changes: object) -> Recipe:
    """A greedy recipe with one expert, `helpful`; every role sees a plain prompt, "Question: …\\nAnswer:".
    No drafts: evaluations are counted."""
    roles = Recipe(
        name="fake",
        context=200,
        base=Role(model="base"),
        antiexpert=Role(model="small"),
        experts={"helpful": Expert(model="tuned", prompt=PLAIN)},
    )
    return roles.replace(**{"temperature": 0, "max_tokens": 8, "draft": "off"} | changes)


def emulator(
    models: Mapping[str, FakeModel],
    recipe_: Recipe | None = None,
    templates: Mapping[str, Template] | None = None,
) -> Emulator:
    """An emulator on fakes; models: by the `model` of the recipe's roles ("base", "small", "tuned")."""
    recipe_ = recipe_ or recipe()
    roles = {
        name: LoadedRole(role, recipe_.placement_of(role), models[role.model], (templates or {}).get(name))
        for name, role in mixed_roles(recipe_).items()
    }
    return Emulator(recipe_, roles)


def trio(**tables: Table) -> dict[str, FakeModel]:
    """Models for `recipe()`: random ones where no table is given."""
    return {name: FakeModel(tables.get(name, noise(seed))) for seed, name in enumerate(("base", "small", "tuned"))}
