"""How soon a long prompt stops on request. See bench/README.md."""

from __future__ import annotations

import argparse
import json
import random
import threading
import time
from pathlib import Path
from typing import Any

from eft_local.backends.base import ContextOptions, Rows
from eft_local.backends.llamacpp import Context, Model
from eft_local.bench.shapes import default_folder
from eft_local.bench.studies.blank import load
from eft_local.bench.studies.samples import shown, spread
from eft_local.errors import Cancelled

ALLOWED_MS = 300
PART = 512  # tokens


def measure_stop(context: Context, tokens: list[int], delay: float) -> float | None:
    """Abort an evaluation `delay` seconds after it began; return the milliseconds to its end, None if it was done.

    The context is left as it was.
    """
    ended: dict[str, float] = {}
    length = context.length(0)

    def evaluate() -> None:
        try:
            context.submit([Rows(0, tokens)])
            context.logits()
        except Cancelled:
            ended["at"] = time.perf_counter()

    thread = threading.Thread(target=evaluate)
    thread.start()
    time.sleep(delay)
    requested = time.perf_counter()
    context.abort()
    thread.join()
    context.resume()
    context.rewind(0, length)
    return 1000 * (ended["at"] - requested) if ended else None


def measure(model: Model, ubatch: int, length: int, stops: int) -> dict[str, Any]:
    """Evaluate a prompt; stop its first and its last part, which has the longest attention, at random moments."""
    moments = random.Random(0)
    prompt = [100] * length
    part = prompt[:PART]
    latencies: list[float] = []
    with model.open(ContextOptions(n_ctx=length + 8, n_ubatch=ubatch)) as context:
        started = time.perf_counter()
        context.submit([Rows(0, prompt)])
        context.logits()
        seconds = time.perf_counter() - started
        for kept in (0, length - PART):
            context.rewind(0, kept)
            started = time.perf_counter()
            context.submit([Rows(0, part)])
            context.logits()
            duration = time.perf_counter() - started
            context.rewind(0, kept)
            tries = [measure_stop(context, part, moments.uniform(0, duration)) for _ in range(stops // 2)]
            latencies += [latency for latency in tries if latency is not None]
    return {"prompt_seconds": seconds, "stops_ms": latencies}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m eft_local.bench.studies.abort", description=__doc__)
    parser.add_argument("--folder", type=Path, default=default_folder(), help="where the models are written")
    parser.add_argument("--shapes", nargs="+", default=["0.5b", "7b"])
    parser.add_argument("--ubatch", nargs="+", type=int, default=[512, 128])
    parser.add_argument("--prompt", type=int, default=4096, help="tokens of the prompt")
    parser.add_argument("--layers", type=int, default=2, help="of each model, 0 for all: stops are as long")
    parser.add_argument("--stops", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = []
    for shape in options.shapes:
        with load(options.folder, shape, "32k", 1, options.layers) as model:
            for ubatch in options.ubatch:
                measured = measure(model, ubatch, options.prompt, options.stops)
                stops = measured["stops_ms"]
                results.append({"shape": shape, "ubatch": ubatch, **measured, **spread(stops)})
                if not options.json:
                    print(
                        f"{shape}, {model.n_layer} layers, ubatch {ubatch}: {options.prompt} tokens in "
                        f"{measured['prompt_seconds']:.1f} s; stops in {shown(stops, 'ms')}, at most "
                        f"{max(stops):.0f} ms; {sum(stop > ALLOWED_MS for stop in stops)} of {len(stops)} "
                        f"above {ALLOWED_MS} ms",
                        flush=True,
                    )
    if options.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
