"""Damaged GGUF files given to `eft plan`, `eft show` and `eft ask`: one clear line each, or an answer.

A child process writes one damaged file after the other and runs the three commands on it, as the command line does; if
it dies, hangs or grows, the file that it was at is blamed. `python -m tests.cli.test_fuzz_commands --full` tries 1,000.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from eft_local.bench.studies.gguf_factory import write_model
from eft_local.cli.app import run
from tests.gguf.test_fuzz_gguf import MODELS, Target, demo_model

PER_MODEL = int(os.environ.get("EFT_FUZZ_COMMANDS", "15"))
FULL = 250  # per model: there are four
SEED = int(os.environ.get("EFT_FUZZ_SEED", "7"))
PATIENCE = 5.0  # seconds of computing for one command
MOST_MEMORY = 1_000_000_000  # bytes resident, of files of a few hundred kB
COMMANDS = ("plan", "show", "ask")
RECIPE = """context = 128
threads = 1
[base]
model = "damaged.gguf"
[antiexpert]
model = "damaged.gguf"
[experts.same]
model = "damaged.gguf"
prompt = "plain"
[sampling]
temperature = 0
max_tokens = 3
"""


@dataclass
class Ran:
    """What one command did.  seconds: of computing, its children's too."""

    command: str
    code: int
    out: str
    err: str
    seconds: float

    @property
    def fault(self) -> str | None:
        """What is wrong with it."""
        if self.seconds > PATIENCE:
            return f"computed for {self.seconds:.1f} s"
        if self.code == 0:
            return None if self.out or self.command == "ask" else "said nothing"
        if self.code not in (1, 2, 3, 4):
            return f"ended with {self.code}"
        lines = [line for line in self.err.splitlines() if line.startswith("eft: ")]
        if len(lines) != 1 or not self.err.rstrip("\n").endswith(lines[0]):
            return f"said {self.err!r}"
        if "unexpected" in lines[0] or "Traceback" in self.err:
            return f"was surprised: {lines[0]!r}"
        return None


def computed() -> float:
    """Seconds that this process and its ended children have computed."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def run_command(command: str, *arguments: str) -> Ran:
    out, err = io.StringIO(), io.StringIO()
    before = computed()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([command, *arguments])
    return Ran(command, code, out.getvalue(), err.getvalue(), computed() - before)


def peak() -> int:
    """Bytes that this process or one of its children has had resident at most; not what its parent had before it."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * max(int(status["VmHWM"].split()[0]), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


def child(source: Path, first: int, last: int) -> None:
    """Damage the file and run the commands, naming each damage before it is tried and what became of it after."""
    target = Target.read(source)
    damaged, recipe = source.with_name("damaged.gguf"), source.with_name("recipe.toml")
    recipe.write_text(RECIPE)
    for number in range(first, last):
        damaged.write_bytes(target.mutation(number, SEED))
        print(f"try {number}", flush=True)
        ran = [
            run_command("plan", str(recipe), "--bandwidth", "10"),
            run_command("show", str(damaged)),
            run_command("ask", "--recipe", str(recipe), "hello"),
        ]
        reported = {
            "number": number,
            "codes": [each.code for each in ran],
            "faults": [f"{each.command} {each.fault}" for each in ran if each.fault],
            "slowest": max(each.seconds for each in ran),
            "peak": peak(),
        }
        print(json.dumps(reported), flush=True)


def try_all(source: Path, count: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Return what became of the damaged files, and those that ended a child."""
    reported: list[dict[str, Any]] = []
    killers: list[str] = []
    first = 0
    while first < count:
        process = subprocess.run(
            [sys.executable, "-m", "tests.cli.test_fuzz_commands", str(source), str(first), str(count)],
            capture_output=True,
            text=True,
            errors="replace",
            cwd=Path(__file__).parents[2],
            env=os.environ | {"GGML_NO_BACKTRACE": "1"},
            check=False,
        )
        number = first
        for line in process.stdout.splitlines():
            if line.startswith("try "):
                number = int(line[4:])
            else:
                reported.append(json.loads(line))
        if process.returncode:
            killers.append(f"{source.stem} {number}: status {process.returncode}, {process.stderr[-600:]}")
        first = number + 1
    return reported, killers


def sources(folder: Path) -> list[Path]:
    written = [write_model(folder / f"{name}.gguf", spec) for name, spec in MODELS.items()]
    return [*written, Path(shutil.copy(demo_model(), folder / "demo.gguf"))]


def summary(reported: list[dict[str, Any]]) -> str:
    answered = {name: sum(each["codes"][at] == 0 for each in reported) for at, name in enumerate(COMMANDS)}
    codes = dict(sorted(Counter(code for each in reported for code in each["codes"]).items()))
    slowest, peak = (max(each[key] for each in reported) for key in ("slowest", "peak"))
    return (
        f"{len(reported)} damaged files: {answered['plan']} planned, {answered['show']} shown, "
        f"{answered['ask']} loaded and decoded; exit codes {codes}; slowest {slowest:.1f} s, peak {peak / 1e6:.0f} MB"
    )


def faults(reported: list[dict[str, Any]]) -> list[str]:
    grown = [f"{each['number']}: {each['peak']} bytes" for each in reported if each["peak"] > MOST_MEMORY]
    return [f"{each['number']}: {fault}" for each in reported for fault in each["faults"]] + grown


@pytest.mark.parametrize("name", [*MODELS, "demo"])
def test_commands_say_one_line_of_damaged_files(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = next(path for path in sources(tmp_path) if path.stem == name)
    reported, killers = try_all(source, PER_MODEL)
    with capsys.disabled():
        print(f"\n{name}: {summary(reported)}", end=" ")
    assert killers == []
    assert faults(reported) == []
    assert len(reported) == PER_MODEL
    assert any(each["codes"][0] for each in reported)  # otherwise nothing was damaged


def main() -> None:
    from tempfile import TemporaryDirectory

    started = time.monotonic()
    everything: list[dict[str, Any]] = []
    wrong: list[str] = []
    with TemporaryDirectory() as folder:
        os.environ["EFT_HOME"] = str(Path(folder) / "home")
        for source in sources(Path(folder)):
            reported, killers = try_all(source, FULL)
            everything += reported
            wrong += killers + [f"{source.stem} {fault}" for fault in faults(reported)]
            print(f"{source.stem}: {summary(reported)}", flush=True)
    print("\n".join(wrong))
    print(f"all: {summary(everything)}; {len(wrong)} faults, {time.monotonic() - started:.0f} s")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    if sys.argv[1:] == ["--full"]:
        main()
    else:
        child(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
