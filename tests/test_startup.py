"""What starting costs: a face or a library user who needs no model loads no engine."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("llama_cpp", "llguidance", "textual", "huggingface_hub")


def loaded_by(code: str) -> set[str]:
    """Return the modules that a fresh interpreter has after running some code."""
    program = f"import sys\n{code}\nprint('\\n'.join(sys.modules), file=sys.stderr)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return set(ran.stderr.split())


CALL = "from eft_local.cli import main\ntry:\n    main({!r})\nexcept SystemExit:\n    pass"


@pytest.mark.parametrize(
    "code",
    [
        "import eft_local",
        CALL.format(["--help"]),
        CALL.format(["ask", "--help"]),
        CALL.format(["eval", "--help"]),
    ],
)
def test_starting_loads_no_engine(code: str) -> None:
    modules = loaded_by(code)
    assert "eft_local" in modules
    assert not modules & set(HEAVY)


@pytest.mark.parametrize("module", ["eft_local.chats.session", "eft_local.tui.launch"])
def test_the_engine_is_loaded_when_there_is_something_to_write(module: str) -> None:
    modules = loaded_by(f"import {module}")
    assert not {"llama_cpp", "llguidance", "huggingface_hub", "eft_local.emulator"} & modules
    assert ("textual" in modules) == (module == "eft_local.tui.launch")


def test_recipes_are_listed_without_an_engine() -> None:
    """Whether their models are here, the hub's library knows where to look."""
    assert not loaded_by(CALL.format(["recipes"])) & {"llama_cpp", "textual"}


def test_a_file_is_shown_without_an_engine(ggufs) -> None:
    modules = loaded_by(CALL.format(["show", str(ggufs / "base.gguf"), "--json"]))
    assert "eft_local.gguf.metadata" in modules
    assert not {"llama_cpp", "eft_local.backends.llamacpp"} & modules


def test_the_help_of_the_group_imports_no_command() -> None:
    modules = loaded_by(CALL.format(["--help"]))
    assert not {"numpy", "rich", "eft_local.cli.ask", "eft_local.recipe"} & modules


def test_public_names_are_found_on_first_use() -> None:
    modules = loaded_by("import eft_local\nfor name in eft_local.__all__: getattr(eft_local, name)")
    assert {"eft_local.emulator", "eft_local.recipe"} <= modules
