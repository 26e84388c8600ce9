"""Answers that are kept as they come, so that a run that was stopped continues where it was."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from eft_local.errors import OutputError


class Kept:
    """A file of JSON lines, each with a question and what came of it. Each line is written at once, or not at all.

    A line that a crash cut in two is dropped when the file is opened again. Without a path nothing is kept.
    """

    def __init__(self, path: Path | None = None) -> None:
        """path: the file; its folder is made. Raises: OutputError."""
        self.path = path
        self._results: dict[str, Any] = {}
        self._file: int | None = None
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            content = path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.ftruncate(self._file, whole)
        except OSError as error:
            self.close()
            raise OutputError(f"cannot keep answers in {path}: {error.strerror}") from error
        for line in content[:whole].splitlines():
            with suppress(ValueError, KeyError, TypeError):  # a line of another program
                row = json.loads(line)
                self._results[row["key"]] = row["result"]

    def __len__(self) -> int:
        return len(self._results)

    def get(self, key: str) -> Any:
        """Return what was kept under a key, None if nothing was."""
        return self._results.get(key)

    def put(self, key: str, result: Any, about: Mapping[str, Any]) -> None:
        """Keep a result, ready for JSON, with what a reader wants to know of it. Raises: OutputError."""
        self._results[key] = result
        if self._file is None:
            return
        line = json.dumps({"key": key, **about, "result": result}, ensure_ascii=False) + "\n"
        try:
            os.write(self._file, line.encode("utf-8", "backslashreplace"))
        except OSError as error:
            raise OutputError(f"cannot keep answers in {self.path}: {error.strerror}") from error

    def through(
        self,
        keys: Sequence[str],
        about: Callable[[int], Mapping[str, Any]],
        ask: Callable[[list[int], Callable[[int, Sequence[Any]], None]], None],
        progress: Callable[[], None] = lambda: None,
    ) -> list[Any]:
        """Return the result under each key: what is kept, or what comes of asking, which is kept as it comes.

        about: returns what a reader wants to know of the question at a place.
        ask: called with the places whose results are missing, and with a function that takes a result and where its
            question stands among these.  progress: called for each result.
        """
        missing = list({key: place for place, key in enumerate(keys) if self.get(key) is None}.values())

        def done(at: int, result: Sequence[Any]) -> None:
            place = missing[at]
            self.put(keys[place], list(result), about(place))
            progress()

        for _ in range(len(keys) - len(missing)):
            progress()
        if missing:
            ask(missing, done)
        return [self.get(key) for key in keys]

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> Kept:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def key_of(*parts: Any) -> str:
    """Return a short name of a question, from values ready for JSON: equal for equal ones."""
    text = json.dumps(parts, ensure_ascii=True, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
