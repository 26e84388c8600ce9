"""Ctrl+C as a request that is heard at once."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_END = b"\0"


class Interrupt:
    """Whether Ctrl+C was pressed."""

    requested = False


@contextmanager
def interruptible(stop: Callable[[], None] = lambda: None) -> Iterator[Interrupt]:
    """Inside, the first Ctrl+C calls `stop` from another thread and a second one raises KeyboardInterrupt.

    A third one ends the process: then llama.cpp is in something that it cannot be called back from.

    Python runs signal handlers in the main thread between two of its instructions, so not while llama.cpp
    evaluates a long prompt there. The byte that the C handler writes to the wakeup socket arrives at once.
    """
    interrupt = Interrupt()
    previous = signal.getsignal(signal.SIGINT)
    if previous == signal.SIG_IGN:  # a background job: Ctrl+C is meant for somebody else
        yield interrupt
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    presses = 0

    def in_main_thread(_signal: int, _frame: FrameType | None) -> None:
        nonlocal presses
        presses += 1
        interrupt.requested = True
        if presses > 1:
            raise KeyboardInterrupt

    def watch() -> None:
        heard = 0
        while reader.recv(1) != _END:
            interrupt.requested = True
            stop()
            heard += 1
            if heard == 3:
                os._exit(130)

    watcher = threading.Thread(target=watch, name="ctrl-c", daemon=True)
    watcher.start()
    previous_socket = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, in_main_thread)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, previous)
        signal.set_wakeup_fd(previous_socket)
        writer.send(_END)
        watcher.join()
        reader.close()
        writer.close()
