"""What chats and completions of OpenAI's API have in common: choices that are sent whole, or as events."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from fastapi.responses import Response

from eft_local.engine.request import Request as EngineRequest
from eft_local.engine.step import Step
from eft_local.server import logprobs
from eft_local.server.answers import Called, Emulation, ErrorAnswer, Outgoing
from eft_local.server.figures import timings, usage
from eft_local.server.sampling import seed_of
from eft_local.server.schema import Sampled
from eft_local.server.service import Model, Writing
from eft_local.server.streaming import DONE, sse
from eft_local.version import __version__

RECORDED = 10
"""Candidates of each token in a record."""

FINGERPRINT = f"eft-local-{__version__}"

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer} for status in (400, 401, 403, 404, 408, 413, 429, 503)
}
"""What every route of the API may answer instead."""


def json_of(answer: Outgoing) -> Response:
    """Return an answer in JSON."""
    return Response(answer.model_dump_json(), media_type="application/json")


@dataclass(slots=True, kw_only=True)
class Reply:
    """What is answered to one HTTP request, whole or as events.

    answers: its choices.  prompts: one of them for each prompt.  top: likeliest tokens that are shown, None for no
    log-probabilities at all.  record: whether what roles think of each token is reported.
    """

    kind: Literal["chat.completion", "text_completion"]
    model: Model
    answers: Sequence[Writing]
    prompts: Sequence[Writing]
    top: int | None
    record: bool
    include_usage: bool
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def head(self) -> dict[str, Any]:
        """What every object of this reply begins with."""
        prefix = "chatcmpl" if self.kind == "chat.completion" else "cmpl"
        return {
            "id": f"{prefix}-{self.id}",
            "created": self.created,
            "model": self.model.name,
            "system_fingerprint": FINGERPRINT,
        }

    def around(self, before: str, after: str) -> tuple[bytes, bytes]:
        """Return what stands around a token's text in its event: most events differ in nothing else.

        before, after: JSON of the choice around its text.
        """
        head = json.dumps(self.chunk, ensure_ascii=False, separators=(",", ":")).removesuffix("}")
        return f'data: {head},"choices":[{before}'.encode(), f"{after}]}}\n\n".encode()

    @property
    def chunk(self) -> dict[str, Any]:
        """What every event begins with."""
        return {**self.head, "object": "chat.completion.chunk" if self.kind == "chat.completion" else self.kind}

    def emulation(self, answer: Writing, steps: Sequence[Step]) -> Emulation:
        """Return what is ours about a choice."""
        piece = answer.request.target.vocabulary.piece
        return Emulation(
            target=self.model.target,
            seed=answer.request.seed,
            ended=answer.ended,
            exact=answer.answer.exact,
            tokens=[logprobs.record(step, piece) for step in steps] if self.record else None,
        )

    def last_events(self) -> bytes:
        """Return the events after all choices."""
        events = b""
        if self.include_usage:
            figures = {
                "usage": usage(self.answers, self.prompts).model_dump(),
                "timings": timings(self.answers).model_dump(),
            }
            events = sse({**self.chunk, "choices": [], **figures})
        return events + DONE


def recorded(request: Sampled, top: int | None) -> dict[str, Any]:
    """Return what the engine is to find out about each token."""
    most = max(top or 0, RECORDED if request.record else 0)
    return {"statistics": top is not None or bool(request.record), "top": most}


def variants(first: EngineRequest, request: Sampled) -> list[EngineRequest]:
    """Return a request for each of the choices: the same with other seeds."""
    seeds = [seed_of(request, index) for index in range(request.n or 1)]
    return [
        first if index == 0 else replace(first, seed=secrets.randbits(32) if seed is None else seed)
        for index, seed in enumerate(seeds)
    ]


def usage_wanted(request: Sampled) -> bool:
    """Whether a stream ends with its usage."""
    return bool(request.stream_options and request.stream_options.include_usage)


def finish(answer: Writing, calls: Sequence[Called] = ()) -> Literal["stop", "length", "tool_calls"]:
    """Return a finish reason as OpenAI calls it."""
    if calls:
        return "tool_calls"
    return "stop" if answer.ended == "stop" else "length"


def reader(answer: Writing) -> Callable[[], Awaitable[list[Step] | None]]:
    """Return what gives an answer's steps, and None at its end."""

    async def read() -> list[Step] | None:
        return await answer.read() or None

    return read
