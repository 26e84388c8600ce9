"""What is in the Hugging Face cache, read from its folders: no network, and huggingface_hub only says where it is.

- models--ORG--REPO/refs/main: the commit that "main" was, when it was last looked up
- models--ORG--REPO/snapshots/COMMIT/file.gguf: a link into blobs (a file where links cannot be had)
- models--ORG--REPO/blobs/ETAG: the content; ETAG.KEY.incomplete while it is being downloaded
- .locks/models--ORG--REPO/ETAG.lock: held by whoever downloads it
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from eft_local.errors import ModelNotFoundError
from eft_local.hub import environment
from eft_local.hub.names import HubModel, HubName, models_of

MAIN = "main"
_PREFIX = "models--"


def default_folder() -> Path:
    """Return the cache's folder: HF_HUB_CACHE, or what HF_HOME says, or the platform's. Raises: UsageError."""
    return environment.cache_folder()


def repo_folder(cache: Path, repo: str) -> Path:
    """Return the folder of a repository."""
    return cache / (_PREFIX + repo.replace("/", "--"))


def find(name: HubName, cache: Path | None = None) -> Path | None:
    """Return the file to load for a reference, None if the model is not downloaded (or only in part).

    Without a revision it is main's as of the last pull; failing that, of the newest snapshot that has the model.
    Raises: UsageError if the reference means several of the downloaded models.
    """
    for snapshot in _snapshots(name, cache or default_folder()):
        try:
            return snapshot / name.choose(_models_in(snapshot), "in the cache").first
        except ModelNotFoundError:
            continue
    return None


def _snapshots(name: HubName, cache: Path) -> list[Path]:
    """Return where a reference's files may be, the likeliest first."""
    root = repo_folder(cache, name.repo)
    revision = name.revision or MAIN
    with suppress(OSError, ValueError):  # a commit, or a revision that was never requested
        revision = (root / "refs" / revision).read_text().strip()
    places = [root / "snapshots" / revision]
    if name.revision is None:
        others = (place for place in folders(root / "snapshots") if place not in places)
        places += sorted(others, key=lambda place: place.stat().st_mtime, reverse=True)
    return places


def folders(place: Path) -> list[Path]:
    """Return the folders in a folder that may not exist."""
    try:
        return [entry for entry in place.iterdir() if entry.is_dir()]
    except OSError:
        return []


def _models_in(snapshot: Path) -> list[HubModel]:
    """Return the models of a snapshot. A link whose content is gone is no file."""
    files = (path for path in snapshot.rglob("*.gguf") if path.is_file())
    return models_of({path.relative_to(snapshot).as_posix(): path.stat().st_size for path in files})


@dataclass(frozen=True, slots=True)
class Installed:
    """A model in the cache.

    reference: what names it.  model: its files within the repository.  revisions: the commits whose snapshots hold
    these very files, main's first.  paths: the files in all these snapshots, to load and to delete.
    """

    reference: str
    repo: str
    model: HubModel
    revisions: tuple[str, ...]
    paths: tuple[Path, ...]

    @property
    def path(self) -> Path:
        """The file to load."""
        return self.paths[0]


def installed(cache: Path | None = None) -> list[Installed]:
    """Return every GGUF model in the cache, by name."""
    cache = cache or default_folder()
    found = [model for root in repositories(cache) for model in _installed_in(root)]
    return sorted(found, key=lambda model: model.reference.lower())


def repositories(cache: Path) -> Iterator[Path]:
    """Yield the folder of every model repository."""
    return (folder for folder in folders(cache) if folder.name.startswith(_PREFIX))


def _installed_in(root: Path) -> Iterator[Installed]:
    """Yield a repository's models; the same files under several commits are one model."""
    repo = root.name.removeprefix(_PREFIX).replace("--", "/")
    snapshots = _snapshots(HubName(repo), root.parent)
    same: dict[tuple[str, ...], list[tuple[Path, HubModel]]] = defaultdict(list)
    current: dict[str, str] = {}  # the first file of a model → the reference without a revision that means it
    for snapshot in snapshots:
        models = _models_in(snapshot)
        for reference, model in HubName(repo).references(models).items():
            contents = (str((snapshot / file).resolve()) for file in model.files)
            same[(*model.files, *contents)].append((snapshot, model))
            current.setdefault(model.first, reference)
    taken: set[str] = set()
    for places in same.values():
        snapshot, model = places[0]
        reference = current[model.first]
        if reference in taken:  # an older state of the same file
            reference += f"@{snapshot.name}"
        taken.add(reference)
        yield Installed(
            reference=reference,
            repo=repo,
            model=model,
            revisions=tuple(place.name for place, _ in places),
            paths=tuple(place / file for place, _ in places for file in model.files),
        )


@dataclass(frozen=True, slots=True)
class Unfinished:
    """What a download that was stopped has left."""

    repo: str
    path: Path
    size: int


def unfinished(cache: Path | None = None) -> list[Unfinished]:
    """Return every download in the cache that was begun and not ended, by this or another tool."""
    left = []
    for root in repositories(cache or default_folder()):
        repo = root.name.removeprefix(_PREFIX).replace("--", "/")
        left += [Unfinished(repo, path, path.stat().st_size) for path in sorted(root.glob("blobs/*.incomplete"))]
    return sorted(left, key=lambda each: (each.repo, each.path))
