"""Every error that eft-local raises on purpose.

    EftError                      exit code 1
    ├── UsageError                2   an argument is wrong (NaN alpha, unknown system, ...)
    │   ├── RecipeError           2   a recipe cannot be read, or says something impossible
    │   └── PromptError           2   an empty prompt, a missing chat template, a broken template
    ├── ModelNotFoundError        3   a file or bundled name that does not exist
    ├── VocabularyMismatchError   4   the roles' tokens differ, so their logits cannot be combined
    ├── DownloadError             1   a model could not be fetched (no network, gated, wrong checksum, disk full)
    ├── ModelFileError            1   truncated, corrupted, not GGUF, or refused by llama.cpp
    ├── UnsupportedModelError     1   a model that cannot do what was requested (rewind, decode)
    ├── ContextOverflowError      1   a prompt longer than the context
    ├── EvaluationError           1   llama.cpp failed while it evaluated
    │   └── ConstraintError       1   a grammar or schema that leaves an answer no way to continue
    ├── OutOfMemoryError          1   no memory for weights or context
    ├── OutputError               1   a result could not be written (disk full, no permission)
    ├── HistoryError              1   the history of chats cannot be read or written (disk full, damaged, ...)
    └── Cancelled               130   stopped on request, where there is no answer to keep

Each message is one line that says what was wrong, with the value, and what to do.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Real
from typing import Any

_LONGEST_SHOWN = 80  # characters of a value that an error message repeats


class EftError(Exception):
    """Base of all errors of eft-local; `exit_code` is what the command line ends with."""

    exit_code = 1


class UsageError(EftError):
    """An argument has a value that cannot be used."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe cannot be read, or one of its keys or values is wrong."""


class PromptError(UsageError):
    """The conversation cannot be rendered for a role."""


class ModelNotFoundError(EftError):
    """A model reference leads to no file."""

    exit_code = 3


class DownloadError(EftError):
    """A model could not be fetched from the hub."""


class VocabularyMismatchError(EftError):
    """Two roles do not share a vocabulary."""

    exit_code = 4


class ModelFileError(EftError):
    """A file is not a usable GGUF model."""


class UnsupportedModelError(EftError):
    """A model lacks an ability that was requested."""


class ContextOverflowError(EftError):
    """A prompt needs more tokens than the context has."""


class EvaluationError(EftError):
    """llama.cpp reported a failure while evaluating tokens."""


class ConstraintError(EvaluationError):
    """A grammar or JSON schema leaves an answer no way to continue, or takes too many steps."""


class OutOfMemoryError(EftError):
    """Memory for weights or a context could not be had."""


class OutputError(EftError):
    """A result could not be written."""


class HistoryError(EftError):
    """The history of chats cannot be read or written."""


class Cancelled(EftError):  # noqa: N818 - an interruption, not a fault
    """Stopped on request before there was anything to return."""

    exit_code = 130


def shown(value: Any) -> str:
    """Return a value as an error message repeats it: on one line, and not longer than a glance."""
    if isinstance(value, bool):
        words = "true" if value else "false"
    elif isinstance(value, Real):
        words = str(value)
    elif isinstance(value, str):
        words = json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
    else:
        words = " ".join(repr(value).split())
    return words if len(words) <= _LONGEST_SHOWN else words[: _LONGEST_SHOWN - 1] + "…"


def nearest(name: object, valid: Iterable[str]) -> str:
    """Return the valid name that looks most like `name`."""
    return get_close_matches(str(name).lower(), list(valid), n=1, cutoff=0.0)[0]
