"""What the routes of both APIs share: from an HTTP request to answers that are being written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, cast

from fastapi import Request
from fastapi.responses import Response

from eft_local.engine.request import Request as EngineRequest
from eft_local.server.service import Model, Service, Writing
from eft_local.server.streaming import unless_gone


@dataclass(frozen=True, slots=True)
class Order:
    """What an answer is made of.

    request: for the engine.  given: the prompt's tokens, to be scored before.  writes: whether anything is written.
    """

    request: EngineRequest
    given: EngineRequest | None = None
    writes: bool = True


def service_of(request: Request) -> Service:
    """Return the service behind the app."""
    return cast(Service, request.app.state.service)


def client_of(request: Request, user: str | None = None) -> str:
    """Return who is asking: an address, or a user of it."""
    address = request.client.host if request.client else ""
    return f"{address} {user}" if user else address


async def begin(
    request: Request, model: Model, count: int, prepare: Callable[[], Sequence[Order]], user: str | None = None
) -> list[Writing]:
    """Take places for so many answers, prepare their requests in a thread, and return the answers.

    Raises: ApiError 429 before anything is prepared; what `prepare` raises; Gone.
    """
    service = service_of(request)
    deadline = asyncio.get_running_loop().time() + service.settings.deadline
    tickets = model.admission.take(client_of(request, user), count)
    try:
        orders = await unless_gone(request, asyncio.to_thread(prepare))
        return [
            Writing(model, each.request, deadline, service.metrics, ticket, given=each.given, writes=each.writes)
            for each, ticket in zip(orders, tickets, strict=True)
        ]
    except BaseException:
        for ticket in tickets:
            ticket.give_back()
        raise


async def whole(request: Request, answers: Sequence[Writing], work: Coroutine[Any, Any, Response]) -> Response:
    """Return an answer that is sent when it is complete; it is stopped if the client leaves. Raises: Gone."""
    try:
        return await unless_gone(request, work)
    finally:
        for answer in answers:
            answer.close()
