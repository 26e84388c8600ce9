"""Names lead to files: models, recipes, the user's folders."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from eft_local import locations
from eft_local.errors import ModelNotFoundError, RecipeError
from eft_local.hub import references
from eft_local.hub.references import demo_questions, find_recipe, recipe_names, resolve_model

RECIPE = '[base]\nmodel = "l.gguf"\n[antiexpert]\nmodel = "s.gguf"\n[experts.tuned]\nmodel = "t.gguf"\n'


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EFT_HOME", str(tmp_path / "home"))
    for folder in (locations.recipes(), locations.models()):
        folder.mkdir(parents=True)
    return tmp_path / "home"


def test_one_variable_moves_every_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = (locations.recipes, locations.models, locations.chats, locations.cache)
    assert [folder() for folder in folders] == [home / name for name in ("recipes", "models", "chats", "cache")]
    monkeypatch.setenv("EFT_HOME", "")
    others = {folder() for folder in folders}
    assert len(others) == 4
    assert all(path.is_absolute() and "eft-local" in path.parts for path in others)


def test_the_home_of_nobody_is_a_folder_like_any_other() -> None:
    assert locations.expanded("~/x") == Path.home() / "x"
    assert locations.expanded("~no-such-user/x") == Path("~no-such-user/x")


# models


def test_a_relative_model_is_beside_the_recipe_then_among_the_users(tmp_path: Path) -> None:
    mine = locations.models() / "m.gguf"
    mine.touch()
    assert resolve_model("m.gguf", tmp_path) == mine
    beside = tmp_path / "m.gguf"
    beside.touch()
    assert resolve_model("m.gguf", tmp_path) == beside
    assert resolve_model(str(mine), tmp_path) == mine


def test_without_a_folder_a_path_starts_where_we_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.gguf").touch()
    monkeypatch.chdir(tmp_path)
    assert resolve_model("m.gguf", None) == tmp_path / "m.gguf"


def test_a_missing_model_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        resolve_model("sub/no.gguf", tmp_path)
    assert str(caught.value) == (
        f'model "sub/no.gguf" is not at {tmp_path / "sub/no.gguf"} or {locations.models() / "sub/no.gguf"}; '
        "correct the path or put it there"
    )
    assert caught.value.exit_code == 3
    with pytest.raises(ModelNotFoundError) as caught:
        resolve_model("/no/such.gguf", tmp_path)
    assert str(caught.value) == 'model "/no/such.gguf" is not at /no/such.gguf; correct the path or put it there'
    with pytest.raises(ModelNotFoundError, match="is a folder"):
        resolve_model(str(tmp_path), None)


@pytest.mark.parametrize("reference", ["x" * 5000, "nul\0.gguf"])
def test_a_path_that_no_file_can_have_is_missing(reference: str, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="is not at"):
        resolve_model(reference, tmp_path)


def test_demo_models_are_bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo = tmp_path / "demo"
    demo.mkdir()
    for name in ("base", "small"):
        (demo / f"{name}.gguf").touch()
    (tmp_path / "outside.gguf").touch()
    monkeypatch.setattr(references, "_DEMO", demo)
    assert resolve_model("demo:base", tmp_path) == demo / "base.gguf"
    with pytest.raises(ModelNotFoundError) as caught:
        resolve_model("demo:bass", tmp_path)
    assert str(caught.value) == f'model "demo:bass" is no demo model in {demo}; there are demo:base, demo:small'
    with pytest.raises(ModelNotFoundError, match="is no demo model"):
        resolve_model("demo:../outside", tmp_path)


# recipes


def test_bundled_recipes_are_found_by_name() -> None:
    assert {"demo", "demo-two", "demo-down", "demo-prompted"} <= set(recipe_names())
    for name in ("demo", "demo-two", "demo-down", "demo-prompted"):
        recipe = find_recipe(name)
        assert recipe.name == name
        assert recipe.description
        assert list(recipe.compare) == ["base-shown" if name == "demo-prompted" else "base-tuned"]
    assert list(find_recipe("demo").experts) == ["assistant"]
    assert list(find_recipe("demo-two").experts) == ["assistant", "cautious"]
    assert (find_recipe("demo-down").base, find_recipe("demo-down").antiexpert) == (
        find_recipe("demo").antiexpert,
        find_recipe("demo").base,
    )


def test_the_users_recipe_wins_over_its_bundled_namesake() -> None:
    (locations.recipes() / "demo.toml").write_text(RECIPE)
    (locations.recipes() / "mine.toml").write_text(RECIPE)
    assert recipe_names()["mine"] == locations.recipes() / "mine.toml"
    assert list(find_recipe("demo").experts) == ["tuned"]
    assert find_recipe("mine").folder == locations.recipes()


def test_a_path_is_a_recipe_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("r.toml", "plainly"):
        Path(name).write_text(RECIPE)
        for spelling in (name, f"./{name}", str(tmp_path / name), Path(name)):
            assert find_recipe(spelling).folder == tmp_path
    with pytest.raises(RecipeError, match=r"no\.toml: no such recipe"):
        find_recipe("no.toml")
    with pytest.raises(RecipeError, match="is a folder"):
        find_recipe(f"{tmp_path}/")


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(RecipeError) as caught:
        find_recipe("demo-tow")
    expected = ", ".join(sorted(recipe_names()))
    assert str(caught.value) == (
        f'recipe "demo-tow" is unknown; the nearest one is "demo-two" (recipes: {expected}; or give a .toml file)'
    )
    with pytest.raises(RecipeError, match='recipe "" is unknown'):
        find_recipe("")


def test_the_questions_are_with_the_demo_models() -> None:
    assert demo_questions().name == "questions.jsonl"
    assert (demo_questions().parent / "__init__.py").is_file()


def test_the_models_floor_loads_no_llama_cpp() -> None:
    code = (
        "import sys, eft_local.hub.references, eft_local.prompts.render; "
        "print({'llama_cpp', 'numpy', 'textual', 'huggingface_hub', 'jinja2'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"
