"""Recipes of real models, what a recipe says of itself, and `eft recipes`."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from eft_local.backends.llamacpp import ChatTemplate, Model
from eft_local.backends.vocabulary import compare
from eft_local.errors import ModelFileError, RecipeError
from eft_local.gguf.header import read_vocabulary
from eft_local.gguf.metadata import read_metadata
from eft_local.hub.references import find_recipe, hub_names, recipe_names, resolve_model
from eft_local.recipe import Recipe
from eft_local.recipe.about import About

EFT = [sys.executable, "-c", "from eft_local.cli import main; main()"]
FAMILIES = ("qwen3", "qwen2.5", "smollm2", "llama3", "llama2", "olmo2", "gemma3", "falcon")
REAL = [f"{family}-{size}" for family in FAMILIES for size in ("laptop", "workstation")]
MINIMAL = '[base]\nmodel = "b"\n[antiexpert]\nmodel = "a"\n[experts.x]\nmodel = "x"\n'


def test_every_family_has_a_laptops_and_a_workstations_recipe() -> None:
    assert set(REAL) == {name for name in recipe_names() if not name.startswith("demo")}


@pytest.mark.parametrize("name", REAL)
def test_a_real_recipe_names_models_on_the_hub_and_what_they_need(name: str) -> None:
    recipe = find_recipe(name)
    names = hub_names(recipe)
    assert set(names) == {"base", "antiexpert", "experts.helpful"}, "each role's model is one on the hub"
    assert all(each.label or each.file for each in names.values())
    about = recipe.about
    assert about.licence
    assert about.tested is False
    assert about.download_gb
    assert about.memory_gb
    assert about.memory_gb > about.download_gb
    assert "No file was downloaded or run by us" in about.notes
    assert about.gated is name.startswith("gemma3")
    assert recipe.description
    assert "://" not in (recipe_names()[name]).read_text()


@pytest.mark.parametrize("size", ["laptop", "workstation"])
def test_qwen3_does_not_think_aloud(size: str) -> None:
    expert = find_recipe(f"qwen3-{size}").experts["helpful"]
    assert dict(expert.prompt.template_args) == {"enable_thinking": False}


def test_llama_2s_format() -> None:
    recipe = find_recipe("llama2-laptop")
    assert recipe.folder is not None
    source = (recipe.folder / recipe.experts["helpful"].prompt.style).read_text()
    template = ChatTemplate(source, bos="<s>", eos="</s>", origin="llama-2-chat.jinja")
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Who?"},
    ]
    whole = "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello </s><s>[INST] Who? [/INST]"
    assert template(turns, {}) == whole
    assert template(turns[1:2], {}) == "<s>[INST] Hi [/INST]"


def test_what_a_recipe_says_of_itself_reads_back() -> None:
    text = MINIMAL + '[about]\nlicence = "MIT"\ngated = true\ndownload_gb = 1\ntested = false\nnotes = "one\\ntwo"\n'
    recipe = Recipe.from_text(text)
    assert recipe.about == About(licence="MIT", gated=True, download_gb=1.0, tested=False, notes="one\ntwo")
    assert Recipe.from_text(recipe.to_toml()) == recipe
    assert "[about]" not in Recipe.from_text(MINIMAL).to_toml()


@pytest.mark.parametrize(
    ("line", "reported"),
    [
        ("license = 'MIT'", 'unknown key "license"; the nearest valid key is "licence"'),
        ("download_gb = -1", "download_gb = -1: a finite number of at least 0 is needed"),
        ("gated = 1", "gated = 1: true or false is needed"),
    ],
)
def test_what_it_cannot_say_is_reported(line: str, reported: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_text(f"{MINIMAL}[about]\n{line}\n")
    assert str(caught.value) == f"recipe: [about] {reported}"


# Headers


def test_a_header_reports_the_same_tokens_as_llama(ggufs: Path) -> None:
    for name in ("base", "tuned-padded", "base-spm"):
        with Model.load(ggufs / f"{name}.gguf") as model:
            header = read_vocabulary(ggufs / f"{name}.gguf")
            assert header.texts() == model.vocabulary.texts()
            np.testing.assert_array_equal(header.attributes(), model.vocabulary.attributes())
            assert compare(model.vocabulary, header).width == compare(model.vocabulary, model.vocabulary).width
            metadata = read_metadata(ggufs / f"{name}.gguf")
            assert (metadata.parameters, metadata.layers, metadata.context) == (
                model.n_params,
                model.n_layer,
                model.n_ctx_train,
            )
            assert metadata.chat_template == model.chat_template


def test_facts_of_a_damaged_file_are_an_error(ggufs: Path, tmp_path: Path) -> None:
    content = (ggufs / "base.gguf").read_bytes()
    draws = np.random.default_rng(7)
    readable, refusals = 0, []
    for number in range(150):
        data = bytearray(content)
        for _ in range(draws.integers(1, 6)):
            data[draws.integers(0, 4000)] = draws.integers(0, 256)
        path = tmp_path / "x.gguf"
        path.write_bytes(data[: draws.integers(100, len(data))] if number % 3 == 0 else data)
        try:
            metadata = read_metadata(path)
        except ModelFileError as error:
            refusals.append(str(error))
        else:
            readable += 1
            assert metadata.parameters > 0
    assert 0 < readable < 150
    assert not [line for line in refusals if "\n" in line]


# eft recipes


def eft(*arguments: str, home: Path, stdin: int = subprocess.DEVNULL) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "EFT_HOME": str(home), "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [*EFT, "recipes", *arguments],
        env=environment,
        stdin=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=home,
    )


def test_recipes_reports_need_licence_and_whether_they_were_run(tmp_path: Path) -> None:
    lines = eft(home=tmp_path).stdout.splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("qwen3-laptop "))
    assert lines[head].endswith("the best first choice for 16 GB.")
    assert lines[head + 1].strip() == "Apache-2.0, 6.3 GB to download, 8 GB of memory, not run by us; not downloaded"
    rows = {row["name"]: row for row in json.loads(eft("--json", home=tmp_path).stdout)["recipes"]}
    assert rows["gemma3-laptop"]["about"]["gated"] is True
    assert rows["demo"]["about"]["tested"] is True
    assert rows["demo"]["hub"] == []
    assert rows["qwen3-laptop"]["hub"][0] == "mradermacher/Qwen3-8B-Base-GGUF:Q4_K_M"


def test_a_new_recipe_is_checked_and_written(ggufs: Path, tmp_path: Path) -> None:
    models = ("--base", str(ggufs / "base.gguf"), "--antiexpert", str(ggufs / "small.gguf"))
    ran = eft(
        "new", "mine", *models, "--expert", f"kind={ggufs / 'kind.gguf'}", "--expert", f"brief={ggufs / 'tuned.gguf'}",
        "--alpha", "0.5", "--context", "256", "--description", "Two of a kind.", home=tmp_path,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout) == (0, f"{tmp_path / 'recipes' / 'mine.toml'}\n")
    assert ran.stderr == "try it: eft ask --recipe mine 'Why is the sky blue?'\n"
    recipe = Recipe.from_toml(tmp_path / "recipes" / "mine.toml")
    assert (recipe.name, recipe.description, recipe.context) == ("mine", "Two of a kind.", 256)
    assert {name: expert.alpha for name, expert in recipe.experts.items()} == {"kind": 0.5, "brief": 0.5}
    assert resolve_model(recipe.base.model, None) == ggufs / "base.gguf"
    again = eft("new", "mine", *models, "--expert", str(ggufs / "kind.gguf"), home=tmp_path)
    assert again.returncode == 2
    assert "--force to replace it" in again.stderr
    assert eft("new", "mine", *models, "--expert", str(ggufs / "kind.gguf"), "--force", home=tmp_path).returncode == 0
    assert list(Recipe.from_toml(tmp_path / "recipes" / "mine.toml").experts) == ["helpful"]


@pytest.mark.parametrize(
    ("changes", "code", "reported"),
    [
        ({"--expert": "tuned-spm.gguf"}, 4, "do not share a vocabulary"),
        ({"--expert": "small.gguf"}, 2, "small.gguf has no chat template; give --prompt plain"),
        ({"--expert": "missing.gguf"}, 3, "missing.gguf"),
        ({"--base": "org/Model:Q4_0"}, 3, "get it with: eft pull org/Model:Q4_0"),
        ({"--alpha": "nan"}, 2, "alpha"),
        ({"--context": "0"}, 2, "context"),
        ({"--prompt": "chatty"}, 2, "unknown style"),
        ({"--output": "x.txt"}, 2, "ends in .toml"),
    ],
)
def test_a_new_recipe_that_would_not_work_is_not_written(
    ggufs: Path, tmp_path: Path, changes: dict[str, str], code: int, reported: str
) -> None:
    options = {"--base": "base.gguf", "--antiexpert": "small.gguf", "--expert": "tuned.gguf"} | changes
    given = [
        part
        for key, value in options.items()
        for part in (key, str(ggufs / value) if value.endswith(".gguf") else value)
    ]
    ran = eft("new", "mine", *given, home=tmp_path)
    assert (ran.returncode, ran.stdout) == (code, "")
    assert reported in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert not (tmp_path / "recipes").exists()


def test_without_a_check_models_may_come_later(tmp_path: Path) -> None:
    ran = eft(
        "new", "mine", "--base", "org/B:Q4_0", "--antiexpert", "org/A:Q8_0", "--expert", "org/E:Q8_0", "--no-thinking",
        "--no-check", "-o", "here.toml", home=tmp_path,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout) == (0, f"{tmp_path / 'here.toml'}\n")
    recipe = Recipe.from_toml(tmp_path / "here.toml")
    assert [str(name) for name in hub_names(recipe).values()] == ["org/B:Q4_0", "org/A:Q8_0", "org/E:Q8_0"]
    assert dict(recipe.experts["helpful"].prompt.template_args) == {"enable_thinking": False}


def test_what_is_not_given_is_requested_until_it_can_be_used(ggufs: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    answers = ["mine", "missing.gguf", *(str(ggufs / f"{name}.gguf") for name in ("base", "small", "tuned"))]
    os.write(ours, "".join(f"{answer}\n" for answer in answers).encode())
    ran = eft("new", home=tmp_path, stdin=theirs)
    os.close(theirs)
    os.close(ours)
    assert ran.returncode == 0, ran.stderr
    assert "missing.gguf" in ran.stderr
    recipe = Recipe.from_toml(tmp_path / "recipes" / "mine.toml")
    assert [role.model for _, role in recipe.named_roles()] == [
        str(ggufs / f"{name}.gguf") for name in ("base", "small", "tuned")
    ]


def test_with_nobody_to_ask_the_options_are_named(tmp_path: Path) -> None:
    ran = eft("new", home=tmp_path)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "give NAME, --base, --antiexpert and --expert" in ran.stderr
