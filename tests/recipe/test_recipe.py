"""Recipes: read, checked, changed and written."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eft_local.errors import EftError, RecipeError
from eft_local.recipe import RESERVED_NAMES, Expert, Frame, Placement, Prompt, Recipe, Role, Sampling
from eft_local.recipe.roles import KV_TYPES, PLACEMENT_KEYS

TRIO = """
name = "my-trio"
context = 2048
offload = "auto"
threads = 4
[base]
model = "large-base.gguf"
offload = 20
[antiexpert]
model = "small-base.gguf"
prompt = "plain"
frame = { user = "Q: {text}\\nA:" }
[experts.helpful]
model = "small-tuned.gguf"
prompt = "chat"
template_args = { enable_thinking = false }
alpha = 1
[sampling]
temperature = 0.7
stop = ["\\n\\n"]
[compare.direct]
model = "demo:base-tuned"
prompt = "few-shot"
examples = [["a?", "b."]]
"""


def trio(**changes: Any) -> Recipe:
    parts: dict[str, Any] = {
        "name": "trio",
        "base": Role(model="l"),
        "antiexpert": Role(model="s"),
        "experts": {"helpful": Expert(model="t")},
    }
    return Recipe(**parts | changes)


def duo() -> Recipe:
    return trio(experts={"helpful": Expert(model="t"), "harmless": Expert(model="u", alpha=0.5)})


def refused(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_text(text)
    message = str(caught.value)
    assert message.startswith("recipe: ")
    assert "\n" not in message
    return message


# reading


def test_a_recipe_is_read_as_it_is_written() -> None:
    recipe = Recipe.from_text(TRIO, Path("/somewhere"))
    assert recipe == Recipe(
        name="my-trio",
        context=2048,
        placement=Placement(threads=4),
        base=Role(model="large-base.gguf", overrides={"offload": 20}),
        antiexpert=Role(model="small-base.gguf", prompt=Prompt("plain", frame=Frame(user="Q: {text}\nA:"))),
        experts={
            "helpful": Expert(
                model="small-tuned.gguf",
                prompt=Prompt("chat", template_args={"enable_thinking": False}),
                alpha=1.0,
            )
        },
        sampling=Sampling(temperature=0.7, stop=("\n\n",)),
        compare={"direct": Role(model="demo:base-tuned", prompt=Prompt("few-shot", examples=(("a?", "b."),)))},
        folder=Path("/somewhere"),
    )
    assert type(recipe.experts["helpful"].alpha) is float
    assert recipe.placement_of(recipe.base) == Placement(threads=4, offload=20)


def test_the_papers_method_is_the_default() -> None:
    recipe = Recipe.from_text(
        '[base]\nmodel = "l"\n[antiexpert]\nmodel = "s"\n[experts.a]\nmodel = "t"\n[experts.b]\nmodel = "u"'
    )
    assert (recipe.beta, recipe.alphas) == (1.0, {"a": 1.0, "b": 1.0})
    assert (recipe.conservative_filter, recipe.plausibility_mask, recipe.plausibility_top_p) == (
        None,
        None,
        None,
    )
    assert recipe.base.prompt.style == "plain"
    assert recipe.experts["a"].prompt.style == "chat"
    assert list(recipe.experts) == ["a", "b"]


def test_a_file_gives_its_folder_and_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(b"\xef\xbb\xbf" + TRIO.replace('name = "my-trio"\n', "").replace("\n", "\r\n").encode())
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.from_toml("mine.toml")
    assert (recipe.name, recipe.folder) == ("mine", tmp_path)


def test_an_expert_may_have_its_own_antiexpert() -> None:
    text = '[base]\nmodel = "l"\n[experts.a]\nmodel = "t"\n[experts.a.antiexpert]\nmodel = "s"\nthreads = 2'
    recipe = Recipe.from_text(text)
    assert recipe.antiexpert is None
    roles = dict(recipe.named_roles())
    assert roles["experts.a.antiexpert"] == Role(model="s", overrides={"threads": 2})
    assert dict(duo().named_roles())["antiexpert"] == Role(model="s")


def test_roles_on_the_weights_of_others() -> None:
    text = """
        offload = 3
        [base]
        model = "l"
        lora = "lora.gguf"
        lora_scale = 0.5
        offload = 7
        [antiexpert]
        model = "@base"
        [experts.told]
        model = "@antiexpert"
        instructions = "Be brief."
        [experts.adapted]
        model = "@antiexpert"
        lora = "other.gguf"
        alpha = -1
        [experts.own]
        model = "@antiexpert"
        [experts.own.antiexpert]
        model = "s"
        threads = 2
        [compare.shown]
        model = "@base"
        prompt = "chat"
        examples = [["a?", "b."]]
    """
    recipe = Recipe.from_text(text)
    assert Recipe.from_text(recipe.to_toml()) == recipe, "written as it was read"
    runs = dict(recipe.named_roles())
    base = ("l", "lora.gguf", 0.5, {"offload": 7})
    found = {place: (role.model, role.lora, role.lora_scale, dict(role.overrides)) for place, role in runs.items()}
    assert found == {
        "base": base,
        "antiexpert": base,
        "experts.told": base,
        "experts.adapted": ("l", "other.gguf", 1.0, {"offload": 7}),
        "experts.own": ("s", None, 1.0, {"threads": 2}),
        "experts.own.antiexpert": ("s", None, 1.0, {"threads": 2}),
        "compare.shown": base,
    }
    assert runs["experts.told"].prompt == Prompt("chat", instructions="Be brief.")
    assert runs["experts.adapted"].alpha == -1
    moved = recipe.replace(base=dataclasses.replace(recipe.base, model="m"))
    assert moved.load_key() != recipe.load_key()
    assert {role.model for role in dict(moved.named_roles()).values()} == {"m", "s"}


@pytest.mark.parametrize(
    ("base", "antiexpert", "expert", "expected"),
    [
        ("@base", "s", "t", '[base]: model = "@base": the base needs a model of its own'),
        ("l", "@antiexpert", "t", '[antiexpert]: model = "@antiexpert" names itself'),
        ("l", "s", "@small", '[experts.a] model = "@small": unknown role; the nearest one is "@base"'),
        ("l", "s", '@base"\nkv_type = "f32', '[experts.a] kv_type: model = "@base" runs where the base does'),
        ("l", "s", 't"\nlora = "', '[experts.a] lora = ""'),
        ("l", "s", 't"\nlora_scale = 2\nprompt = "plain', "[experts.a] lora_scale = 2.0: there is no lora for it"),
        ("l", "s", 't"\n[compare.b]\nmodel = "@bas', '[compare.b] model = "@bas": unknown role'),
        ("l", None, 't"\n[experts.a.antiexpert]\nmodel = "@antiexpert', "but there is no [antiexpert]"),
        (
            "l",
            None,
            't"\n[experts.a.antiexpert]\nmodel = "s"\n[compare.b]\nmodel = "@antiexpert',
            '[compare.b]: model = "@antiexpert", but there is no [antiexpert]',
        ),
    ],
)
def test_weights_that_cannot_be_followed(base: str, antiexpert: str | None, expert: str, expected: str) -> None:
    tables = [f'[base]\nmodel = "{base}"']
    tables += [f'[antiexpert]\nmodel = "{antiexpert}"'] if antiexpert else []
    assert expected in refused("\n".join([*tables, f'[experts.a]\nmodel = "{expert}"']))


def test_a_json_schema_may_be_a_table() -> None:
    recipe = Recipe.from_text(TRIO.replace("temperature = 0.7", 'json_schema = { type = "object" }'))
    assert json.loads(recipe.sampling.json_schema or "") == {"type": "object"}


# what is refused


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "temperature",
            "temprature",
            '[sampling] unknown key "temprature"; the nearest valid key is "temperature"',
        ),
        ("context", "contxt", 'unknown key "contxt"; the nearest valid key is "context"'),
        ("alpha =", "alhpa =", '[experts.helpful] unknown key "alhpa"; the nearest valid key is "alpha"'),
        ("offload = 20", "ofload = 20", '[base] unknown key "ofload"; the nearest valid key is "offload"'),
        ("user =", "usr =", '[antiexpert] frame: unknown key "usr"; the nearest valid key is "user"'),
        (
            "context",
            "temperature = 1\ncontext",
            "temperature stands at the top level; it belongs under [sampling]",
        ),
        ("context", "alpha = 1\ncontext", "alpha stands at the top level; it belongs under [experts.NAME]"),
        ("offload = 20", "alpha = 1", '[base] unknown key "alpha"'),
        ("alpha = 1", "alpha = nan", "[experts.helpful] alpha = nan: a finite number is needed"),
        ("alpha = 1", "alpha = inf", "[experts.helpful] alpha = inf: a finite number is needed"),
        ("alpha = 1", "alpha = -inf", "[experts.helpful] alpha = -inf: a finite number is needed"),
        ("alpha = 1", 'alpha = "1"', '[experts.helpful] alpha = "1": a finite number is needed'),
        ("alpha = 1", "alpha = true", "[experts.helpful] alpha = true: a finite number is needed"),
        ("context = 2048", "context = 2048.0", "context = 2048.0: an integer from 1 to 2147483647 is needed"),
        ("context = 2048", "context = true", "context = true: an integer from 1"),
        ("threads = 4", "beta = -0.5", "beta = -0.5: a finite number of at least 0 is needed"),
        (
            "threads = 4",
            "conservative_filter = 1",
            "conservative_filter = 1: a finite number above 0 and below 1",
        ),
        (
            "threads = 4",
            "plausibility_mask = 0",
            "plausibility_mask = 0: a finite number above 0 and of at most 1",
        ),
        ("threads = 4", 'kv_type = "q8"', 'kv_type = "q8": "f32" or "f16" or'),
        ("offload = 20", 'offload = "all"', '[base] offload = "all": "auto" or an integer from -1 to'),
        ("offload = 20", "model = 3", "is not valid TOML: "),
        ('model = "large-base.gguf"', "model = 3", "[base] model = 3: a text that is not empty is needed"),
        ('model = "large-base.gguf"', "", "[base] model is missing"),
        (
            "temperature = 0.7",
            "temperature = -1",
            "[sampling] temperature = -1: a finite number of at least 0",
        ),
        ("temperature = 0.7", "seed = -1", "[sampling] seed = -1: an integer from 0 to"),
        ('stop = ["\\n\\n"]', 'stop = "x"', '[sampling] stop = "x": a list of texts'),
        ('stop = ["\\n\\n"]', 'stop = [""]', "[sampling] stop = ['']: a list of texts"),
        ("temperature = 0.7", 'json_schema = "{"', '[sampling] json_schema = "{": a JSON schema'),
        ("temperature = 0.7", 'json_schema = "{}"\ngrammar = "root"', "an answer obeys one of them"),
        ("temperature = 0.7", "logit_bias = { 5 = nan }", "[sampling] logit_bias = {'5': nan}: a table from"),
        (
            'prompt = "chat"',
            'prompt = "chta"',
            '[experts.helpful] prompt = "chta": unknown style; the nearest',
        ),
        ('prompt = "plain"', 'prompt = "few-shot"', '[antiexpert] prompt = "few-shot": examples are missing'),
        ('prompt = "plain"', 'prompt = "chat"', '[antiexpert] prompt = "chat": frame needs prompt = "plain"'),
        ('prompt = "few-shot"', 'prompt = "plain"', '[compare.direct] prompt = "plain": examples needs'),
        ('prompt = "chat"', 'prompt = "plain"', 'prompt = "plain": template_args needs prompt = "chat"'),
        ('[["a?", "b."]]', '[["a?"]]', "[compare.direct] examples = [['a?']]: a list such as"),
        ("Q: {text}", "Q: {txt}", 'user = "Q: {txt}\\nA:": a text that holds {text} exactly once is needed'),
        ('frame = { user = "Q: {text}\\nA:" }', 'frame = "Q"', '[antiexpert] frame = "Q": a table such as'),
        ("enable_thinking = false", "enable_thinking = nan", "template_args = {'enable_thinking': nan}"),
        (
            "[experts.helpful]",
            "[experts]",
            '[experts.model] model = "small-tuned.gguf": a table of keys is needed',
        ),
        ("[base]", "[bse]", 'unknown key "bse"; the nearest valid key is "base"'),
        ("[sampling]", "[[sampling]]", "[sampling] sampling = [{"),
        ("[compare.direct]", "[compare.helpful]", "[compare.helpful]: an expert has this name already"),
        ("[compare.direct]", '[compare."a b"]', '[compare."a b"]: a name has letters'),
        (
            "[compare.direct]",
            '[experts.helpful.antiexpert]\nmodel = "x"\n[compare.direct]',
            "used by no expert",
        ),
    ],
)
def test_an_error_names_the_place_the_key_and_the_value(old: str, new: str, expected: str) -> None:
    assert TRIO.count(old) >= 1
    assert expected in refused(TRIO.replace(old, new))


@pytest.mark.parametrize("name", RESERVED_NAMES)
@pytest.mark.parametrize("table", ["experts.helpful", "compare.direct"])
def test_names_that_mean_something_already_are_refused(table: str, name: str) -> None:
    kind = table.split(".")[0]
    message = refused(TRIO.replace(f"[{table}]", f"[{kind}.{name}]"))
    assert f"[{kind}.{name}]: this name is reserved" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[antiexpert]\nmodel = "s"\n[experts.a]\nmodel = "t"', "[base] is missing"),
        ('[base]\nmodel = "l"\n[antiexpert]\nmodel = "s"', "[experts.NAME] is missing"),
        ('[base]\nmodel = "l"\n[antiexpert]\nmodel = "s"\n[experts]', "at least one [experts.NAME] table"),
        (
            '[base]\nmodel = "l"\n[experts.a]\nmodel = "t"',
            "[antiexpert] is missing; add it, or [experts.a.antiexpert]",
        ),
        (
            '[base]\nmodel = "l"\n[experts.a]\nmodel = "t"\n[experts.a.antiexpert]\nmdl = "s"',
            '[experts.a.antiexpert] unknown key "mdl"; the nearest valid key is "model"',
        ),
        (
            'flash_attention = false\n[base]\nmodel = "l"\nkv_type = "q8_0"\n'
            '[antiexpert]\nmodel = "s"\n[experts.a]\nmodel = "t"',
            '[base] kv_type = "q8_0" with flash_attention = false',
        ),
    ],
)
def test_what_is_missing_or_contradictory_is_named(text: str, expected: str) -> None:
    assert expected in refused(text)


def test_broken_toml_is_reported_with_its_line() -> None:
    message = refused('name = "x"\n[base\nmodel = "l"')
    assert "is not valid TOML" in message
    assert "line 2" in message


def test_every_error_about_a_file_names_it(tmp_path: Path) -> None:
    def message(path: Path) -> str:
        with pytest.raises(RecipeError) as caught:
            Recipe.from_toml(path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    file = tmp_path / "r.toml"
    assert message(file) == f"{file}: no such recipe; `eft recipes` lists what there is"
    assert message(tmp_path) == f"{tmp_path}: is a folder, not a recipe file; name the .toml file in it"
    file.write_bytes(b'name = "\xff"')
    assert message(file) == f"{file}: byte 8 is not UTF-8; save the file as UTF-8"
    file.write_text("name = ")
    assert message(file).startswith(f"{file}: is not valid TOML: ")
    file.write_text(TRIO.replace("alpha = 1", "alpha = nan"))
    assert message(file).startswith(f"{file}: [experts.helpful] alpha = nan")
    assert "cannot be read" in message(file / "below")
    assert "cannot be read" in message(tmp_path / "nul\0")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text(TRIO)
    file.chmod(0)
    with pytest.raises(RecipeError, match=r"Permission denied"):
        Recipe.from_toml(file)


def test_wrong_types_are_refused_in_python_too() -> None:
    with pytest.raises(RecipeError, match='base = "l": a Role is needed'):
        trio(base="l")
    with pytest.raises(RecipeError, match=r"experts\.helpful = .*: an Expert is needed"):
        trio(experts={"helpful": Role(model="t")})
    with pytest.raises(RecipeError, match="alpha = nan: a finite number is needed"):
        Expert(model="t", alpha=math.nan)
    with pytest.raises(RecipeError, match='unknown key "layers"'):
        Role(model="l", overrides={"layers": 3})
    with pytest.raises(RecipeError, match="temperature = 1000000"):
        Sampling(temperature=10**400)
    with pytest.raises(RecipeError, match="model = "):
        Role(model="\udcff.gguf")


def test_recipe_errors_end_the_command_with_two() -> None:
    assert issubclass(RecipeError, EftError)
    assert RecipeError.exit_code == 2


def test_recipes_are_frozen() -> None:
    recipe = trio()
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.beta = 2.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        recipe.experts["x"] = recipe.experts["helpful"]  # type: ignore[index]
    with pytest.raises(TypeError):
        recipe.sampling.logit_bias["1"] = 2.0  # type: ignore[index]


# changing


def test_replace_reaches_every_kind_of_key() -> None:
    recipe = trio().replace(
        temperature=0, seed=7, offload=0, beta=1.5, alpha=2, context=99, logit_bias={5: -100}, threads=3
    )
    assert recipe.sampling == Sampling(temperature=0.0, seed=7, logit_bias={"5": -100.0})
    assert recipe.placement == Placement(offload=0, threads=3)
    assert (recipe.beta, recipe.alphas, recipe.context) == (1.5, {"helpful": 2.0}, 99)
    assert recipe.replace(sampling=Sampling(top_k=1), top_p=0.5).sampling == Sampling(top_k=1, top_p=0.5)
    assert trio().replace() == trio()


def test_replace_names_one_of_several_experts() -> None:
    assert duo().replace(alpha={"harmless": 0}).alphas == {"helpful": 1.0, "harmless": 0.0}
    with pytest.raises(RecipeError, match=r"alpha = 2: name one of the experts \(helpful, harmless\)"):
        duo().replace(alpha=2)
    with pytest.raises(RecipeError, match='alpha: unknown key "harmles"; the nearest valid key is "harmless"'):
        duo().replace(alpha={"harmles": 1})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"temprature": 0}, 'unknown key "temprature"; the nearest valid key is "temperature"'),
        ({"alpha": math.nan}, "[experts.helpful] alpha = nan: a finite number is needed"),
        ({"alpha": {"helpful": math.inf}}, "[experts.helpful] alpha = inf: a finite number is needed"),
        ({"beta": math.inf}, "beta = inf: a finite number of at least 0 is needed"),
        ({"top_p": 1.1}, "top_p = 1.1: a finite number above 0 and of at most 1 is needed"),
        ({"sampling": {"seed": 1}}, "sampling = {'seed': 1}: a Sampling is needed"),
        ({"folder": 3}, "folder = 3: a folder's path is needed"),
        ({"mmap": 1}, 'mmap = 1: "auto" or true or false is needed'),
    ],
)
def test_replace_checks_like_construction(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        trio().replace(**changes)
    assert str(caught.value).startswith(expected)


def test_no_key_means_two_things() -> None:
    names = [field.name for kind in (Recipe, Sampling, Placement) for field in dataclasses.fields(kind)] + ["alpha"]
    assert len(names) == len(set(names))


def test_only_what_needs_other_models_or_contexts_changes_the_load_key() -> None:
    recipe = trio()
    same = recipe.replace(
        alpha=0.5,
        beta=2,
        temperature=0,
        plausibility_mask=0.1,
        base=Role(model="l", prompt=Prompt("chat")),
        name="x",
    )
    assert hash(same.load_key()) == hash(recipe.load_key())
    assert same.load_key() == recipe.load_key()
    for changes in (
        {"context": 1},
        {"threads": 2},
        {"base": Role(model="m")},
        {"base": Role(model="l", overrides={"offload": 3})},
        {"base": Role(model="l", lora="x")},
        {"base": Role(model="l", lora="x", lora_scale=2)},
        {"experts": {"other": Expert(model="t")}},
        {"folder": Path("/elsewhere")},
        {"compare": {"x": Role(model="l")}},
    ):
        assert recipe.replace(**changes).load_key() != recipe.load_key()


# writing


def test_the_written_toml_reads_well() -> None:
    assert trio(beta=1.5).replace(temperature=0).to_toml() == (
        'name = "trio"\ncontext = 4096\nbeta = 1.5\n'
        '\n[base]\nmodel = "l"\nprompt = "plain"\n'
        '\n[antiexpert]\nmodel = "s"\nprompt = "plain"\n'
        '\n[experts.helpful]\nmodel = "t"\nprompt = "chat"\nalpha = 1.0\n'
        "\n[sampling]\ntemperature = 0.0\n"
    )
    assert "top_k = 40\n" in trio().to_toml(defaults=True)


def test_long_texts_are_written_on_lines_of_their_own() -> None:
    grammar = 'root ::= "yes" |\n  "no"\n'
    recipe = trio().replace(grammar=grammar)
    assert recipe.to_toml().endswith('grammar = """\nroot ::= \\"yes\\" |\n  \\"no\\"\n"""\n')
    assert Recipe.from_text(recipe.to_toml()) == recipe
    windows = trio().replace(grammar=grammar.replace("\n", "\r\n"))
    assert Recipe.from_text(windows.to_toml()) == windows


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
filled = texts.filter(bool)
files = filled.filter(lambda name: not name.startswith("@"))
names = st.from_regex(r"[a-z][a-z0-9_.-]{0,8}", fullmatch=True).filter(lambda name: name not in RESERVED_NAMES)
finite = st.floats(-1e9, 1e9) | st.integers(-9, 9)
values = st.recursive(
    st.booleans() | st.integers(-99, 99) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
frames = st.builds(
    Frame,
    user=st.tuples(texts, texts).map("{text}".join).filter(lambda slot: slot.count("{text}") == 1),
)
prompts = (
    st.builds(Prompt, st.just("plain"), frame=frames, instructions=texts)
    | st.builds(
        Prompt,
        st.sampled_from(["chat", "my.jinja"]),
        instructions=texts,
        examples=st.lists(st.tuples(filled, filled), max_size=2),
        template_args=st.dictionaries(texts, values, max_size=2),
    )
    | st.builds(
        Prompt,
        st.just("few-shot"),
        frame=frames,
        examples=st.lists(st.tuples(filled, filled), min_size=1, max_size=2),
    )
)
placement_values: dict[str, st.SearchStrategy[Any]] = {
    "offload": st.just("auto") | st.integers(-1, 99),
    "threads": st.integers(1, 99),
    "threads_batch": st.integers(1, 99),
    "batch": st.integers(1, 9999),
    "ubatch": st.integers(1, 9999),
    "kv_type": st.sampled_from(KV_TYPES),
    "flash_attention": st.sampled_from(["auto", True]),
    "mmap": st.sampled_from(["auto", True, False]),
    "mlock": st.booleans(),
}
placements = st.fixed_dictionaries({}, optional=placement_values)
adapters = st.one_of(
    st.just({}), st.fixed_dictionaries({"lora": filled, "lora_scale": st.just(1.0) | st.floats(-2, 2)})
)
roles = st.builds(
    lambda adapter, **role: Role(**adapter, **role), adapters, model=files, prompt=prompts, overrides=placements
)
experts = st.builds(
    lambda adapter, **role: Expert(**adapter, **role),
    adapters,
    model=files,
    prompt=prompts,
    overrides=placements,
    alpha=finite,
) | st.builds(Expert, model=st.sampled_from(["@antiexpert", "@base"]), prompt=prompts, alpha=finite)
samplings = st.builds(
    Sampling,
    temperature=st.floats(0, 9),
    top_k=st.integers(0, 99),
    top_p=st.floats(0.01, 1),
    dry_multiplier=st.floats(0, 2),
    logit_bias=st.dictionaries(filled, finite, max_size=2),
    grammar=st.none() | filled,
    seed=st.none() | st.integers(0, 2**63 - 1),
    max_tokens=st.none() | st.integers(1, 99),
    stop=st.lists(filled, max_size=2),
)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    expert_names = draw(st.lists(names, min_size=1, max_size=3, unique=True))
    own = draw(st.booleans())
    return Recipe(
        name=draw(filled),
        description=draw(texts),
        context=draw(st.integers(1, 9999)),
        placement=Placement(**draw(placements)),
        base=draw(roles),
        antiexpert=None if own else draw(roles),
        experts={
            name: dataclasses.replace(draw(experts), antiexpert=draw(roles) if own else None) for name in expert_names
        },
        beta=draw(st.floats(0, 9)),
        conservative_filter=draw(st.none() | st.floats(0.01, 0.99)),
        plausibility_mask=draw(st.none() | st.floats(0.01, 1)),
        sampling=draw(samplings),
        compare={name: draw(roles) for name in draw(st.sets(names, max_size=2)) - set(expert_names)},
        folder=Path("/here"),
    )


@settings(max_examples=60, deadline=None)
@given(recipes(), st.booleans())
def test_toml_round_trip(recipe: Recipe, defaults: bool) -> None:
    again = Recipe.from_text(recipe.to_toml(defaults=defaults), recipe.folder)
    assert again == recipe
    assert list(again.experts) == list(recipe.experts)
    assert again.load_key() == recipe.load_key()


def test_the_round_trip_above_draws_every_placement_key() -> None:
    assert set(placement_values) == set(PLACEMENT_KEYS)
