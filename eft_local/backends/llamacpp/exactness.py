"""Whether a model's logits depend on what is evaluated together, and what that costs: tried once, then kept.

`exactness_probe` tests it. Where every row has the same bits each time, an answer is the same alone and in company,
with drafts and without, and after a prompt that came in one call or in several.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import llama_cpp

from eft_local.backends.llamacpp import kernels
from eft_local.backends.llamacpp.file_probe import identity
from eft_local.machine import measured

Attention = bool | Literal["auto"]
"""Whether with flash attention; "auto" where llama.cpp decides."""

DEEP = 1536
"""Tokens after which ways are timed, at most."""

_VERSION = 2  # of what `exactness_probe` tests: what was found by another is found anew
_REPORTED = 0.005  # a price that is reported
_WORTH = 1.05
"""How many times as long an answer may take to be exact, where a recipe says "auto"."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a model's logits have the same bits however rows are evaluated together.

    reason: what was otherwise when they did not; empty if they did.
    """

    exact: bool
    reason: str = ""

    def __str__(self) -> str:
        return "yes" if self.exact else f"no, because {self.reason}"


@dataclass(frozen=True, slots=True)
class Way:
    """One way of evaluating a model.

    flash: with flash attention; "auto" where llama.cpp decides.  exactly: with kernels that give each row the bits that
    it gets alone.  seconds: of an answer of some length, without drafts; None where there was nothing to compare with.
    """

    flash: Attention
    exactly: bool
    verdict: Verdict
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """The way that a role is evaluated.  price: what exactness costs, 0.1 for a tenth more time; 0 where it is had
    for nothing, or not to be had.
    """

    way: Way
    price: float = 0.0

    @property
    def verdict(self) -> Verdict:
        return self.way.verdict

    def __str__(self) -> str:
        cost = f", at {self.price:.0%} more time" if self.verdict.exact and self.price >= _REPORTED else ""
        return f"{self.verdict}{cost}"


def choose(ways: Sequence[Way], wish: str) -> Choice:
    """Return the way that suits a recipe's `exact`.

    wish: "always", the fastest exact one; "never", the fastest; "auto", the exact one if it costs 5 % at most. Where
    none is exact it is the fastest.
    """

    def seconds(way: Way) -> float:
        return way.seconds or 1.0

    fastest = min(ways, key=seconds)
    exact = min((way for way in ways if way.verdict.exact), key=seconds, default=None)
    if exact is None:
        return Choice(fastest)
    times = max(1.0, seconds(exact) / seconds(fastest))
    if wish == "never" or (wish == "auto" and times > _WORTH):
        why = 'exact = "never"' if wish == "never" else f"it would take {times - 1:.0%} more time"
        return Choice(replace(fastest, verdict=Verdict(False, why)), times - 1)
    return Choice(exact, times - 1)


@dataclass(frozen=True, slots=True)
class Question:
    """What is tested: a model with its adapter, and how it is placed and evaluated.

    files: the model's, and the adapter's if there is one.  flash: the kinds of attention that are possible.
    context: tokens that its sequences hold.  kv_type: of the cache.  scale: of the adapter.
    offload: layers on GPUs; split: how many on each.
    """

    files: tuple[Path, ...]
    flash: tuple[Attention, ...]
    context: int
    kv_type: str
    offload: int = 0
    split: tuple[int, ...] = ()
    mmap: bool = True
    batch: int = 2048
    ubatch: int = 128
    scale: float = 1.0

    @property
    def kept(self) -> Path | None:
        """Where the answer is kept, if anywhere: for these files, this llama.cpp, these kernels, and this processor."""
        ours = find_spec("eft_local.backends.llamacpp.kernels._kernels")
        compiled = Path(ours.origin).stat() if ours and ours.origin else None
        return measured.place(
            "exactness",
            identity(self.files), self.flash, min(self.context, DEEP), self.kv_type,
            (self.offload, self.batch, self.ubatch, self.scale),
            kernels.installed(), compiled and (compiled.st_size, compiled.st_mtime_ns),
            llama_cpp.llama_print_system_info(), _VERSION,
        )  # fmt: skip

    def recorded(self) -> tuple[Way, ...] | None:
        """Return the ways that were found before."""
        ways = measured.read(self.kept)
        with suppress(TypeError, KeyError):
            return _ways(ways) if ways else None
        return None

    def keep(self, ways: Sequence[Way]) -> None:
        measured.write(self.kept, [asdict(way) for way in ways])

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"files": [os.fspath(path) for path in self.files]})

    @classmethod
    def from_json(cls, text: str) -> Question:
        """Return what `to_json` wrote."""
        read: dict[str, Any] = json.loads(text)
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in read.items()
        }
        fields["files"] = tuple(map(Path, read["files"]))
        return cls(**fields)


def ways_to(ways: Sequence[Way]) -> str:
    """Return JSON."""
    return json.dumps([asdict(way) for way in ways])


def ways_from(text: str) -> tuple[Way, ...]:
    """Return what `ways_to` wrote. Raises: ValueError, TypeError, KeyError."""
    return _ways(json.loads(text))


def _ways(ways: Sequence[Mapping[str, Any]]) -> tuple[Way, ...]:
    return tuple(Way(**{**way, "verdict": Verdict(**way["verdict"])}) for way in ways)
