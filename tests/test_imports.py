"""Which module needs which: no circles, imports inside functions and for types alone included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

import eft_local.tui


@cache
def modules() -> dict[str, Path]:
    """Every module by its name; a package is its `__init__`."""
    names = {}
    for package in (eft_local, eft_local.tui):  # a checkout has tui beside eft_local
        folder = Path(package.__path__[0])
        for path in folder.rglob("*.py"):
            parts = (package.__name__, *path.relative_to(folder).with_suffix("").parts)
            names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imported(name: str) -> Iterator[str]:
    """Yield the modules that one names anywhere in its code."""
    path = modules()[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules())
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                below = f"{source}.{alias.name}"
                if below in modules():
                    yield below
                elif source in modules():
                    yield source


@pytest.mark.parametrize("package", ["tui", "chats", "analysis", "cli", "evals", "hub", "recipe", "gguf"])
def test_no_module_of_a_package_needs_itself(package: str) -> None:
    inside = [name for name in modules() if f"{name}.".startswith(f"eft_local.{package}.")]
    assert len(inside) > (30 if package == "tui" else 2)
    graph = {name: {other for other in imported(name) if other in inside and other != name} for name in inside}
    if package != "tui":  # a package that gathers what it exports names its modules; they may name it
        graph.pop(f"eft_local.{package}")
        graph = {name: others - {f"eft_local.{package}"} for name, others in graph.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))
