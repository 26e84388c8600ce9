"""A SOCKS5 proxy on loopback (RFC 1928, RFC 1929): connects to whatever it is asked for, and notes what that was."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from socketserver import BaseRequestHandler, ThreadingTCPServer

_NO_LOGIN, _LOGIN, _NOTHING_FITS = 0, 2, 255


class SocksServer(ThreadingTCPServer):
    """login: user and password that are asked for; None asks for none."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, login: tuple[str, str] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.login = login
        self.connected: list[tuple[str, int]] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


@contextmanager
def serving_socks(login: tuple[str, str] | None = None) -> Iterator[SocksServer]:
    server = SocksServer(login)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseRequestHandler):
    server: SocksServer
    request: socket.socket

    def handle(self) -> None:
        with suppress(OSError):
            if self._greeted():
                self._connect()

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.request.recv(count - len(data))
            if not piece:
                raise ConnectionError
            data += piece
        return data

    def _greeted(self) -> bool:
        _, count = self._read(2)
        wanted = _LOGIN if self.server.login else _NO_LOGIN
        fits = wanted in self._read(count)
        self.request.sendall(bytes((5, wanted if fits else _NOTHING_FITS)))
        if not fits or wanted == _NO_LOGIN:
            return fits
        self._read(1)
        given = tuple(self._read(self._read(1)[0]).decode() for _ in range(2))
        self.request.sendall(bytes((1, given != self.server.login)))
        return given == self.server.login

    def _connect(self) -> None:
        _, _, _, kind = self._read(4)
        host = socket.inet_ntoa(self._read(4)) if kind == 1 else self._read(self._read(1)[0]).decode()
        (port,) = struct.unpack(">H", self._read(2))
        self.server.connected.append((host, port))
        with socket.create_connection((host, port)) as target:
            self.request.sendall(b"\5\0\0\1" + bytes(6))
            there = threading.Thread(target=_pass_on, args=(self.request, target), daemon=True)
            there.start()
            _pass_on(target, self.request)


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
