"""What a round adds to one sequence: the tokens of its draft as long as they are right, and one more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from eft_local.backends.base import Floats
from eft_local.engine.sequence import Sequence
from eft_local.engine.speculative.acceptance import RULES, DraftToken, Rule
from eft_local.engine.speculative.drafters import Draft, Drafting
from eft_local.engine.speculative.length import Outcome
from eft_local.placement.survey import rows_at_once


class Position(NamedTuple):
    """Where a token is chosen.

    logits: each role's, [1, n_vocab].  draft_token: what is proposed; evaluated: whether what follows it is, too.
    """

    logits: dict[str, Floats]
    draft_token: DraftToken | None
    evaluated: bool

    def is_drafted(self, token: int) -> bool:
        """Whether a chosen token is the draft's, so that the next position is known already."""
        return self.evaluated and self.draft_token is not None and token == self.draft_token.token


@dataclass(slots=True, eq=False)
class Extension:
    """What a round adds to a sequence.

    drafting: how its draft is made and judged; None: it gets none.  draft: its proposals.
    logits: of the roles that have not drafted, [rows, n_vocab] each, once they are evaluated.
    lengths: tokens that each role held before.  outcome: what became of the draft.
    """

    sequence: Sequence
    drafting: Drafting | None = None
    draft: Draft = field(default_factory=Draft)
    logits: dict[str, Floats] = field(default_factory=dict)
    lengths: Mapping[str, int] = field(init=False)
    outcome: Outcome = field(default_factory=lambda: Outcome(0, 0))

    def __post_init__(self) -> None:
        self.lengths = {name: kv.length for name, kv in self.sequence.kv.items()}

    @property
    def rule(self) -> Rule:
        """By which draft tokens become tokens of the answer."""
        return self.drafting.rule if self.drafting else RULES["shared-noise"]

    @property
    def most(self) -> int:
        """How many tokens a draft may have: the rows of logits that the contexts give, but for one."""
        outputs = min(kv.context.outputs for kv in self.sequence.kv.values())
        return min(outputs, rows_at_once(self.sequence.recipe)) - 1

    @property
    def limit(self) -> int:
        """As `most`, where there is room for them and they are wanted."""
        return int(max(0, min(self.most, self.sequence.room, self.sequence.remaining - 1)))

    def positions(self) -> Iterator[Position]:
        """Yield where tokens are chosen: the next one, and those after it as long as they are drafted.

        In the end the roles hold the tokens that were chosen, the last of them pending.
        """
        sequence, draft = self.sequence, self.draft
        accepted = 0
        for row, draft_token in enumerate(draft.offers):
            logits = {
                name: draft.rows[name][row] if name in draft.rows else self.logits[name][row : row + 1]
                for name in sequence.kv
            }
            position = Position(logits, draft_token, row < len(draft.draft_tokens))
            yield position
            drafted = position.is_drafted(sequence.last)
            accepted += drafted
            if sequence.finish_reason or not drafted:
                break
        if sequence.finish_reason is None:
            for name, kv in sequence.kv.items():
                kv.rewind(self.lengths[name] + accepted)
                kv.pending.append(sequence.last)
        untried = not position.evaluated and position.draft_token
        next_right = sequence.last == untried.token if untried else None
        self.outcome = Outcome(min(row + 1, len(draft.draft_tokens)), accepted, next_right)

    def undo(self) -> None:
        """After an evaluation that failed: let all roles hold what they held before the round."""
        for name, kv in self.sequence.kv.items():
            kv.restore(self.lengths[name])
