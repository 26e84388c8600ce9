"""What measured samples say: a median and how far they spread."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import quantiles


def spread(samples: Sequence[float]) -> dict[str, float]:
    """Median, quartiles, extremes."""
    low, middle, high = quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else [samples[0]] * 3
    return {"median": middle, "q1": low, "q3": high, "min": min(samples), "max": max(samples)}


def shown(samples: Sequence[float], unit: str) -> str:
    values = spread(samples)
    return f"{values['median']:8.3f} {unit}   ({values['q1']:.3f} … {values['q3']:.3f})"
