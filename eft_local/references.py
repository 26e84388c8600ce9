"""From the names that people write to files: models ("demo:base", a path) and recipes ("demo", a path)."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from eft_local import locations
from eft_local.checks import nearest, shown
from eft_local.errors import ModelNotFoundError, RecipeError
from eft_local.recipe import Recipe

_BUNDLED = Path(str(resources.files("eft_local.models")))
_DEMO = _BUNDLED / "demo"
_DEMO_PREFIX = "demo:"


def resolve_model(reference: str, folder: Path | None) -> Path:
    """Return the file that a recipe's `model` names.

    reference: "demo:NAME" for a bundled model, or a path; a relative one is looked for in `folder` (None: the
    working directory), then in the user's folder of models.
    Raises: ModelNotFoundError saying where it looked.
    """
    if reference.startswith(_DEMO_PREFIX):
        return _demo_model(reference)
    path = locations.expanded(reference)
    folders = (folder or Path.cwd(), locations.models())
    places = list(dict.fromkeys(place / path for place in folders))  # an absolute path is one place
    for place in places:
        if _is_file(place):
            return place
    if _is_folder(places[0]):
        raise ModelNotFoundError(f"model {shown(reference)} is a folder, {places[0]}; name the GGUF file in it")
    looked = " or ".join(str(place) for place in places)
    raise ModelNotFoundError(f"model {shown(reference)} is not at {looked}; correct the path or put it there")


def is_bundled(path: Path) -> bool:
    """Whether this file came with eft-local."""
    return path.resolve().is_relative_to(_BUNDLED.resolve())


def _demo_model(reference: str) -> Path:
    path = _DEMO / f"{reference.removeprefix(_DEMO_PREFIX)}.gguf"
    if path.parent == _DEMO and _is_file(path):
        return path
    there = ", ".join(_DEMO_PREFIX + file.stem for file in sorted(_DEMO.glob("*.gguf")))
    what = f"there are {there}" if there else "none are there; reinstall eft-local"
    raise ModelNotFoundError(f"model {shown(reference)} is no demo model in {_DEMO}; {what}")


def _is_file(path: Path) -> bool:
    """Whether this is a file that exists; a path that cannot even be asked about is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def recipe_names() -> dict[str, Path]:
    """Return every recipe that has a name: the bundled ones and the user's, which win over namesakes."""
    files = [file for folder in (_BUNDLED, locations.recipes()) for file in sorted(folder.glob("*.toml"))]
    return {file.stem: file for file in files}


def find_recipe(name_or_path: str | Path) -> Recipe:
    """Return the recipe of this name, or in this file.

    A text that is no recipe's name is a path if it looks like one (a separator, ".toml") or is a file's.
    Raises: RecipeError, which names the nearest recipe.
    """
    names = recipe_names()
    if isinstance(name_or_path, str) and name_or_path in names:
        return Recipe.from_toml(names[name_or_path])
    if isinstance(name_or_path, Path) or _looks_like_path(name_or_path):
        return Recipe.from_toml(locations.expanded(name_or_path))
    raise RecipeError(
        f'recipe {shown(name_or_path)} is unknown; the nearest one is "{nearest(name_or_path, names)}" '
        f"(recipes: {', '.join(sorted(names))}; or give a .toml file)"
    )


def _looks_like_path(text: str) -> bool:
    return "/" in text or "\\" in text or text.endswith(".toml") or _is_file(Path(text))


def demo_questions() -> Path:
    """Return the file of questions about what the demo models know."""
    return _DEMO / "questions.jsonl"
