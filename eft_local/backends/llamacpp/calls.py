"""Which rows go into one call of llama.cpp, where every sequence of a context has a stream of its own.

Then llama.cpp evaluates in one pass only sequences with neighbouring numbers, and as many rows of each: three rows of
one sequence and one row of another are two passes through the weights. So sequences are filled up with rows that are
forgotten afterwards, where that costs less than more passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from eft_local.backends.base import Rows

_PASS = 4
"""So many rows cost about as much as the pass through the weights that they share."""


class Row(NamedTuple):
    """A token in its place.  wanted: whether its logits are."""

    token: int
    position: int
    sequence: int
    wanted: bool


_Call = list[list[Row]]
"""The rows of each sequence."""


def calls(batch: Sequence[Rows], lengths: Sequence[int], *, room: int, size: int, fill: bool) -> Iterator[list[Row]]:
    """Yield the rows of each call, at most `size`; all rows with logits are in the last one, in the batch's order.

    lengths: of all sequences; each has room for `room` tokens. fill: whether calls may add rows after sequences that
    must be forgotten afterwards.
    """
    rows = [_placed(each, lengths[each.sequence]) for each in batch]
    if fill and len(rows) > 1:
        filled = _filled(rows, lengths, room)
        if filled and sum(map(len, filled)) <= size and _cost(filled) < _cost(rows):
            rows = filled
    yield from _chunks([row for each in rows for row in each], size)


def _placed(rows: Rows, length: int) -> list[Row]:
    silent = len(rows.tokens) - rows.outputs
    return [Row(token, length + i, rows.sequence, i >= silent) for i, token in enumerate(rows.tokens)]


def _cost(call: _Call) -> int:
    """Return what a call costs, in rows."""
    left = {each[0].sequence: len(each) for each in call if each}
    cost = 0
    while left:
        group: list[int] = []
        for sequence in left:
            if not group or sequence == group[-1] + 1:
                group.append(sequence)
        count = min(left[sequence] for sequence in group)
        cost += _PASS + count * len(group)
        left = {sequence: n - count * (sequence in group) for sequence, n in left.items()}
        left = {sequence: n for sequence, n in left.items() if n}
    return cost


def _filled(call: _Call, lengths: Sequence[int], room: int) -> _Call | None:
    """Return a call with as many rows of each sequence, from the first to the last; None where that is not possible."""
    most = max(map(len, call))
    given = {each[0].sequence: each for each in call if each}
    if not most or list(given) != sorted(given):  # the order is that of the logits, and stays
        return None
    filled: _Call = []
    for sequence in range(min(given), max(given) + 1):
        own = given.get(sequence, [])
        start = own[-1].position + 1 if own else lengths[sequence]
        more = range(start, start + most - len(own))
        if more.stop > room:
            return None
        filled.append([*own, *(Row(0, position, sequence, False) for position in more)])
    return filled


def _chunks(rows: list[Row], size: int) -> Iterator[list[Row]]:
    """Cut rows into calls; those with logits are the last."""
    silent = [row for row in rows if not row.wanted]
    wanted = [row for row in rows if row.wanted]
    if len(rows) <= size:
        if rows:
            yield rows
        return
    while len(silent) + len(wanted) > size:
        head, silent = silent[:size], silent[size:]
        yield head
    yield silent + wanted
