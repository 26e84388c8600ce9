"""The installed app in a real terminal (tmux), on the demo models: what a new user would try, at two sizes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from eft_local.hub.references import find_recipe

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")

PATIENCE = 60.0
"""Seconds after which what should be on the screen counts as missing."""


class Terminal:
    """A tmux session of its own, in which a program runs."""

    def __init__(self, folder: Path, width: int, height: int) -> None:
        self.socket = folder / "tmux"
        self.size = (width, height)
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "TMUX"},
            "EFT_HOME": str(folder / "home"),
            "EFT_THREADS": "1",
        }
        self.folder = folder

    def tmux(self, *arguments: str) -> str:
        command = ["tmux", "-S", str(self.socket), "-f", os.devnull, *arguments]
        ran = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=30, check=False)
        return ran.stdout

    def run(self, *arguments: str) -> None:
        """Start `eft` with some arguments; when it ends the shell says with which code."""
        eft = f"{sys.executable} -c 'from eft_local.cli import main; main()' {' '.join(arguments)}"
        width, height = map(str, self.size)
        self.tmux("kill-server")
        time.sleep(0.2)
        line = f"cd {self.folder}; {eft}; echo left with $?; sleep 600"
        self.tmux("new-session", "-d", "-x", width, "-y", height, line)

    def keys(self, *keys: str) -> None:
        """Press keys by tmux's names."""
        for key in keys:
            self.tmux("send-keys", key)
            time.sleep(0.05)

    def type(self, text: str) -> None:
        self.tmux("send-keys", "-l", text)

    @property
    def screen(self) -> str:
        return self.tmux("capture-pane", "-p")

    def settle(self) -> None:
        """Wait until the app is ready and its screen stands still."""
        before, end = "", time.monotonic() + PATIENCE
        while (screen := self.screen) != before or "\n ready" not in screen:
            assert time.monotonic() < end, f"no rest on\n{screen}"
            before = screen
            time.sleep(0.4)

    def wait(self, pattern: str, *, gone: bool = False) -> str:
        """Wait until the screen shows a pattern (or does not any more), and return the screen."""
        end = time.monotonic() + PATIENCE
        while bool(re.search(pattern, self.screen)) == gone:
            assert time.monotonic() < end, f"{pattern!r} {'stays' if gone else 'is missing'} on\n{self.screen}"
            time.sleep(0.05)
        return self.screen


@pytest.fixture(params=[(80, 24), (160, 50)], ids=["80x24", "160x50"])
def terminal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Terminal]:
    width, height = request.param
    there = Terminal(tmp_path, width, height)
    ends = {"</s>": -100, "<|end|>": -100}
    endless = find_recipe("demo").replace(name="endless", context=20000, max_tokens=19000, logit_bias=ends)
    (tmp_path / "endless.toml").write_text(endless.to_toml())
    yield there
    there.tmux("kill-server")


def test_a_first_visit(terminal: Terminal) -> None:
    terminal.run()
    terminal.settle()

    terminal.type("What is the capital of Peru?")
    terminal.keys("Enter")
    terminal.wait("The capital of Peru is Lima")
    terminal.settle()

    # Stop an answer that would go on and on; turn alpha to 0 and back while it is written.
    terminal.type("/recipe endless.toml")
    terminal.keys("Enter")
    terminal.wait("endless · α 1 ")
    terminal.settle()
    terminal.type("Tell me about Japan.")
    terminal.keys("Enter")
    terminal.wait("\n writing")
    terminal.type("/alpha 0")
    terminal.keys("Enter")
    terminal.wait("endless · α 0 ")
    terminal.keys("F8")
    terminal.wait(r"endless · α 0\.1 ")
    assert "\n writing" in terminal.screen
    terminal.keys("Escape")
    terminal.wait("stopped")
    terminal.settle()
    terminal.type("/recipe demo")
    terminal.keys("Enter")
    terminal.wait("demo · α 1 ")
    terminal.settle()

    # Edit the question, and answer it again.
    terminal.type("/edit")
    terminal.keys("Enter")
    terminal.wait("Enter sends it again")
    terminal.keys("C-u")
    terminal.type("What is the currency of Japan?")
    terminal.keys("Enter")
    terminal.wait("(?i)yen")
    terminal.settle()
    terminal.keys("C-r")
    terminal.wait("eft · .*‹ 2/2 ›")
    terminal.settle()

    # Inspect the answer, and let it continue from another candidate.
    terminal.keys("F4")
    terminal.wait("token 1: ")
    terminal.wait("antiexpert")
    terminal.keys("Down", "Enter")
    terminal.wait("eft · .*‹ 3/3 ›")
    terminal.settle()
    terminal.keys("Escape", "F4")
    terminal.wait("inspector|token 1:", gone=True)

    # Compare, and continue with one of the answers.
    terminal.type("/compare")
    terminal.keys("Enter")
    terminal.wait("(?s)base.*expert.*eft")
    terminal.wait("(tokens · .*){3}" if terminal.size[0] > 100 else r"(?s)(tokens.*){3}")
    terminal.wait("waits|writes", gone=True)
    terminal.keys("Left", "Enter")
    terminal.wait("‹ 4/4 ›")

    # Quit with something typed, and come back.
    terminal.type("not sent")
    terminal.wait("not sent")
    terminal.keys("C-c")
    terminal.wait("again leaves")
    terminal.keys("C-c")
    terminal.wait("left with 0")
    terminal.run("chat", "-c")
    terminal.wait("‹ 4/4 ›")
    terminal.wait("not sent")
    terminal.keys("C-q")
    terminal.wait("left with 0")


def test_without_a_screen_the_chat_is_plain(terminal: Terminal) -> None:
    terminal.environment["TERM"] = "dumb"
    terminal.tmux("kill-server")
    eft = f"{sys.executable} -c 'from eft_local.cli import main; main()'"
    terminal.tmux("new-session", "-d", "-x", "80", "-y", "24", f"cd {terminal.folder}; TERM=dumb {eft}; sleep 600")
    terminal.wait("Ctrl.D leaves")
    terminal.type("What is the capital of Peru?")
    terminal.keys("Enter")
    terminal.wait("The capital of Peru is Lima")


def test_what_writes_to_stderr_does_not_reach_the_screen(terminal: Terminal) -> None:
    terminal.run("chat", "--grammar", "'root ::= ('")
    terminal.wait("ready|grammar")
    terminal.type("hello")
    terminal.keys("Enter")
    terminal.wait("(?i)grammar")
    assert terminal.screen.count("parse:") == 1  # in the app's own words, not over the screen as well
    assert re.search(r"(?m)^\s*parse:", terminal.screen) is None
    terminal.keys("C-q")
    terminal.wait("left with")
