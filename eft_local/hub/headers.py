"""The headers of models on the hub: enough to plan with, without their weights."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from eft_local import files, locations
from eft_local.errors import DownloadError
from eft_local.hub import environment
from eft_local.hub.names import HubName, models_of
from eft_local.hub.remote import Hub, RemoteFile
from eft_local.hub.transfer import Patience, Talk

_FIRST = 4 << 20  # bytes that are fetched at first; then four times as many, until the header is whole
_MOST = 1 << 28
_PATIENCE = Patience(tries=2)


def header_of(name: HubName, hub: Hub | None = None) -> Path:
    """Return a file as large as the model's that has its header and, in place of the weights, a hole.

    Fetched now unless it is kept; a model in several files has as many headers beside each other.
    Raises: UsageError, ModelNotFoundError, DownloadError.
    """
    if environment.constants().is_offline_mode():
        raise DownloadError("HF_HUB_OFFLINE is set")
    if sys.platform == "win32":
        raise DownloadError("files on this system cannot have holes")
    source, talk = hub or Hub.configured(), Talk()
    repository = _PATIENCE.keep_trying(lambda: source.repository(name.repo, name.revision), talk)
    chosen = name.choose(models_of(repository.sizes))
    files = [
        _PATIENCE.keep_trying(partial(source.file, repository.name, repository.commit, path), talk)
        for path in chosen.files
    ]
    folder = locations.needed(locations.cached("headers", files[0].etag))
    paths = [folder / file.path.rpartition("/")[2] for file in files]
    for file, path in zip(files, paths, strict=True):
        if not path.exists():
            _fetch(source, file, path, talk)
    return paths[0]


def _fetch(hub: Hub, file: RemoteFile, path: Path, talk: Talk) -> None:
    try:
        with files.replacing(path, make_folder=True) as begun:
            count = _FIRST
            while True:
                _PATIENCE.keep_trying(partial(_write, hub, file, begun, count), talk)
                if _is_whole(begun) or count >= min(file.size, _MOST):
                    break
                count *= 4
    except OSError as error:
        raise DownloadError(f"cannot write {path}: {error.strerror}") from error


def _write(hub: Hub, file: RemoteFile, path: Path, count: int) -> None:
    """Write the first `count` bytes of a file, and a hole for the rest."""
    with path.open("wb") as target, hub.stream(file, 0) as pieces:
        for piece in pieces:
            target.write(piece[: count - target.tell()])
            if target.tell() >= count:
                break
        target.truncate(file.size)


def _is_whole(path: Path) -> bool:
    """Whether the header ends before the hole: zeros in it are no names, types or offsets."""
    from eft_local.gguf.reader import BrokenGgufError, read_gguf

    try:
        read_gguf(path)
    except BrokenGgufError:
        return False
    return True
