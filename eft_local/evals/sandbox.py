"""Running code that a model wrote, in a child process that can do little harm, and not much for long.

The child has a temporary folder, an empty environment, limits on memory, processor time, files and processes, and no
network where Linux lets an ordinary user give it up. That stops accidents, not a determined attacker: code from models
runs only where the user asked for it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass

MEMORY = 2 << 30
"""Bytes of address space that the child may have."""
_FILE = 1 << 20  # bytes that it may write into one file
_GRACE = 2.0  # seconds beyond the limit, for Python's start

_CHILD = """
import os, sys
memory, seconds, size = map(int, sys.argv[1:4])
try:
    import resource
    limits = {"RLIMIT_AS": memory, "RLIMIT_CPU": seconds, "RLIMIT_FSIZE": size, "RLIMIT_CORE": 0, "RLIMIT_NOFILE": 64}
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, name), (value, value))
except (ImportError, ValueError, OSError):
    pass
if sys.platform == "linux":
    import ctypes
    CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
    ctypes.CDLL(None).unshare(CLONE_NEWUSER | CLONE_NEWNET)
    try:
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    except (ValueError, OSError):
        pass
program = sys.stdin.read()
sys.stdin = open(os.devnull)
exec(compile(program, "answer.py", "exec"), {"__name__": "__main__"})
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended. passed: without an error, in time.  reason: "passed", "timed out", or its last words."""

    passed: bool
    reason: str


def run(program: str, *, seconds: float = 3.0, memory: int = MEMORY) -> Outcome:
    """Run a Python program in a child process; it passes if it ends without an error within so many seconds."""
    with (
        tempfile.TemporaryDirectory(prefix="eft-code-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as said,  # as long as a file may be, unlike a pipe
    ):
        arguments = [sys.executable, "-I", "-X", "utf8", "-c", _CHILD]
        arguments += [str(memory), str(int(seconds + _GRACE) + 1), str(_FILE)]
        child = subprocess.Popen(
            arguments,
            cwd=folder,
            env={"PATH": "", "HOME": folder, "TMPDIR": folder, "OPENBLAS_NUM_THREADS": "1", **_needed_by_windows()},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
        )
        try:
            child.communicate(program.encode("utf-8", "backslashreplace"), timeout=seconds + _GRACE)
        except subprocess.TimeoutExpired:
            return Outcome(False, "timed out")
        finally:
            _end(child)
        said.seek(0)
        words = said.read(_FILE).decode("utf-8", "replace").strip().splitlines()
    if child.returncode == 0:
        return Outcome(True, "passed")
    return Outcome(False, words[-1][:200] if words else f"ended with {child.returncode}")


def _needed_by_windows() -> dict[str, str]:
    return {name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ}


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child and all that it started."""
    with suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()
    if child.stdin:
        with suppress(OSError):
            child.stdin.close()
    child.wait()
