"""Grammars that constrain an answer: GBNF text, tried first where a parser's complaint cannot hurt."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from functools import lru_cache
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from eft_local.backends.llamacpp.candidates import CANDIDATE, pointer, token_data_array
from eft_local.backends.llamacpp.vocabulary import LlamaVocabulary
from eft_local.errors import UsageError

_TIME_LIMIT = 60  # seconds; a busy machine needs some of them to start Python


class Grammar:
    """Implements `sampler.Constraint` with llama.cpp's sampler. Close it before its model."""

    def __init__(self, vocabulary: LlamaVocabulary, text: str) -> None:
        """text: GBNF. Raises: UsageError for one that llama.cpp does not accept."""
        self._sampler: Any = llama_cpp.llama_sampler_init_grammar(vocabulary.handle, checked(text).encode(), b"root")
        if not self._sampler:
            raise UsageError("llama.cpp does not accept the grammar with this vocabulary; simplify it")

    def allowed(self, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
        candidates = np.zeros(ids.size, CANDIDATE)
        candidates["id"] = ids
        array = token_data_array(pointer(candidates), ids.size)
        llama_cpp.llama_sampler_apply(self._sampler, ctypes.byref(array))
        allowed: npt.NDArray[np.bool_] = np.isfinite(candidates["logit"])
        return allowed

    def accept(self, token: int) -> bool:
        # llama.cpp would end the process for a token that its grammar forbids.
        if not self.allowed(np.array([token], np.int32))[0]:
            return False
        llama_cpp.llama_sampler_accept(self._sampler, token)
        return True

    def clone(self) -> Grammar:
        twin = Grammar.__new__(Grammar)
        twin._sampler = llama_cpp.llama_sampler_clone(self._sampler)
        return twin

    def close(self) -> None:
        if self._sampler:
            llama_cpp.llama_sampler_free(self._sampler)
        self._sampler = None


@lru_cache(maxsize=32)
def checked(grammar: str) -> str:
    """Return a GBNF grammar that llama.cpp accepts.

    llama.cpp's parser writes its complaints past the log straight to file descriptor 2, which would tear a terminal
    user interface: it tries the grammar in a child process first.
    Raises: UsageError with the parser's complaint.
    """
    if not grammar.strip():
        raise UsageError("the grammar is empty; give GBNF text with a rule named root")
    command = [sys.executable, "-c", "from eft_local.backends.llamacpp import grammar; grammar.try_standard_input()"]
    try:
        child = subprocess.run(command, input=grammar.encode(), capture_output=True, timeout=_TIME_LIMIT)
    except subprocess.TimeoutExpired:
        raise UsageError(f"llama.cpp did not parse the grammar within {_TIME_LIMIT} s; simplify it") from None
    if child.returncode != 0:
        complaint = " ".join(child.stderr.decode("utf-8", "replace").split())[:200]
        raise UsageError(f"llama.cpp does not accept the grammar: {complaint or 'no rule named root?'}")
    return grammar


def try_standard_input() -> None:
    """Parse the grammar on standard input as llama.cpp would; the exit status says whether it can."""
    from eft_local.backends.llamacpp import library

    library.start()
    sampler = llama_cpp.llama_sampler_init_grammar(None, sys.stdin.buffer.read(), b"root")
    sys.exit(0 if sampler else 1)
