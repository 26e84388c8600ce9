"""Pulling models inside the app: one download at a time, in a thread that calls nothing of the app."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from eft_local.errors import DownloadError, EftError, UsageError
from eft_local.hub.pace import Pace, progress

if TYPE_CHECKING:
    from eft_local.hub import HubName
    from eft_local.hub.pull import Event


class Puller:
    """Downloads what is requested; `state` says on one line how it stands."""

    def __init__(self) -> None:
        self.title = ""
        self.state = ""
        self.share: float | None = None  # of the bytes, that is downloaded
        self.error: EftError | None = None  # that ended the last one
        self.ended = 0  # downloads that came to an end, one way or another
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self._pace = Pace()

    @property
    def busy(self) -> bool:
        """Whether something is being downloaded."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, title: str, names: Sequence[HubName]) -> None:
        """Begin to pull models. Raises: UsageError if others are being pulled."""
        if self.busy:
            raise UsageError(f"{self.title} is being pulled; wait for it, or stop it")
        self.title, self.state, self.share, self.error = title, "asking the hub", None, None
        self._stopped.clear()
        self._pace = Pace()
        self._thread = threading.Thread(target=self._run, args=(tuple(names),), name="puller", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop; what has come stays, and the next pull continues from there."""
        self._stopped.set()

    def close(self, patience: float = 5.0) -> None:
        """Stop and wait for the thread so many seconds."""
        self.stop()
        if self._thread is not None:
            self._thread.join(patience)

    def _run(self, names: Sequence[HubName]) -> None:
        from eft_local.hub.pull import pull

        try:
            pull(names, report=self._hear, stopped=self._stopped.is_set)
        except (EftError, OSError) as error:
            self.error = error if isinstance(error, EftError) else DownloadError(f"the cache cannot be used: {error}")
            self.state = str(self.error)
        else:
            self.share, self.state = 1.0, "complete and verified"
        finally:
            self.ended += 1

    def _hear(self, event: Event) -> None:
        if event.kind == "said":
            self.state = event.text + (f"; trying again in {event.seconds:.0f} s" if event.seconds >= 0.5 else "")
            return
        self._pace.add(event.all_done)
        self.share = event.all_done / event.all_size if event.all_size else None
        self.state = progress(event, self._pace)
