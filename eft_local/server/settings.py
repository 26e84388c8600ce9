"""How a server is run: who may use it, and how much."""

from __future__ import annotations

from dataclasses import dataclass

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the operator decides.

    parallel: answers of one recipe that are written side by side; queue: those that may wait for their turn.
    deadline: seconds that a request may take, its waiting included.  max_tokens: of one answer; None for as many as the
        context holds.  body: bytes of a request.
    patience: seconds for which a client may send nothing of a request, or read nothing of its answer.
    drain: seconds that running answers get when the server ends.  connections: that are open at once.
    keys: any of them opens the API; none: it is open.
    hosts: by which names the server may be called without a key; * is any.
    origins: of the web pages whose scripts may use it.
    """

    parallel: int = 4
    queue: int = 64
    deadline: float = 600.0
    max_tokens: int | None = None
    body: int = 4 << 20
    patience: float = 30.0
    drain: float = 30.0
    connections: int = 512
    keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = LOCAL_NAMES
    origins: tuple[str, ...] = ()
