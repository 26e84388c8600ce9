"""Loads a model, or an adapter on its model, in a child process first, where a crash can be caught.

llama.cpp asserts thousands of things about a file and ends the process where one does not hold. `check_gguf` refuses
what is known to do that, and says why; whether a file has a fault that nobody thought of, only a test load shows. The
child does what the process will do, once: load, read the vocabulary, evaluate a few tokens. A file that passed is
remembered until it changes, so the price (a third of a second, and reading the weights) is paid once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eft_local.errors import ModelFileError, OutOfMemoryError

if TYPE_CHECKING:
    from eft_local.backends.llamacpp.adapter import Adapter
    from eft_local.backends.llamacpp.model import Model

_PATIENCE = 300.0  # seconds; a sound model of a few GB takes one or two
_SLOWEST_DISK = 20e6  # bytes per second
_ANSWER = 0.05  # seconds until a cancel is noticed
_NO_NUMBERS = 3  # the child's status where an adapter makes nonsense of a sound model


def probe_file(
    path: Path,
    passed: Path | None = None,
    waiting: Callable[[], None] = lambda: None,
    *,
    adapter: Path | None = None,
) -> None:
    """Load the model and evaluate tokens with it in a child process, unless it passed before.

    passed: a folder that remembers; None tests anew each time. waiting: called while the child works; what it raises
    ends the child. adapter: what is probed, on a model that has passed. A file that llama.cpp refuses properly
    passes: loading it will say why.
    Raises: ModelFileError if the child crashed or hung, OutOfMemoryError if it was killed.
    """
    files = (path, adapter) if adapter else (path,)
    if passed is not None and _mark(files, passed).exists():
        return
    code = "from eft_local.backends.llamacpp import file_probe; file_probe.load()"
    judge(run_child(code, [os.fspath(file) for file in files], files, waiting), files[-1])
    remember(files, passed)


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of a child. said: on stdout.  complained: on stderr, line by line."""

    status: int
    said: str = ""
    complained: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        """What it said last, or its status."""
        return self.complained[-1] if self.complained else f"status {self.status}"


def judge(ended: Ended, tried: Path) -> None:
    """Raise what a child's end says about a file: ModelFileError, OutOfMemoryError; nothing if it passed."""
    if ended.status == _NO_NUMBERS:
        raise ModelFileError(f"{tried} makes logits that are no numbers; download or convert it again")
    if ended.status == -signal.SIGKILL:
        raise OutOfMemoryError(
            f"loading {tried} was killed: it needs more memory than there is; choose a smaller model"
        )
    if ended.status:
        raise ModelFileError(f"{tried} crashes llama.cpp ({ended.reason}); download or convert it again")


def remember(files: Sequence[Path], passed: Path | None) -> None:
    """Keep that these files have passed, each with those before it. passed: a folder; None keeps nothing."""
    for count in range(1, len(files) + 1):
        if passed is not None:
            mark = _mark(files[:count], passed)
            with contextlib.suppress(OSError):  # it is probed again next time
                mark.parent.mkdir(parents=True, exist_ok=True)
                mark.touch()


def _mark(files: Sequence[Path], passed: Path) -> Path:
    return passed / f"{identity(files)}.passed"


def run_child(code: str, arguments: Sequence[str], files: Sequence[Path], waiting: Callable[[], None]) -> Ended:
    """Run Python code that loads files, where a crash can be caught.

    Raises: ModelFileError if it hangs; what `waiting` raises.
    """
    child = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"GGML_NO_BACKTRACE": "1"},  # otherwise it would start a debugger
        start_new_session=True,  # Ctrl+C is ours to handle
    )
    deadline = time.monotonic() + _PATIENCE + sum(path.stat().st_size for path in files) / _SLOWEST_DISK
    try:
        while True:
            try:
                said, complained = child.communicate(timeout=_ANSWER)
                text = complained.decode("utf-8", "replace").strip()
                return Ended(child.returncode, said.decode("utf-8", "replace").strip(), tuple(text.splitlines()))
            except subprocess.TimeoutExpired:
                waiting()
            if time.monotonic() > deadline:
                raise ModelFileError(f"{files[-1]} hangs llama.cpp while it loads; download or convert it again")
    finally:
        if child.returncode is None:
            child.kill()
            child.communicate()


def identity(files: Sequence[Path]) -> str:
    """Name the files as they are now, for this version of llama.cpp."""
    parts: list[object] = [version("llama-cpp-python")]
    for path in files:
        status = path.stat()
        parts += (str(path.resolve()), status.st_size, status.st_mtime_ns)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def load() -> None:
    """Do with the model sys.argv[1], and an adapter sys.argv[2], what an emulator does on the CPU.

    A refusal is no crash.
    """
    from eft_local.backends.llamacpp.adapter import Adapter
    from eft_local.backends.llamacpp.model import Model
    from eft_local.errors import EftError

    try:
        # Not repacked: a model that only fits with the help of a GPU can be tried all the same.
        with Model.load_unprobed(Path(sys.argv[1])) as model:
            evaluate(model, Adapter.load_unprobed(model, Path(sys.argv[2])) if len(sys.argv) > 2 else None)
    except EftError:
        return


def evaluate(model: Model, adapter: Adapter | None) -> None:
    """Read the vocabulary and evaluate a few tokens; end the process if they make nonsense of a sound model."""
    from eft_local.backends.base import ContextOptions, Rows

    vocabulary = model.vocabulary
    vocabulary.texts(), vocabulary.attributes()
    tokens = vocabulary.tokenize("Is this file sound?", add_special=True, parse_special=True) or [0]
    with model.open(ContextOptions(n_ctx=64, n_batch=16, n_ubatch=16, adapter=adapter)) as context:
        context.submit([Rows(0, tokens[:8])])
        context.submit([Rows(0, [int(context.logits()[0].argmax())])])
        if adapter and np.isnan(context.logits()).any():
            sys.exit(_NO_NUMBERS)
