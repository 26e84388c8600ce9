"""Deleting models from the Hugging Face cache: just what was shown, and content only if nothing else uses it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eft_local.errors import OutputError
from eft_local.hub.cache import Installed, Unfinished, default_folder, folders

if TYPE_CHECKING:
    from huggingface_hub.utils import DeleteCacheStrategy


@dataclass(frozen=True, slots=True)
class Removal:
    """What is about to be deleted.

    files: the models' files in all snapshots.  parts: what unfinished downloads have left.
    freed: bytes; content that other files share stays and is not counted.
    """

    files: tuple[Path, ...]
    parts: tuple[Path, ...]
    freed: int
    cache: Path

    def execute(self) -> None:
        """Delete it, and the folders that it leaves empty. Raises: OutputError."""
        try:
            for part in self.parts:
                part.unlink(missing_ok=True)
            _strategy(self.cache, self.files).execute()
            for root in {self.cache / path.relative_to(self.cache).parts[0] for path in (*self.files, *self.parts)}:
                _tidy(root)
        except OSError as error:
            raise OutputError(f"cannot delete {error.filename or self.cache}: {error.strerror or error}") from error


def removal(models: Iterable[Installed], parts: Iterable[Unfinished] = (), cache: Path | None = None) -> Removal:
    """Return what deleting these models and unfinished downloads would do; `execute` does it.

    Raises: OutputError if the cache is damaged where they are.
    """
    cache = cache or default_folder()
    leftovers = list(parts)
    files = tuple(path for model in models for path in model.paths)
    freed = _strategy(cache, files).expected_freed_size + sum(part.size for part in leftovers)
    return Removal(files, tuple(part.path for part in leftovers), freed, cache)


def _strategy(cache: Path, files: Iterable[Path]) -> DeleteCacheStrategy:
    """Return huggingface_hub's plan to delete files of snapshots, with the content that nothing else uses."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.utils import DeleteCacheStrategy

    info = scan_cache_dir(cache)
    everything = [file for repo in info.repos for revision in repo.revisions for file in revision.files]
    wanted = {Path(path.parent.resolve(), path.name) for path in files}
    chosen = [file for file in everything if file.file_path in wanted]
    if lost := wanted - {file.file_path for file in chosen}:
        damage = "; ".join(str(warning) for warning in info.warnings) or "it changed meanwhile"
        raise OutputError(f"cannot delete {min(lost)}: the cache is damaged there ({damage}); delete it by hand")
    if hasattr(info, "delete_files"):
        strategy: DeleteCacheStrategy = info.delete_files(*chosen)
        return strategy
    kept = {file.blob_path for file in everything if file not in chosen}
    blobs = {file.blob_path: file.size_on_disk for file in chosen if file.blob_path not in kept}
    return DeleteCacheStrategy(  # huggingface_hub 1.x knows only whole revisions
        expected_freed_size=sum(blobs.values()),
        blobs=frozenset(blobs),
        refs=frozenset(),
        repos=frozenset(),
        snapshots=frozenset(file.file_path for file in chosen),
    )


def _tidy(root: Path) -> None:
    """Delete folders that are empty now, references to snapshots that are gone, and a repository without content."""
    for kind in ("snapshots", "blobs"):
        for folder in sorted((path for path in root.glob(f"{kind}/**/") if path != root / kind), reverse=True):
            if not any(folder.iterdir()):
                folder.rmdir()
    snapshots = {folder.name for folder in folders(root / "snapshots")}
    for ref in [path for path in root.glob("refs/**/*") if path.is_file()]:
        if ref.read_text().strip() not in snapshots:
            ref.unlink()
    if not snapshots and not any(root.glob("blobs/*")):
        shutil.rmtree(root)
