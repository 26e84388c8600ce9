"""uvicorn, with a bound on connections, patience for slow headers, and nothing to do while nobody asks."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from eft_local.server.errors import ApiError
from eft_local.server.settings import Settings


def server(app: FastAPI, settings: Settings) -> Server:
    """Return a server that can be run."""
    # What uvicorn logs are addresses, and tracebacks of what clients broke off; what matters the app logs itself.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL + 1)

    class Bounded(Protocol):
        bounds = settings

    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=Bounded,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        date_header=False,
        server_header=False,
        headers=[("server", "eft-local")],
        timeout_graceful_shutdown=max(1, round(settings.drain)),
        h11_max_incomplete_event_size=1 << 16,
    )
    return Server(config)


class Server(uvicorn.Server):
    """Waits for a signal instead of looking for one ten times a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._signalled = False

    async def main_loop(self) -> None:
        """Wait until the server is to end."""
        self._loop = asyncio.get_running_loop()
        self.server_state.default_headers = self.config.encoded_headers
        if not self.should_exit:
            await self._stop.wait()

    def stop(self) -> None:
        """End soon; callable from any thread and from signal handlers."""
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)

    @property
    def was_ended(self) -> bool:
        """Whether a signal ended it."""
        return self._signalled

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals meanwhile; afterwards they are done with, where uvicorn would raise them once more."""
        with super().capture_signals():
            try:
                yield
            finally:
                self._captured_signals.clear()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End after the running answers; a second Ctrl+C ends at once."""
        super().handle_exit(sig, frame)
        self._signalled = True
        self.stop()

    def listen(self, sockets: list[socket.socket]) -> None:
        """Serve until somebody ends it."""
        self.run(sockets=sockets)


class Protocol(H11Protocol):
    """One connection: it is closed where a request's head does not come in time, or too many are open."""

    bounds: Settings
    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Take a connection, if there are not too many."""
        super().connection_made(transport)
        # Where a stalled reader is given up, its connection must not wait for it.
        self.app_state = {**self.app_state, "abort": transport.abort}
        if len(self.connections) > self.bounds.connections:
            transport.abort()
            return
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._expected()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read what came; a head that has begun must be complete in time, however many parts it comes in."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._expect()
        else:
            self._expected()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, in the API's form."""
        error = ApiError(400, msg).response()
        head = h11.Response(status_code=400, headers=[*error.raw_headers, (b"connection", b"close")])
        for event in (head, h11.Data(data=bytes(error.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _expect(self) -> None:
        if self._waiting is None:
            self._waiting = self.loop.call_later(self.bounds.patience, self.transport.abort)

    def _expected(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
