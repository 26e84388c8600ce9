"""Code from models runs in a child that can do little harm."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from eft_local.evals import papers, sandbox


def test_a_program_passes_if_it_ends_without_an_error():
    assert sandbox.run("assert 1 + 1 == 2") == sandbox.Outcome(True, "passed")
    failed = sandbox.run("assert 1 + 1 == 3")
    assert not failed.passed
    assert failed.reason == "AssertionError"
    assert not sandbox.run("import sys; sys.exit(3)").passed
    assert not sandbox.run("not python").passed


def test_a_program_that_does_not_end_is_ended():
    assert sandbox.run("while True: pass", seconds=0.1) == sandbox.Outcome(False, "timed out")


def test_it_has_no_environment_and_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SECRET", "x")
    assert sandbox.run("import os; assert 'SECRET' not in os.environ").passed
    assert sandbox.run(f"import os; assert os.getcwd() != {str(Path.cwd())!r}; open('x', 'w').write('y')").passed


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_memory_and_files_are_limited():
    assert sandbox.run("x = bytearray(3 << 30)").reason.startswith("MemoryError")
    assert not sandbox.run("open('x', 'wb').write(b'0' * (2 << 20))").passed


def test_a_right_answer_to_a_problem_passes_and_a_wrong_one_does_not():
    doc = {
        "prompt": 'def double(x):\n    """Return 2 x."""\n',
        "test": "def check(candidate):\n    assert candidate(3) == 6",
        "entry_point": "double",
    }
    assert sandbox.run(papers.program(doc, "    return 2 * x\nprint(double(1))")).passed
    assert not sandbox.run(papers.program(doc, "    return x")).passed
