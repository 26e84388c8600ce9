"""A long day with the app: thousands of turns, and what they do to its memory and its speed.

    python -m eft_local.bench.studies.soak [--fake 2000] [--demo 200]

Turns with a fake engine go through the whole app (headless, 120×40): typed, sent, streamed, saved, shown; a new chat
every 50. Turns on the demo models come after. Memory and the time of a turn are compared between the first and the last
fifth, after the first 5 % (which fill caches) are left out.

The time of a turn is reported as a whole and in two parts: `engine_ms` passes while the engine writes, `ui_ms` is what
the app's own thread computes, drawing and saving, while it writes and after. A turn costs what its question and its
place in a chat cost, so a fifth holds whole rounds: each question, and each place, as often as the other fifth. The
seed is fixed, so that rounds have the same answers. Some chats are there at the start, one more than the list's first
piece: while an empty list fills the screen, there is more to draw with every chat, until it is full.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from textual.pilot import Pilot

from eft_local.chats import History
from eft_local.chats.session import Session
from eft_local.chats.typed import Typed
from eft_local.hub.references import find_recipe
from eft_local.tui.actions.handlers import HANDLERS
from eft_local.tui.app import ChatApp
from eft_local.tui.config import Config
from eft_local.tui.engine import Engine, load
from eft_local.tui.widgets.sidebar import PIECE

CHAT_LENGTH = 50
"""Turns after which a new chat begins."""

QUESTIONS = [
    question
    for country in ("Peru", "Japan", "Kenya", "France", "Chile", "Norway")
    for question in (f"What is the capital of {country}?", f"Tell me about {country}.")
]
"""What the demo models are asked in turn: three chats of four turns."""


def main() -> None:
    """Run both and print what changed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fake", type=int, default=2000, help="turns with the fake engine")
    parser.add_argument("--demo", type=int, default=200, help="turns on the demo models")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="eft-soak-") as home:
        os.environ["EFT_HOME"] = home
        found = {}
        if options.fake:
            found["fake"] = asyncio.run(_soak(Path(home), options.fake, fake=True))
        if options.demo:
            found["demo"] = asyncio.run(_soak(Path(home), options.demo, fake=False))
    print(json.dumps(found, indent=2))


@dataclass
class _FakeEmulator:
    """As much of an Emulator as the engine calls."""

    recipe: Any
    targets: tuple[str, ...] = ("eft", "base")

    def follow(self, messages: Any, on_step: Any, **_: object) -> _FakeStream:
        return _FakeStream(messages, on_step)

    def prepare(self, *targets: str, progress: Any) -> None:
        """Nothing is to be loaded."""

    def cancel(self) -> None:
        """Nothing runs for long."""

    def close(self) -> None:
        """Nothing is open."""


@dataclass
class _FakeStream:
    """An answer that is made while it is waited for."""

    messages: Any
    on_step: Any

    @property
    def answer(self) -> Any:
        return _answer([])

    def wait(self) -> Any:
        from eft_local.engine.step import Candidate, RoleStatistics, Step

        text = f" Turn {len(self.messages)}: a **word** for each of many, with `code`, and a list:\n\n- one\n- two\n"
        words = text.split(" ")
        roles: Mapping[str, RoleStatistics] = {
            name: RoleStatistics(0, -0.1) for name in ("base", "antiexpert", "assistant", "eft")
        }
        for number, word in enumerate(words[1:]):
            candidates = tuple(Candidate(each, b" word", False, roles, 1.0, 0.5) for each in range(10))
            self.on_step(Step(number, f" {word}", -0.1, False, roles, candidates, 0.3, number == 0))
        self.on_step(Step(9000, "", finish_reason="stop"))
        return _answer(words)


def _answer(words: list[str]) -> Any:
    from eft_local.engine.step import Answer, RoleTiming

    return Answer(
        text=" ".join(words),
        tokens=tuple(range(max(0, len(words) - 1))),
        finish_reason="stop",
        prompt_tokens={"base": 20},
        evaluated_tokens={"base": 20},
        timings={"base": RoleTiming(1.0, 2.0)},
        overhead_ms=0.1,
        tokens_per_second=1000.0,
        seed=1,
    )


@dataclass
class _Turns:
    """What was measured of each turn: megabytes after it; seconds of all, of the engine, of the app's own thread."""

    memory: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    engine: list[float] = field(default_factory=list)
    ui: list[float] = field(default_factory=list)


class _TimedEngine(Engine):
    """Notes for how long it writes."""

    seconds = 0.0

    def _write(self, job: Any, request: Any) -> None:
        began = time.perf_counter()
        super()._write(job, request)
        self.seconds = time.perf_counter() - began


async def _soak(home: Path, turns: int, *, fake: bool) -> dict[str, float]:
    engine = _TimedEngine((lambda recipe, only, progress: _FakeEmulator(recipe)) if fake else load)  # type: ignore[arg-type,return-value]
    chat_length = CHAT_LENGTH if fake else 4  # the demo's contexts hold some four short turns
    measured = _Turns()
    with History(home / f"soak-{fake}.db") as history:
        session = Session(history, find_recipe("demo").replace(seed=1))
        for number in range(PIECE + 1):
            history.ask(history.create(session.recipe).id, f"An earlier question ({number})")
        app = ChatApp(session, engine, HANDLERS, Config(), Typed(home / "typed.json"))
        async with app.run_test(size=(120, 40)) as pilot:
            for turn in range(turns):
                if turn % chat_length == 0:
                    app.chat.composer.write("/new")
                    await pilot.press("enter")
                question = f"What is the capital of Peru? ({turn})" if fake else QUESTIONS[turn % len(QUESTIONS)]
                await _measure(app, pilot, question, measured)
                if turn % 10 == 0:
                    gc.collect()
                measured.memory.append(psutil.Process().memory_info().rss / 1e6)
    engine.close()
    return _changes(measured, CHAT_LENGTH if fake else len(QUESTIONS))


async def _measure(app: ChatApp, pilot: Pilot[Any], question: str, measured: _Turns) -> None:
    """Ask, and wait for the answer."""
    began, ui = time.perf_counter(), time.thread_time()
    app.chat.composer.write(question)
    await pilot.press("enter")
    while app.engine.busy or app.session.writing or not app.quiet:
        await asyncio.sleep(0.002)
    measured.seconds.append(time.perf_counter() - began)
    measured.ui.append(time.thread_time() - ui)
    assert isinstance(app.engine, _TimedEngine)
    measured.engine.append(app.engine.seconds)


def _changes(measured: _Turns, whole: int) -> dict[str, float]:
    """Compare the first fifth and the last, each of whole rounds of so many turns where there are as many."""
    turns = len(measured.memory)
    start, fifth = turns // 20, max(1, turns // 5)
    fifth -= fifth % whole if fifth >= whole else 0
    first, last = slice(start, start + fifth), slice(-fifth, None)
    changes: dict[str, float] = {"turns": turns, "compared": fifth}
    for name, values, factor in (
        ("megabytes", measured.memory, 1),
        ("turn_ms", measured.seconds, 1000),
        ("engine_ms", measured.engine, 1000),
        ("ui_ms", measured.ui, 1000),
    ):
        before, after = statistics.median(values[first]), statistics.median(values[last])
        changes |= {
            f"{name}_first_fifth": round(factor * before, 1),
            f"{name}_last_fifth": round(factor * after, 1),
            f"{name}_ratio": round(after / before, 4),
        }
    return changes


if __name__ == "__main__":
    main()
