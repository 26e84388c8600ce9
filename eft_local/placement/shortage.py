"""Refuses what does not fit before anything is loaded: what is needed, what is free, and three things to try."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from eft_local.backends.llamacpp.estimate import Estimate, at
from eft_local.errors import OutOfMemoryError
from eft_local.hub.names import size_text
from eft_local.machine.memory import ADDRESS_SPACE, CGROUP, Device, available
from eft_local.placement.planner import Load, Plan, Shortage, longest_context, plan

_REMEDIES = 3
_BLOCK = 32  # numbers that a quantised cache holds together


def checked_plan(loads: Sequence[Load], devices: Sequence[Device], context: int) -> Plan:
    """Return a plan that fits. Raises: OutOfMemoryError."""
    planned = plan(loads, devices, context)
    if planned.shortages:
        raise OutOfMemoryError(refusal(planned))
    return planned


def check_context(estimate: Estimate, tokens: int, sequences: int, what: str) -> None:
    """Refuse a context in RAM that is made after its weights were loaded, if it cannot be had: Linux promises memory
    that it has not, and kills who uses it. Raises: OutOfMemoryError.

    tokens: that each of so many sequences has room for.
    """
    figures, ours = at(estimate.on_cpu, tokens), available()
    held = figures.cache + figures.state + figures.outputs
    needed = held * sequences // estimate.sequences + figures.host
    if needed > ours.free:
        raise OutOfMemoryError(
            f"not enough memory for {sequences} × {tokens} tokens of context for {what}: "
            f"{size_text(needed)} are needed, {size_text(ours.free)} are free; write fewer answers side by side, "
            "or set a smaller context" + (', or set kv_type = "q8_0"' if _quantises(estimate) else "")
        )


def _quantises(estimate: Estimate) -> bool:
    """Whether a model's cache can be quantised, as far as its header says."""
    return all(length % _BLOCK == 0 for length in estimate.weights.heads)


def refusal(planned: Plan) -> str:
    """Return one line on why a plan does not fit: what is needed, what is free, three things to try."""
    shortage = planned.shortages[0]
    device = shortage.device
    what = {"cpu": "of memory"}.get(device.kind, f"on {device.name}")
    bound = f" by the {device.limit} limit" if device.limit in (ADDRESS_SPACE, CGROUP) else ""
    rest = f", {size_text(shortage.kept)} of them for the rest of the program" if shortage.kept else ""
    return (
        f"not enough memory for {', '.join(role for placed in planned.placed for role in placed.load.roles)}: "
        f"{size_text(shortage.needed)} {what} are needed, {size_text(device.free)} are free{bound}{rest}; "
        f"{', or '.join(remedies(planned))}"
    )


def remedies(planned: Plan) -> list[str]:
    """Return three things to try, the least painful first."""
    return list(dict.fromkeys(_possible_remedies(planned, planned.shortages[0])))[:_REMEDIES]


def _possible_remedies(planned: Plan, shortage: Shortage) -> Iterator[str]:
    device = shortage.device
    loads = [placed.load for placed in planned.placed]
    fitting = longest_context(loads, planned.devices, planned.context - 1)
    if fitting:
        yield f"set context = {fitting}"
    largest = max(planned.placed, key=lambda placed: placed.total.weights)
    weights = size_text(largest.total.weights)
    if device.kind != "cpu":
        here = max(
            planned.placed, key=lambda placed: placed.uses[device.name].total if device.name in placed.uses else 0
        )
        yield f'set offload = "auto" for {here.load.roles[0]}'
    cache = sum(placed.total.cache for placed in planned.placed)
    if cache * 2 > shortage.needed and all(_quantises(load.estimate) for load in loads):
        yield 'set kv_type = "q8_0"'
    yield f"choose a smaller quantisation of {largest.load.roles[0]} ({weights})"
    if device.limit == ADDRESS_SPACE:
        yield "raise the limit (ulimit -v)"
    elif device.limit == CGROUP:
        yield "give the container more memory"
    elif device.kind == "cpu":
        yield "close other programs"
    mapped = [replace(load, mmap=True) for load in loads]
    if plan(mapped, planned.devices, planned.context).fits:
        yield "set mmap = true to read weights from the disk as they are needed, which is slow"
    yield "choose a recipe with smaller models"
