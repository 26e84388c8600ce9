"""`eft pull`: models from the hub."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from eft_local.cli import output, progress
from eft_local.cli.options import Command, example
from eft_local.errors import Cancelled, UsageError
from eft_local.hub.names import HubName, size_text
from eft_local.hub.pace import Pace
from eft_local.hub.pace import progress as pace_text
from eft_local.hub.references import find_recipe, hub_name, hub_names, names_recipe

if TYPE_CHECKING:
    from eft_local.hub.pull import Event, Pulled, Report

_EVERY = 0.25  # seconds between two lines of --json about one file
_PLAIN_EVERY = 10.0  # the same where no bar can be drawn


@click.command(
    cls=Command,
    epilog=example("eft pull qwen3-laptop", "eft pull Qwen/Qwen3-0.6B-GGUF:Q8_0", "eft pull ORG/REPO/FILE.gguf@main"),
)
@click.argument("what", metavar="RECIPE|REF...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print what happens as JSON, one object on each line.")
def pull(what: tuple[str, ...], as_json: bool) -> None:
    """Download the models of a RECIPE, or single ones: ORG/REPO:Q4_K_M, ORG/REPO/FILE.gguf, with @REVISION if wanted;
    hf.co/ORG/REPO:Q4_K_M and addresses of pages on the hub are understood too.

    They go into the Hugging Face cache, which other programs share, and are verified against the hub's checksums.
    A download that stopped (Ctrl+C, no network, a full disk) continues where it stopped when the command is run again.

    \b
    HF_TOKEN        for gated and private repositories (or `hf auth login`)
    HF_HOME         where the cache is, e.g. on a larger disk
    HF_ENDPOINT     a mirror
    HTTPS_PROXY     a proxy
    """
    names = [name for each in what for name in _names(each)]
    if not names:
        output.note("nothing to download: these models are already downloaded")
        return
    from eft_local.hub.pull import pull as download

    with _reporting(as_json) as report:
        try:
            pulled = download(names, report=report)
        except KeyboardInterrupt:
            raise Cancelled("stopped; the same command continues where it stopped") from None
    _write(pulled, as_json)


def _names(what: str) -> list[HubName]:
    """Return the models on the hub that an argument means. Raises: UsageError, RecipeError."""
    if names_recipe(what):
        return list(hub_names(find_recipe(what)).values())
    name = hub_name(what, None)
    if name is not None:
        return [name]
    if HubName.parse(what):
        return []  # a file here
    if "/" not in what and ":" not in what:
        find_recipe(what)  # raises, naming the nearest recipe
    raise UsageError(f"{what} names neither a recipe nor a model on the hub, such as ORG/REPO:Q4_K_M")


def _write(pulled: Sequence[Pulled], as_json: bool) -> None:
    if as_json:
        models = [{"reference": str(each.name), "path": str(each.path), "size": each.size} for each in pulled]
        _write_line({"event": "result", "models": models})
        return
    for each in pulled:
        output.write(f"{each.name}  {size_text(each.size)}  {each.path}\n")


@contextmanager
def _reporting(as_json: bool) -> Iterator[Report]:
    """Yield the reporter of progress: JSON lines on stdout, bars on a terminal, or a line on stderr now and then."""
    if as_json:
        yield _json_lines()
    elif sys.stderr.isatty():
        with _bars() as report:
            yield report
    else:
        yield _plain_lines()


def _json_lines() -> Report:
    pace, last = Pace(), 0.0

    def report(event: Event) -> None:
        nonlocal last
        if event.kind == "progress":
            pace.add(event.all_done)
            if time.monotonic() - last < _EVERY and event.done < event.size:
                return
            last = time.monotonic()
        line: dict[str, Any] = {
            "event": event.kind,
            "file": event.file or None,
            "done": event.done,
            "size": event.size,
            "all_done": event.all_done,
            "all_size": event.all_size,
        }
        if event.kind == "progress":
            line["bytes_per_second"] = pace.bytes_per_second
            line["seconds_left"] = pace.seconds_left(event.all_size - event.all_done)
        if event.kind == "said":
            line |= {"text": event.text, "seconds": event.seconds}
        _write_line(line)

    return report


def _write_line(line: dict[str, Any]) -> None:
    output.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
    output.flush()


def _plain_lines() -> Report:
    pace, last = Pace(), time.monotonic()
    begun: set[str] = set()

    def report(event: Event) -> None:
        nonlocal last
        if event.kind == "plan":
            output.note(_planned(event))
        elif event.kind == "said":
            output.note(_said(event))
        elif event.kind == "done":
            output.note(_ended(event, event.file in begun))
        elif event.kind == "progress":
            begun.add(event.file)
            pace.add(event.all_done)
            if time.monotonic() - last >= _PLAIN_EVERY:
                last = time.monotonic()
                output.note(pace_text(event, pace))

    return report


def _planned(event: Event) -> str:
    if event.all_done == event.all_size:
        return f"{size_text(event.all_size)}, all of it already downloaded"
    here = f"; {size_text(event.all_done)} of {size_text(event.all_size)} are downloaded" if event.all_done else ""
    return f"{size_text(event.all_size - event.all_done)} to download{here}"


def _said(event: Event) -> str:
    return event.text + (f"; trying again in {event.seconds:.0f} s" if event.seconds >= 0.5 else "")


def _ended(event: Event, begun: bool) -> str:
    return f"{event.file}: {'complete and verified' if begun else 'already downloaded'}"


@contextmanager
def _bars() -> Iterator[Report]:
    """Draw a bar for the file that is being downloaded and one for all of them."""
    from rich.text import Text

    with progress.bars("bytes") as bars:
        whole = bars.add_task("all", total=None)
        tasks: dict[str, Any] = {}

        def report(event: Event) -> None:
            if event.kind == "plan":
                bars.console.print(Text(_planned(event)))
                bars.reset(whole, total=event.all_size)
            elif event.kind == "said":
                bars.console.print(Text(_said(event)))
            elif event.kind == "done":
                bars.console.print(Text(_ended(event, event.file in tasks)))
                if event.file in tasks:
                    bars.remove_task(tasks.pop(event.file))
            else:
                name = event.file.rpartition("/")[2]
                if event.file not in tasks:
                    tasks[event.file] = bars.add_task(name[-40:], total=event.size, completed=event.done)
                bars.update(tasks[event.file], completed=event.done)
            bars.update(whole, completed=event.all_done)

        yield report
