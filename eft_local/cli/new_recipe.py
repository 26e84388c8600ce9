"""`eft recipes new`: a recipe of one's own, with models that fit together."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import click

from eft_local import locations
from eft_local.cli import output
from eft_local.cli.options import Command, example
from eft_local.errors import EftError, PromptError, UsageError
from eft_local.hub.references import adapter_of, model_of, names_recipe, resolve_model
from eft_local.recipe import Expert, Prompt, Recipe, Role
from eft_local.recipe.names import AS_ANTIEXPERT, AS_BASE, SAME_WEIGHTS

Answer = TypeVar("Answer")


@click.command(
    cls=Command,
    epilog=example(
        "eft recipes new mine",
        "eft recipes new mine --base big.gguf --antiexpert small.gguf --expert tuned.gguf --alpha 0.8",
        "eft recipes new mine --base big.gguf --antiexpert small.gguf --lora adapter.gguf",
        "eft recipes new mine --base big.gguf --antiexpert small.gguf --expert @antiexpert --instructions 'Be brief.'",
    ),
)
@click.argument("name", required=False)
@click.option("--base", metavar="MODEL", help="The large model, that nobody has tuned.")
@click.option("--antiexpert", metavar="MODEL|@base", help="The small model before its tuning.")
@click.option(
    "--expert",
    "experts",
    metavar="[NAME=]MODEL",
    multiple=True,
    help="The tuned small model, or @antiexpert or @base, which --lora or the prompt tunes; repeatable.",
)
@click.option(
    "--lora",
    "loras",
    metavar="[NAME=]ADAPTER",
    multiple=True,
    help="A LoRA adapter for an expert; without --expert, on the antiexpert's weights; repeatable.",
)
@click.option(
    "--alpha",
    type=float,
    help="Strength of the tuning, for each expert. [default: 1; 0.5 for a prompted @base beside @base]",
)
@click.option("--prompt", metavar="STYLE|FILE", default="chat", show_default=True, help="The experts' prompt.")
@click.option(
    "--instructions", metavar="TEXT", default="", help="Instructions for the experts alone, before the conversation."
)
@click.option(
    "--example",
    "examples",
    metavar="QUESTION ANSWER",
    nargs=2,
    multiple=True,
    help="A turn that the experts see in front; repeatable. Not with --prompt plain.",
)
@click.option("--no-thinking", is_flag=True, help="Turn Qwen3's thinking off (enable_thinking = false).")
@click.option("--context", type=int, default=4096, show_default=True, metavar="N", help="Tokens per role.")
@click.option("--description", default="", metavar="TEXT", help="A line for 'eft recipes'.")
@click.option("--output", "-o", "path", metavar="FILE", help="Where to write; else your folder of recipes.")
@click.option("--force", is_flag=True, help="Replace a recipe of this name.")
@click.option("--no-check", is_flag=True, help="Write it even if models are not downloaded or do not fit together.")
def new(
    name: str | None,
    base: str | None,
    antiexpert: str | None,
    experts: tuple[str, ...],
    loras: tuple[str, ...],
    alpha: float | None,
    prompt: str,
    instructions: str,
    examples: tuple[tuple[str, str], ...],
    no_thinking: bool,
    context: int,
    description: str,
    path: str | None,
    force: bool,
    no_check: bool,
) -> None:
    """Write a recipe after checking that its models share their tokens. It prompts for what is not given.

    A MODEL or ADAPTER is a file (written down with its whole path), demo:NAME, or ORG/REPO:Q4_K_M once it is pulled.
    An expert is tuned by training (a model of its own), by an adapter, or by its prompt alone.
    """
    name = name or _prompted("Name of the recipe", lambda text: text)
    file = _target(name, path, force)
    check = not no_check
    base = _model(base, "Large model, not tuned (file or ORG/REPO:Q4_K_M)", check)
    antiexpert = _model(antiexpert, "Small model, not tuned", check)
    adapters = {key: _model(file, "", check) for key, file in _named(loras).items()}
    models = _named(experts)
    if not models and not adapters:
        models = {"helpful": _model(None, "The small model, tuned (or @antiexpert, tuned by its prompt)", check)}
    models |= {key: AS_ANTIEXPERT for key in adapters if key not in models}
    style = Prompt(
        style=prompt,
        instructions=instructions,
        examples=examples,
        template_args={"enable_thinking": False} if no_thinking else {},
    )
    aware = antiexpert == AS_BASE and alpha is None  # context-aware decoding: see bench/RESULTS.md for the 0.5
    strength = 1.0 if alpha is None else alpha
    recipe = Recipe(
        name=name,
        description=description,
        context=context,
        base=Role(model=base),
        antiexpert=Role(model=antiexpert),
        experts={
            key: Expert(
                model=_model(model, "", check),
                lora=adapters.get(key),
                alpha=0.5 if aware and key not in adapters and model in SAME_WEIGHTS else strength,
                prompt=style,
            )
            for key, model in models.items()
        },
        folder=file.parent,
    )
    if check:
        _check_fit(recipe)
    file.parent.mkdir(parents=True, exist_ok=True)
    output.save(file, recipe.to_toml().encode())
    output.write(f"{file}\n")
    called = name if file.parent == locations.recipes() else str(file)
    output.note(f"try it: eft ask --recipe {called} 'Why is the sky blue?'")


def _target(name: str, path: str | None, force: bool) -> Path:
    """Return the file to write. Raises: UsageError if it is there already, or could not be found by its name."""
    if not name or Path(name).name != name or name.startswith(".") or name.endswith(".toml"):
        raise UsageError(f"{name!r} cannot be a recipe's name: it names a file, without its .toml")
    file = locations.expanded(path).absolute() if path else locations.needed(locations.recipes()) / f"{name}.toml"
    if not names_recipe(file.name):
        raise UsageError(f"{file}: a recipe's file ends in .toml")
    if file.exists() and not force:
        raise UsageError(f"{file} exists; choose another name, or --force to replace it")
    return file


def _named(experts: tuple[str, ...]) -> dict[str, str]:
    """Return the experts by name; one without a name is called after its place. Raises: UsageError."""
    named: dict[str, str] = {}
    for number, text in enumerate(experts, start=1):
        name, equals, model = text.partition("=")
        key = name if equals else "helpful" if len(experts) == 1 else f"expert-{number}"
        if key in named:
            raise UsageError(f"two experts are called {key}; give each its own NAME=MODEL")
        named[key] = model if equals else text
    return named


def _model(given: str | None, question: str, check: bool) -> str:
    """Return a model as the recipe names it: a file by its whole path. Raises: ModelNotFoundError, UsageError."""

    def accept(text: str) -> str:
        if text.startswith("@"):  # another role
            return text
        place = locations.expanded(text)
        if place.is_file():
            return str(place.absolute())
        if check:
            resolve_model(text, None)
        return text

    return _prompted(question, accept) if given is None else accept(given)


def _prompted(question: str, accept: Callable[[str], Answer]) -> Answer:
    """Ask on the terminal until the answer can be used. Raises: UsageError without a terminal."""
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask on: give NAME, --base, --antiexpert and --expert")
    while True:
        try:
            return accept(click.prompt(question, err=True).strip())
        except EftError as error:
            output.complain(str(error))


def _check_fit(recipe: Recipe) -> None:
    """Compare the models by their headers. Raises: VocabularyMismatchError, PromptError, ModelFileError."""
    from eft_local.backends.vocabulary import common_tokens
    from eft_local.gguf.adapter import check_adapter
    from eft_local.gguf.header import read_vocabulary

    roles = dict(recipe.named_roles())
    paths = {place: model_of(recipe, role) for place, role in roles.items()}
    headers = {file: read_vocabulary(file) for file in dict.fromkeys(paths.values())}
    common_tokens({place: headers[file] for place, file in paths.items()})
    for place, role in roles.items():
        adapter = adapter_of(recipe, role)
        if adapter:
            check_adapter(adapter, paths[place])
    _check_templates(recipe, {place: headers[file].chat_template for place, file in paths.items()})


def _check_templates(recipe: Recipe, templates: Mapping[str, str | None]) -> None:
    for place, role in recipe.named_roles():
        if role.prompt.style == "chat" and templates[place] is None:
            raise PromptError(
                f"[{place}]: {role.model} has no chat template; give --prompt plain, or a Jinja file with the format"
            )
