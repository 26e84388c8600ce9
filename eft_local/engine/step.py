"""What the emulator gives back: steps while an answer is written, the answer, and scores of a given text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from eft_local.backends.base import Floats

if TYPE_CHECKING:
    from eft_local.engine.statistics import Evidence
    from eft_local.machine.cores import CoreUse

FinishReason = Literal["stop", "length", "context", "cancelled"]


@dataclass(frozen=True, slots=True)
class RoleStatistics:
    """What one role thinks of a token: its rank (0 = top) and log-probability (natural logarithm)."""

    rank: int
    logprob: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token that may have been chosen.

    piece: the bytes it adds to the text, UTF-8, perhaps part of a character; none for control tokens.
    ends: whether it ends an answer.
    roles: per role, and for the mixture under "eft", what it thinks of the token.
    behaviour, scale: what Σα(expert − antiexpert) and β·m·(base − antiexpert) add to the antiexpert's log-probability
        (up to the mixture's normalisation); None when one role runs alone.
    """

    token: int
    piece: bytes
    ends: bool
    roles: Mapping[str, RoleStatistics]
    behaviour: float | None = None
    scale: float | None = None

    @property
    def text(self) -> str:
        """What can be read of the piece; bytes that are no whole character are written as \\xe2."""
        return self.piece.decode("utf-8", "backslashreplace")


@dataclass(frozen=True, slots=True)
class Step:
    """One token of an answer.

    token: its id; None in the closing step of a cancelled answer.
    text: what became readable with it: never half a character, never the start of a stop string; may be empty.
    logprob: under the mixture (or the one role that runs), before the samplers; one of the statistics: None when they
        are off.
    drafted: whether a draft proposed it.
    roles: per role, and for the mixture under "eft", what it thinks of the token; empty when statistics are off.
    candidates: if requested, the likeliest of the mixture (or the one role), the chosen token, and the base's first
        choice, in the mixture's order.
    change: total variation distance, 0…1, between the base's and the mixture's distribution here.
    top_changed: whether the mixture's most likely token is another than the base's.
    finish_reason: set in the last step of every answer, and only there.
    evidence: where the statistics are requested afterwards, what `statistics.compute` needs for them; until then they
        are absent.
    """

    token: int | None
    text: str
    logprob: float | None = None
    drafted: bool = False
    roles: Mapping[str, RoleStatistics] = field(default_factory=dict)
    candidates: Sequence[Candidate] = ()
    change: float | None = None
    top_changed: bool | None = None
    finish_reason: FinishReason | None = None
    evidence: Evidence | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class RoleTiming:
    """Milliseconds that llama.cpp spent for one role: on the prompt (with the first token) and on the rest."""

    prompt_ms: float
    generation_ms: float


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer.

    text, tokens: what was written now, without the end token and without a `prefix` that was given.
    prompt_tokens: per role, tokens of its prompt; evaluated_tokens: those of them that no cache held.
    timings: per role; where sequences share an evaluation, each has an equal share of its time.
    overhead_ms: everything outside llama.cpp: mixing, sampling, text.
    tokens_per_second: after the first token, whose time is the prompt's.
    seed: reproduces the answer.
    exact: "yes" where tokens do not depend on what else is evaluated: they are the same alone and in a batch, after
        other answers, with drafts and without, and after a prompt that came at once or in parts; otherwise
        "no, because …". Empty if nothing was evaluated.
    logprobs: of the tokens, under the mixture (or the one role) before the samplers; None where not requested.
    cores: what other programs used of the cores meanwhile; None where that was too short to measure.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: Mapping[str, int]
    evaluated_tokens: Mapping[str, int]
    timings: Mapping[str, RoleTiming]
    overhead_ms: float
    tokens_per_second: float
    seed: int
    exact: str = ""
    logprobs: tuple[float, ...] | None = None
    cores: CoreUse | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a given continuation is.

    logprobs: one per token, of the mixture (or the one role), float32 [n]; by_role: of each role.
    greedy: whether every token is the likeliest one where it stands.
    """

    tokens: tuple[int, ...]
    logprobs: Floats
    by_role: Mapping[str, Floats]
    greedy: bool = False
