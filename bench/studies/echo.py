"""Key to echo: how long a typed character takes to appear in the app while the demo models write.

    python -m eft_local.bench.studies.echo [--keys 300] [--threads N]

The real app runs in a pseudo terminal. Characters that no demo model writes are typed at uneven moments while the
mixture writes on and on (its end tokens are forbidden); each is timed until the app sends it back to the terminal.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from eft_local.bench.studies.pseudo_terminal import PseudoTerminal

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
        found = {"echo_ms": {name: round(value, 1) for name, value in _spread(echoes).items()}, "keys": len(echoes)}
    print(json.dumps(found, indent=2))


def _recipe(home: Path, threads: int | None) -> Path:
    from eft_local.hub.references import find_recipe

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
    command = [sys.executable, "-c", "from eft_local.cli import main; main()", "chat", "-r", str(recipe)]
    app = PseudoTerminal(command, os.environ | {"EFT_HOME": str(home)})
    draw = random.Random(1)
    echoes: list[float] = []
    try:
        app.wait_for("ready", 60)
        while len(echoes) < keys:
            app.write(b"\x12" if echoes else f"{QUESTION}\r".encode())  # Ctrl+R: again
            app.wait_for("writing", 30)
            for character in TYPED:
                app.pause(draw.uniform(0.02, 0.08))
                began = time.perf_counter()
                app.write(character.encode())
                app.wait_for(character, 10)
                echoes.append(1000 * (time.perf_counter() - began))
            app.write(b"\x1b")
            app.wait_for("ready", 10)
            app.write(b"\x15")  # Ctrl+U empties the line
            app.pause(0.3)
        app.write(b"\x11")
        app.wait_for_end(20)
    finally:
        app.close()
    return echoes


def _spread(values: list[float]) -> dict[str, float]:
    ranked = sorted(values)
    return {
        "median": statistics.median(ranked),
        "p95": ranked[int(0.95 * (len(ranked) - 1))],
        "worst": ranked[-1],
    }


if __name__ == "__main__":
    main()
