"""Loads a model, or an adapter on its model, in a child process first, where a crash can be caught.

llama.cpp asserts thousands of things about a file and ends the process where one does not hold. `check_gguf` refuses
what is known to do that, and says why; whether a file has something that nobody thought of, only trying it tells. The
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
from importlib.metadata import version
from pathlib import Path

import numpy as np

from eft_local.errors import ModelFileError, OutOfMemoryError

_PATIENCE = 300.0  # seconds; a sound model of a few GB takes one or two
_SLOWEST_DISK = 20e6  # bytes per second
_ANSWER = 0.05  # seconds until a cancel is noticed
_NO_NUMBERS = 3  # the child's status where an adapter makes nonsense of a sound model


def try_model(
    path: Path,
    passed: Path | None = None,
    waiting: Callable[[], None] = lambda: None,
    *,
    adapter: Path | None = None,
) -> None:
    """Load the model and evaluate tokens with it in a child process, unless it passed before.

    passed: a folder that remembers; None asks anew each time. waiting: called while the child works; what it raises
    ends the child. adapter: what is on trial, on a model that has passed. A file that llama.cpp refuses properly
    passes: loading it will say why.
    Raises: ModelFileError if the child crashed or hung, OutOfMemoryError if it was killed.
    """
    files = (path, adapter) if adapter else (path,)
    mark = None if passed is None else passed / f"{identity(files)}.passed"
    if mark is not None and mark.exists():
        return
    status, noise = _run(files, waiting)
    tried = files[-1]
    if status == _NO_NUMBERS:
        raise ModelFileError(f"{tried} makes logits that are no numbers; download or convert it again")
    if status == -signal.SIGKILL:
        raise OutOfMemoryError(
            f"loading {tried} was killed: it needs more memory than there is; choose a smaller model"
        )
    if status:
        reason = noise[-1] if noise else f"status {status}"
        raise ModelFileError(f"{tried} crashes llama.cpp ({reason}); download or convert it again")
    if mark is not None:
        with contextlib.suppress(OSError):  # it is tried again next time
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()


def _run(files: Sequence[Path], waiting: Callable[[], None]) -> tuple[int, list[str]]:
    """Return the child's status and what it said last."""
    child = subprocess.Popen(
        [sys.executable, "-c", "from eft_local.llama import trial; trial.load()", *map(os.fspath, files)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"GGML_NO_BACKTRACE": "1"},  # otherwise it would start a debugger
        start_new_session=True,  # Ctrl+C is ours to handle
    )
    deadline = time.monotonic() + _PATIENCE + sum(path.stat().st_size for path in files) / _SLOWEST_DISK
    try:
        while True:
            try:
                _, noise = child.communicate(timeout=_ANSWER)
                return child.returncode, noise.decode("utf-8", "replace").strip().splitlines()
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
    facts: list[object] = [version("llama-cpp-python")]
    for path in files:
        status = path.stat()
        facts += (str(path.resolve()), status.st_size, status.st_mtime_ns)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def load() -> None:
    """Do with the model sys.argv[1], and an adapter sys.argv[2], what an emulator does on the CPU.

    A refusal is no crash.
    """
    from eft_local.errors import EftError
    from eft_local.llama.adapter import Adapter
    from eft_local.llama.model import Model
    from eft_local.protocols import Rows

    try:
        # Not repacked: a model that only fits with the help of a GPU can be tried all the same.
        with Model.load_untried(Path(sys.argv[1])) as model:
            vocabulary = model.vocabulary
            vocabulary.texts(), vocabulary.attributes()
            tokens = vocabulary.tokenize("Is this file sound?", add_special=True, parse_special=True) or [0]
            adapter = Adapter.load_untried(model, Path(sys.argv[2])) if len(sys.argv) > 2 else None
            with model.open(n_ctx=64, n_batch=16, n_ubatch=16, adapter=adapter) as context:
                context.submit([Rows(0, tokens[:8])])
                context.submit([Rows(0, [int(context.logits()[0].argmax())])])
                if adapter and np.isnan(context.logits()).any():
                    sys.exit(_NO_NUMBERS)
    except EftError:
        return
