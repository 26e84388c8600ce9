"""Fetching one file: into a partial file whose name the next run finds, hashed as it comes, kept whatever happens."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from eft_local.errors import Cancelled, DownloadError
from eft_local.hub.names import size_text
from eft_local.hub.remote import Hiccup, Hub, RemoteFile, Unusable, part_end

_BLOCK = 1 << 20
_LONG = 1 << 28  # bytes that take a moment to hash
_POLL = 0.1  # seconds between looks at whether to stop

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Talk:
    """What a transfer reports, and checks, while it runs.

    advanced: called with the bytes that are there.  said: called with a line about what goes wrong or is done about it,
    and the seconds that it now waits, 0 for none.  stopped: called often; True ends with Cancelled.
    """

    advanced: Callable[[int], None] = lambda done: None
    said: Callable[[str, float], None] = lambda line, seconds: None
    stopped: Callable[[], bool] = lambda: False

    def check(self) -> None:
        """Raise Cancelled if it is to stop."""
        if self.stopped():
            raise Cancelled("the download was stopped; the same command continues where it stopped")


@dataclass(frozen=True, slots=True)
class Patience:
    """How failures that may pass are met.

    tries: in a row, without a byte coming in.  first, longest: seconds to wait, doubled each time.
    longest_requested: seconds that a server may ask for.
    """

    tries: int = 6
    first: float = 1.0
    longest: float = 30.0
    longest_requested: float = 300.0

    def keep_trying(self, attempt: Callable[[], Result], talk: Talk, progress: Callable[[], int] = int) -> Result:
        """Return what `attempt` returns once it raises no Hiccup. progress: rises when something came in.

        Raises: DownloadError after too many tries, Cancelled, and what `attempt` raises.
        """
        failures, reached = 0, progress()
        while True:
            talk.check()
            try:
                return attempt()
            except Hiccup as hiccup:
                failures = 1 if progress() > reached else failures + 1
                reached = max(reached, progress())
                self._wait(hiccup, failures, talk)

    def _wait(self, hiccup: Hiccup, failures: int, talk: Talk) -> None:
        if failures >= self.tries:
            raise DownloadError(
                f"{hiccup}, {failures} times in a row; try the same command later: it continues where it stopped"
            )
        if hiccup.retry_after is not None and hiccup.retry_after > self.longest_requested:
            raise DownloadError(
                f"{hiccup} and asks to wait {hiccup.retry_after:.0f} s; try the same command after that"
            )
        seconds = (
            min(self.longest, self.first * 2 ** (failures - 1)) if hiccup.retry_after is None else hiccup.retry_after
        )
        talk.said(str(hiccup), seconds)
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            talk.check()
            time.sleep(min(left, _POLL))


class Partial:
    """The beginning of a file, and its running checksum."""

    def __init__(self, path: Path, file: RemoteFile, talk: Talk) -> None:
        """Open it, and hash what an earlier run left. Raises: DownloadError, Cancelled."""
        self.path, self.size = path, 0
        self._wanted = file
        self._digest = self._new_digest()
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b", buffering=0)
        try:
            self._read_what_is_there(talk)
        except BaseException:
            self._file.close()
            raise

    def _new_digest(self) -> Any:
        if len(self._wanted.etag) == 64:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self._wanted.size, usedforsecurity=False)  # as git names a file

    def _read_what_is_there(self, talk: Talk) -> None:
        if (there := self.path.stat().st_size) >= _LONG:
            talk.said(f"checking the {size_text(there)} of {self._wanted} that are already downloaded", 0)
        self._file.seek(0)
        while block := self._file.read(_BLOCK):
            talk.check()
            self._digest.update(block)
            self.size += len(block)
        if self.size > self._wanted.size:
            self.empty()

    def append(self, data: bytes) -> None:
        """Write more. Raises: Unusable if that is more than the file has, DownloadError (disk full)."""
        if self.size + len(data) > self._wanted.size:
            raise Unusable(f"{self._wanted} was sent with more than its {self._wanted.size} bytes")
        left = memoryview(data)
        with disk_errors(self.path):
            while left:
                written = self._file.write(left)
                self._digest.update(left[:written])
                self.size += written
                left = left[written:]

    def empty(self) -> None:
        """Drop everything."""
        with disk_errors(self.path):
            self._file.truncate(0)
        self.size, self._digest = 0, self._new_digest()

    @property
    def is_complete(self) -> bool:
        """Whether all bytes are there; right or wrong ones."""
        return self.size == self._wanted.size

    def verify(self) -> None:
        """Raise Unusable unless this is the file that the hub promised, byte for byte."""
        found = self._digest.hexdigest()
        if found != self._wanted.etag:
            raise Unusable(f"{self._wanted} has the checksum {found[:12]}…, not {self._wanted.etag[:12]}…")

    def move(self, blob: Path) -> None:
        """Give the complete file its name in the cache."""
        with disk_errors(blob):
            os.fsync(self._file.fileno())
            self._file.close()
            self.path.replace(blob)

    def __enter__(self) -> Partial:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def fetch(hub: Hub, file: RemoteFile, path: Path, blob: Path, talk: Talk, patience: Patience) -> None:
    """Download what `path` lacks of a file, verify all of it, and name it `blob`.

    What does not fit (a wrong checksum, another size) is dropped and fetched once more; a second time is an error,
    and nothing is left. Everything else leaves the partial file, and the next call continues.
    Raises: DownloadError, ModelNotFoundError, Cancelled.
    """
    with Partial(path, file, talk) as partial:
        for last in (False, True):
            talk.advanced(partial.size)
            try:
                while not partial.is_complete:
                    patience.keep_trying(lambda: _append(hub, file, partial, talk), talk, lambda: partial.size)
                partial.verify()
            except Unusable as error:
                partial.empty()
                if last:
                    path.unlink(missing_ok=True)
                    raise DownloadError(f"{error}; nothing was kept, try again later or another mirror") from None
                talk.said(f"{error}: starting over", 0)
            else:
                partial.move(blob)
                return


def _append(hub: Hub, file: RemoteFile, partial: Partial, talk: Talk) -> None:
    """Append what one request gives. Raises: Hiccup if it ends too soon."""
    end = part_end(file, partial.size)
    with hub.stream(file, partial.size) as chunks:
        for chunk in chunks:
            partial.append(chunk)
            talk.advanced(partial.size)
            talk.check()
    if partial.size < end:
        raise Hiccup(f"the connection ended after {size_text(partial.size)} of {size_text(file.size)}")


class disk_errors:  # noqa: N801 - a context manager, read like a function
    """Turn OSErrors of the file system into DownloadErrors that say what to do."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, OSError):
            return
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DownloadError(
                f"the disk is full at {self._path.parent}; make room, then the same command continues where it stopped"
            ) from error
        raise DownloadError(f"cannot write {self._path}: {error.strerror or error}") from error
