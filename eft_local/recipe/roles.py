"""A recipe's roles: which model, with which prompt, placed where. One dataclass per kind of TOML table."""

# ruff: noqa: RUF009 (checked() returns a dataclasses.field)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from eft_local.errors import RecipeError, nearest, shown
from eft_local.recipe.checks import (
    Check,
    checked,
    choice,
    either,
    flag,
    instance,
    integer,
    number,
    optional,
    refuse_unknown,
    table_of,
    text,
    toml_value,
    verify,
    within,
)
from eft_local.recipe.names import ANTIEXPERT, SAME_WEIGHTS

STYLES = ("chat", "plain", "few-shot")
PROMPT_KEYS = ("prompt", "instructions", "examples", "frame", "template_args")
AnyRole = TypeVar("AnyRole", bound="Role")
PLAIN_KV_TYPES = ("f32", "f16", "bf16")
"""Types of the KV cache that need no flash attention."""
KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")


def _slot(value: Any) -> str:
    words: str = text().accept(value)
    if words.count("{text}") != 1:
        raise ValueError
    return words


_framed = Check("a text that holds {text} exactly once", _slot)


@dataclass(frozen=True, slots=True)
class Frame:
    """What plain and few-shot prompts write around each turn, {text}. TOML: `frame = {…}`.

    user, assistant, system: one text each. The default is the papers' frame.
    """

    user: str = checked(_framed, "Question: {text}\nAnswer:")
    assistant: str = checked(_framed, " {text}\n\n")
    system: str = checked(_framed, "{text}\n\n")

    def __post_init__(self) -> None:
        verify(self)


def _check_style(style: Any) -> None:
    """A style's name, or what can only be a file: a lone word is a misspelt style, not a path."""
    text(empty=False)("prompt", style)
    if style not in STYLES and not any(mark in style for mark in "./\\"):
        raise RecipeError(
            f'prompt = {shown(style)}: unknown style; the nearest one is "{nearest(style, STYLES)}" '
            f'(styles: {", ".join(STYLES)}, or a Jinja file such as "chat.jinja")'
        )


_EXAMPLE = '[["question", "answer"]]'


def _pairs(value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, list | tuple):
        raise TypeError
    pairs = []
    for item in value:
        if not isinstance(item, list | tuple):
            raise TypeError
        question, answer = item
        pairs.append((text(empty=False).accept(question), text(empty=False).accept(answer)))
    return tuple(pairs)


@dataclass(frozen=True, slots=True)
class Prompt:
    """How a role sees the conversation. In TOML its keys stand in the role's own table.

    style (TOML key `prompt`): "chat", the model's own chat template; "plain", every turn in `frame`;
        "few-shot", the same after `examples`; or the path of a Jinja file, relative to the recipe.
    instructions: a system text for this role alone, in front of the conversation's own.
    examples: (user, assistant) turns between the system text and the conversation; not for "plain".
    frame: for "plain" and "few-shot".
    template_args: extra variables for the chat template or the Jinja file, e.g. {enable_thinking = false}.
    Raises: RecipeError for a value that cannot be used, or that this style would ignore.
    """

    style: str = "plain"
    instructions: str = checked(text(), "")
    examples: tuple[tuple[str, str], ...] = checked(Check('a list such as [["question", "answer"]]', _pairs), ())
    frame: Frame = checked(instance(Frame, "a Frame"), factory=Frame)
    template_args: Mapping[str, Any] = checked(
        table_of(Check("a TOML value", toml_value), "a table of TOML values"), factory=dict
    )

    def __post_init__(self) -> None:
        _check_style(self.style)
        verify(self)
        self._refuse_ignored()

    @property
    def is_framed(self) -> bool:
        """Whether turns are written into `frame`, rather than by a template."""
        return self.style in ("plain", "few-shot")

    @property
    def is_file(self) -> bool:
        """Whether `style` is the path of a Jinja file."""
        return self.style not in STYLES

    def _refuse_ignored(self) -> None:
        if self.style == "few-shot" and not self.examples:
            raise RecipeError('prompt = "few-shot": examples are missing; add examples = [["question", "answer"]]')
        ignored = None
        if self.style == "plain" and self.examples:
            ignored = 'examples needs prompt = "few-shot", "chat" or a Jinja file'
        elif not self.is_framed and self.frame != Frame():
            ignored = 'frame needs prompt = "plain" or "few-shot"'
        elif self.is_framed and self.template_args:
            ignored = 'template_args needs prompt = "chat" or a Jinja file'
        if ignored:
            raise RecipeError(f"prompt = {shown(self.style)}: {ignored}; remove it or change prompt")

    @classmethod
    def from_table(cls, table: Mapping[str, Any], default_style: str) -> Prompt:
        """Read the prompt's keys of a role's table."""
        given = {("style" if key == "prompt" else key): table[key] for key in PROMPT_KEYS if key in table}
        given.setdefault("style", default_style)
        if "frame" in given:
            frame = given["frame"]
            if not isinstance(frame, Mapping):
                raise RecipeError(f'frame = {shown(frame)}: a table such as {{user = "Q: {{text}}"}} is needed')
            with within("frame:"):
                refuse_unknown(frame, [each.name for each in fields(Frame)])
                given["frame"] = Frame(**frame)
        return cls(**given)

    def table(self) -> dict[str, Any]:
        """Return the keys that `from_table` reads."""
        table: dict[str, Any] = {"prompt": self.style}
        if self.instructions:
            table["instructions"] = self.instructions
        if self.examples:
            table["examples"] = [list(pair) for pair in self.examples]
        if self.template_args:
            table["template_args"] = dict(self.template_args)
        return table | ({"frame": changed(self.frame)} if self.frame != Frame() else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a model runs and how. Keys stand at the recipe's top level, and in roles' tables to differ.

    offload: layers on GPUs, the output counted as one; -1 for all, 0 for no GPU at all, or "auto": small models whole,
        then as many layers of the others as fit (see `placement`).
    threads, threads_batch: CPU threads for single tokens and for prompts; None takes what is fastest at the moment.
    batch, ubatch: tokens that one call evaluates, logically and physically. ubatch None is 512 on a GPU and 128 on a
        CPU, where an evaluation stops only between the steps of one ubatch, and larger ones are no faster.
    kv_type: type of the KV cache.
    flash_attention: true, false, or "auto": on GPUs as llama.cpp decides; on a CPU what is faster for the model,
        measured when it is first loaded, but always for a quantised cache, which needs it.
    mmap: map the file instead of reading it; "auto" does so unless this CPU wants the weights in another order, as
        then both the file's pages and the copy would stay in memory.  mlock: keep the weights in RAM.
    """

    offload: int | Literal["auto"] = checked(either(choice("auto"), integer(-1)), "auto")
    threads: int | None = checked(optional(integer(1)), None)
    threads_batch: int | None = checked(optional(integer(1)), None)
    batch: int = checked(integer(1), 2048)
    ubatch: int | None = checked(optional(integer(1)), None)
    kv_type: str = checked(choice(*KV_TYPES), "f16")
    flash_attention: bool | Literal["auto"] = checked(either(choice("auto"), flag), "auto")
    mmap: bool | Literal["auto"] = checked(either(choice("auto"), flag), "auto")
    mlock: bool = checked(flag, False)

    def __post_init__(self) -> None:
        verify(self)
        if self.flash_attention is False and self.kv_type not in PLAIN_KV_TYPES:
            raise RecipeError(
                f'kv_type = "{self.kv_type}" with flash_attention = false: llama.cpp quantises the cache '
                'only with flash attention; set flash_attention = "auto" or kv_type = "f16"'
            )


PLACEMENT_KEYS = tuple(each.name for each in fields(Placement))


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """One model in its part. TOML: [base], [antiexpert], [experts.NAME.antiexpert], [compare.NAME].

    model: a path relative to the recipe, "demo:NAME", or a model on the hub, "org/repo:Q4_K_M"; or "@antiexpert" or
        "@base": the weights of that role (and its adapter, if there is no `lora` here) in the place where it runs.
        An expert's antiexpert is its own where it has one. An antiexpert "@base" with the base's prompt is the base
        itself, and not evaluated once more: an expert "@base" with instructions is then context-aware decoding.
    lora: a LoRA adapter for the model, named as models are; lora_scale: times what it changes.
    prompt: see Prompt; "plain" when the table does not say.
    overrides: the Placement keys that differ from the recipe's.
    Raises: RecipeError.
    """

    model: str = checked(text(empty=False))
    lora: str | None = checked(optional(text(empty=False)), None)
    lora_scale: float = checked(number(), 1.0)
    prompt: Prompt = checked(instance(Prompt, "a Prompt"), factory=Prompt)
    overrides: Mapping[str, Any] = checked(instance(Mapping, "a table of placement keys"), factory=dict)

    def __post_init__(self) -> None:
        verify(self)
        refuse_unknown(self.overrides, PLACEMENT_KEYS)
        placed = Placement(**self.overrides)
        kept = {key: getattr(placed, key) for key in PLACEMENT_KEYS if self.overrides.get(key) is not None}
        object.__setattr__(self, "overrides", MappingProxyType(kept))
        if self.lora is None and self.lora_scale != 1:
            raise RecipeError(f"lora_scale = {shown(self.lora_scale)}: there is no lora for it; remove it or add lora")
        if self.follows:
            self._check_following()

    def _check_following(self) -> None:
        if self.model not in SAME_WEIGHTS:
            raise RecipeError(
                f"model = {shown(self.model)}: unknown role; the nearest one is "
                f'"{nearest(self.model, SAME_WEIGHTS)}" (roles: {", ".join(SAME_WEIGHTS)})'
            )
        if self.overrides:
            key, role = next(iter(self.overrides)), self.model[1:]
            raise RecipeError(f'{key}: model = "{self.model}" runs where the {role} does; move {key} into its table')

    @property
    def follows(self) -> bool:
        """Whether `model` names another role."""
        return self.model.startswith("@")

    @property
    def references(self) -> dict[str, str]:
        """What names a file, by its TOML key."""
        return {"model": self.model} | ({"lora": self.lora} if self.lora else {})

    def following(self: AnyRole, other: Role) -> AnyRole:
        """Return this role on the other one's weights, in its place."""
        lora = self if self.lora else other
        return replace(self, model=other.model, lora=lora.lora, lora_scale=lora.lora_scale, overrides=other.overrides)

    def placed(self, placement: Placement) -> Placement:
        """Return the recipe's placement with this role's overrides."""
        return replace(placement, **self.overrides)

    def table(self) -> dict[str, Any]:
        """Return the TOML table that reads back as this role."""
        scale = {"lora_scale": self.lora_scale} if self.lora_scale != 1 else {}
        return self.references | scale | self.prompt.table() | dict(self.overrides)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expert(Role):
    """A tuned model whose difference from its antiexpert is added `alpha` times. TOML: [experts.NAME].

    Tuned by training, by an adapter (`lora`), or by nothing but its prompt (model = "@antiexpert").
    prompt: "chat" when the table does not say.
    alpha: strength of this behaviour delta; any finite number (negative ones push the behaviour away: the opposite of
        an expert that was tuned to be safe).
    antiexpert: this expert's own, TOML [experts.NAME.antiexpert]; None takes the recipe's.
    Raises: RecipeError.
    """

    prompt: Prompt = checked(instance(Prompt, "a Prompt"), factory=lambda: Prompt("chat"))
    alpha: float = checked(number(), 1.0)
    antiexpert: Role | None = checked(optional(instance(Role, "a Role")), None)

    def table(self) -> dict[str, Any]:
        """Return the TOML table that reads back as this expert."""
        table = Role.table(self) | {"alpha": self.alpha}
        return table | ({ANTIEXPERT: self.antiexpert.table()} if self.antiexpert else {})


_OWN_KEYS = ("model", "lora", "lora_scale")
ROLE_KEYS = (*_OWN_KEYS, *PROMPT_KEYS, *PLACEMENT_KEYS)
EXPERT_KEYS = (*ROLE_KEYS, "alpha", ANTIEXPERT)


def read_role(tables: Mapping[str, Any], path: Sequence[str]) -> Role:
    """Read the table at tables[path[-1]]; `path` is its full TOML name, for errors."""
    with within(f"[{'.'.join(path)}]"):
        table = subtable(tables, path[-1])
        refuse_unknown(table, ROLE_KEYS)
        return Role(**_arguments(table, default_style="plain"))


def read_expert(experts: Mapping[str, Any], name: str) -> Expert:
    """Read [experts.NAME] and its own antiexpert."""
    with within(f"[experts.{name}]"):
        table = subtable(experts, name)
        refuse_unknown(table, EXPERT_KEYS)
        alpha = {"alpha": table["alpha"]} if "alpha" in table else {}
        expert = Expert(**_arguments(table, default_style="chat"), **alpha)
    if ANTIEXPERT not in table:
        return expert
    return replace(expert, antiexpert=read_role(table, ("experts", name, ANTIEXPERT)))


def _arguments(table: Mapping[str, Any], default_style: str) -> dict[str, Any]:
    """Return the constructor's arguments that a role's table gives."""
    if "model" not in table:
        raise RecipeError('model is missing; add model = "PATH.gguf" or model = "demo:NAME"')
    return {key: table[key] for key in _OWN_KEYS if key in table} | {
        "prompt": Prompt.from_table(table, default_style),
        "overrides": {key: table[key] for key in PLACEMENT_KEYS if key in table},
    }


def subtable(tables: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the table under `key`. Raises: RecipeError if something else stands there."""
    table = tables[key]
    if not isinstance(table, Mapping):
        raise RecipeError(f"{key} = {shown(table)}: a table of keys is needed here")
    return table


def changed(instance: Any) -> dict[str, Any]:
    """Return the fields that differ from their defaults; all of them have one."""
    default = type(instance)()
    pairs = ((each.name, getattr(instance, each.name)) for each in fields(instance))
    return {name: value for name, value in pairs if value != getattr(default, name)}
