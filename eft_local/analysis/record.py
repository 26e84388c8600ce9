"""An answer with what each role thought of each of its tokens, and what that amounts to."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from eft_local.analysis.storage import pack, unpack
from eft_local.engine.step import Candidate, Step
from eft_local.errors import UsageError
from eft_local.recipe.names import MIXTURE


@dataclass(frozen=True, slots=True)
class Summary:
    """How far the experts moved the base over an answer.

    tokens: steps with statistics of base and mixture, an end token among them. changed_at: indices of the steps where
    the mixture's top choice is another than the base's. mean_change: of the total variation distances, 0…1.
    """

    tokens: int
    changed_at: tuple[int, ...]
    mean_change: float

    @property
    def changed(self) -> int:
        """How many top choices changed."""
        return len(self.changed_at)

    @property
    def share(self) -> float:
        """The share of top choices that changed, 0…1."""
        return self.changed / self.tokens if self.tokens else 0.0


@dataclass(frozen=True, slots=True)
class Place:
    """One position in the answer, over many answers.

    position: 1 is an answer's first token. answers: how many have a token there. changed: in how many of them the top
    choice changed. mean_change: mean total variation distance there, 0…1.
    """

    position: int
    answers: int
    changed: int
    mean_change: float

    @property
    def share(self) -> float:
        """The share of answers whose top choice changed here, 0…1."""
        return self.changed / self.answers


@dataclass(frozen=True, slots=True)
class Inspection:
    """All steps of an answer, from its first token to its end, written with statistics and candidates."""

    steps: tuple[Step, ...] = ()

    @property
    def text(self) -> str:
        """What was shown of the answer."""
        return "".join(step.text for step in self.steps)

    @property
    def tokens(self) -> tuple[int, ...]:
        """The answer's token ids without an end token, as in `Answer.tokens`: what can be given as a `prefix`."""
        return tuple(step.token for step in self.steps if step.token is not None and not _ends(step))

    @property
    def roles(self) -> tuple[str, ...]:
        """Who was evaluated, in the tables' order: the roles, and "eft" where they were mixed."""
        return next((tuple(step.roles) for step in self.steps if step.roles), ())

    @property
    def target(self) -> str:
        """Who wrote the answer: "eft", or the one role that ran."""
        return self.roles[-1] if self.roles else MIXTURE

    def summary(self) -> Summary:
        """Return how far the experts moved the base."""
        changes = [step.change for step in self.steps if step.change is not None]
        return Summary(
            tokens=len(changes),
            changed_at=tuple(index for index, step in enumerate(self.steps) if step.top_changed),
            mean_change=sum(changes) / len(changes) if changes else 0.0,
        )

    def most_changed(self, count: int) -> tuple[int, ...]:
        """Return the indices of the `count` most changed steps, the most changed first, of equals the earlier."""
        measured = [(-step.change, index) for index, step in enumerate(self.steps) if step.change is not None]
        return tuple(index for _, index in sorted(measured)[:count])

    def branch(self, index: int, token: int) -> Inspection:
        """Return the answer up to step `index`, with a candidate of that step in place of the token chosen there.

        Its `tokens` are the `prefix` with which a stream continues, unless its last step has a finish reason: then the
        candidate was an end token. Its `text` is all that these tokens say.
        Raises: UsageError if there is no such step, or no such candidate in it.
        """
        if not 0 <= index < len(self.steps) or self.steps[index].token is None:
            raise UsageError(f"there is no token {index} in an answer of {len(self.steps)} steps")
        step = self.steps[index]
        chosen = next((each for each in step.candidates if each.token == token), None)
        if chosen is None:
            raise UsageError(f"token {token} is none of the {len(step.candidates)} candidates of step {index}")
        other = replace(
            step,
            token=token,
            logprob=chosen.roles[self.target].logprob,
            drafted=False,
            roles=chosen.roles,
            finish_reason="stop" if chosen.ends else None,
        )
        return Inspection(_spelt((*self.steps[:index], other)))

    def continued(self, steps: Iterable[Step]) -> Inspection:
        """Return this answer and what was written after it, as one answer."""
        kept = [replace(step, finish_reason=None) for step in self.steps if step.token is not None]
        if kept:  # the step that closes a cancelled answer has no token, but text that was held back until then
            rest = "".join(step.text for step in self.steps if step.token is None)
            kept[-1] = replace(kept[-1], text=kept[-1].text + rest)
        return Inspection((*kept, *steps))

    def dumps(self) -> bytes:
        """Return the inspection as compressed bytes: about 250 a token, log-probabilities to a thousandth."""
        return pack(self.steps)

    def recorded(self) -> bytes | None:
        """Return what is worth keeping with a saved answer: `dumps`, or None where there is nothing to compare."""
        return self.dumps() if any(step.change is not None for step in self.steps) else None

    @classmethod
    def loads(cls, data: bytes) -> Inspection:
        """Return what `dumps` wrote. Raises: HistoryError if the bytes are damaged or of a later version."""
        return cls(unpack(data))


def by_position(answers: Iterable[Inspection]) -> tuple[Place, ...]:
    """Return, for each position that an answer reaches, how often the top choice changed there."""
    changes: list[list[float]] = []
    changed: list[int] = []
    for answer in answers:
        measured = [step for step in answer.steps if step.change is not None]
        for position, step in enumerate(measured):
            if position == len(changes):
                changes.append([])
                changed.append(0)
            changes[position].append(step.change or 0.0)
            changed[position] += bool(step.top_changed)
    return tuple(
        Place(position, len(seen), count, sum(seen) / len(seen))
        for position, (seen, count) in enumerate(zip(changes, changed, strict=True), 1)
    )


def chosen(step: Step) -> Candidate | None:
    """Return the candidate that a step chose; None where no candidates were requested."""
    return next((each for each in step.candidates if each.token == step.token), None)


def _ends(step: Step) -> bool:
    """Whether the step's token is an end token, which is no part of an answer."""
    candidate = chosen(step)
    return candidate is not None and candidate.ends


def _spelt(steps: Sequence[Step]) -> tuple[Step, ...]:
    """Return steps whose texts hold exactly what their tokens say, as far as it is whole characters.

    While it is written, an answer may hold back what could begin a stop string; a continuation shows none of it.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pieces = ((chosen(step), step) for step in steps)
    return tuple(
        replace(step, text=decoder.decode(candidate.piece if candidate else step.text.encode()))
        for candidate, step in pieces
    )
