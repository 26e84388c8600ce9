"""The models screen, against a hub on loopback."""

# ruff: noqa: F811 (fixtures of tui_desk come as arguments)

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from textual.widgets import OptionList, ProgressBar, Static

from eft_local.hub import HubName, cache
from eft_local.hub.remote import Hub
from eft_local.tui.screens.dialogs import DecisionScreen
from eft_local.tui.screens.models import ModelsScreen
from tests.helpers.hub_server import Fault, HubServer, Repo, serving
from tests.helpers.tui_desk import Desk, Open, covers, home, opened  # noqa: F401

pytestmark = pytest.mark.asyncio

REPO = "org/Trio-GGUF"
CONTENT = {f"{name}.Q8_0.gguf": random.Random(name).randbytes(300_000) for name in ("large", "small", "tuned")}
RECIPE = f"""description = "Three files."
[base]
model = "{REPO}/large.Q8_0.gguf"
[antiexpert]
model = "{REPO}/small.Q8_0.gguf"
[experts.tuned]
model = "{REPO}/tuned.Q8_0.gguf"
prompt = "plain"
[about]
download_gb = 0.001
"""


@pytest.fixture(autouse=True, scope="module")
def _session() -> Iterator[None]:
    yield
    huggingface_hub.close_session()


@pytest.fixture
def hub(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    (home / "recipes").mkdir(parents=True)
    (home / "recipes" / "three.toml").write_text(RECIPE)
    with serving({REPO: Repo([dict(CONTENT)])}) as server:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(Hub, "configured", lambda: Hub(server.url, tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server


async def shown(desk: Desk, title: str) -> ModelsScreen:
    """Wait for the models screen and choose an entry."""
    screen = desk.app.screen
    assert isinstance(screen, ModelsScreen)
    await desk.until(lambda: screen.entries)
    screen.choose(title)
    assert screen.chosen.title == title
    return screen


def text(screen: ModelsScreen, part: str) -> str:
    return str(screen.query_one(f"#{part}", Static).content)


def here() -> list[str]:
    return [model.reference for model in cache.installed()]


@covers("models.open", "models.pull", "models.use")
async def test_a_recipe_is_pulled_and_used(opened: Open, hub: HubServer) -> None:
    async with opened() as desk:
        await desk.press("f9")
        screen = await shown(desk, "three")
        assert screen.chosen.details == "3 of 3 models to pull, about 0.001 GB in all · Three files."
        await desk.press("enter")
        assert "p pulls it" in text(screen, "notice")
        await desk.press("p")
        await desk.until(lambda: screen.chosen.details.startswith("here"))
        assert text(screen, "models-pull") == "three: complete and verified"
        assert "900.0 kB of models" in text(screen, "models-disk")
        assert here() == [f"{REPO}/{name}" for name in sorted(CONTENT)]
        await desk.press("p")
        assert "already downloaded" in text(screen, "notice")
        await desk.press("enter")
        await desk.until(lambda: len(desk.emulators) == 2)
        await desk.idle()
        assert desk.emulator.recipe.name == "three"
        assert desk.app.screen is not screen


@covers("models.get", "models.stop")
async def test_a_download_shows_progress_stops_and_continues(opened: Open, hub: HubServer) -> None:
    hub.always = Fault(piece=2048, delay=0.1)
    async with opened() as desk:
        await desk.send(f"/pull {REPO}/large.Q8_0.gguf")
        screen = await shown(desk, "demo")
        bar = screen.query_one(ProgressBar)
        await desk.until(lambda: bar.display and 0 < bar.progress < 1)
        assert "of 300.0 kB" in text(screen, "models-pull")
        await desk.press("x")
        await desk.until(lambda: not desk.app.puller.busy)
        await desk.until(lambda: not bar.display)
        assert here() == []
        sent = hub.sent()
        hub.always = Fault()
        await desk.press("escape")
        assert desk.app.screen is not screen
        await desk.send(f"/pull {REPO}/large.Q8_0.gguf")
        await desk.until(lambda: not desk.app.puller.busy)
        assert here() == [f"{REPO}:Q8_0"]
        assert hub.sent() - sent < 300_000
        await desk.press("escape")
        await desk.send("/pull nonsense")
        assert "nearest" in desk.notice
        await desk.send("/models")
        await desk.press("x")
        assert "nothing is being pulled" in text(desk.app.screen, "notice")


@covers("models.remove")
async def test_files_are_removed_after_asking(opened: Open, hub: HubServer) -> None:
    from eft_local.hub.pull import pull

    name = HubName.parse(f"{REPO}/small.Q8_0.gguf")
    assert name is not None
    pull([name])
    async with opened() as desk:
        await desk.press("f9")
        screen = await shown(desk, f"{REPO}:Q8_0")
        assert screen.chosen.details == "300.0 kB · three"
        await desk.press("enter")
        assert "only recipes" in text(screen, "notice")
        await desk.press("d")
        assert isinstance(desk.app.screen, DecisionScreen)
        await desk.press("escape")
        assert here()
        await desk.press("d")
        options = desk.app.screen.query_one(OptionList)
        assert "300.0 kB" in str(options.get_option_at_index(0).prompt)
        await desk.press("enter")
        await desk.until(lambda: not here())
        await desk.until(lambda: "free again" in text(screen, "notice"))
        screen.choose("demo")
        await desk.press("d")
        assert "has no files" in text(screen, "notice")


async def test_a_hub_that_fails_is_reported(opened: Open, hub: HubServer) -> None:
    hub.repos[REPO].gated = True
    async with opened() as desk:
        await desk.send("/pull three")
        screen = await shown(desk, "three")
        await desk.until(lambda: not desk.app.puller.busy)
        await desk.until(lambda: "HF_TOKEN" in text(screen, "models-pull"))
