"""`eft plan`: what a recipe takes of this machine, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from eft_local.cli import output
from eft_local.cli.options import Command, example, json_option, only_option
from eft_local.errors import DownloadError, ModelNotFoundError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from eft_local.hub import HubName
    from eft_local.machine.memory import Device
    from eft_local.placement.planner import Load, Placed, Plan
    from eft_local.placement.survey import RoleFiles

_ALONE = "model"  # the role of a model that is planned without a recipe
_CONTEXT = 4096  # tokens, for such a model
_FAST = 500  # tokens per second, where other costs than reading weights come first
_UNITS = {"": 1e9, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


@click.command(
    cls=Command,
    epilog=example(
        "eft plan demo",
        "eft plan demo --context 1024 --json",
        "eft plan my-recipe.toml --memory 32 --memory gpu=24 --bandwidth gpu=1000",
        "eft plan ./model.gguf",
    ),
)
@click.argument("what", metavar="RECIPE|REF|FILE")
@click.option("--context", type=click.IntRange(1), metavar="N", help="Tokens for each role, in place of the recipe's.")
@click.option(
    "--memory",
    multiple=True,
    metavar="[DEVICE=]GB",
    help="Plan for so much free RAM, or free memory of a GPU, which need not be there. Can be given again.",
)
@click.option(
    "--bandwidth",
    multiple=True,
    metavar="[DEVICE=]GB/S",
    help="How fast RAM, or a GPU's memory, is read. RAM is measured, if it is not given.",
)
@only_option
@json_option
def plan(
    what: str, context: int | None, memory: tuple[str, ...], bandwidth: tuple[str, ...], only: str, as_json: bool
) -> int:
    """Estimate the memory and the speed of a RECIPE, where each model goes on this machine, and the longest context.

    Only metadata is read; nothing is loaded. Headers of models that are not downloaded are read from the hub. REF or
    FILE is a single model. Ends with exit code 1 if it does not fit into memory, 4 if the models do not fit together.
    """
    from eft_local.backends.llamacpp.devices import places
    from eft_local.placement.planner import plan as planned
    from eft_local.placement.survey import remembered

    given = _numbers("--memory", memory)
    speeds = {name: value * 1e9 for name, value in _numbers("--bandwidth", bandwidth).items()}
    name, loads, files_by_role, wish, tokens, away = _loads(what, context, only)
    found = planned(loads, _with_memory(places(), given), tokens)
    on_gpu = {role: found.of(role).on_gpu for role in files_by_role}
    figures = _figures(name, found, loads, speeds) | {
        "exact": remembered(files_by_role, on_gpu, tokens, wish),
        "away": away,
    }
    if as_json:
        output.write_json(figures)
    else:
        output.write(output.safe(_text(figures)))
    if figures["problem"]:
        output.complain(figures["problem"])
    return 0 if found.fits else 1


def _loads(
    what: str, context: int | None, only: str
) -> tuple[str, tuple[Load, ...], dict[str, RoleFiles], str, int, list[str]]:
    """Return a name, what has to be loaded for whom, how exact, the tokens of context, what is not downloaded."""
    from eft_local.engine.loading import compared_roles, mixed_roles
    from eft_local.engine.targets import roles_of
    from eft_local.gguf.weights import read_weights
    from eft_local.hub.references import find_recipe, hub_name, names_recipe, resolve_model
    from eft_local.placement.headers import check_headers
    from eft_local.placement.survey import SCORED_ROWS, RoleFiles, loads, role_files, rows_at_once
    from eft_local.recipe.names import MIXTURE
    from eft_local.recipe.roles import Placement

    headers = _Headers()
    if names_recipe(what):
        recipe = find_recipe(what)
        named = mixed_roles(recipe) | compared_roles(recipe)
        roles = {name: named[name] for name in roles_of(recipe, only)}
        files_by_role = role_files(recipe, roles, headers.find)
        checked = check_headers(recipe, roles, files_by_role, combined=only == MIXTURE)
        tokens = context or recipe.context
        needed = loads(files_by_role, tokens, rows_at_once(recipe))
        del checked  # held so far: no header is read twice
        return recipe.name, needed, files_by_role, recipe.exact, tokens, headers.read
    if only != MIXTURE:
        raise UsageError(f"--only {only}: {what} is no recipe and has no roles; leave it out")
    try:
        path = resolve_model(what, None)
    except ModelNotFoundError:
        name = hub_name(what, None)
        found = headers.find(name) if name and (name.label or name.file) else None
        if found is None:
            raise
        path = found
    tokens = context or min(_CONTEXT, read_weights(path).trained or _CONTEXT)
    files_by_role = {_ALONE: RoleFiles(path, Placement())}
    return what, loads(files_by_role, tokens, SCORED_ROWS), files_by_role, "auto", tokens, headers.read


class _Headers:
    """The headers of models that are not downloaded; after one that cannot be had, no other is requested.

    read: the models whose headers were read.
    """

    def __init__(self) -> None:
        self.read: list[str] = []
        self._failed = False

    def find(self, name: HubName) -> Path | None:
        """Raises: UsageError, ModelNotFoundError if the hub has no such model."""
        from eft_local.hub.headers import header_of

        if self._failed:
            return None
        if str(name) not in self.read:
            output.note(f"{name} is not downloaded: reading its header from the hub")
        try:
            path = header_of(name)
        except DownloadError as error:
            self._failed = True
            output.note(f"it cannot be had: {error}")
            return None
        self.read = list(dict.fromkeys([*self.read, str(name)]))
        return path


def _numbers(option: str, texts: Sequence[str]) -> dict[str, float]:
    """Read [DEVICE=]GB; a bare number is RAM's, whose device llama.cpp calls CPU."""
    numbers: dict[str, float] = {}
    for text in texts:
        name, _, amount = text.rpartition("=")
        amount = amount.strip().upper().removesuffix("B")
        unit = amount[-1:] if amount[-1:] in _UNITS else ""
        try:
            value = float(amount.removesuffix(unit)) * _UNITS[unit] / 1e9
            if not 0 < value < 1e9:
                raise ValueError
        except ValueError:
            raise UsageError(f"{option} {text}: needs [DEVICE=]GB, as 16 or gpu=24") from None
        device = name.strip()
        numbers["CPU" if device.upper() in ("", "RAM") else device] = value
    return numbers


def _with_memory(devices: Sequence[Device], given: Mapping[str, float]) -> list[Device]:
    """Return the devices with the memory that is given; those that are not there are GPUs."""
    from eft_local.machine.memory import Device

    changed = []
    for device in devices:
        size = int(given[device.name] * 1e9) if device.name in given else None
        changed.append(replace(device, free=size, total=size, limit="as given") if size else device)
    names = {device.name for device in devices}
    for name, value in given.items():
        if name not in names:
            size = int(value * 1e9)
            changed.append(Device(name, "as given", "gpu", size, size, "as given"))
    return changed


def _figures(name: str, plan: Plan, loads: Sequence[Load], speeds: Mapping[str, float]) -> dict[str, Any]:
    """Return all that is reported, ready for JSON: bytes, tokens, bytes per second."""
    from eft_local.backends.llamacpp.library import default_threads
    from eft_local.placement.planner import gpus, kept, longest_context
    from eft_local.placement.shortage import refusal
    from eft_local.placement.speed import REACHED, measured_bandwidth, tokens_per_second

    trained = min((load.estimate.weights.trained for load in loads if load.estimate.weights.trained), default=None)
    bandwidths = dict(speeds)
    measured, cores = "CPU" not in bandwidths, None
    if measured:
        bandwidths["CPU"], cores = measured_bandwidth(default_threads())
    bandwidths |= {
        gpu.name: bandwidths["CPU"] for gpu in gpus(plan.devices) if gpu.shares_ram and gpu.name not in speeds
    }
    bound, bound_when_full = (tokens_per_second(plan, bandwidths, filled) for filled in (0, plan.context))
    return {
        "name": name,
        "context": plan.context,
        "longest_context": longest_context(loads, plan.devices),
        "trained_context": trained,
        "fits": plan.fits,
        "problem": None if plan.fits else refusal(plan),
        "models": [_model_figures(placed, plan) for placed in plan.placed],
        "devices": [
            {
                "name": device.name,
                "kind": device.kind,
                "free": device.free,
                "limit": device.limit,
                "kept": kept(device),
                **asdict(plan.used(device)),
                "used": plan.used(device).total,
            }
            for device in plan.devices
            if device.kind == "cpu" or device in gpus(plan.devices)
        ],
        "speed": {
            "tokens_per_second": None if bound is None else REACHED * bound,
            "when_full": None if bound_when_full is None else REACHED * bound_when_full,
            "at_most": bound,
            "bandwidths": bandwidths,
            "measured": measured,
            "cores": cores and cores.as_dict(),
        },
    }


def _model_figures(placed: Placed, plan: Plan) -> dict[str, Any]:
    from eft_local.placement.planner import gpus

    contexts = placed.load.contexts
    figures = [each.figures(plan.context, placed.on_gpu) for each in contexts]
    per_token = (each.cache / each.cells / context.sequences for each, context in zip(figures, contexts, strict=True))
    total = placed.total
    return {
        "roles": list(placed.load.roles),
        "contexts": [list(each.roles) for each in placed.load.contexts],
        **asdict(total),
        "total": total.total,
        "state": sum(each.state for each in figures),
        "cache_per_1000_tokens": round(1000 * sum(per_token)),
        "layers": placed.load.units - 1,
        "on_gpus": {gpu.name: count for gpu, count in zip(gpus(plan.devices), placed.layers, strict=False) if count},
        "mmap": placed.mmap,
        "devices": {name: asdict(use) for name, use in placed.uses.items()},
    }


# Text


def _text(figures: dict[str, Any]) -> str:
    from eft_local.hub.names import size_text
    from eft_local.machine.memory import ADDRESS_SPACE, CGROUP

    head = ("", "weights", "KV cache", "per 1k tokens", "compute", "other", "place")
    rows = [
        (
            " + ".join(model["roles"]),
            *(size_text(model[key]) for key in ("weights", "cache", "cache_per_1000_tokens", "compute", "other")),
            _place(model),
        )
        for model in figures["models"]
    ]
    table = [head, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(head) - 1)]
    lines = [f"{figures['name']}: {figures['context']} tokens of context for each role"]
    for row in table:
        cells = [f"{row[0]:<{widths[0]}}"]
        cells += [f"{cell:>{width}}" for cell, width in zip(row[1:-1], widths[1:], strict=True)]
        lines.append(f"  {'  '.join(cells)}  {row[-1]}".rstrip())
    for device in figures["devices"]:
        bound = f" by the {device['limit']} limit" if device["limit"] in (CGROUP, ADDRESS_SPACE) else ""
        lines.append(
            f"{_device_name(device['name'])}: {size_text(device['used'])} of {size_text(device['free'])} that are "
            f"free{bound}, {size_text(device['kept'])} of them kept in reserve"
        )
    lines += [_longest(figures), _speed(figures["speed"]), *_exact(figures["exact"])]
    if figures["away"]:
        lines.append(f"planned from headers on the hub: {', '.join(figures['away'])}; eft pull gets the models")
    return "\n".join(lines) + "\n"


def _device_name(name: str) -> str:
    return "RAM" if name == "CPU" else name


def _place(model: dict[str, Any]) -> str:
    """Return where a model's layers go; the output counts as one."""
    units, there = model["layers"] + 1, model["on_gpus"]
    if not there:
        return "RAM, mapped" if model["mmap"] else "RAM"
    if list(there.values()) == [units]:
        return f"{next(iter(there))}, whole"
    parts = [f"{count} of {units} layers on {name}" for name, count in there.items()]
    rest = units - sum(there.values())
    return ", ".join([*parts, *([f"{rest} in RAM"] if rest else [])])


def _longest(figures: dict[str, Any]) -> str:
    longest, trained = figures["longest_context"], figures["trained_context"]
    if not longest:
        return "longest context: none fits"
    whole = trained is not None and longest + 256 > trained
    return f"longest context: {longest} tokens" + (", all that the models were trained with" if whole else "")


def _measured(speed: dict[str, Any]) -> str:
    """Return how RAM's bandwidth was found."""
    cores = speed["cores"]
    if cores and cores["busy"]:
        return f", measured while other programs used {cores['used_by_others']:.1f} of {cores['cores']} cores"
    return ", measured" if speed["measured"] else ""


def _exact(exact: Mapping[str, str]) -> list[str]:
    """Return whether answers are exact: in one line where all roles are alike."""
    if len(set(exact.values())) == 1:
        return [f"exact: {next(iter(exact.values()))}"]
    return [f"exact, {name}: {verdict}" for name, verdict in exact.items()]


def _speed(speed: dict[str, Any]) -> str:
    given = ", ".join(
        f"{_device_name(name)} at {value / 1e9:.0f} GB/s{_measured(speed) if name == 'CPU' else ''}"
        for name, value in speed["bandwidths"].items()
    )
    if speed["tokens_per_second"] is None:
        return f"speed: not known without --bandwidth of every GPU ({given})"
    if speed["tokens_per_second"] > _FAST:
        return f"speed: not limited by memory bandwidth, as the models are so small ({given})"
    likely, full, most = (speed[key] for key in ("tokens_per_second", "when_full", "at_most"))
    return (
        f"speed: some {likely:.1f} tokens/s without drafts, {full:.1f} when the context is full; "
        f"{most:.1f} if reading weights took all the time ({given})"
    )
