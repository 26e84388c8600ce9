"""The `llm` command: with its own OpenAI client on our server, and with our plugin."""

from __future__ import annotations

import tomllib
from pathlib import Path

import llm
import pytest
from click.testing import CliRunner, Result
from llm.cli import cli
from llm.plugins import pm

from eft_local import llm_plugin
from eft_local.emulator import Emulator
from tests.server.conftest import KEY, Served

ROOT = Path(__file__).parent.parent.parent
QUESTION = "What is the capital of Peru?"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(cli, arguments, catch_exceptions=False)

    return invoke


@pytest.fixture
def plugin() -> object:
    installed = pm.is_registered(llm_plugin)  # by its entry point; a checkout may lie beside an older installation
    if not installed:
        pm.register(llm_plugin)
    yield
    if not installed:
        pm.unregister(llm_plugin)


def test_its_openai_client_is_answered(run: object, served: Served, alone: Emulator) -> None:
    ran = run("openai", "endpoint", f"{served.url}/v1", QUESTION, "-m", "demo", "--key", KEY)  # type: ignore[operator]
    assert ran.exit_code == 0, ran.output
    assert ran.output.strip() == alone.chat(QUESTION).text
    listed = run("openai", "endpoint", f"{served.url}/v1", "--models", "--key", KEY)  # type: ignore[operator]
    assert "demo:base" in listed.output


def test_the_plugin_answers_and_continues(run: object, plugin: object, alone: Emulator) -> None:
    ran = run("-m", "eft/demo", QUESTION)  # type: ignore[operator]
    assert ran.exit_code == 0, ran.output
    assert ran.output.strip() == alone.chat(QUESTION).text
    conversation = llm.get_model("eft/demo").conversation()
    first = conversation.prompt(QUESTION, max_tokens=4, target="base").text()
    assert first == alone.chat(QUESTION, target="base", max_tokens=4).text
    turns = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "And of Chile?"},
    ]
    assert conversation.prompt("And of Chile?").text() == alone.chat(turns).text
    with pytest.raises(llm.ModelError, match="nobody"):
        llm.get_model("eft/demo").prompt(QUESTION, target="nobody").text()


def test_the_plugin_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["llm"] == {"eft": llm_plugin.__name__}
