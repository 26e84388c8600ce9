"""Pulling models: all that a set of references needs, in one go, into the Hugging Face cache."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path
from typing import Literal, TypeVar

from eft_local import files
from eft_local.errors import DownloadError
from eft_local.hub import cache, environment
from eft_local.hub.names import HubModel, HubName, models_of, size_text
from eft_local.hub.remote import Hub, RemoteFile, Repository
from eft_local.hub.transfer import Patience, Talk, disk_errors, fetch


@dataclass(frozen=True, slots=True)
class Event:
    """What happens during a pull.

    kind: "plan" once, when all is known; "progress" of a file; "said", a line of talk; "done" with a file.
    file: what it is about, "" for all.  done, size: its bytes that are downloaded, and in all.
    all_done, all_size: the same of all files.  text: what is said.  seconds: to wait before the next try.
    """

    kind: Literal["plan", "progress", "said", "done"]
    file: str
    done: int
    size: int
    all_done: int
    all_size: int
    text: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Pulled:
    """A model that is downloaded now. path: the file to load."""

    name: HubName
    path: Path
    size: int


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A model and where its files lie on the hub."""

    name: HubName
    repository: Repository
    files: tuple[RemoteFile, ...]


Report = Callable[[Event], None]
Result = TypeVar("Result")


def pull(
    names: Sequence[HubName],
    hub: Hub | None = None,
    report: Report = lambda event: None,
    stopped: Callable[[], bool] = lambda: False,
    patience: Patience | None = None,
) -> list[Pulled]:
    """Download what the cache lacks of these models, and return where they are.

    A download that was cut off, in this run or an earlier one, continues where it stopped. All that can be refused (a
    wrong name, a gated repository, too little room on the disk) is refused before anything is downloaded. Offline
    (HF_HUB_OFFLINE), downloaded models are enough.
    report: called often, in this thread.  stopped: called often; True ends with Cancelled and keeps what is there.
    Raises: UsageError, ModelNotFoundError, DownloadError, Cancelled.
    """
    if environment.constants().is_offline_mode():
        return [_here(name) for name in names]
    return _Pull(hub or Hub.configured(), report, stopped, patience or Patience()).run(names)


def models_on_hub(
    name: HubName, hub: Hub | None = None, stopped: Callable[[], bool] = lambda: False
) -> tuple[Repository, list[HubModel]]:
    """Return what a repository on the hub is and the models in it, the smallest first.

    Raises: ModelNotFoundError, DownloadError, Cancelled.
    """
    source = hub or Hub.configured()
    talk = Talk(stopped=stopped)
    repository = Patience().keep_trying(lambda: source.repository(name.repo, name.revision), talk)
    return repository, models_of(repository.sizes)


def _here(name: HubName) -> Pulled:
    path = cache.find(name)
    if path is None:
        raise DownloadError(f"{name} is not in the cache, and HF_HUB_OFFLINE is set; unset it to download")
    sizes = (model.model.size for model in cache.installed() if path in model.paths)
    return Pulled(name, path, next(sizes))


class _Pull:
    def __init__(self, hub: Hub, report: Report, stopped: Callable[[], bool], patience: Patience) -> None:
        self._hub, self._report, self._patience = hub, report, patience
        self._sizes: dict[RemoteFile, int] = {}
        self._done: dict[RemoteFile, int] = {}
        self._talk = Talk(said=self._say, stopped=stopped)

    def run(self, names: Sequence[HubName]) -> list[Pulled]:
        models = self._plan(list(dict.fromkeys(names)))
        for model in models:
            for file in model.files:
                self._sizes[file] = file.size
                self._done[file] = self._bytes_here(file, model.name)
        self._check_room()
        self._announce("plan")
        return [self._pull(model) for model in models]

    # What is wanted

    def _plan(self, names: list[HubName]) -> list[_Wanted]:
        repositories: dict[tuple[str, str | None], Repository] = {}
        models = []
        for name in names:
            key = name.repo, name.revision
            if key not in repositories:
                repositories[key] = self._repository(name)
            repository = repositories[key]
            chosen = name.choose(models_of(repository.sizes))
            files = [self._file(repository, path) for path in chosen.files]
            models.append(_Wanted(name, repository, tuple(files)))
        return models

    def _repository(self, name: HubName) -> Repository:
        return self._patiently(lambda: self._hub.repository(name.repo, name.revision))

    def _file(self, repository: Repository, path: str) -> RemoteFile:
        return self._patiently(lambda: self._hub.file(repository.name, repository.commit, path))

    def _patiently(self, ask: Callable[[], Result]) -> Result:
        return self._patience.keep_trying(ask, self._talk)

    # What is downloaded

    def _blob(self, file: RemoteFile) -> Path:
        return cache.repo_folder(self._hub.folder, file.repo) / "blobs" / file.etag

    def _is_here(self, file: RemoteFile) -> bool:
        """Whether the content is in the cache; where links cannot be had, in the snapshot itself."""
        snapshot = cache.repo_folder(self._hub.folder, file.repo) / "snapshots" / file.commit
        return file.size in (_size(self._blob(file)), _size(snapshot / file.path))

    def _partial(self, file: RemoteFile, name: HubName) -> Path:
        """Return the partial file: ETAG.8HEX.incomplete as huggingface_hub has it, but one that the next run finds."""
        return self._blob(file).with_name(f"{file.etag}.{_key(file, name)}.incomplete")

    def _bytes_here(self, file: RemoteFile, name: HubName) -> int:
        if self._is_here(file):
            return file.size
        blob = self._blob(file)
        for stale in blob.parent.glob(f"*.{_key(file, name)}.incomplete"):
            if not stale.name.startswith(file.etag):
                self._say(f"{file} changed on the hub since the last try: starting over", 0)
                stale.unlink(missing_ok=True)
        return max(0, min(_size(self._partial(file, name)), file.size))

    def _check_room(self) -> None:
        """Raise DownloadError if the disk has no room for what is still to come."""
        needed = sum(self._sizes.values()) - sum(self._done.values())
        folder = self._hub.folder
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise DownloadError(
                f"{size_text(needed)} are to be downloaded to {self._hub.folder}, and {size_text(free)} are free; "
                f"make room for {size_text(needed - free)}, or set HF_HOME to a folder on another disk"
            )

    # Getting it

    def _pull(self, model: _Wanted) -> Pulled:
        paths = [self._get(file, model.name) for file in model.files]
        self._remember(model)
        return Pulled(model.name, paths[0], sum(file.size for file in model.files))

    def _get(self, file: RemoteFile, name: HubName) -> Path:
        blob, partial = self._blob(file), self._partial(file, name)

        def advanced(done: int) -> None:
            self._done[file] = done
            self._announce("progress", file)

        with self._locked(file):
            if not self._is_here(file):
                talk = Talk(advanced, self._say, self._talk.stopped)
                fetch(self._hub, file, partial, blob, talk, self._patience)
            else:
                partial.unlink(missing_ok=True)
        path = self._patiently(lambda: self._hub.link(file))
        if not path.is_symlink() and path != blob:
            blob.unlink(missing_ok=True)  # where links cannot be had it is a copy: one is enough
        self._done[file] = file.size
        self._announce("done", file)
        return path

    @contextmanager
    def _locked(self, file: RemoteFile) -> Iterator[None]:
        """Hold huggingface_hub's own lock of this file, so that no two download it at once."""
        from filelock import Timeout
        from huggingface_hub.utils import WeakFileLock

        folder = cache.repo_folder(self._hub.folder / ".locks", file.repo)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        waiting = False
        while True:
            self._talk.check()
            lock = WeakFileLock(folder / f"{file.etag}.lock", timeout=0.2)
            try:
                lock.__enter__()
                break
            except Timeout:
                if not waiting:
                    self._say(f"{file} is being downloaded by another process: waiting for it", 0)
                waiting = True
        try:
            yield
        finally:
            lock.__exit__(None, None, None)

    def _remember(self, model: _Wanted) -> None:
        """Write down which commit the revision is, as huggingface_hub does: what was requested is found offline."""
        revision = model.name.revision or cache.MAIN
        if revision == model.repository.commit:
            return
        ref = cache.repo_folder(self._hub.folder, model.repository.name) / "refs" / revision
        with disk_errors(ref):
            files.write(ref, model.repository.commit.encode(), make_folder=True)

    # Telling

    def _announce(self, kind: Literal["plan", "progress", "done"], file: RemoteFile | None = None) -> None:
        done, size = (self._done[file], self._sizes[file]) if file else (0, 0)
        self._report(Event(kind, str(file or ""), done, size, sum(self._done.values()), sum(self._sizes.values())))

    def _say(self, line: str, seconds: float) -> None:
        done, size = sum(self._done.values()), sum(self._sizes.values())
        self._report(Event("said", "", 0, 0, done, size, line, seconds))


def _key(file: RemoteFile, name: HubName) -> str:
    """Return eight digits that stay the same for a file of a revision, whatever its content becomes."""
    return sha1(f"{file.path}@{name.revision or cache.MAIN}".encode(), usedforsecurity=False).hexdigest()[:8]


def _size(path: Path) -> int:
    """Return a file's bytes, -1 if there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return -1
