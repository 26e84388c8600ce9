"""What each role thinks of an answer's tokens: worked out for many tokens at once, and later, if that is wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from eft_local.backends.base import Floats
from eft_local.backends.ranking import best, rank
from eft_local.engine import mix
from eft_local.engine.loading import antiexpert_name
from eft_local.engine.step import Candidate, RoleStatistics, Step
from eft_local.recipe import Recipe
from eft_local.recipe.names import MIXTURE

Ids = npt.NDArray[np.intp]
Doubles = npt.NDArray[np.float64]

_AT_ONCE = 1 << 20
"""Bytes of logits that are looked at together: as many as stay in a processor's cache."""


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """All that is needed to say, now or later, what each role thought of a step's token.

    rows: per role its logits, float32 [n_vocab]; the mixture's scores are last, under "eft".
    top: how many of the likeliest tokens are its rivals.  piece, ends: of a token; they ask a loaded model.
    """

    recipe: Recipe
    rows: Mapping[str, Floats]
    top: int
    piece: Callable[[int], bytes]
    ends: Callable[[int], bool]

    @property
    def nbytes(self) -> int:
        """Size of the rows."""
        return sum(row.nbytes for row in self.rows.values())

    def kept(self) -> Evidence:
        """Return the same with copies of the rows: the next token writes over them."""
        return replace(self, rows={name: row.copy() for name, row in self.rows.items()})


def compute(steps: Sequence[Step]) -> list[Step]:
    """Return the steps with what their evidence says, and without the evidence; all of one answer are fastest together.

    To be called while the models are loaded.
    """
    found: list[Step] = []
    for _, group in groupby(steps, key=_kind):
        same = list(group)
        evidence = same[0].evidence
        if evidence is None:
            found += same
            continue
        size = max(1, _AT_ONCE // evidence.nbytes)
        for start in range(0, len(same), size):
            found += _Table(same[start : start + size]).steps()
    return found


def _kind(step: Step) -> object:
    """Return what must be equal where steps are looked at together."""
    evidence = step.evidence
    return evidence and (id(evidence.recipe), [(name, row.size) for name, row in evidence.rows.items()], evidence.top)


class _Table:
    """What roles think of the tokens of some steps, a row for each token of each step."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = steps
        evidence = steps[0].evidence
        assert evidence is not None
        self.names = tuple(evidence.rows)
        self._evidence = evidence
        rows = np.array([list(step.evidence.rows.values()) for step in steps if step.evidence])
        highest = rows.max(-1, keepdims=True)
        shares = rows - highest
        np.exp(shares, out=shares)
        sums = shares.sum(-1, keepdims=True)
        normalisers = (highest + np.log(sums, dtype=np.float64))[..., 0]
        self._compare(rows, shares, sums)
        self._at, self.tokens, self.starts = self._chosen_and_likeliest(rows)
        scores = rows[self._at, :, self.tokens]
        self.logprobs: Doubles = scores - normalisers[self._at]
        self.ranks = _ranks(rows, self._at, self.tokens)
        self.deltas = self._deltas(rows) if self.changes is not None and evidence.top else None
        offered = set(self.tokens.tolist()) if evidence.top else ()
        self.pieces = {token: evidence.piece(token) for token in offered}
        self.ends = {token for token in offered if evidence.ends(token)}

    def _compare(self, rows: Floats, shares: Floats, sums: Floats) -> None:
        """Set how far the mixture is from the base; None where one role ran alone."""
        self.changes: Floats | None = None
        if len(self.names) < 2:
            return
        base, mixed = self.names.index("base"), self.names.index(MIXTURE)
        shares[:, base] /= sums[:, base]  # in place: fresh pages cost more than the arithmetic
        shares[:, mixed] /= sums[:, mixed]
        difference = np.subtract(shares[:, base], shares[:, mixed], out=shares[:, base])
        self.changes = np.minimum(1, 0.5 * np.abs(difference, out=difference).sum(-1))
        self._favourites = rows[:, base].argmax(-1)
        self.moved = self._favourites != rows[:, mixed].argmax(-1)

    def _chosen_and_likeliest(self, rows: Floats) -> tuple[Ids, Ids, list[int]]:
        """Return the tokens that are looked at, of which step each is, and where each step's begin.

        Of each step: the likeliest in order, then, if they are not among them, its own token and the base's first.
        """
        top = self._evidence.top
        at: list[int] = []
        tokens: list[int] = []
        starts = [0]
        for index, step in enumerate(self._steps):
            assert step.token is not None
            others = {step.token}
            likeliest: list[int] = []
            if top:
                likeliest = best(rows[index, -1], top).tolist()
                if self.changes is not None:
                    others.add(int(self._favourites[index]))
            rest = list(others.difference(likeliest))
            if len(rest) > 1:
                scores = rows[index, -1]
                rest.sort(key=lambda token: rank(scores, token))
            tokens += [*likeliest, *rest]
            at += [index] * (len(tokens) - len(at))
            starts.append(len(tokens))
        return np.array(at, np.intp), np.array(tokens, np.intp), starts

    def _deltas(self, rows: Floats) -> Doubles:
        """Return what behaviour and scale add to the antiexpert's log-probability of each token, [tokens, 2].

        As in `mix.mix`, what is infinite because of the antiexpert, or undefined, counts as 0.
        """
        recipe, column = self._evidence.recipe, {name: self.logprobs[:, i] for i, name in enumerate(self.names)}
        deltas = np.zeros((len(self.tokens), 2))
        with np.errstate(invalid="ignore"):
            for name, alpha in recipe.alphas.items():
                deltas[:, 0] += _counted(alpha * (column[name] - column[antiexpert_name(recipe, name)]))
            first = next(iter(recipe.experts))
            deltas[:, 1] = _counted(recipe.beta * (column["base"] - column[antiexpert_name(recipe, first)]))
        if recipe.conservative_filter is not None:
            expert = mix.log_softmax(rows[:, self.names.index(first)])
            deltas[~mix.top_p_mask(expert, recipe.conservative_filter)[self._at, self.tokens], 1] = 0
        return deltas

    def steps(self) -> list[Step]:
        """Return the steps with their statistics. Once: the rows of logits are then let go."""
        made = [self._step(index, step) for index, step in enumerate(self._steps)]
        del self._steps, self._evidence  # steps that are kept keep their table, and must not keep the rows with it
        return made

    def _step(self, index: int, step: Step) -> Step:
        start, stop = self.starts[index], self.starts[index + 1]
        own = start + self.tokens[start:stop].tolist().index(step.token)
        by_role = StatisticsByRole(self, own)
        return replace(
            step,
            logprob=float(self.logprobs[own, -1]),
            roles=by_role,
            candidates=Candidates(self, start, stop) if self._evidence.top else (),
            change=None if self.changes is None else float(self.changes[index]),
            top_changed=None if self.changes is None else bool(self.moved[index]),
            evidence=None,
        )

    def candidate(self, row: int) -> Candidate:
        """Return a row as a candidate."""
        behaviour, scale = (None, None) if self.deltas is None else self.deltas[row].tolist()
        token = int(self.tokens[row])
        return Candidate(token, self.pieces[token], token in self.ends, StatisticsByRole(self, row), behaviour, scale)


class StatisticsByRole(Mapping[str, RoleStatistics]):
    """What each role thinks of one token; equal to any mapping with the same items."""

    __slots__ = ("_row", "_table")

    def __init__(self, table: _Table, row: int) -> None:
        self._table, self._row = table, row

    def __getitem__(self, name: str) -> RoleStatistics:
        try:
            column = self._table.names.index(name)
        except ValueError:
            raise KeyError(name) from None
        return RoleStatistics(int(self._table.ranks[self._row, column]), float(self._table.logprobs[self._row, column]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.names)

    def __len__(self) -> int:
        return len(self._table.names)

    def __repr__(self) -> str:
        return repr(dict(self))


class Candidates(Sequence[Candidate]):
    """The candidates of one step; equal to any sequence of the same candidates."""

    __slots__ = ("_start", "_stop", "_table")

    def __init__(self, table: _Table, start: int, stop: int) -> None:
        self._table, self._start, self._stop = table, start, stop

    @overload
    def __getitem__(self, index: int) -> Candidate: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Candidate, ...]: ...
    def __getitem__(self, index: int | slice) -> Candidate | tuple[Candidate, ...]:
        rows = range(self._start, self._stop)[index]
        return self._table.candidate(rows) if isinstance(rows, int) else tuple(map(self._table.candidate, rows))

    def __len__(self) -> int:
        return self._stop - self._start

    def __eq__(self, other: Any) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, Sequence) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))


def _ranks(rows: Floats, at: Ids, tokens: Ids) -> Ids:
    """Return `rank` of each token under each role, [tokens, roles]. rows: [steps, roles, n_vocab]."""
    pairs = zip(at.tolist(), tokens.tolist(), strict=True)
    return np.array([[rank(row, token) for row in rows[step]] for step, token in pairs], np.intp)


def _counted(delta: Doubles) -> Doubles:
    return np.where(delta < np.inf, delta, 0.0)
