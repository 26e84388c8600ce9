"""How fast: a token costs a pass through memory of every weight that it uses, and of the cache that it looks at."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from eft_local.machine.cores import CoreMeter, CoreUse
from eft_local.placement.planner import Placed, Plan

REACHED = 0.6
"""What an evaluation reaches of the speed at which its weights could be read: on two cores 0.51 (three models of 0.5B
with 152,064 tokens, Q4_0) and 0.66 (one of 7B)."""

_ARRAY = 64 << 20  # bytes; larger than caches
_SECONDS = 0.2  # for which it is read again and again: beside other programs a single pass says little


def seconds_per_token(placed: Placed, bandwidths: Mapping[str, float], context: int, filled: int = 0) -> float | None:
    """Return how long one evaluation of each context on these weights takes, with `filled` tokens in each sequence.

    bandwidths: bytes per second, by device's name. None if that of a device is not known.
    """
    weights, load = placed.load.estimate.weights, placed.load
    layers = len(weights.layers)
    on_gpus = max(placed.on_gpu - 1, 0)  # the output is the first that goes there
    cache = 0.0
    for each in load.contexts:
        figures = each.figures(context, placed.on_gpu)
        cache += figures.cache * filled / figures.cells + figures.state
    passes = len(load.contexts)

    def read(repeating: int, output: bool) -> float:
        share = repeating / max(1, layers)
        return share * (weights.active * passes + cache) + (weights.active_output * passes if output else 0)

    ram = next(iter(placed.uses))
    reads: dict[str, float] = {ram: read(layers - on_gpus, placed.on_gpu == 0)}
    on_all_gpus = read(on_gpus, placed.on_gpu > 0)
    gpu_weights = {name: use.weights for name, use in placed.uses.items() if name != ram}
    for name, size in gpu_weights.items():
        reads[name] = on_all_gpus * size / max(1, sum(gpu_weights.values()))
    used = {name: bytes_read for name, bytes_read in reads.items() if bytes_read}
    if not used.keys() <= bandwidths.keys():
        return None
    return sum(bytes_read / bandwidths[name] for name, bytes_read in used.items())


def tokens_per_second(plan: Plan, bandwidths: Mapping[str, float], filled: int = 0) -> float | None:
    """Return what one answer could get at most without drafts, its roles one after the other.

    None if the bandwidth of a device that is used is not known.
    """
    seconds = [seconds_per_token(placed, bandwidths, plan.context, filled) for placed in plan.placed]
    measured = [each for each in seconds if each is not None]
    total = sum(measured)
    return 1 / total if total > 0 and len(measured) == len(seconds) else None


def measured_bandwidth(threads: int) -> tuple[float, CoreUse | None]:
    """Return the bytes per second at which so many threads read RAM at best, and what other programs used meanwhile.

    Takes a third of a second.
    """
    arrays = [np.ones(_ARRAY // 4, np.float32) for _ in range(threads)]
    best = float("inf")
    meter, end = CoreMeter(), time.perf_counter() + _SECONDS
    with ThreadPoolExecutor(threads) as pool:
        while (started := time.perf_counter()) < end:
            list(pool.map(np.max, arrays))
            best = min(best, time.perf_counter() - started)
    return threads * _ARRAY / best, meter.use()
