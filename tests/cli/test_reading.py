"""How a token is made, as CONTRIBUTING.md lists it: the functions exist, and they run in that order."""

from __future__ import annotations

import io
import re
import sys
import threading
from pathlib import Path
from types import FrameType

import pytest

from eft_local.cli import main

ROOT = Path(__file__).parents[2]


def listed() -> list[str]:
    """The functions in order, as `Class.method` or `function`."""
    section = (
        (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## How a token is made")[1].split("\n## ")[0]
    )
    names = re.findall(r"^\d+\. `([\w.]+)`", section, re.MULTILINE)
    return [name.rpartition(".")[2] if name.startswith("cli.") else name for name in names]


def test_the_functions_run_in_the_order_that_is_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = listed()
    assert 10 < len(names) <= 15
    called: dict[int, list[str]] = {}

    def profile(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event == "call" and "eft_local" in code.co_filename and code.co_qualname in names:
            mine = called.setdefault(threading.get_ident(), [])
            if code.co_qualname not in mine:
                mine.append(code.co_qualname)

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        with pytest.raises(SystemExit) as ended:
            main(["ask", "What is the capital of Peru?"])
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    assert not ended.value.code
    assert capsys.readouterr().out == "The capital of Peru is Lima.\n"
    here, engine = (
        names[: names.index("Worker._run")],
        names[names.index("Worker._run") : names.index("Worker._deliver") + 1],
    )
    assert called.pop(threading.get_ident()) == [*here, "stream", "Stream.__next__"]
    assert engine in called.values()
