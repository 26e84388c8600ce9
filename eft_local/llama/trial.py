"""Loads a model in a child process first, where a crash can be caught.

llama.cpp asserts thousands of things about some 150 architectures; for those outside `gguf.FAMILIAR` the only way to
learn whether a file is sound without risking the process is to try. The child reads the header, maps the weights and
builds the graphs, which is where llama.cpp asserts; it evaluates nothing, so a large model takes no longer than its
vocabulary. A file that passed is remembered, until it changes.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from eft_local.errors import ModelFileError

_PATIENCE = 300.0  # seconds; a sound model takes one or two


def try_model(path: Path, passed: Path | None = None) -> None:
    """Load the model in a child process, unless it passed before.

    passed: a folder that remembers; None asks anew each time. Raises: ModelFileError if the child crashed or hung.
    A file that llama.cpp refuses properly passes: loading it will say why.
    """
    mark = None if passed is None else passed / f"{_identity(path)}.passed"
    if mark is not None and mark.exists():
        return
    try:
        child = subprocess.run(
            [sys.executable, "-c", "from eft_local.llama import trial; trial.load()", os.fspath(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=os.environ | {"GGML_NO_BACKTRACE": "1"},  # otherwise it would start a debugger
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ModelFileError(f"{path} hangs llama.cpp while it loads; download or convert it again") from None
    if child.returncode:
        noise = child.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = noise[-1] if noise else f"status {child.returncode}"
        raise ModelFileError(f"{path} crashes llama.cpp ({reason}); download or convert it again")
    if mark is not None:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def _identity(path: Path) -> str:
    """Name the file as it is now, for this version of llama.cpp."""
    from importlib.metadata import version

    status = path.stat()
    facts = (str(path.resolve()), status.st_size, status.st_mtime_ns, version("llama-cpp-python"))
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def load() -> None:
    """Do what loading the file sys.argv[1] does on the CPU, as far as building the graphs; a refusal is no crash."""
    import llama_cpp

    from eft_local.llama import library

    path = sys.argv[1]
    library.start()
    params = library.fill(
        llama_cpp.llama_model_default_params(),
        n_gpu_layers=0,
        load_mode=llama_cpp.LLAMA_LOAD_MODE_MMAP,
        use_extra_bufts=False,  # these repack, that is copy, the weights
    )
    model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
    if model is None:
        return
    context = llama_cpp.llama_init_from_model(
        model, library.fill(llama_cpp.llama_context_default_params(), n_ctx=64, n_batch=16, n_ubatch=16)
    )
    if context is not None:
        llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
