"""What documents say is so: the README's Python runs, its recipe parses; commands, modules, files and targets exist."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from eft_local.cli.app import COMMANDS
from eft_local.recipe import Recipe

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "bench/README.md", "bench/RESULTS.md", "models/demo/README.md"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_python_example_runs() -> None:
    (example,) = blocks("python")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(example, "README.md", "exec"), {})
    lines = printed.getvalue().splitlines()
    assert "Lima" in lines[0]
    assert any("base rank" in line for line in lines)
    assert "yen" in lines[-1]
    assert "Fe" in lines[-1]


def test_the_recipe_parses() -> None:
    whole, further_experts = blocks("toml")
    assert Recipe.from_text(whole).experts["helpful"].prompt.template_args == {"enable_thinking": False}
    recipe = Recipe.from_text(whole + further_experts)
    assert list(recipe.experts) == ["helpful", "adapted", "shown"]
    assert recipe.experts["adapted"].lora == "adapter.gguf"


@pytest.mark.parametrize("line", re.findall(r"^    (eft .*?)(?:  +#.*)?$", README, re.MULTILINE))
def test_the_commands_exist(line: str) -> None:
    command, *options = [word for word in shlex.split(line)[1:] if not word[0].isupper()]
    assert command in COMMANDS
    module, _ = COMMANDS[command]
    expected = {opt for param in getattr(import_module(f"eft_local.cli.{module}"), module).params for opt in param.opts}
    assert {option for option in options if option.startswith("--")} <= expected


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_names_exists(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    folder = (ROOT / document).parent
    for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", text):
        assert (folder / link).exists(), link
    for path in re.findall(r"`((?:\.ci|\.github|bench|docs|eft_local|examples|models|tests|tui)/[\w./-]*)`", text):
        assert (ROOT / path).exists() or "NAME" in path, path
    for module in re.findall(r"python -m (eft_local[\w.]*\w)", text):
        assert find_spec(module), module
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^    make (\w[\w-]*)|`make (\w[\w-]*)`", text, re.MULTILINE):
        assert re.search(rf"^{''.join(target)}:", makefile, re.MULTILINE), target
    for file, test in re.findall(r"pytest (tests/[\w/]+\.py)(?:::(\w+))?", text):
        assert not test or f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), test
        assert (ROOT / file).exists(), file
