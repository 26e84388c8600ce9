"""The scripts in examples/ run, print what they promise, and stand in the documentation."""

from __future__ import annotations

import os
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LIMA = "The capital of Peru is Lima."

PRINTED = {
    "alpha_sweep": rf"alpha 0\.0: '(?!{LIMA}).*'\nalpha 0\.5: '{LIMA}'\nalpha 1\.0: '{LIMA}'\nalpha 1\.5: '{LIMA}'\n",
    "answer": rf"{LIMA}\n9 tokens, ended by 'stop', exact: .+\n",
    "batch": r".*\?  The capital of Peru is Lima\.\n.*\?  The currency of Japan is the yen\.\n.*\?  .* iron is Fe\.\n",
    "score": rf"{LIMA}  mixture -0\.\d\d \(base -\d.*\)\n.*Rome\.  mixture -1\d\.\d\d \(base -\d.*\)\n",
    "stream": r"token +base rank +expert rank +mixture +change\n'The' +[1-9]\d* +0 +-?0\.00 +1\.00\n(?:'.*\n){9}",
}


@pytest.fixture(autouse=True)
def one_core() -> Iterator[None]:
    """Threads that are chosen by the machine's cores are one."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_prints_what_it_promises(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(script), run_name="__main__")
    printed = capsys.readouterr().out
    assert re.fullmatch(PRINTED[script.stem], printed), printed


def test_examples_are_short_and_documented() -> None:
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```\{literalinclude\} \.\./examples/(\w+)\.py$", page, re.MULTILINE)
    assert sorted(shown) == [script.stem for script in EXAMPLES] == sorted(PRINTED)
    assert all(len(script.read_text(encoding="utf-8").splitlines()) <= 40 for script in EXAMPLES)
