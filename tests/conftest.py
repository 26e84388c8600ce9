"""Tiny GGUF files, written once per session."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import eft_local.backends.llamacpp  # noqa: F401  before a test imports llama_cpp: its kernels come first
from eft_local.bench.gguf_zeros import Shape
from eft_local.bench.studies import real_models
from eft_local.bench.studies.gguf_factory import CHATML, ModelSpec, bpe, spm, write_model
from eft_local.errors import ModelNotFoundError
from tests.helpers.mamba_factory import write_mamba

TOKENS = bpe(add_bos=True)
PADDING = 7
POSIX_ONLY = re.compile(r"^import (fcntl|pty|resource|termios)$", re.MULTILINE)


def pytest_configure(config: pytest.Config) -> None:
    """Give each of several workers a core of its own: threads of llama.cpp that share one wait for each other."""
    worker = getattr(config, "workerinput", None)
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker["workerid"].removeprefix("gw")) % len(cores)]})


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out on Windows what is about terminals, signals and limits of POSIX, whose modules it does not have."""
    if sys.platform != "win32" or collection_path.suffix != ".py":
        return None
    return bool(POSIX_ONLY.search(collection_path.read_text(encoding="utf-8"))) or None


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of what eft-local keeps: no test sees the user's."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EFT_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def ctrl_c() -> None:
    """Ctrl+C arrives, also where a shell runs the tests in the background and has it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def ggufs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with base, small and tuned (chat template), the base and the expert with padded vocabularies,
    a SentencePiece trio, and a Mamba. All weights are random: answers are noise, but always the same noise.
    """
    folder = tmp_path_factory.mktemp("ggufs")
    large, small = Shape(n_embd=64, n_layer=3), Shape()

    def write(name: str, shape: Shape, **spec: object) -> None:
        write_model(folder / f"{name}.gguf", ModelSpec(shape, **({"tokens": TOKENS} | spec)))

    write("base", large, seed=1)
    write("small", small, seed=2)
    write("tuned", small, seed=3, template=CHATML)
    write("kind", small, seed=4, template=CHATML)
    write("base-padded", large, seed=1, tokens=TOKENS.padded(PADDING))
    write("tuned-padded", small, seed=3, tokens=TOKENS.padded(2 * PADDING), template=CHATML)
    write("base-spm", large, seed=1, tokens=spm())
    write("small-spm", small, seed=2, tokens=spm())
    write("tuned-spm", small, seed=3, tokens=spm(), template="<s>[INST] {{ messages[0].content }} [/INST]")
    write_mamba(folder / "mamba.gguf", TOKENS, template=CHATML)
    return folder


@pytest.fixture(scope="session")
def real_model() -> Callable[..., Path]:
    """Return a function (name, quantisation) → file, as `studies.real_models`; tests without the file are skipped."""

    def file(name: str, kind: str | None = None) -> Path:
        try:
            return real_models.real_model(name, kind)
        except ModelNotFoundError as error:
            pytest.skip(str(error))

    return file


@pytest.fixture(scope="session")
def smollm2(real_model: Callable[..., Path]) -> Path:
    """SmolLM2-135M-Instruct in Q4_1: ChatML, 49,152 tokens."""
    return real_model("smollm2")


@pytest.fixture(scope="session")
def gemma(real_model: Callable[..., Path]) -> Path:
    """Gemma-3-270M, untuned, in Q4_K_M: 262,144 tokens, a sliding window."""
    return real_model("gemma")
