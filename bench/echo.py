"""Key to echo: how long a typed character takes to appear in the app while the demo models write.

    python -m bench.echo [--keys 300] [--threads N]

The real app runs in a pseudo terminal. Characters that no demo model writes are typed at uneven moments while the
mixture writes on and on (its end tokens are forbidden); each is timed until the app sends it back to the terminal.
The answers' own speed is then read from the history and stands beside that of the same answer through the library,
without and with the facts that the app records.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import random
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

TYPED = "äöüßéèêàâçñøåæþðłśżč"
QUESTION = "Tell me about Peru."
TOKENS = 1000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=300)
    parser.add_argument("--threads", type=int, help="CPU threads of llama.cpp; default: what the app chooses")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="eft-echo-") as home:
        recipe = _recipe(Path(home), options.threads)
        echoes = _echoes(Path(home), recipe, options.keys)
        app = _answers(Path(home))
        speeds = {"app": app["speed"], **_library(recipe, app["threads"])}
        found = {
            "echo_ms": {name: round(value, 1) for name, value in _spread(echoes).items()},
            "keys": len(echoes),
            "threads": app["threads"],
            "tokens_per_second": speeds,
            "app_over_library": round(speeds["app"] / speeds["library"], 3),
            "app_over_library_with_facts": round(speeds["app"] / speeds["library with facts"], 3),
        }
    print(json.dumps(found, indent=2))


def _recipe(home: Path, threads: int | None) -> Path:
    from eft_local.references import find_recipe

    recipe = find_recipe("demo").replace(
        name="echo", context=4096, max_tokens=TOKENS, logit_bias={"</s>": -100, "<|end|>": -100}
    )
    if threads:
        recipe = recipe.replace(threads=threads)
    file = home / "recipes" / "echo.toml"
    file.parent.mkdir()
    file.write_text(recipe.to_toml(), "utf-8")
    return file


def _echoes(home: Path, recipe: Path, keys: int) -> list[float]:
    """Run the app; return milliseconds per key."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    environment = os.environ | {"EFT_HOME": str(home), "TERM": "xterm-256color"}
    command = [
        sys.executable,
        "-c",
        "from eft_local.cli import main; main()",
        "chat",
        "-r",
        str(recipe),
    ]
    app = subprocess.Popen(
        command, stdin=follower, stdout=follower, stderr=follower, env=environment, start_new_session=True
    )
    os.close(follower)
    draw = random.Random(1)
    echoes: list[float] = []
    try:
        _read_until(leader, "ready", 60)
        while len(echoes) < keys:
            os.write(leader, b"\x12" if echoes else f"{QUESTION}\r".encode())  # Ctrl+R: again
            _read_until(leader, "writing", 30)
            for character in TYPED:
                time.sleep(draw.uniform(0.02, 0.08))
                _drain(leader)
                began = time.perf_counter()
                os.write(leader, character.encode())
                _read_until(leader, character, 10)
                echoes.append(1000 * (time.perf_counter() - began))
            os.write(leader, b"\x1b")
            time.sleep(0.3)
            os.write(leader, b"\x15")  # Ctrl+U empties the line
            time.sleep(0.3)
            _drain(leader)
        os.write(leader, b"\x12")  # one answer to its end, for its speed
        _read_until(leader, "writing", 30)
        _read_until(leader, "ready", 120)
        os.write(leader, b"\x11")
        app.wait(20)
    finally:
        app.kill()
        os.close(leader)
    return echoes


def _read_until(leader: int, text: str, seconds: float) -> None:
    wanted, seen, end = text.encode(), b"", time.monotonic() + seconds
    while wanted not in seen:
        if time.monotonic() > end:
            raise SystemExit(f"the app did not show {text!r} within {seconds} s; its last output: {seen[-500:]!r}")
        if select.select([leader], [], [], 0.1)[0]:
            seen = seen[-4096:] + os.read(leader, 65536)


def _drain(leader: int) -> None:
    while select.select([leader], [], [], 0)[0]:
        os.read(leader, 65536)


def _spread(values: list[float]) -> dict[str, float]:
    ranked = sorted(values)
    return {
        "median": statistics.median(ranked),
        "p95": ranked[int(0.95 * (len(ranked) - 1))],
        "worst": ranked[-1],
    }


def _answers(home: Path) -> dict[str, float]:
    """Return speed and threads of the longest answer that the app wrote."""
    from eft_local.history import History

    with History(home / "chats" / "chats.db") as history:
        answers = [each.answer for chat in history.chats() for each in history.messages(chat.id) if each.answer]
    longest = max(answers, key=lambda answer: len(answer.tokens))
    threads = longest.recipe.recipe().placement.threads
    return {"speed": round(longest.tokens_per_second or 0, 1), "threads": threads or 0, "tokens": len(longest.tokens)}


def _library(recipe: Path, threads: float) -> dict[str, float]:
    from eft_local import Emulator, Recipe

    with Emulator.load(Recipe.from_toml(recipe).replace(threads=int(threads))) as emulator:
        emulator.chat(QUESTION, max_tokens=100)
        plain = emulator.chat(QUESTION)
        facts = emulator.chat(QUESTION, facts=True, top=10)
    return {
        "library": round(plain.tokens_per_second, 1),
        "library with facts": round(facts.tokens_per_second, 1),
    }


if __name__ == "__main__":
    main()
