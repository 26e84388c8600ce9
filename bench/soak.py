"""A long day with the app: thousands of turns, and what they do to its memory and its speed.

    python -m eft_local.bench.soak [--fake 2000] [--demo 200]

Turns with a fake engine go through the whole app (headless, 120×40): typed, sent, streamed, saved, shown; a new chat
every 50. Turns on the demo models come after. Memory and the time of a turn are compared between the first and the last
fifth, after the first 5 % (which fill caches) are left out.
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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

CHAT_LENGTH = 50
"""Turns after which a new chat begins."""


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
    systems: tuple[str, ...] = ("eft", "base")
    written: Any = None

    def chat(self, messages: Any, *, on_step: Any, **_: object) -> Any:
        from eft_local.emulator import Answer, Candidate, RoleTiming, RoleView, Step

        words = f" Turn {len(messages)}: a **word** for each of many, with `code`, and a list:\n\n- one\n- two\n".split(
            " "
        )
        views: Mapping[str, RoleView] = {name: RoleView(0, -0.1) for name in ("base", "antiexpert", "assistant", "eft")}
        for number, word in enumerate(words[1:]):
            candidates = tuple(Candidate(each, b" word", False, views, 1.0, 0.5) for each in range(10))
            on_step(Step(number, f" {word}", -0.1, False, views, candidates, 0.3, number == 0))
        on_step(Step(9000, "", finish_reason="stop"))
        return Answer(
            text=" ".join(words),
            tokens=tuple(range(len(words) - 1)),
            finish_reason="stop",
            prompt_tokens={"base": 20},
            evaluated_tokens={"base": 20},
            timings={"base": RoleTiming(1.0, 2.0)},
            overhead_ms=0.1,
            tokens_per_second=1000.0,
            seed=1,
        )

    def cancel(self) -> None:
        """Nothing runs for long."""

    def close(self) -> None:
        """Nothing is open."""


async def _soak(home: Path, turns: int, *, fake: bool) -> dict[str, float]:
    from eft_local.history import History
    from eft_local.references import find_recipe
    from eft_local.tui.app import ChatApp
    from eft_local.tui.composer import Typed
    from eft_local.tui.config import Config
    from eft_local.tui.engine import Engine, load
    from eft_local.tui.session import Session

    engine = Engine((lambda recipe, progress: _FakeEmulator(recipe)) if fake else load)  # type: ignore[arg-type,return-value]
    memory, seconds = [], []
    chat_length = CHAT_LENGTH if fake else 4  # the demo's contexts hold some four short turns
    with History(home / f"soak-{fake}.db") as history:
        session = Session(history, engine, find_recipe("demo"))
        app = ChatApp(session, Config(), Typed(home / "typed.json"))
        async with app.run_test(size=(120, 40)) as pilot:
            for turn in range(turns):
                if turn % chat_length == 0:
                    app.chat.composer.write("/new")
                    await pilot.press("enter")
                began = time.perf_counter()
                app.chat.composer.write(f"What is the capital of Peru? ({turn})" if fake else next(_QUESTIONS))
                await pilot.press("enter")
                while engine.busy or session.writing or not app.quiet:
                    await asyncio.sleep(0.002)
                seconds.append(time.perf_counter() - began)
                if turn % 10 == 0:
                    gc.collect()
                memory.append(psutil.Process().memory_info().rss / 1e6)
    engine.close()
    return _changes(memory, seconds)


def _questions() -> Iterator[str]:
    while True:
        for country in ("Peru", "Japan", "Kenya", "France", "Chile", "Norway"):
            yield f"What is the capital of {country}?"
            yield f"Tell me about {country}."


_QUESTIONS = _questions()


def _changes(memory: list[float], seconds: list[float]) -> dict[str, float]:
    start = len(memory) // 20
    fifth = max(1, len(memory) // 5)
    first, last = slice(start, start + fifth), slice(-fifth, None)
    return {
        "turns": len(memory),
        "megabytes_first_fifth": round(statistics.median(memory[first]), 1),
        "megabytes_last_fifth": round(statistics.median(memory[last]), 1),
        "memory_ratio": round(statistics.median(memory[last]) / statistics.median(memory[first]), 4),
        "turn_ms_first_fifth": round(1000 * statistics.median(seconds[first]), 1),
        "turn_ms_last_fifth": round(1000 * statistics.median(seconds[last]), 1),
        "time_ratio": round(statistics.median(seconds[last]) / statistics.median(seconds[first]), 4),
    }


if __name__ == "__main__":
    main()
