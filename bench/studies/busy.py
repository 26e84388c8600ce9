"""A busy machine: what is left of the speed beside programs that use all cores, and beside two other eft processes.

    python -m eft_local.bench.studies.busy [--recipe demo | --model FILE.gguf | --shape 7b] [--seconds S] [--rounds N]
        [--before] [--json]

Each process has a recipe's models loaded and writes the same greedy answer again and again. A round measures, one after
the other: one process on the idle machine; one beside a loop per core that does nothing; three at once. Ratios are
taken within a round. On the idle machine turns are taken with a process that evaluates as llama.cpp does by itself: a
thread per core, and OpenMP's long waits. --before measures that one in all three situations.
--model: one file as base and, prompted, as expert.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from eft_local.bench.studies.samples import spread
from eft_local.machine.cores import CoreMeter, Reading, read

if TYPE_CHECKING:
    from eft_local.emulator import Emulator
    from eft_local.recipe import Recipe

QUESTION = "Tell me about Peru."
TOKENS = 120
PEERS = 2


def main() -> None:
    """Measure and print; with a recipe's file after --serve, be one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--recipe", default="demo")
    what.add_argument("--model", type=Path)
    what.add_argument("--shape", help="the demo's models scaled to this shape")
    parser.add_argument("--seconds", type=float, default=2.0, help="that each situation lasts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        _serve(options.serve, old=options.before)
        return
    recipe = _recipe(options)
    found = {"recipe": recipe.name, **measure(recipe.to_toml(), options.seconds, options.rounds, old=options.before)}
    print(json.dumps(found, indent=2) if options.json else _text(found))


def _recipe(options: argparse.Namespace) -> Recipe:
    from eft_local.bench.shapes import scaled_recipe
    from eft_local.hub.references import find_recipe
    from eft_local.recipe import Recipe

    if options.model:
        path = json.dumps(str(options.model.resolve()))
        recipe = Recipe.from_text(
            f'name = "{options.model.stem}"\ncontext = 512\n[base]\nmodel = {path}\nprompt = "plain"\n'
            '[antiexpert]\nmodel = "@base"\nprompt = "plain"\n'
            '[experts.asked]\nmodel = "@base"\nprompt = "few-shot"\n'
            'examples = [["Where is Oslo?", "Oslo is the capital of Norway."]]\n'
        )
    elif options.shape:
        recipe = scaled_recipe(find_recipe("demo"), options.shape)
    else:
        recipe = find_recipe(options.recipe)
    return recipe.replace(temperature=0.0, max_tokens=TOKENS)


class Writer:
    """A process that has the models loaded and writes on command. Close it, or use it in a `with`."""

    def __init__(self, recipe: str, *, old: bool = False) -> None:
        """recipe: TOML.  old: a thread per core that waits as long as OpenMP does by itself."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "eft_local.bench.studies.busy", "--serve", recipe, *(["--before"] if old else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.result()

    def start(self, seconds: float) -> None:
        """Let it write for so long."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()

    def result(self) -> float:
        """Wait; return its tokens per second."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a process of the benchmark ended early")
        return float(line)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _serve(toml: str, *, old: bool) -> None:
    """Load; then, for each line with seconds on stdin, write for so long and print the tokens per second."""
    from eft_local.backends.llamacpp.library import default_threads
    from eft_local.backends.llamacpp.waits import Watch
    from eft_local.emulator import Emulator
    from eft_local.recipe import Recipe

    recipe = Recipe.from_text(toml)
    if old:
        recipe = recipe.replace(threads=default_threads())
        Watch.look = lambda self: None  # type: ignore[method-assign]
    with Emulator.load(recipe) as emulator:
        _write(emulator, 1.0)
        print(0.0, flush=True)
        for line in sys.stdin:
            print(_write(emulator, float(line)), flush=True)


def _write(emulator: Emulator, seconds: float) -> float:
    """Write the same answer again and again for so long; return the tokens per second, prompts included."""
    started, tokens = time.perf_counter(), 0
    end = started + seconds
    while time.perf_counter() < end:
        for _ in emulator.stream_chat(QUESTION):
            tokens += 1
            if time.perf_counter() >= end:
                break
    return tokens / (time.perf_counter() - started)


def measure(recipe: str, seconds: float, rounds: int, *, old: bool = False) -> dict[str, Any]:
    """Return tokens per second and ratios to the idle machine, each with its spread. recipe: TOML."""
    speeds: dict[str, list[Sequence[float]]] = {}
    meter = CoreMeter(_read)

    def note(situation: str, *found: float) -> None:
        speeds.setdefault(situation, []).append(found)

    with ExitStack() as open_writers:
        writer = open_writers.enter_context(Writer(recipe, old=old))
        if not old:
            with Writer(recipe, old=True) as before:
                for number in range(rounds):
                    pair = {"idle": writer, "before": before}
                    for name in sorted(pair, reverse=bool(number % 2)):  # who comes second finds the caches warm
                        note(f"pair {name}", *_together([pair[name]], seconds))
        peers = [open_writers.enter_context(Writer(recipe, old=old)) for _ in range(PEERS)]
        for _ in range(rounds):
            note("idle", *_together([writer], seconds))
            with _loops(os.cpu_count() or 1):
                note("loops", *_together([writer], seconds))
            note("peers", *_together([writer, *peers], seconds))
        foreign = meter.use()
    return _ratios(speeds) | {"foreign": foreign and foreign.as_dict()}


def _read() -> Reading:
    """Read the system's counters; what our own processes work, ended ones included, is ours."""
    own = psutil.Process()
    seconds = sum(own.cpu_times()[:4])
    for child in own.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            seconds += sum(child.cpu_times()[:4])
    return replace(read(), own=seconds)


def _together(writers: Sequence[Writer], seconds: float) -> list[float]:
    for writer in writers:
        writer.start(seconds)
    return [writer.result() for writer in writers]


@contextmanager
def _loops(count: int) -> Iterator[None]:
    """Let so many programs use a core each."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(0.2)
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def _ratios(speeds: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Any]:
    """Return the speeds of each situation, and what they are of the idle machine's in the same round."""
    idle = [found[0] for found in speeds["idle"]]

    def ratio(of: Callable[[Sequence[float]], float], situation: str) -> dict[str, float]:
        return spread([of(found) / base for found, base in zip(speeds[situation], idle, strict=True)])

    found: dict[str, Any] = {
        "tokens_per_second": {
            "idle": spread(idle),
            "loops": spread([each[0] for each in speeds["loops"]]),
            "peers": spread([speed for each in speeds["peers"] for speed in each]),
        },
        "beside_loops": ratio(max, "loops"),
        "beside_peers": ratio(lambda each: sum(each) / len(each), "peers"),
        "slowest_beside_peers": ratio(min, "peers"),
    }
    if "pair before" in speeds:
        pairs = zip(speeds["pair idle"], speeds["pair before"], strict=True)
        found["idle_over_before"] = spread([now[0] / before[0] for now, before in pairs])
        found["tokens_per_second"]["before"] = spread([each[0] for each in speeds["pair before"]])
    return found


def _text(found: Mapping[str, Any]) -> str:
    def shown(values: Mapping[str, float]) -> str:
        return f"{values['median']:.2f} [{values['min']:.2f}-{values['max']:.2f}]"

    speeds = found["tokens_per_second"]
    lines = [f"{found['recipe']}: {speeds['idle']['median']:.1f} tokens/s on the idle machine; medians [extremes]"]
    if "idle_over_before" in found:
        lines.append(f"  idle ÷ a thread per core, long waits  {shown(found['idle_over_before'])}")
    if found["foreign"] and found["foreign"]["busy"]:
        lines.append(f"  NOT IDLE: other programs used {found['foreign']['used_by_others']:.1f} cores all the time")
    lines += [
        f"  beside a loop per core ÷ idle         {shown(found['beside_loops'])}",
        f"  three processes, each ÷ idle          {shown(found['beside_peers'])}",
        f"  three processes, the slowest ÷ idle   {shown(found['slowest_beside_peers'])}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
