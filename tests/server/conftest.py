"""A running `eft serve`, once for all tests."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from eft_local.emulator import Emulator
from eft_local.hub.references import find_recipe
from eft_local.recipe import Recipe
from eft_local.server.service import Service
from eft_local.server.settings import Settings

KEY = "a key of the tests"

HERMES = (
    "{% if tools %}<|system|>Functions: <tools>{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}</tools> "
    'Call one as <tool_call>\n{"name": ..., "arguments": ...}\n</tool_call>{% endif %}'
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}<|assistant|>"
)


@dataclass(frozen=True)
class Served:
    """A running server."""

    url: str
    process: subprocess.Popen[str]

    def openai(self, **options: Any) -> OpenAI:
        return OpenAI(**{"base_url": f"{self.url}/v1", "api_key": KEY, "max_retries": 0, "timeout": 60} | options)

    def http(self, **options: Any) -> httpx.Client:
        headers = {"authorization": f"Bearer {KEY}"}
        return httpx.Client(**{"base_url": self.url, "headers": headers, "timeout": 60} | options)

    def metric(self, name: str) -> float:
        """The sum of a figure's lines."""
        with self.http() as client:
            lines = client.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


@contextmanager
def serving(folder: Path, *arguments: str, **environment: str) -> Iterator[Served]:
    """Run `eft serve`, with its address once it has loaded."""
    command = [sys.executable, "-m", "eft_local", "serve", "--port", "0", *arguments]
    errors = (folder / "stderr").open("w")
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ | {"EFT_API_KEY": KEY} | environment
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, (folder / "stderr").read_text()
        yield Served(address.removesuffix("/v1"), process)
    finally:
        process.terminate()
        process.wait(30)
        errors.close()
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """The demo with one thread: more of them wait for each other on a busy machine."""
    return find_recipe("demo").replace(threads=1)


@pytest.fixture(scope="session")
def recipes(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Recipe files: the demo, and one whose expert's template knows tools."""
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "hermes.jinja").write_text(HERMES)
    text = recipe.to_toml()
    (folder / "demo.toml").write_text(text)
    named = text.replace('name = "demo"', 'name = "tools"').replace("context = 512", "context = 1024")
    (folder / "tools.toml").write_text(named.replace('prompt = "chat"\nalpha', 'prompt = "hermes.jinja"\nalpha'))
    return {"demo": folder / "demo.toml", "tools": folder / "tools.toml"}


@pytest.fixture(scope="session")
def served(recipes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of the demo and of the recipe with tools, with a key."""
    files = [part for file in recipes.values() for part in ("-r", str(file))]
    with serving(tmp_path_factory.mktemp("served"), *files, "--parallel", "4", "--patience", "3") as running:
        yield running


@pytest.fixture(scope="session")
def client(served: Served) -> Iterator[OpenAI]:
    """The `openai` package, without retries."""
    with served.openai() as openai:
        yield openai


@pytest.fixture(scope="session")
def service(recipe: Recipe) -> Iterator[Service]:
    """The demo in this process, loaded, for two answers at a time and one that waits."""
    loaded = Service([recipe], Settings(parallel=2, queue=1, patience=5))
    loaded.load()
    yield loaded
    loaded.close()


@pytest.fixture(scope="session")
def alone(recipe: Recipe) -> Iterator[Emulator]:
    """The demo in this process: what answers must be."""
    with Emulator.load(recipe) as emulator:
        yield emulator


def until(condition: Callable[[], object]) -> None:
    """Wait for a condition, as long as it may take."""
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it never became so")
