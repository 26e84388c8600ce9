"""What the documentation takes from the code: recipe keys, public Python names, the app's keys.

A page holds `<!-- generated: NAME -->` where it wants one of them. What a docstring says of each argument or field is
read by `entries`, for the tables of keys and for the Python reference.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from importlib import import_module
from inspect import cleandoc
from pathlib import Path
from typing import Any

import griffe
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

import eft_local
from eft_local.recipe import About, Expert, Frame, Placement, Prompt, Recipe, Role, Sampling

ROOT = Path(__file__).parent.parent

_NAMES = r"[A-Za-z_]\w*(?: \(TOML key `\w+`\))?(?:, [a-z_]\w*)*"
_ENTRY = re.compile(rf"({_NAMES}): (.*)", re.DOTALL)
_WITHIN_A_LINE = re.compile(r"(?<=[.;]) +(?=[a-z_]\w*(?:, [a-z_]\w*)*: )")


def entries(docstring: str) -> Iterator[tuple[str, str]]:
    """Yield what a docstring says, in order: (names, explanation) of arguments or fields, and ("", text) of the rest.

    An entry begins a line, or follows another one on its line; its further lines are indented.
    """
    for paragraph in re.split(r"\n(?!    )", docstring):
        for part in _WITHIN_A_LINE.split(re.sub(r"\n +", " ", paragraph)):
            entry = _ENTRY.fullmatch(part)
            yield (entry[1], re.sub(r";$", ".", entry[2].strip())) if entry else ("", part)


def as_definitions(docstring: str, types: Mapping[str, str]) -> list[str]:
    """Return a docstring in reStructuredText, with its entries as definitions. types: of a dataclass's fields."""
    lines: list[str] = []
    left = dict(types)
    for names, words in entries(docstring):
        if not names:
            lines.append(words)
        elif names in ("Raises", "Source"):
            lines += ["", f"**{names}**: {words}", ""]
        else:
            each = re.findall(r"\w+", names.split(" (")[0])
            typed = ", ".join(dict.fromkeys(left.pop(name) for name in each if name in left))
            shown = ", ".join(f"``{name}``" for name in each) + (f" : {typed}" if typed else "")
            lines += ["", shown, f"    {words}", ""]
    return [*lines, "", *(f"- ``{name}``: ``{kind}``" for name, kind in left.items())]


def rewrite_docstring(app: Sphinx, kind: str, name: str, item: Any, options: object, lines: list[str]) -> None:
    """Turn what autodoc found into what it shows."""
    if kind != "module":
        types = {each.name: str(each.type) for each in fields(item)} if kind == "class" and is_dataclass(item) else {}
        lines[:] = as_definitions("\n".join(lines), types)


def rewrite_page(app: Sphinx, page: str, source: list[str]) -> None:
    """Put what is generated into its places."""

    def generated(place: re.Match[str]) -> str:
        if place[1] not in GENERATED:
            raise ExtensionError(f"{page}: nothing is generated as {place[1]!r}")
        return GENERATED[place[1]]()

    source[0] = re.sub(r"<!-- generated: (.+?) -->", generated, source[0])


def setup(app: Sphinx) -> None:
    """Connect both with Sphinx."""
    app.connect("autodoc-process-docstring", rewrite_docstring)
    app.connect("source-read", rewrite_page)


# Recipes

_TABLES = ("base", "antiexpert", "experts", "sampling", "about", "compare")


def keys(kind: type, without: Iterable[str] = (), renamed: Mapping[str, str] | None = None) -> str:
    """Return the table of a dataclass's fields as keys of TOML."""
    explained = {
        name: words
        for names, words in entries(cleandoc(str(kind.__doc__)))
        for name in re.findall(r"\w+", names.split(" (")[0])
    }
    rows = []
    for each in fields(kind):
        if each.name in without:
            continue
        if each.name not in explained:
            raise ExtensionError(f"the docstring of {kind.__name__} does not explain {each.name}")
        key = (renamed or {}).get(each.name, each.name)
        rows.append((f"`{key}`", _need(each), _default(each), explained[each.name]))
    return _table(("Key", "Value", "Default", "Meaning"), rows)


def _need(field: Field[Any]) -> str:
    check = field.metadata.get("check")
    return re.sub(r"from (-?\d+) to \d{10,}", r"of at least \1", check.need) if check else "a text"


def _default(field: Field[Any]) -> str:
    value = field.default_factory() if field.default_factory is not MISSING else field.default
    if value is MISSING:
        return "required"
    if value is None or (not isinstance(value, bool | int | float) and not value):
        return "none"
    if isinstance(value, bool | str):
        return f'`"{_escaped(value)}"`' if isinstance(value, str) else f"`{str(value).lower()}`"
    return f"`{value}`" if isinstance(value, int | float) else "see below"


def _escaped(text: str) -> str:
    return text.replace("\n", "\\n")


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# Python


def public_names() -> list[str]:
    """Return the paths of the names of `eft_local`, but for the version."""
    return [f"eft_local.{name}" for name in eft_local.__all__ if not name.startswith("__")]


def mentioned() -> list[griffe.Object]:
    """Return what signatures of public names mention, directly or not, and is neither public itself nor an error."""
    package = griffe.load("eft_local", search_paths=[str(ROOT)], allow_inspection=False)
    waiting = [_found(package, path) for path in public_names()]
    seen = {found.canonical_path: found for found in waiting}
    public = set(seen)
    while waiting:
        for path in _in_signatures(waiting.pop()):
            found = _found(package, path)
            if found.canonical_path not in seen:
                seen[found.canonical_path] = found
                waiting.append(found)
    return [seen[path] for path in sorted(seen.keys() - public) if not path.startswith("eft_local.errors.")]


def _found(package: griffe.Module, path: str) -> griffe.Object:
    found = package[path.removeprefix("eft_local.")]
    return found.final_target if found.is_alias else found


def _in_signatures(found: griffe.Object) -> Iterator[str]:
    """Yield the paths of the package's own things in what is public of a class, or in an alias."""
    if found.is_attribute:
        yield from _paths(found.value)
    for name, member in found.all_members.items() if found.is_class else ():
        if name.startswith("_"):
            continue
        member = member.final_target if member.is_alias else member
        if member.is_attribute:
            yield from _paths(member.annotation)
        elif member.is_function:
            yield from _paths(member.returns)
            for parameter in member.parameters:
                yield from _paths(parameter.annotation)


def _paths(expression: Any) -> Iterator[str]:
    for part in expression.iterate(flat=True) if isinstance(expression, griffe.Expr) else ():
        path = part.canonical_path if isinstance(part, griffe.ExprName) else ""
        if path.startswith("eft_local.") and not path.split(".")[-1].startswith("_"):
            yield path


def _in_rst(directives: Iterable[str]) -> str:
    return "\n\n".join(["```{eval-rst}", *directives, "```"])


def _described(found: griffe.Object) -> str:
    if found.is_class:
        return f".. autoclass:: {found.canonical_path}"
    words = found.docstring.value if found.docstring else ""
    return f".. py:data:: {found.canonical_path}\n   :value: {found.value}\n\n   {words}"


def errors() -> str:
    """Return the tree of errors, and what each one means."""
    module = import_module("eft_local.errors")
    drawn = [line[4:] for line in cleandoc(str(module.__doc__)).splitlines() if line.startswith("    ")]
    kinds = [name for name, kind in vars(module).items() if isinstance(kind, type)]
    return "\n".join(
        ["```text", *drawn, "```", "", _in_rst(f".. autoexception:: eft_local.errors.{name}" for name in kinds)]
    )


# The app


def app_keys() -> str:
    """Return what the app can do, by where its keys work."""
    from eft_local.tui.actions.help import HEADINGS, key_name
    from eft_local.tui.actions.registry import ACTIONS

    blocks = []
    for scope, heading in HEADINGS.items():
        rows = [
            (
                " ".join(f"`{key_name(key)}`" for key in action.keys.split(",") if key),
                f"`/{action.slash} {action.argument}".rstrip() + "`" if action.slash else "",
                action.help,
                f"`{action.id}`",
            )
            for action in ACTIONS
            if action.scope == scope
        ]
        blocks.append(f"## {heading}\n\n" + _table(("Keys", "Command", "What it does", "Id"), rows))
    return "\n\n".join(blocks)


GENERATED: Mapping[str, Callable[[], str]] = {
    "keys of a recipe": lambda: keys(Recipe, without=("placement", "folder", *_TABLES)),
    "keys of placement": lambda: keys(Placement),
    "keys of a role": lambda: keys(Role, without=("prompt", "overrides")),
    "keys of a prompt": lambda: keys(Prompt, renamed={"style": "prompt"}),
    "keys of a frame": lambda: keys(Frame),
    "keys of an expert": lambda: keys(Expert, without=[each.name for each in fields(Role)]),
    "keys of sampling": lambda: keys(Sampling),
    "keys of about": lambda: keys(About),
    "public names": lambda: _in_rst(
        f".. autoclass:: {path}" for path in public_names() if path != "eft_local.EftError"
    ),
    "mentioned names": lambda: _in_rst(map(_described, mentioned())),
    "errors": errors,
    "keys of the app": app_keys,
}
