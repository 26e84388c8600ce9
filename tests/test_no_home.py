"""A user without a home folder: what needs none works, and what needs one says which variable to set."""

# ruff: noqa: F811 (fixtures of test_cli come as arguments)

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from eft_local import locations
from eft_local.chats import History
from eft_local.chats.presets import Presets
from eft_local.errors import HistoryError, UsageError
from eft_local.hub.references import find_recipe, recipe_names, resolve_model
from eft_local.tui import config
from eft_local.tui.inventory import inventory
from tests.cli.test_commands import Run, emulators, home, run  # noqa: F401
from tests.cli.test_processes import needs_demo

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a home without an entry is POSIX")

VARIABLES = ("HOME", "EFT_HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
NO_HOME = "there is no home folder (HOME is not set, and the user has no entry)"
NOBODY = "import pwd; pwd.getpwuid = lambda uid: {}[uid]; from eft_local.cli import main; main()"


def homeless() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in VARIABLES and not key.startswith("XDG_")}


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    def no_entry(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in set(os.environ) - set(homeless()):
        monkeypatch.delenv(name)
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "~/.cache/huggingface/hub")


def eft(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", NOBODY, *arguments],
        env=homeless() | variables,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


@needs_demo
def test_the_demo_answers_without_a_home(tmp_path: Path) -> None:
    ran = eft(tmp_path, "ask", "-t", "0", "What is the capital of Peru?")
    assert (ran.returncode, ran.stdout) == (0, "The capital of Peru is Lima.\n")
    assert ran.stderr == f"what is measured here cannot be kept: {NO_HOME}; set EFT_HOME to a folder for it\n"
    assert not list(tmp_path.iterdir()), "a folder named ~ would be one"
    ran = eft(tmp_path, "ask", "-t", "0", "What is the capital of Peru?", EFT_HOME=str(tmp_path / "kept"))
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "The capital of Peru is Lima.\n", "")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize("command", ["ls", "pull org/repo:Q4_0"])
def test_the_shared_cache_needs_a_home_or_its_own_variable(tmp_path: Path, command: str) -> None:
    ran = eft(tmp_path, *command.split(), EFT_HOME=str(tmp_path))
    assert (ran.returncode, ran.stderr) == (2, f"eft: {NO_HOME}; set HF_HOME to a folder for models\n")
    ran = eft(tmp_path, "ls", HF_HOME=str(tmp_path))
    assert (ran.returncode, ran.stdout) == (0, "")


@pytest.mark.usefixtures("nobody")
def test_there_are_no_places_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = (locations.recipes, locations.models, locations.chats, locations.cache)
    assert [place() for place in places] == [None] * 4
    with pytest.raises(UsageError, match="set EFT_HOME to a folder"):
        locations.needed(locations.recipes())
    assert locations.cached("x") is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert locations.cached("x") == tmp_path / "eft-local" / "cache" / "x"
    monkeypatch.setenv("EFT_HOME", str(tmp_path))
    assert [place() for place in places] == [tmp_path / place.__name__ for place in places]


@pytest.mark.usefixtures("nobody")
def test_what_needs_no_home_works(run: Run, tmp_path: Path) -> None:
    assert "demo" in recipe_names()
    assert resolve_model("demo:base", None).is_file()
    file = tmp_path / "mine.gguf"
    file.touch()
    assert resolve_model(str(file), None) == file
    assert find_recipe("demo").name == "demo"
    assert config.load() == config.Config()
    assert Presets().of(find_recipe("demo")) == {}
    with History() as history:
        assert history.chats() == []
    for command in ("recipes", "doctor", "show demo", "history", "history --json", "recipes show demo"):
        ran = run(*command.split())
        assert (ran.code, ran.err.partition(":")[0] == "eft") == (0, False), command
    assert "cache: none, as there is no home folder; set EFT_HOME" in run("doctor").out
    assert run("ask", "~/notes").code == 0


@pytest.mark.usefixtures("nobody")
def test_what_cannot_be_kept_names_the_variable(run: Run, tmp_path: Path) -> None:
    with History() as history, pytest.raises(HistoryError, match=r"chats cannot be saved: .* set EFT_HOME"):
        history.create(find_recipe("demo"))
    with pytest.raises(UsageError, match="set EFT_HOME"):
        Presets().save(find_recipe("demo"), "mine")
    ran = run("chat", "--plain", "--save", stdin=b"one\ntwo\n")
    assert (ran.code, ran.out) == (0, "eft answers one\neft answers two\n")
    assert [line for line in ran.err.splitlines() if "EFT_HOME" in line][1:] == [
        f"eft: chats cannot be saved: {NO_HOME}; set EFT_HOME to a folder for them; this chat continues unsaved"
    ]
    assert "set EFT_HOME" in run("recipes", "new", "x", "--base", "a", "--antiexpert", "b", "--expert", "c").err
    listed = inventory()
    assert "set HF_HOME" in listed.disk
    assert "demo" in [entry.title for entry in listed.entries]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "reported"),
    [("~nobody-of-that-name/x", "there is no such user's home; give a whole path"), (__file__, "is not a folder")],
)
def test_a_home_of_its_own_that_can_be_no_folder_is_reported(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, reported: str
) -> None:
    monkeypatch.setenv("EFT_HOME", value)
    for command in ("ask hello", "recipes", "chat --plain"):
        ran = run(*command.split(), stdin=b"hello")
        assert (ran.code, ran.err.count("\n")) == (2, 1)
        assert ran.err.startswith("eft: EFT_HOME=")
        assert reported in ran.err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFT_HOME", f"{__file__}/home")
    ran = run("ask", "hello")
    assert (ran.code, ran.out) == (0, "eft answers hello\n")
    reported = f"what is measured here cannot be kept: {__file__}/home/cache cannot be written to; set EFT_HOME to"
    assert ran.err.startswith(reported)
