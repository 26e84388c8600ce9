"""Memory that this process may still take: of the machine, of its container, of its own limits."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

_CGROUPS = Path("/sys/fs/cgroup")
RAM, CGROUP, ADDRESS_SPACE = "RAM", "cgroup", "address space"
"""What bounds the memory that a process can have."""
_UNLIMITED = 1 << 60  # bytes; cgroup v1 writes a number as large where there is no limit


@dataclass(frozen=True, slots=True)
class Device:
    """What can hold weights and compute. Memory in bytes; 0 where the backend does not say.

    kind: "cpu", "gpu", "integrated gpu", "accelerator", …
    limit: what bounds `free`, for people.
    """

    name: str
    description: str
    kind: str
    free: int
    total: int
    limit: str = ""

    @property
    def shares_ram(self) -> bool:
        """Whether what is put on this device is taken from the machine's RAM: integrated GPUs, and Apple's."""
        return self.kind == "integrated gpu" or self.name.startswith(("MTL", "Metal"))


@dataclass(frozen=True, slots=True)
class Available:
    """Bytes that can be had, and what bounds them: RAM, CGROUP or ADDRESS_SPACE."""

    free: int
    limit: str


def available() -> Available:
    """Return what this process can still take without being refused, killed or made to swap."""
    bounds = [Available(int(psutil.virtual_memory().available), RAM), *_cgroup_bounds(), *_address_space()]
    return min(bounds, key=lambda bound: bound.free)


def _address_space() -> Iterator[Available]:
    """`ulimit -v`: bounds what is mapped, used or not."""
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        yield Available(max(0, soft - int(psutil.Process().memory_info().vms)), ADDRESS_SPACE)


def _cgroup_bounds() -> Iterator[Available]:
    """The limits of this process's control groups and of those around them, in either version of the interface."""
    for version, folder in _cgroup_folders(Path("/proc/self/cgroup"), _CGROUPS):
        bound = _bound_v2(folder) if version == 2 else _bound_v1(folder)
        if bound is not None:
            yield Available(max(0, bound), CGROUP)


def _cgroup_folders(table: Path, root: Path) -> Iterator[tuple[int, Path]]:
    """Yield (version, folder) of each group that this process is in, the innermost first.

    In a container the table names groups that cannot be seen from inside; then its root stands for them.
    """
    lines = ""
    with contextlib.suppress(OSError):
        lines = table.read_text()
    for line in lines.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            version, top = 2, root
        elif "memory" in controllers.split(","):
            version, top = 1, root / "memory"
        else:
            continue
        folder = top / path.lstrip("/")
        while True:
            yield version, folder
            if folder == top or not folder.is_relative_to(top):
                break
            folder = folder.parent


def _bound_v2(folder: Path) -> int | None:
    return _bound(folder, "memory.max", "memory.current", "inactive_file")


def _bound_v1(folder: Path) -> int | None:
    return _bound(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _bound(folder: Path, limit: str, usage: str, cached: str) -> int | None:
    """Return the bytes that a group may still take; files in its cache give way, so they count as free."""
    try:
        most = int((folder / limit).read_text())  # "max" is no number
        used = int((folder / usage).read_text())
        if most >= _UNLIMITED:
            return None
        words = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        given_back = next((int(value) for key, value in words if key == cached), 0)
    except (OSError, ValueError):
        return None
    return most - used + given_back


def trim() -> None:
    """Give memory that was freed back to the system: glibc would keep the megabytes that loading took for a while."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # other C libraries have no such function
            ctypes.CDLL(None).malloc_trim(0)
