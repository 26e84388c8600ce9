"""What is installed: every package with its data, but not studies and training, nor what needs them."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

from eft_local import __version__

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]
MOVED = SETUPTOOLS["package-dir"]
NOT_INSTALLED = {"eft_local.bench.studies", "eft_local.models.demo.training"}
NOT_DATA = {".py", ".pyc", ".c", ".so", ".pyd", ".sh"}
DOCUMENTS = {"bench/README.md", "bench/RESULTS.md"}


def folder(package: str) -> Path:
    """Return a package's folder in the repository; some stand at its top."""
    for moved, place in MOVED.items():
        if package == moved or package.startswith(f"{moved}."):
            return ROOT.joinpath(place, *package.removeprefix(moved).split("."))
    return ROOT.joinpath(*package.split("."))


def packages_below(package: str) -> set[str]:
    top = folder(package)
    found = {path.parent.relative_to(top) for path in top.rglob("__init__.py")}
    return {".".join([package, *below.parts]) for below in found}


def imported(file: Path) -> set[str]:
    """Return every name that a file imports, wherever it does."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_every_package_is_installed_or_left_out_on_purpose() -> None:
    found = packages_below("eft_local").union(*map(packages_below, MOVED))
    assert set(SETUPTOOLS["packages"]) == found - NOT_INSTALLED
    assert found >= NOT_INSTALLED


@pytest.mark.parametrize("package", SETUPTOOLS["packages"])
def test_the_data_of_a_package_are_installed(package: str) -> None:
    place = folder(package)
    patterns = SETUPTOOLS["package-data"].get(package, [])
    listed = {file for pattern in patterns for file in place.glob(pattern)}
    assert all(any(place.glob(pattern)) for pattern in patterns), "a pattern without a file"
    data = {file for file in place.iterdir() if file.is_file() and file.suffix not in NOT_DATA}
    assert {file.relative_to(ROOT).as_posix() for file in data - listed} <= DOCUMENTS


@pytest.mark.parametrize("package", SETUPTOOLS["packages"])
def test_what_is_installed_needs_nothing_that_is_not(package: str) -> None:
    for file in folder(package).glob("*.py"):
        assert not imported(file) & NOT_INSTALLED, file
        assert not any(name.startswith(f"{left}.") for name in imported(file) for left in NOT_INSTALLED), file


def test_the_command_of_every_study_is_documented() -> None:
    readme = (ROOT / "bench" / "README.md").read_text(encoding="utf-8")
    studies = [file for file in (ROOT / "bench" / "studies").glob("*.py") if "__main__" in file.read_text("utf-8")]
    assert {file.stem for file in studies} >= {"step", "exactness"}
    assert not [
        file.stem for file in studies if f"bench.studies.{file.stem}" not in readme and file.stem != "proxy_tuning"
    ]


def test_the_changelog_names_this_version() -> None:
    versions = re.findall(
        r"^## \[(\d.*)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE
    )
    assert versions[0] == __version__
