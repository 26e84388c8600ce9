"""An answer's steps as few bytes: columns of whole numbers as JSON, compressed.

Columns, because neighbours in one are alike. Log-probabilities, deltas and changes are kept in thousandths; minus
infinity, the only one that occurs, as a number that no logarithm has.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from math import inf
from typing import Any

from eft_local.engine.step import Candidate, RoleStatistics, Step
from eft_local.errors import HistoryError

_VERSION = 1
_MINUS_INFINITY = -(10**12)

ByRole = Mapping[str, RoleStatistics]


def pack(steps: Sequence[Step]) -> bytes:
    """Return steps as bytes."""
    candidates = [each for step in steps for each in step.candidates]
    columns = {
        "version": _VERSION,
        "token": [step.token for step in steps],
        "text": [step.text for step in steps],
        "logprob": [_thousandths(step.logprob) for step in steps],
        "drafted": [int(step.drafted) for step in steps],
        "roles": _role_columns([step.roles for step in steps]),
        "change": [_thousandths(step.change) for step in steps],
        "top_changed": [None if step.top_changed is None else int(step.top_changed) for step in steps],
        "finish_reason": [step.finish_reason for step in steps],
        "candidates": [len(step.candidates) for step in steps],
        "candidate": {
            "token": [each.token for each in candidates],
            "piece": [each.piece.decode("utf-8", "surrogateescape") for each in candidates],
            "ends": [int(each.ends) for each in candidates],
            "roles": _role_columns([each.roles for each in candidates]),
            "behaviour": [_thousandths(each.behaviour) for each in candidates],
            "scale": [_thousandths(each.scale) for each in candidates],
        },
    }
    return zlib.compress(json.dumps(columns, separators=(",", ":")).encode(), level=9)


def unpack(data: bytes) -> tuple[Step, ...]:
    """Return the steps that `pack` wrote, to a thousandth. Raises: HistoryError."""
    try:
        columns = json.loads(zlib.decompress(data))
        version = columns["version"]
        if version == _VERSION:
            return tuple(_steps(columns))
    except (zlib.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise HistoryError(
            f"the stored statistics of this answer are damaged and cannot be inspected ({error})"
        ) from error
    raise HistoryError(
        f"the stored statistics of this answer have version {version}, this eft-local reads {_VERSION}; use a newer one"
    )


def _steps(columns: Mapping[str, Any]) -> Iterator[Step]:
    candidates = _candidates(columns["candidate"])
    if sum(columns["candidates"]) != len(columns["candidate"]["token"]):
        raise ValueError("candidates are missing")
    rows = zip(
        columns["token"],
        columns["text"],
        map(_whole, columns["logprob"]),
        map(bool, columns["drafted"]),
        _role_rows(columns["roles"], len(columns["token"])),
        [tuple(islice(candidates, count)) for count in columns["candidates"]],
        map(_whole, columns["change"]),
        [None if changed is None else bool(changed) for changed in columns["top_changed"]],
        columns["finish_reason"],
        strict=True,
    )
    return (Step(*row) for row in rows)


def _candidates(columns: Mapping[str, Any]) -> Iterator[Candidate]:
    rows = zip(
        columns["token"],
        [piece.encode("utf-8", "surrogateescape") for piece in columns["piece"]],
        map(bool, columns["ends"]),
        _role_rows(columns["roles"], len(columns["token"])),
        map(_whole, columns["behaviour"]),
        map(_whole, columns["scale"]),
        strict=True,
    )
    return (Candidate(*row) for row in rows)


def _role_columns(entries: Sequence[ByRole]) -> dict[str, dict[str, list[int | None]]]:
    """Return ranks and log-probabilities by role; null where a role was not evaluated."""
    names = dict.fromkeys(name for each in entries for name in each)
    return {
        name: {
            "rank": [each[name].rank if name in each else None for each in entries],
            "logprob": [_thousandths(each[name].logprob) if name in each else None for each in entries],
        }
        for name in names
    }


def _role_rows(columns: Mapping[str, Any], count: int) -> list[ByRole]:
    rows: list[dict[str, RoleStatistics]] = [{} for _ in range(count)]
    for name, column in columns.items():
        for row, rank, logprob in zip(rows, column["rank"], map(_whole, column["logprob"]), strict=True):
            if logprob is not None:
                row[name] = RoleStatistics(rank, logprob)
    return list(rows)


def _thousandths(value: float | None) -> int | None:
    if value is None:
        return None
    return _MINUS_INFINITY if value == -inf else round(1000 * value)


def _whole(value: int | None) -> float | None:
    if value is None:
        return None
    return -inf if value == _MINUS_INFINITY else value / 1000
