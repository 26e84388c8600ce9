"""The command line on recipes whose experts are adapters or prompts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from eft_local.bench.studies.gguf_factory import write_adapter
from eft_local.hub.references import adapter_of, hub_names, resolve_model
from eft_local.recipe import Prompt, Recipe

EFT = [sys.executable, "-c", "from eft_local.cli import main; main()"]
DEMO = ("--base", "demo:base", "--antiexpert", "demo:small", "--prompt", "plain")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    write_adapter(tmp_path / "lora.gguf", resolve_model("demo:small", None), rank=2, alpha=4.0)
    return tmp_path


def eft(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "EFT_HOME": str(home), "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [*EFT, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=home,
    )


def test_a_recipe_with_an_adapter_from_new_to_an_answer(home: Path) -> None:
    made = eft("recipes", "new", "mine", *DEMO, "--lora", "lora.gguf", "--alpha", "-0.5", home=home)
    assert (made.returncode, made.stdout) == (0, f"{home / 'recipes' / 'mine.toml'}\n")
    recipe = Recipe.from_toml(home / "recipes" / "mine.toml")
    expert = recipe.experts["helpful"]
    assert (expert.model, expert.lora, expert.alpha) == ("@antiexpert", str(home / "lora.gguf"), -0.5)
    lines = [line.split() for line in eft("show", "mine", home=home).stdout.splitlines()]
    assert ["experts.helpful", "demo:small", "prompt", "plain", *"the weights of antiexpert".split()] in lines
    assert ["lora", str(home / "lora.gguf"), "downloaded,", "19.4", "kB"] in lines
    rows = json.loads(eft("show", "--json", "mine", home=home).stdout)["roles"]
    assert [row["lora"] and row["lora"]["path"] for row in rows] == [None, None, str(home / "lora.gguf")]
    compared = eft("compare", "-r", "mine", "--targets", "antiexpert,expert,eft", "-n", "4", "--json", "x", home=home)
    assert set(json.loads(compared.stdout)["targets"]) == {"antiexpert", "expert", "eft"}
    pushed = eft("ask", "-r", "mine", "--alpha", "-2", "-n", "4", "--json", "x", home=home)
    assert pushed.returncode == 0, pushed.stderr


def test_a_recipe_with_prompts_from_new(home: Path) -> None:
    made = eft(
        "recipes", "new", "mine", "--base", "demo:base", "--antiexpert", "@base", "--expert", "told=@base",
        "--lora", f"tuned={home / 'lora.gguf'}", "--prompt", "few-shot", "--instructions", "Be brief.",
        "--example", "a?", "b.", "--example", "c?", "d.", "--no-check", "--context", "512", home=home,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    recipe = Recipe.from_toml(home / "recipes" / "mine.toml")
    assert [role.model for _, role in recipe.named_roles()] == ["demo:base"] * 4
    shots = Prompt("few-shot", instructions="Be brief.", examples=(("a?", "b."), ("c?", "d.")))
    assert {name: (each.model, each.prompt) for name, each in recipe.experts.items()} == {
        "told": ("@base", shots),
        "tuned": ("@antiexpert", shots),
    }
    assert recipe.alphas == {"told": 0.5, "tuned": 1}, "at 1 the base that is told would answer alone"
    refused = eft("ask", "-r", "mine", "x", home=home)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1), refused.stderr
    assert (
        "lora.gguf is not a usable LoRA adapter for base.gguf: its matrices for 'blk.0.attn_q.weight'" in refused.stderr
    )


@pytest.mark.parametrize(
    ("options", "code", "reported"),
    [
        (("--lora", "demo:cautious"), 1, "is a model, not a LoRA adapter"),
        (("--lora", "nowhere.gguf"), 3, "nowhere.gguf"),
        (("--lora", "org/Adapter:F16"), 3, "get it with: eft pull org/Adapter:F16"),
        (("--antiexpert", "demo:base-tuned", "--lora", "lora.gguf"), 1, "do not fit its shape (256, 256)"),
        (("--expert", "lora.gguf"), 1, "is an adapter, not a model"),
        (("--expert", "@anti"), 2, 'the nearest one is "@antiexpert"'),
        (("--expert", "@base", "--example", "a", "b"), 2, "examples needs"),
    ],
)
def test_experts_that_cannot_be(home: Path, options: tuple[str, ...], code: int, reported: str) -> None:
    ran = eft("recipes", "new", "mine", *DEMO, *options, home=home)
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (code, "", 1)
    assert reported in ran.stderr


def test_show_reports_what_an_adapter_is_for(home: Path) -> None:
    lines = dict(line.split("  ", 1) for line in eft("show", "lora.gguf", home=home).stdout.splitlines())
    entry = {key: value.strip() for key, value in lines.items()}
    assert entry["kind"] == "LoRA adapter for llama models"
    assert entry["made for"] == "eft-local demo small"
    assert (entry["rank"], entry["scale"]) == ("2", "2 (alpha 4 / rank)")
    assert entry["changes"].startswith("attn_q (3), attn_k (3)")
    lora = json.loads(eft("show", "--json", "lora.gguf", home=home).stdout)["lora"]
    assert (lora["alpha"], lora["ranks"], lora["weights"]["ffn_up"]) == (4.0, [2, 2], 3)


def test_adapters_are_named_and_pulled_as_models_are(home: Path) -> None:
    text = """
        [base]
        model = "demo:base"
        [antiexpert]
        model = "demo:small"
        [experts.here]
        model = "@antiexpert"
        lora = "lora.gguf"
        [experts.there]
        model = "org/Small:Q8_0"
        lora = "org/Adapter/lora-f16.gguf@main"
    """
    recipe = Recipe.from_text(text, home)
    assert {place: str(name) for place, name in hub_names(recipe).items()} == {
        "experts.there": "org/Small:Q8_0",
        "experts.there.lora": "org/Adapter/lora-f16.gguf@main",
    }
    roles = dict(recipe.named_roles())
    assert adapter_of(recipe, roles["experts.here"]) == home / "lora.gguf"
    assert adapter_of(recipe, roles["antiexpert"]) is None
