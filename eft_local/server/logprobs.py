"""Log-probabilities of an answer's tokens, in the shapes of OpenAI's two APIs, and the record of every role."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from eft_local.engine.step import Candidate, Step
from eft_local.recipe.names import MIXTURE
from eft_local.server.answers import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob

LOWEST = -9999.0
"""Stands for −∞, which JSON does not have; OpenAI does the same."""

Piece = Callable[[int], bytes]


def finite(logprob: float) -> float:
    """Return a log-probability that JSON can hold."""
    return max(logprob, LOWEST)


def readable(piece: bytes) -> str:
    """Return a token's text; bytes that are no whole character are written as \\xe2."""
    return piece.decode("utf-8", "backslashreplace")


def _roles(step_or_candidate: Step | Candidate) -> dict[str, float] | None:
    """Return what each role thinks of a token; None where one alone answers."""
    roles = step_or_candidate.roles
    found = {name: finite(each.logprob) for name, each in roles.items() if name != MIXTURE}
    return found if MIXTURE in roles else None


def _own(candidate: Candidate) -> float:
    """Return a candidate's log-probability under what is sampled from, which comes last."""
    return finite(list(candidate.roles.values())[-1].logprob)


def _best(step: Step, top: int) -> list[Candidate]:
    return list(islice(step.candidates, top))  # the likeliest are first; chosen and base's own follow


def token(step: Step, piece: Piece, top: int) -> TokenLogprob:
    """Return a token of a chat."""
    assert step.token is not None
    assert step.logprob is not None
    own = piece(step.token)
    return TokenLogprob(
        token=readable(own),
        logprob=finite(step.logprob),
        bytes=list(own),
        roles=_roles(step),
        top_logprobs=[
            TopLogprob(token=each.text, logprob=_own(each), bytes=list(each.piece), roles=_roles(each))
            for each in _best(step, top)
        ],
    )


def chat(steps: Sequence[Step], piece: Piece, top: int) -> ChatLogprobs:
    """Return the tokens of a chat's answer."""
    return ChatLogprobs(content=[token(step, piece, top) for step in steps])


def completion(first: int | None, steps: Sequence[Step], piece: Piece, top: int, offset: int = 0) -> CompletionLogprobs:
    """Return the tokens of a completion.

    first: an echoed prompt's first token, which nothing precedes.  offset: characters before.
    """
    found = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[] if top else None, text_offset=[])
    roles: dict[str, list[float | None]] = {}

    def add(own: int, logprob: float | None, best: dict[str, float] | None) -> None:
        nonlocal offset
        text = readable(piece(own))
        found.tokens.append(text)
        found.token_logprobs.append(logprob)
        found.text_offset.append(offset)
        offset += len(text)
        if found.top_logprobs is not None:
            found.top_logprobs.append(best)

    if first is not None:
        add(first, None, None)
    for step in steps:
        assert step.token is not None
        assert step.logprob is not None
        best: dict[str, float] = {}
        for each in _best(step, top):
            best.setdefault(each.text, _own(each))
        best.setdefault(readable(piece(step.token)), finite(step.logprob))  # as OpenAI: the chosen one is always there
        add(step.token, finite(step.logprob), best)
        for name, logprob in (_roles(step) or {}).items():
            roles.setdefault(name, [None] if first is not None else []).append(logprob)
    found.roles = roles or None
    return found


def record(step: Step, piece: Piece) -> dict[str, Any]:
    """Return all that is known of a token: what each role thinks of it and of its candidates."""
    own = b"" if step.token is None else piece(step.token)
    return {
        "token": step.token,
        "text": readable(own),
        "logprob": None if step.logprob is None else finite(step.logprob),
        "drafted": step.drafted,
        "change": step.change,
        "top_changed": step.top_changed,
        "roles": _by_role(step),
        "candidates": [
            {
                "token": each.token,
                "text": each.text,
                "ends": each.ends,
                "behaviour": None if each.behaviour is None else finite(each.behaviour),
                "scale": None if each.scale is None else finite(each.scale),
                "roles": _by_role(each),
            }
            for each in step.candidates
        ],
    }


def _by_role(of: Step | Candidate) -> dict[str, Any]:
    return {name: {"rank": each.rank, "logprob": finite(each.logprob)} for name, each in of.roles.items()}
