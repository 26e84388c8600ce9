"""From an empty cache to an answer: a recipe of real models, from a hub that has the demo's in their place."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from eft_local.bench.gguf_zeros import Shape
from eft_local.bench.shapes import Trio
from tests.helpers.hub_server import serving
from tests.helpers.kill_pulls import ANSWER, HOW, Puller, interrupted, noise, repositories

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")

# SmolLM2's proportions (one head in three shares its keys with no other), as small as the demo models allow.
TINY = Trio(
    large=Shape(n_embd=320, n_layer=5, n_head=5, n_head_kv=5, n_ff=768),
    small=Shape(n_embd=192, n_layer=4, n_head=3, n_head_kv=1, n_ff=320),
)


def test_a_recipe_pulled_from_an_empty_cache_answers_when_the_hub_is_gone(tmp_path: Path) -> None:
    repos = repositories("smollm2-laptop", TINY, 6000, tmp_path / "models")
    with serving(repos) as server:
        puller = Puller(tmp_path, server, "smollm2-laptop")
        assert puller.start().wait() == 0
        assert puller.has(repos)
        assert server.sent() == puller.size(), "no byte was sent twice"
    assert puller.ask("--temperature", "0") == f"{ANSWER}\n"


@pytest.mark.parametrize("how", HOW)
def test_a_pull_that_is_interrupted_at_any_moment_continues(tmp_path: Path, how: str) -> None:
    with serving(noise(2_000_000)) as server:
        counted = interrupted(Puller(tmp_path, server, "org/Big:Q4_0"), server, 3, [how], pace=4e6, seed=1)
    assert (counted.whole, counted.went_back) == (True, 0)
