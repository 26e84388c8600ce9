"""Answers on the wire: events as they come, for readers who may be slow or leave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from eft_local.server.errors import ApiError, api_error
from eft_local.server.service import Writing

Result = TypeVar("Result")
Encode = Callable[[Any], bytes]

PING = 15.0
"""Seconds without a token after which a comment is sent, so that nothing on the way closes the connection."""

DONE = b"data: [DONE]\n\n"


def sse(content: Any) -> bytes:
    """Return a server-sent event."""
    return b"data: " + _json(content) + b"\n\n"


def line(content: Any) -> bytes:
    """Return a line of JSON."""
    return _json(content) + b"\n"


def text_of(text: str) -> bytes:
    """Return a text in JSON."""
    return json.dumps(text).encode()


def _json(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


class Gone(Exception):  # noqa: N818 - nobody's fault
    """The client has left."""


async def until_gone(receive: Receive) -> None:
    """Wait until the client has left; its request was read before."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Do something for a client as long as it waits. Raises: Gone, and what the work raises."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(until_gone(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Gone
    finally:
        for each in (task, gone):
            each.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await each


class EventStream(Response):
    """Sends what an iterator gives; then, or when the reader is gone, the answers behind it are closed.

    What was written while the reader was slow waits in the answers, whose length is bounded, so that nobody else waits.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        answers: Sequence[Writing],
        patience: float,
        *,
        media_type: str = "text/event-stream",
        error: Callable[[ApiError], bytes] = lambda error: sse(error.body),
    ) -> None:
        """patience: seconds that a reader may take none. error: an error after the beginning, as an event."""
        super().__init__(None, media_type=media_type, headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._answers = answers
        self._patience = patience
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything, as long as somebody reads."""
        sending = asyncio.ensure_future(self._send(scope, send))
        gone = asyncio.ensure_future(until_gone(receive))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for answer in self._answers:
                answer.close()
            for task in (sending, gone):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def _send(self, scope: Scope, send: Send) -> None:
        loop = asyncio.get_running_loop()
        since, sending = loop.time(), False

        async def put(body: bytes, *, more: bool = True) -> None:
            nonlocal since, sending
            since, sending = loop.time(), True
            await send({"type": "http.response.body", "body": body, "more_body": more})
            sending = False

        async def watch() -> None:
            while True:
                await asyncio.sleep(min(PING, self._patience) / 4)
                waited = loop.time() - since
                if sending and waited > self._patience:
                    scope["state"]["abort"]()  # a close would wait until everything is read
                elif not sending and waited > PING and self.media_type == "text/event-stream":
                    await put(b": still working\n\n")

        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        watching = asyncio.ensure_future(watch())
        try:
            async with aclosing(self._events):
                async for event in self._events:
                    await put(event)
        except Exception as error:
            await put(self._error(api_error(error)))
        finally:
            watching.cancel()
        await put(b"", more=False)


async def merged(sources: Sequence[Callable[[], Awaitable[Result | None]]]) -> AsyncIterator[tuple[int, Result]]:
    """Give what several sources give, as it comes, with the source's index; each ends with None."""
    if len(sources) == 1:
        while (item := await sources[0]()) is not None:
            yield 0, item
        return
    tasks = {asyncio.ensure_future(source()): index for index, source in enumerate(sources)}
    try:
        while tasks:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=lambda each: tasks[each]):
                index = tasks.pop(task)
                item = task.result()
                if item is not None:
                    tasks[asyncio.ensure_future(sources[index]())] = index
                    yield index, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
