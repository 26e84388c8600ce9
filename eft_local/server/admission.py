"""Who is answered now, and who waits: a bound on both, and turns that are fair among clients."""

from __future__ import annotations

import asyncio
from collections import Counter, deque

from eft_local.server.errors import ApiError


class Ticket:
    """A place among the running answers, or in the queue for one."""

    def __init__(self, admission: Admission, client: str) -> None:
        self.client = client
        self.granted = asyncio.Event()
        self._admission = admission
        self._returned = False

    def give_back(self) -> None:
        """Let another one have the place; called again, it does nothing."""
        if not self._returned:
            self._returned = True
            self._admission.took_back(self)


class Admission:
    """The places of one recipe. For one event loop."""

    def __init__(self, parallel: int, queue: int) -> None:
        self.parallel = parallel
        self.queue = queue
        self._waiting: dict[str, deque[Ticket]] = {}
        self._running: Counter[str] = Counter()

    @property
    def running(self) -> int:
        """Answers that have a place."""
        return self._running.total()

    @property
    def waiting(self) -> int:
        """Answers in the queue."""
        return sum(map(len, self._waiting.values()))

    def take(self, client: str, count: int = 1) -> list[Ticket]:
        """Return tickets, which are granted now or later. Raises: ApiError 429 if the queue has no room for them."""
        if count > self.parallel + self.queue:
            raise ApiError(
                400, f"{count} answers at once are more than this server takes: {self.parallel + self.queue}"
            )
        if self.running + self.waiting + count > self.parallel + self.queue:
            raise ApiError(
                429,
                f"the server is busy: {self.waiting} answers wait already; try again",
                retry_after=1 + self.waiting // 4,
            )
        tickets = [Ticket(self, client) for _ in range(count)]
        self._waiting.setdefault(client, deque()).extend(tickets)
        self._grant()
        return tickets

    def took_back(self, ticket: Ticket) -> None:
        """A ticket is not needed any more, granted or not."""
        if ticket.granted.is_set():
            self._running[ticket.client] -= 1
            self._running += Counter()  # drops clients with nothing
            if ticket.client in self._waiting:  # it had its turn: behind the others
                self._waiting[ticket.client] = self._waiting.pop(ticket.client)
        else:
            line = self._waiting[ticket.client]
            line.remove(ticket)
            if not line:
                del self._waiting[ticket.client]
        self._grant()

    def _grant(self) -> None:
        """Fill free places: who has the fewest answers first, of equals who had the last turn longest ago."""
        while self._waiting and self.running < self.parallel:
            client = min(self._waiting, key=lambda name: self._running[name])
            line = self._waiting.pop(client)
            ticket = line.popleft()
            if line:
                self._waiting[client] = line  # behind the others as well
            self._running[client] += 1
            ticket.granted.set()
