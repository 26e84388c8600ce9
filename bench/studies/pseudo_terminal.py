"""A program in a pseudo terminal, read by a thread as a terminal would, so that it never waits for its reader."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Mapping, Sequence

_KEPT = 1 << 16


class PseudoTerminal:
    """Runs a command; what it writes last is kept. Close it."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], *, columns: int = 120, rows: int = 40):
        self._leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._program = subprocess.Popen(
            command,
            stdin=follower,
            stdout=follower,
            stderr=follower,
            env={**environment, "TERM": "xterm-256color"},
            start_new_session=True,
        )
        os.close(follower)
        self._seen = b""
        self._news = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._leader, 1 << 16)
            except OSError:
                return
            with self._news:
                self._seen = self._seen[-_KEPT:] + data
                self._news.notify_all()

    def write(self, keys: bytes) -> None:
        """Press keys; what was written before is forgotten."""
        with self._news:
            self._seen = b""
        os.write(self._leader, keys)

    def wait_for(self, text: str, seconds: float) -> None:
        """Wait until the program writes a text. Raises: SystemExit after so many seconds."""
        wanted = text.encode()
        with self._news:
            if not self._news.wait_for(lambda: wanted in self._seen, seconds):
                raise SystemExit(f"{text!r} was not shown within {seconds} s; the last output: {self.last!r}")

    def pause(self, seconds: float) -> None:
        """Let the program run."""
        time.sleep(seconds)

    @property
    def last(self) -> bytes:
        """The end of what was written since the last keys."""
        return self._seen[-500:]

    def wait_for_end(self, seconds: float) -> None:
        """Wait until the program ends by itself."""
        self._program.wait(seconds)

    def close(self) -> None:
        """End the program."""
        self._program.kill()
        self._program.wait()
        os.close(self._leader)
