"""What commands share: their help's layout, and the options that change a recipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from eft_local.cli import output, stdin
from eft_local.errors import UsageError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from eft_local.recipe import Recipe

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
DEFAULT_RECIPE = "demo"


@dataclass
class Session:
    """What the shared options collect for the command that runs."""

    debug: bool = False
    recipe_name: str = DEFAULT_RECIPE
    changes: dict[str, Any] = field(default_factory=dict)

    def recipe(self) -> Recipe:
        """Return the recipe that was requested, with the options' changes. Raises: RecipeError."""
        from eft_local.hub.references import find_recipe

        recipe = find_recipe(self.recipe_name)
        return recipe.replace(**self.changes) if self.changes else recipe


class Option(click.Option):
    """An option that stands under a heading of its command's help."""

    def __init__(self, *args: Any, section: str = "Options", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class Command(click.Command):
    """A command whose help lists options under headings, and that knows --debug."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(_debug())

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options by section."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                sections.setdefault(getattr(parameter, "section", "Options"), []).append(record)
        general = sections.pop("Options", [])
        for title, records in {**sections, "Options": general}.items():
            with formatter.section(title):
                formatter.write_dl(records)


def example(*lines: str) -> str:
    """Return a help's epilog that shows how a command is used."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


def _debug() -> click.Option:
    return Option(["--debug"], is_flag=True, expose_value=False, callback=_set_debug, help="Show tracebacks.")


def debug_option(command: Decorated) -> Decorated:
    """Add --debug to a group; commands have it already."""
    return click.option("--debug", is_flag=True, expose_value=False, callback=_set_debug, help="Show tracebacks.")(
        command
    )


def _set_debug(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        import logging

        ctx.ensure_object(Session).debug = True
        logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)


def _change(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Keep an option that was given as a change to the recipe; the option's name is the recipe's key."""
    if value not in (None, ()) and not ctx.resilient_parsing:
        ctx.ensure_object(Session).changes[str(parameter.name)] = value


def _set_recipe(ctx: click.Context, _parameter: click.Parameter, value: str) -> None:
    if not ctx.resilient_parsing:
        ctx.ensure_object(Session).recipe_name = value


def complete_recipe(_ctx: click.Context, _parameter: click.Parameter, start: str) -> list[CompletionItem]:
    """Return recipes whose names begin so; a shell completes paths of files itself."""
    from click.shell_completion import CompletionItem

    from eft_local.hub.references import recipe_names

    names = [CompletionItem(name) for name in recipe_names() if name.startswith(start)]
    return names or [CompletionItem(start, type="file")]


def recipe_option(command: Decorated) -> Decorated:
    """Add --recipe."""
    return click.option(
        "--recipe",
        "-r",
        metavar="NAME|FILE",
        default=DEFAULT_RECIPE,
        show_default=True,
        expose_value=False,
        callback=_set_recipe,
        shell_complete=complete_recipe,
        help="Which models, and how they are mixed; 'eft recipes' lists them.",
    )(command)


Keep = Callable[[click.Context, click.Parameter, Any], Any]


def _changing(section: str, *names: str, keep: Keep = _change, **settings: Any) -> click.Option:
    return Option(list(names), section=section, expose_value=False, callback=keep, **settings)


def alpha_changes(texts: tuple[str, ...]) -> float | dict[str, float]:
    """Read [NAME=]X, given once or once per expert. Raises: UsageError."""
    named: dict[str, float] = {}
    for text in texts:
        name, equals, value = text.rpartition("=")
        if not equals and len(texts) > 1:
            raise UsageError(f"alpha {text}: with several of them each needs its expert's name, NAME={text}")
        try:
            number = float(value)
        except ValueError:
            raise UsageError(f"alpha {text}: needs a number, as 0.5 or NAME=0.5") from None
        if not equals:
            return number
        named[name.strip()] = number
    return named


def _change_alpha(ctx: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> None:
    _change(ctx, parameter, alpha_changes(value) if value else None)


def _change_draft(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
    _change(ctx, parameter, int(value) if value and value.isdecimal() else value)


def _change_bias(ctx: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> None:
    biases: dict[str, float] = {}
    for text in value:
        token, equals, bias = text.rpartition("=")
        try:
            biases[token] = float(bias if equals else "")
        except ValueError:
            raise UsageError(f"--logit-bias {text}: needs TOKEN=NUMBER, as 42=-5 or yes=1") from None
    _change(ctx, parameter, biases or None)


def _change_text_or_file(looks_like_text: Callable[[str], bool]) -> Keep:
    def keep(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
        if value is not None and not looks_like_text(value):
            value = read_text(Path(value), f"--{str(parameter.name).replace('_', '-')}")
        _change(ctx, parameter, value)

    return keep


def _looks_like_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return text.lstrip().startswith("{")
    return True


def read_text(path: Path, what: str) -> str:
    """Return a file's text. Raises: UsageError naming the option or argument that named the file."""
    try:
        return path.read_text(encoding="utf-8-sig")  # Windows editors write a byte order mark
    except UnicodeDecodeError as error:
        raise UsageError(f"{what} {path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{what} {path}: {getattr(error, 'strerror', None) or error}") from error


STEERING = (
    _changing(
        "Steering",
        "--alpha",
        type=str,
        multiple=True,
        metavar="[NAME=]X",
        keep=_change_alpha,
        help="Strength of what tuning changed: 0 is the base alone, 1 the plain method. Can be given once per expert.",
    ),
    _changing("Steering", "--beta", type=float, metavar="X", help="Strength of what the larger scale adds (1: plain)."),
    _changing(
        "Steering",
        "--draft",
        type=str,
        metavar="off|auto|N",
        keep=_change_draft,
        help="Let small roles draft N tokens, or as many as is fastest.",
    ),
    _changing(
        "Steering",
        "--draft-source",
        type=str,
        metavar="NAME",
        help="What drafts: expert, proxy, ngram, ngram+expert, ngram+proxy.",
    ),
    _changing(
        "Steering",
        "--draft-rule",
        type=str,
        metavar="NAME",
        help="shared-noise: the answer is as without drafts. rejection: its distribution is.",
    ),
    _changing(
        "Steering",
        "--conservative-filter",
        type=float,
        metavar="P",
        help="Only tokens in the expert's own top-p set take part in the scale delta.",
    ),
    _changing(
        "Steering",
        "--plausibility-mask",
        type=float,
        metavar="TAU",
        help="Only tokens that the base finds at least TAU times as likely as its favourite.",
    ),
    _changing(
        "Steering",
        "--plausibility-top-p",
        type=float,
        metavar="P",
        help="Only tokens in the base's own top-p set.",
    ),
)

SAMPLING = (
    _changing("Sampling", "--temperature", "-t", type=float, metavar="X", help="0 is greedy."),
    _changing("Sampling", "--top-k", type=int, metavar="N", help="The N likeliest tokens; 0 is off."),
    _changing("Sampling", "--top-p", type=float, metavar="P", help="The smallest set of mass P; 1 is off."),
    _changing("Sampling", "--min-p", type=float, metavar="P", help="At least P times the likeliest; 0 is off."),
    _changing("Sampling", "--typical-p", type=float, metavar="P", help="Locally typical tokens; 1 is off."),
    _changing("Sampling", "--repeat-penalty", type=float, metavar="X", help="1 is off."),
    _changing("Sampling", "--repeat-last-n", type=int, metavar="N", help="Tokens of the answer that penalties see."),
    _changing("Sampling", "--presence-penalty", type=float, metavar="X", help="0 is off."),
    _changing("Sampling", "--frequency-penalty", type=float, metavar="X", help="0 is off."),
    _changing("Sampling", "--dry-multiplier", type=float, metavar="X", help="Against repeated phrases; 0: off."),
    _changing("Sampling", "--dry-base", type=float, metavar="X", help="How fast DRY grows."),
    _changing("Sampling", "--dry-allowed-length", type=int, metavar="N", help="Repeats that DRY allows."),
    _changing("Sampling", "--dry-penalty-last-n", type=int, metavar="N", help="Tokens DRY sees; -1 is all."),
    _changing("Sampling", "--xtc-probability", type=float, metavar="P", help="Leave out top choices; 0: off."),
    _changing("Sampling", "--xtc-threshold", type=float, metavar="P", help="What XTC calls a top choice."),
    _changing(
        "Sampling",
        "--logit-bias",
        type=str,
        multiple=True,
        metavar="TOKEN=X",
        keep=_change_bias,
        help="Add X to a token's logit; TOKEN is an id or a text.",
    ),
    _changing("Sampling", "--seed", type=int, metavar="N", help="The same seed gives the same answer."),
    _changing("Sampling", "--max-tokens", "-n", type=int, metavar="N", help="The answer's longest length."),
    _changing(
        "Sampling",
        "--stop",
        type=str,
        multiple=True,
        metavar="TEXT",
        help="End the answer before this text. Can be given again.",
    ),
    _changing(
        "Sampling",
        "--grammar",
        type=str,
        metavar="FILE|GBNF",
        keep=_change_text_or_file(lambda text: "::=" in text),
        help="Only what this GBNF grammar allows.",
    ),
    _changing(
        "Sampling",
        "--json-schema",
        type=str,
        metavar="FILE|JSON",
        keep=_change_text_or_file(_looks_like_json),
        help="Only JSON that this schema allows, on one line.",
    ),
)


def json_option(command: Decorated) -> Decorated:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(command)


def context_option(command: Decorated) -> Decorated:
    """Add --context."""
    return click.option(
        "--context",
        type=click.IntRange(min=1),
        metavar="N",
        expose_value=False,
        callback=_change,
        help="Tokens that each role can hold; otherwise as the recipe says.",
    )(command)


def system_option(command: Decorated) -> Decorated:
    """Add --system."""
    return click.option("--system", metavar="TEXT", help="A system prompt for all roles.")(command)


def only_option(command: Decorated) -> Decorated:
    """Add --only."""
    return click.option(
        "--only",
        metavar="ROLE",
        default="eft",  # recipe.names.MIXTURE; help is quick because it imports no recipe
        show_default=True,
        help="Let one role answer alone: base, antiexpert, expert, an expert's name, a [compare] name.",
    )(command)


def question_text(words: tuple[str, ...]) -> str:
    """Return the question: the words, and in front of them what is piped in, with a blank line between.

    A word "-" says where the piped text goes, and waits for it; without words, the piped text is the question.
    Raises: UsageError.
    """
    try:
        "".join(words).encode()
    except UnicodeEncodeError:
        raise UsageError(f"the question is not valid text in this terminal's encoding: {' '.join(words)!r}") from None
    if words.count("-") > 1:
        raise UsageError('"-" stands for the text on stdin and can be given once; put the question into quotes')
    place = words.index("-") if "-" in words else 0
    before, after = words[:place], words[place:]
    if words and "-" not in words:
        given = stdin.piped()
    else:
        after = after[1:]
        given = stdin.awaited("the text for -" if before or after else "the question")
        if not given and (before or after):
            output.note("stdin is empty: the question is sent without it")
    return "\n\n".join(part for part in (" ".join(before), given, " ".join(after)) if part)
