"""Grammars that constrain an answer: GBNF text, tried where a parser's complaint cannot hurt, and JSON schemas."""

from __future__ import annotations

import subprocess
import sys
from functools import lru_cache

from eft_local.errors import UsageError

_ANY_CHARACTER = r'[^"\\]'
_ANY_PRINTED_CHARACTER = r'[^"\\\x00-\x1F\x7F]'
_TIME_LIMIT = 60  # seconds; a busy machine needs some of them to start Python


@lru_cache(maxsize=32)
def checked(grammar: str) -> str:
    """Return a GBNF grammar that llama.cpp accepts.

    llama.cpp's parser writes its complaints past the log straight to file descriptor 2, which would tear a terminal
    user interface: it tries the grammar in a child process first.
    Raises: UsageError with the parser's complaint.
    """
    if not grammar.strip():
        raise UsageError("the grammar is empty; give GBNF text with a rule named root")
    command = [sys.executable, "-c", "from eft_local.llama import grammar; grammar.try_standard_input()"]
    try:
        child = subprocess.run(command, input=grammar.encode(), capture_output=True, timeout=_TIME_LIMIT)
    except subprocess.TimeoutExpired:
        raise UsageError(f"llama.cpp did not parse the grammar within {_TIME_LIMIT} s; simplify it") from None
    if child.returncode != 0:
        complaint = " ".join(child.stderr.decode("utf-8", "replace").split())[:200]
        raise UsageError(f"llama.cpp does not accept the grammar: {complaint or 'no rule named root?'}")
    return grammar


@lru_cache(maxsize=32)
def from_json_schema(schema: str) -> str:
    """Translate a JSON schema (text) to GBNF with llama-cpp-python's converter. Raises: UsageError."""
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    try:
        grammar = str(json_schema_to_gbnf(schema))
    except Exception as error:  # the converter raises whatever its recursive descent runs into
        raise UsageError(f"the JSON schema cannot be used: {error or type(error).__name__}") from error
    # The converter lets control characters stand inside strings, where JSON allows none.
    return grammar.replace(_ANY_CHARACTER, _ANY_PRINTED_CHARACTER)


def try_standard_input() -> None:
    """Parse the grammar on standard input as llama.cpp would; the exit status says whether it can."""
    import llama_cpp

    from eft_local.llama import library

    library.start()
    sampler = llama_cpp.llama_sampler_init_grammar(None, sys.stdin.buffer.read(), b"root")
    sys.exit(0 if sampler else 1)
