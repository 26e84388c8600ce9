"""A recipe: which models play which role, and how they are mixed. Frozen, and one-to-one with its TOML.

    name = "my-trio"
    context = 4096                  # tokens per role
    offload = "auto"                # or layers on the GPU; any Placement key, also per role
    [base]
    model = "large-base.gguf"       # a path relative to the recipe, "demo:base", or "org/repo:Q4_K_M"
    prompt = "plain"                # chat | plain | few-shot (with examples) | a Jinja file
    [antiexpert]
    model = "small-base.gguf"
    [experts.helpful]               # one table per expert; each may name its own antiexpert
    model = "small-tuned.gguf"
    alpha = 1.0
    [experts.adapted]
    model = "@antiexpert"           # its weights: loaded once
    lora = "adapter.gguf"
    [experts.prompted]
    model = "@antiexpert"
    instructions = "Answer in one sentence."
    [sampling]
    temperature = 0.7

The keys of the tables are the fields of Recipe, Role, Expert, Prompt, Placement and Sampling.
"""

# ruff: noqa: RUF009 (checked() returns a dataclasses.field)

from __future__ import annotations

import re
import tomllib
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import tomli_w

from eft_local.errors import RecipeError, shown
from eft_local.recipe.about import About
from eft_local.recipe.checks import (
    Check,
    checked,
    choice,
    either,
    instance,
    integer,
    number,
    optional,
    refuse_unknown,
    text,
    verify,
    within,
)
from eft_local.recipe.names import ANTIEXPERT, AS_ANTIEXPERT, AS_BASE, BASE, RESERVED_NAMES
from eft_local.recipe.roles import (
    PLACEMENT_KEYS,
    AnyRole,
    Expert,
    Frame,
    Placement,
    Prompt,
    Role,
    changed,
    read_expert,
    read_role,
    subtable,
)
from eft_local.recipe.sampling import Sampling

__all__ = ["RESERVED_NAMES", "About", "Expert", "Frame", "Placement", "Prompt", "Recipe", "Role", "Sampling"]

DRAFT_SOURCES = ("expert", "proxy", "ngram", "ngram+expert", "ngram+proxy")
DRAFT_RULES = ("shared-noise", "rejection")
SAMPLING_KEYS = tuple(each.name for each in fields(Sampling))
_NAME = re.compile(r"\w[\w.-]*")  # what `--alpha NAME=X` and `--targets a,b` can carry


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The roles, and z = antiexpert + beta·m·(base − antiexpert) + Σ alpha·(expert − antiexpert).

    name: from the file's name when the TOML has none.  description: one line for lists.
    context: tokens that each role can hold.
    placement: defaults for all roles; its keys stand at the TOML's top level.
    base, antiexpert, experts: the roles, experts in order; antiexpert is None if every expert has its own.
    beta: strength of the scale delta, at least 0; 1 is the papers' method.
    conservative_filter: EFT's: m = 1 only inside this top-p set of the first expert; None is off.
    plausibility_mask: only tokens with p_base ≥ this × max p_base may be chosen; None is off.
    plausibility_top_p: only the base's top-p set may be chosen; None is off.
    draft: tokens that small roles write ahead, "auto" for what is fastest, or "off".
    draft_source: "expert"; "proxy", antiexpert + alpha·(expert − antiexpert); "ngram", what followed the last tokens
        when they stood before; "ngram+expert", "ngram+proxy": the latter where the former has nothing to say.
    draft_rule: "shared-noise", answers are the same as without drafts; or "rejection", speculative sampling's own rule,
        which may take more of a draft: answers have the same distribution, and a seed repeats one only if drafts do.
    exact: whether an answer must be the same alone and in company, with drafts and without: "always", whatever it
        costs; "never", what is fastest; "auto", where it costs 5 % at most. Not every model, device and build can be
        exact: an answer says (`Answer.exact`).
    about: what the models cost to get and to run.
    compare: further models that stand beside the mixture in comparisons and evaluations, never inside it.
    folder: where relative paths start, None for the working directory; not a TOML key.
    Raises: RecipeError, which names the key (and the file, when the recipe comes from one).
    """

    name: str = checked(text(empty=False), "unnamed")
    description: str = checked(text(), "")
    context: int = checked(integer(1), 4096)
    placement: Placement = checked(instance(Placement, "a Placement"), factory=Placement)
    base: Role = checked(instance(Role, "a Role"))
    antiexpert: Role | None = checked(optional(instance(Role, "a Role")), None)
    experts: Mapping[str, Expert] = checked(instance(Mapping, "a table of experts"))
    beta: float = checked(number(minimum=0), 1.0)
    conservative_filter: float | None = checked(optional(number(above=0, below=1)), None)
    plausibility_mask: float | None = checked(optional(number(above=0, maximum=1)), None)
    plausibility_top_p: float | None = checked(optional(number(above=0, maximum=1)), None)
    draft: int | Literal["auto", "off"] = checked(either(choice("auto", "off"), integer(1, 16)), "auto")
    draft_source: str = checked(choice(*DRAFT_SOURCES), "expert")
    draft_rule: str = checked(choice(*DRAFT_RULES), "shared-noise")
    exact: Literal["auto", "always", "never"] = checked(choice("auto", "always", "never"), "auto")
    sampling: Sampling = checked(instance(Sampling, "a Sampling"), factory=Sampling)
    about: About = checked(instance(About, "an About"), factory=About)
    compare: Mapping[str, Role] = checked(instance(Mapping, "a table of roles"), factory=dict)
    folder: Path | None = checked(optional(Check("a folder's path", Path)), None)

    def __post_init__(self) -> None:
        verify(self)
        for table, kind, need in (("experts", Expert, "an Expert"), ("compare", Role, "a Role")):
            entries = MappingProxyType(dict(getattr(self, table)))
            object.__setattr__(self, table, entries)
            for name, entry in entries.items():
                _check_name(table, name)
                instance(kind, need)(f"{table}.{name}", entry)
        self._check_antiexperts()
        self._check_following()
        for name in self.compare:
            if name in self.experts:
                raise RecipeError(f"[compare.{name}]: an expert has this name already; rename one of them")
        for place, role in self.named_roles():
            with within(f"[{place}]"):
                role.placed(self.placement)

    def _check_antiexperts(self) -> None:
        """Every expert needs an antiexpert, and every antiexpert an expert: none is loaded for nothing."""
        if not self.experts:
            raise RecipeError("experts is empty: at least one [experts.NAME] table is needed")
        lacking = [name for name, expert in self.experts.items() if expert.antiexpert is None]
        if lacking and self.antiexpert is None:
            own = f"[experts.{lacking[0]}.antiexpert]"
            raise RecipeError(f"[antiexpert] is missing; add it, or {own} for this expert alone")
        if self.antiexpert is not None and not lacking:
            raise RecipeError("[antiexpert] is used by no expert: each one names its own; remove it")

    def _check_following(self) -> None:
        """A role may take the weights of one that stands before it in the formula."""
        if self.base.follows:
            raise RecipeError(f"[base]: model = {shown(self.base.model)}: the base needs a model of its own")
        if self.antiexpert and self.antiexpert.model == AS_ANTIEXPERT:
            raise RecipeError('[antiexpert]: model = "@antiexpert" names itself; name a model, or "@base"')
        if self.antiexpert:
            return
        own = {f"experts.{name}.antiexpert": expert.antiexpert for name, expert in self.experts.items()}
        others = {f"compare.{name}": role for name, role in self.compare.items()}
        for place, role in (own | others).items():
            if role and role.model == AS_ANTIEXPERT:
                raise RecipeError(f'[{place}]: model = "@antiexpert", but there is no [antiexpert]; name a model')

    def named_roles(self) -> list[tuple[str, Role]]:
        """Return every role with its TOML table's name: "base", "experts.NAME", "compare.NAME", …

        They are what runs: where a model is "@base" or "@antiexpert", that role's model, adapter and placement.
        """
        tables = [(BASE, self.base)]
        antiexpert = self.antiexpert and self._followed(self.antiexpert, None)
        if antiexpert:
            tables.append((ANTIEXPERT, antiexpert))
        for name, expert in self.experts.items():
            own = expert.antiexpert and self._followed(expert.antiexpert, antiexpert)
            tables.append((f"experts.{name}", self._followed(expert, own or antiexpert)))
            if own:
                tables.append((f"experts.{name}.antiexpert", own))
        compare = [(f"compare.{name}", self._followed(role, antiexpert)) for name, role in self.compare.items()]
        return tables + compare

    def _followed(self, role: AnyRole, antiexpert: Role | None) -> AnyRole:
        other = {AS_BASE: self.base, AS_ANTIEXPERT: antiexpert}.get(role.model)
        return role.following(other) if other else role

    def is_base(self, role: Role) -> bool:
        """Whether a role, as it is written, is the base once more, which needs no evaluation of its own."""
        return role.model == AS_BASE and role.lora is None and role.prompt == self.base.prompt

    @property
    def alphas(self) -> dict[str, float]:
        """Each expert's alpha, by name."""
        return {name: expert.alpha for name, expert in self.experts.items()}

    def placement_of(self, role: Role) -> Placement:
        """Return where a role's model runs: the recipe's defaults with the role's own keys."""
        return role.placed(self.placement)

    def load_key(self) -> Hashable:
        """Return what a loaded emulator depends on; while it is equal, a changed recipe needs no reload.

        Holds models, adapters, placements, context and names; not prompts (but for whether they make an antiexpert the
        base once more), sampling or the mixture.
        """
        roles = tuple(
            (place, role.model, role.lora, role.lora_scale, self.placement_of(role))
            for place, role in self.named_roles()
        )
        antiexperts = (expert.antiexpert or self.antiexpert for expert in self.experts.values())
        return (
            self.folder,
            self.context,
            self.exact,
            roles,
            tuple(role and self.is_base(role) for role in antiexperts),
        )

    @classmethod
    def from_toml(cls, path: str | Path) -> Recipe:
        """Read a recipe file (UTF-8); its folder is where relative paths start. Raises: RecipeError."""
        file = Path(path)
        try:
            document = file.read_bytes().decode("utf-8-sig")  # Windows editors write a byte order mark
        except FileNotFoundError:
            raise RecipeError(f"{file}: no such recipe; `eft recipes` lists what there is") from None
        except IsADirectoryError:
            raise RecipeError(f"{file}: is a folder, not a recipe file; name the .toml file in it") from None
        except UnicodeDecodeError as error:
            raise RecipeError(f"{file}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RecipeError(f"{file}: cannot be read ({reason}); check the path and its permissions") from None
        return cls._read(document, file.absolute().parent, source=str(file), name=file.stem)

    @classmethod
    def from_text(cls, document: str, folder: Path | None = None) -> Recipe:
        """Read a recipe's TOML text. Raises: RecipeError."""
        return cls._read(document, folder, source="recipe", name="unnamed")

    @classmethod
    def _read(cls, document: str, folder: Path | None, source: str, name: str) -> Recipe:
        with within(f"{source}:"):
            try:
                tables = tomllib.loads(document)
            except (ValueError, RecursionError) as error:  # a TOMLDecodeError states the line
                raise RecipeError(f"is not valid TOML: {error}") from None
            return cls(**{"name": name, "folder": folder} | _arguments(tables))

    def to_toml(self, *, defaults: bool = False) -> str:
        """Return the TOML text that reads back as this recipe (given its folder).

        defaults: write every key that has a value, rather than only those that differ from their default.
        """
        table: dict[str, Any] = {"name": self.name, "description": self.description, "context": self.context}
        table |= _written(self.placement, defaults)
        mixing = ("beta", "conservative_filter", "plausibility_mask", "plausibility_top_p")
        table |= {key: value for key in mixing if (value := getattr(self, key)) is not None}
        drafts = {key: getattr(self, key) for key in _DRAFTS}
        table |= drafts if defaults or drafts != _DRAFTS else {}
        table |= {"exact": self.exact} if defaults or self.exact != "auto" else {}
        table[BASE] = self.base.table()
        table |= {ANTIEXPERT: self.antiexpert.table()} if self.antiexpert else {}
        table["experts"] = {name: expert.table() for name, expert in self.experts.items()}
        table["sampling"] = _written(self.sampling, defaults)
        table["about"] = changed(self.about)
        table["compare"] = {name: role.table() for name, role in self.compare.items()}
        kept = {key: value for key, value in table.items() if value not in ("", {})}
        return tomli_w.dumps(kept, multiline_strings=self._has_long_text())

    def _has_long_text(self) -> bool:
        """Whether texts are written on several lines; TOML's multi-line texts lose carriage returns."""
        instructions = (role.prompt.instructions for _, role in self.named_roles())
        several = any("\n" in (words or "") for words in (self.description, self.sampling.grammar, *instructions))
        return several and r"\r" not in repr(self)

    def replace(self, **changes: Any) -> Recipe:
        """Return a recipe with other values, checked like any other.

        changes: fields of Recipe, Sampling keys (temperature=0), Placement keys (offload=0), and alpha:
        a number when there is one expert, otherwise {"NAME": number, …}.
        Raises: RecipeError.
        """
        own = tuple(each.name for each in fields(self))
        refuse_unknown(changes, (*own, *SAMPLING_KEYS, *PLACEMENT_KEYS, "alpha"))
        new = replace(self, **{key: value for key, value in changes.items() if key in own})
        sampling = {key: value for key, value in changes.items() if key in SAMPLING_KEYS}
        placement = {key: value for key, value in changes.items() if key in PLACEMENT_KEYS}
        experts = dict(new.experts)
        for name, alpha in _alphas(new, changes["alpha"]).items() if "alpha" in changes else ():
            with within(f"[experts.{name}]"):
                experts[name] = replace(experts[name], alpha=alpha)
        return replace(
            new,
            sampling=replace(new.sampling, **sampling),
            placement=replace(new.placement, **placement),
            experts=experts,
        )


_DRAFTS = {"draft": "auto", "draft_source": "expert", "draft_rule": "shared-noise"}
_TOP_KEYS = tuple(each.name for each in fields(Recipe) if each.name not in ("placement", "folder"))
_TABLES = (BASE, ANTIEXPERT, "experts", "sampling", "about", "compare")
_PLAIN_KEYS = tuple(key for key in _TOP_KEYS if key not in _TABLES)


def _arguments(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the Recipe's arguments that a TOML document gives."""
    homes = dict.fromkeys(SAMPLING_KEYS, "[sampling]") | {"alpha": "[experts.NAME]"}
    for key in tables:
        if key in homes:
            raise RecipeError(f"{key} stands at the top level; it belongs under {homes[key]}")
    refuse_unknown(tables, (*_TOP_KEYS, *PLACEMENT_KEYS))
    given: dict[str, Any] = {key: tables[key] for key in _PLAIN_KEYS if key in tables}
    given["placement"] = Placement(**{key: tables[key] for key in PLACEMENT_KEYS if key in tables})
    if BASE not in tables:
        raise RecipeError("[base] is missing; add the table with the large model")
    if "experts" not in tables:
        raise RecipeError("[experts.NAME] is missing; add a table with a tuned model")
    given |= {key: read_role(tables, (key,)) for key in (BASE, ANTIEXPERT) if key in tables}
    experts, compare = subtable(tables, "experts"), subtable(tables, "compare") if "compare" in tables else {}
    given["experts"] = {name: read_expert(experts, name) for name in experts}
    given["compare"] = {name: read_role(compare, ("compare", name)) for name in compare}
    with within("[sampling]"):
        sampling = subtable(tables, "sampling") if "sampling" in tables else {}
        refuse_unknown(sampling, SAMPLING_KEYS)
        given["sampling"] = Sampling(**sampling)
    with within("[about]"):
        about = subtable(tables, "about") if "about" in tables else {}
        refuse_unknown(about, [each.name for each in fields(About)])
        given["about"] = About(**about)
    return given


def _alphas(recipe: Recipe, alpha: Any) -> Mapping[str, Any]:
    """Return the new alphas by expert; a bare number is clear only when there is one expert."""
    if isinstance(alpha, Mapping):
        with within("alpha:"):
            refuse_unknown(alpha, recipe.experts)
        return alpha
    if len(recipe.experts) > 1:
        names = ", ".join(recipe.experts)
        raise RecipeError(f"alpha = {shown(alpha)}: name one of the experts ({names}), as NAME=NUMBER")
    return dict.fromkeys(recipe.experts, alpha)


def _check_name(table: str, name: Any) -> None:
    """Raise RecipeError for a name that the command line could not carry, or that means something already."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RecipeError(f"[{table}.{shown(name)}]: a name has letters, digits, '_', '-' and '.' only; rename it")
    if name.endswith(".antiexpert"):
        raise RecipeError(
            f"[{table}.{name}]: names that end so stand for an expert's own antiexpert; choose another one"
        )
    if name in RESERVED_NAMES:
        raise RecipeError(f"[{table}.{name}]: this name is reserved ({', '.join(RESERVED_NAMES)}); choose another one")


def _written(instance: Any, defaults: bool) -> dict[str, Any]:
    """Return what to_toml writes of a Sampling or Placement; TOML has no None."""
    if not defaults:
        return {key: _plain(value) for key, value in changed(instance).items()}
    pairs = ((each.name, getattr(instance, each.name)) for each in fields(instance))
    return {key: _plain(value) for key, value in pairs if value is not None}


def _plain(value: Any) -> Any:
    """Return a mapping as the dict that tomli_w writes as a table."""
    return dict(value) if isinstance(value, Mapping) else value
