"""JSON schemas: what is accepted is enforced to the letter, and what cannot be is refused by its name."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import ref

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from eft_local import Emulator, Recipe
from eft_local.backends.llamacpp import Model
from eft_local.backends.llamacpp.matcher import Matcher, tokenizer
from eft_local.backends.tokenize import verbatim
from eft_local.errors import EvaluationError, UsageError
from eft_local.hub.references import find_recipe
from eft_local.recipe import Expert, Placement, Role
from eft_local.recipe.json_schema import REFUSED
from eft_local.recipe.sampling import Sampling

HERE = Path(__file__).parent
CASES = [json.loads(line) for line in (HERE / "json_schema_cases.jsonl").read_text("utf-8").splitlines()]
SUITE = [json.loads(line) for line in (HERE / "json_schema_suite" / "cases.jsonl").read_text("utf-8").splitlines()]


class Bytes:
    """A vocabulary of all bytes, some texts of several, and two ends; enough to write any JSON in many ways."""

    bos, add_bos = None, False

    def __init__(self) -> None:
        texts = [' "', '": ', '", "', "{", '{"', '"}', "}]", "true", "null", "10", "é", "名前", "\\n", "a1", "2024-"]
        self.pieces = [bytes([byte]) for byte in range(256)] + [text.encode() for text in texts] + [b"", b"", b""]
        self.n_tokens = len(self.pieces)
        self.ends = (self.n_tokens - 3, self.n_tokens - 1)

    def piece(self, token: int) -> bytes:
        return self.pieces[token]

    def is_eog(self, token: int) -> bool:
        return token in self.ends

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return list(text.encode())


VOCABULARY = Bytes()
IDS = np.arange(VOCABULARY.n_tokens, dtype=np.int32)


def matcher(schema: Any) -> Matcher:
    return Matcher.of_schema(VOCABULARY, schema if isinstance(schema, str) else json.dumps(schema))


def writable(schema: Matcher, value: Any, *, spaces: bool = False) -> bool:
    """Whether an answer can be this value, as JSON without white space or with that of json.dumps."""
    text = json.dumps(value, ensure_ascii=False, separators=None if spaces else (",", ":"))
    return takes(schema, text)


def takes(schema: Matcher, text: str) -> bool:
    answer = schema.clone()
    return all(answer.accept(byte) for byte in text.encode()) and bool(answer.allowed(np.array(VOCABULARY.ends)).all())


def refusal(schema: Any) -> str:
    with pytest.raises(UsageError) as caught:
        Sampling(json_schema=schema if isinstance(schema, str) else json.dumps(schema))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_only_what_is_valid_can_be_written(case: Mapping[str, Any]) -> None:
    schema = matcher(case["schema"])
    for value in case["valid"]:
        assert writable(schema, value)
        assert writable(schema, value, spaces=True)
    for value in case["invalid"]:
        assert not writable(schema, value)


@pytest.mark.parametrize("group", SUITE, ids=lambda group: f"{group['file']}: {group['description']}")
def test_the_official_suite(group: Mapping[str, Any]) -> None:
    if "refused" in group:
        assert group["refused"] in refusal(group["schema"])
        return
    schema = matcher(group["schema"])
    for description, value, valid in group["tests"]:
        expected = valid and description not in group.get("unwritten", ())
        assert writable(schema, value) == expected, description


@pytest.mark.parametrize("keyword", [*sorted(REFUSED), "uniqueItems"])
def test_what_cannot_be_enforced_is_refused_by_its_name_and_place(keyword: str) -> None:
    reported = refusal({"type": "object", "properties": {"v": {"items": {keyword: {"type": "integer"}}}}})
    assert f"{keyword} at #/properties/v/items cannot be enforced" in reported
    matcher(
        {"$defs": {"unused": {keyword: {}}}, "properties": {keyword: True}, "const": {"a": 1}, "x-note": {keyword: 1}}
    )
    assert keyword in refusal({"$ref": "#/other/a~1b", "other": {"a/b": {keyword: {}}}})


@pytest.mark.parametrize(
    ("schema", "reported"),
    [
        ("{", "JSON schema"),
        ("[1]", "JSON schema"),
        ("7", "JSON schema"),
        ('{"minimum": NaN}', "NaN"),
        ('{"minimum": 1e999}', "1e999"),
        ("[" * 5000 + "]" * 5000, "JSON schema"),
        ('{"items":' * 130 + "{}" + "}" * 130, "recursion limit"),
        ('{"items":' * 800 + "{}" + "}" * 800, "nested"),
        ("false", "false allows nothing"),
        ({"type": "nonsense"}, '#/type is "nonsense", not one of null, boolean'),
        ({"type": []}, "#/type"),
        ({"items": {"minimum": "1"}}, '#/items/minimum is "1", not a number'),
        ({"minimum": True}, "#/minimum"),
        ({"maximum": 2**53 + 2}, "#/maximum"),
        ({"enum": [0.1 + 0.2]}, "#/enum/0 is 0.30000000000000004"),
        ({"minLength": -1}, "#/minLength"),
        ({"maxItems": 1.5}, "#/maxItems"),
        ({"maxLength": 10**30}, "#/maxLength"),
        ({"required": "a"}, "#/required"),
        ({"properties": [1]}, "#/properties"),
        ({"properties": {"a": 3}}, "#/properties/a is 3, not a schema"),
        ({"anyOf": []}, "#/anyOf"),
        ({"enum": []}, "#/enum"),
        ({"multipleOf": 0}, "#/multipleOf"),
        ({"multipleOf": 0.07}, "multipleOf"),
        ({"allOf": [{"multipleOf": 99991}, {"multipleOf": 99989}]}, "multipleOf"),
        ({"exclusiveMinimum": 0, "maximum": 0.5}, "exclusiveMinimum 0"),
        ({"allOf": [{"exclusiveMaximum": -1}, {"minimum": -1.5}]}, "exclusiveMaximum -1"),
        ({"format": "hostname"}, 'format "hostname"'),
        ({"format": "unknown"}, 'format "unknown"'),
        ({"const": "a\x01"}, "control character"),
        ({"properties": {"\x7f": {}}}, "control character"),
        ({"minProperties": 2}, "minProperties"),
        ({"minProperties": 1, "properties": {"a": {}}}, "minProperties and maxProperties"),
        ({"prefixItems": [{}], "items": [{}]}, "#/items"),
        ({"$ref": "#anchor"}, "#anchor"),
        ({"$ref": "other.json"}, "other.json"),
        ({"$ref": "#/nowhere"}, "#/nowhere"),
        ({"$ref": 3}, "$ref"),
        ({"items": {"$id": "x"}}, "$id"),
        ({"$defs": {"a": {"$id": "x", "b": True}}, "$ref": "#/$defs/a/b"}, "$id"),
        ({"allOf": [{"$ref": "#"}]}, "nothing matches"),
        ({"minimum": 2, "maximum": 1, "type": "integer"}, "nothing matches"),
        ({"type": "string", "pattern": "^\x01$"}, "nothing matches"),
        ({"oneOf": [{"type": "integer"}, {"minimum": 2}]}, "oneOf"),
        ({"patternProperties": {"a": {}, "b": {}}}, "patternProperties"),
        ({"pattern": "(?=a)b"}, "look-around"),
        ({"pattern": "("}, "#/pattern"),
        ({"pattern": "[a-z--b]"}, "--"),
        ({"pattern": "[]a]"}, "empty []"),
        ({"pattern": "[^]"}, "empty []"),
        ({"pattern": "a{,3}"}, "{0,"),
        ({"pattern": "a\\z"}, "\\z"),
        ({"pattern": 3}, "#/pattern"),
    ],
    ids=str,
)
def test_what_is_wrong_is_reported_in_one_line(schema: Any, reported: str) -> None:
    assert reported in refusal(schema)


@pytest.mark.parametrize(
    ("schema", "yes", "no"),
    [
        # JSON in disguise: another spelling of a key, white space, a key that ends with white space.
        (
            {"properties": {"a": {"type": "null"}}},
            ['{"a":null}', '{"b":1}'],
            ['{"\\u0061":1}', '{"a":1}', '{"a" :null}'],
        ),
        ({}, ['{"a": [1, 2]}', '{"a":[1,2]}'], [" {}", "{} ", "{ }", '{"a":  1}', '{"a":\n1}', "[1 ,2]", "1\n"]),
        ({"type": "string"}, ['"\\n\\"\\\\"', '"é"'], ['"\n"', '"\x7f"', '"\\u0041"', '"\\/"', '"\\x"', '"']),
        # Regular expressions are JavaScript's.
        ({"pattern": "^.$", "type": "string"}, ['"a"', '"é"'], ['"\\r"', '"\\n"', '"\u2028"', '"ab"']),
        ({"pattern": r"^\s$", "type": "string"}, ['"\ufeff"', '" "', '"\\t"'], ['"\x85"', '"a"']),
        ({"pattern": r"^\S$", "type": "string"}, ['"\x85"', '"a"'], ['"\ufeff"', '" "']),
        ({"pattern": r"^[\s.]$", "type": "string"}, ['"."', '" "'], ['"a"']),
        ({"pattern": "^[a&&b]$", "type": "string"}, ['"&"', '"a"'], ['"c"']),
        ({"pattern": "^[[a]]$", "type": "string"}, ['"[]"', '"a]"'], ['"a"', '"["']),
        ({"pattern": "^[a~~b]$", "type": "string"}, ['"~"', '"b"'], ['"c"']),
        ({"pattern": r"^\d\w$", "type": "string"}, ['"1a"', '"1_"'], ['"٣a"', '"1é"']),
        ({"pattern": "b", "type": "string"}, ['"abc"'], ['"ac"']),
        # The calendar.
        ({"format": "date"}, ['"2024-02-29"', '"2000-02-29"'], ['"2023-02-29"', '"1900-02-29"', '"2024-04-31"']),
        ({"format": "date-time"}, ['"2024-02-29T10:00:00Z"'], ['"2023-02-29T10:00:00Z"', '"2024-02-29T10:00:60Z"']),
        ({"format": "time"}, ['"23:59:59Z"'], ['"23:59:60Z"', '"24:00:00Z"']),
        ({"format": "date", "pattern": "^2024", "allOf": [{"pattern": "-01$"}]}, ['"2024-03-01"'], ['"2023-03-01"']),
        # The words of older drafts.
        ({"items": [{"type": "null"}], "additionalItems": False}, ["[null]", "[]"], ["[1]", "[null,1]"]),
        ({"items": [], "additionalItems": {"type": "null"}}, ["[null]", "[]"], ["[1]"]),
        ({"prefixItems": [{"type": "null"}], "additionalItems": False}, ["[null,1]"], ["[1]"]),
        ({"minimum": 3, "exclusiveMinimum": True, "type": "integer"}, ["4"], ["3"]),
        ({"maximum": 3, "exclusiveMaximum": False, "type": "integer"}, ["3"], ["4"]),
        ({"$ref": "#/definitions/a%25~1b", "definitions": {"a%/b": {"const": 1}}}, ["1"], ["2"]),
        # What a schema says of llguidance is not for llguidance to hear.
        (
            {"x-guidance": {"whitespace_flexible": True, "lenient": True}, "items": {"type": "null"}},
            ["[null]"],
            ["[ null]"],
        ),
        ({"uniqueItems": False, "maxLength": 2.0, "type": "string"}, ['"ab"'], ['"abc"']),
        ({"minProperties": 2, "required": ["a"]}, ['{"a":1,"b":1}'], ['{"a":1}', '{"a":1,"a":2}']),
        ({"additionalProperties": False, "anyOf": [True], "patternProperties": {"^a": {}}}, ['{"ab":1}'], ['{"b":1}']),
    ],
    ids=str,
)
def test_texts_that_differ_by_a_hair(schema: Any, yes: list[str], no: list[str]) -> None:
    answer = matcher(schema)
    assert [text for text in yes if not takes(answer, text)] == []
    assert [text for text in no if takes(answer, text)] == []


def test_large_schemas_are_taken_or_refused_and_never_hang() -> None:
    many = {f"property {i}": {"type": "string", "maxLength": 1000} for i in range(300)}
    answer = matcher({"properties": many, "maxProperties": 300, "required": list(many), "additionalProperties": False})
    assert takes(answer, json.dumps(dict.fromkeys(many, "x"), separators=(",", ":")))
    assert takes(matcher({"items": {"type": "null"}, "maxItems": 10**6}), "[null,null]")
    words = [f"word {i}" for i in range(5000)]
    assert takes(matcher({"enum": words}), '"word 4999"')
    assert "too large" in refusal(
        {"allOf": [{"properties": {f"{i}{j}": True for j in range(400)}} for i in range(200)]}
    )


def test_an_answer_that_takes_too_many_steps_is_stopped_and_says_so() -> None:
    """llguidance would have it end there."""
    lists = [{"type": "array", "prefixItems": [{"const": i}, {"type": "array"}], "minItems": 2} for i in range(2001)]
    answer = matcher({"type": "object", "properties": {"a": {"anyOf": lists}}, "required": ["a"]})
    with pytest.raises(EvaluationError, match=r"JSON schema cannot be followed any further: .*2000") as caught:
        takes(answer, '{"a":[1,[]]}')
    assert "\n" not in str(caught.value)


def test_every_end_token_ends_and_only_a_complete_answer() -> None:
    answer = matcher({"const": 1})
    ends = np.array(VOCABULARY.ends)
    assert not answer.allowed(ends).any()
    assert not any(map(answer.accept, VOCABULARY.ends))
    assert answer.accept(ord("1"))
    for end in VOCABULARY.ends:
        assert answer.allowed(IDS)[end]
        assert answer.clone().accept(end)
    assert not answer.accept(ord("1"))
    assert answer.accept(VOCABULARY.ends[1])


def test_copies_of_an_answer_go_their_own_ways() -> None:
    answer = matcher({"enum": ["ab", "ac"]})
    for byte in b'"a':
        assert answer.accept(byte)
    twin = answer.clone()
    assert twin.accept(ord("c"))
    assert answer.accept(ord("b"))
    assert not twin.accept(ord("c"))
    assert twin.accept(ord('"'))
    assert answer.accept(ord('"'))


NAMES = st.sampled_from(["a", "b", "key", 'q"uote', "back\\slash", "é", "a/b~c"])
PATTERNS = st.sampled_from(
    [
        r"^\d{2,3}$",
        r"^v\.[0-9]$",
        r"^\w+$",
        "x",
        "^(a|b)*$",
        "^.{2}$",
        r"^[^a-z\n]+$",
        r"^[\d-]+$",
        "^a|b$",
        "^$",
        "[&[]",
    ]
)
BOUNDS = st.integers(-1200, 1200) | st.floats(-50, 50).map(lambda x: round(x, 2)) | st.sampled_from([1e-7, -1e-7, 1e15])
COUNTS = st.integers(0, 4)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats(-1e6, 1e6) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2),
    max_leaves=3,
)


def optional(**keywords: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=keywords)


def typed(name: str, keywords: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Schemas of a type, or of any."""
    return keywords | keywords.map(lambda schema: {"type": name} | schema)


def compounds(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    lists, maps = st.lists(inner, min_size=1, max_size=3), st.dictionaries(NAMES, inner, max_size=3)
    closed = inner | st.just(False)
    return st.one_of(
        typed("array", optional(items=closed, prefixItems=lists, minItems=COUNTS, maxItems=COUNTS)),
        typed(
            "object",
            optional(
                properties=maps,
                required=st.lists(NAMES, max_size=2),
                additionalProperties=closed,
                patternProperties=st.dictionaries(PATTERNS, inner, max_size=2),
                minProperties=COUNTS,
                maxProperties=COUNTS,
            ),
        ),
        optional(**{"anyOf": lists, "allOf": lists, "oneOf": lists, "$ref": st.just("#/$defs/d")}),
        st.tuples(optional(anyOf=lists, allOf=lists), inner.filter(lambda schema: isinstance(schema, dict))).map(
            lambda both: both[0] | both[1]
        ),
    )


SCHEMAS = st.recursive(
    st.one_of(
        st.just(True),
        typed("integer", optional(minimum=BOUNDS, maximum=BOUNDS, multipleOf=st.sampled_from([2, 5, 7]))),
        typed("number", optional(exclusiveMinimum=BOUNDS, maximum=BOUNDS, multipleOf=st.sampled_from([0.5, 3]))),
        typed("number", optional(minimum=BOUNDS, exclusiveMaximum=BOUNDS)),
        typed("string", optional(minLength=COUNTS, maxLength=COUNTS, pattern=PATTERNS)),
        typed("string", optional(format=st.sampled_from(["ipv4", "uuid"]))),
        st.fixed_dictionaries({"type": st.lists(st.sampled_from(["null", "boolean", "integer"]), min_size=1)}),
        st.fixed_dictionaries({"enum": st.lists(VALUES, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"const": VALUES}),
    ),
    compounds,
    max_leaves=6,
)


def written(answer: Matcher, random: np.random.Generator, limit: int) -> str | None:
    """Return what a model with no idea writes; None where it is not done after `limit` tokens."""
    closing = np.isin(IDS, [*b'"}]', *VOCABULARY.ends])
    text = b""
    for _ in range(limit):
        scores = random.gumbel(size=IDS.size) + 3 * closing
        token = int(np.where(answer.allowed(IDS), scores, -np.inf).argmax())
        assert answer.accept(token)
        if VOCABULARY.is_eog(token):
            return text.decode()
        text += VOCABULARY.piece(token)
    return None


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(schema=SCHEMAS, definition=SCHEMAS, seed=st.integers(0, 2**32))
def test_whatever_is_written_validates(schema: Any, definition: Any, seed: int) -> None:
    schema = schema if isinstance(schema, bool) else {"$defs": {"d": definition}} | schema
    try:
        answer = matcher(schema)
    except UsageError:
        assume(False)
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    for draw in range(3):
        text = written(answer.clone(), np.random.default_rng([seed, draw]), 120)
        if text is not None:
            assert "\n" not in text
            validator.validate(json.loads(text))


# On models

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12, "pattern": r"^[\w ]+$"},
        "age": {"type": "integer", "minimum": 1, "maximum": 99},
        "likes": {"type": "array", "items": {"enum": ["red", 'the "blue"', "青"]}, "maxItems": 2},
        "born": {"type": "string", "format": "date"},
    },
    "required": ["name", "age", "likes", "born"],
    "additionalProperties": False,
}


def people(loaded: Emulator, questions: Sequence[str], parallel: int | None = None) -> list[str]:
    """Return what is answered, after checking that it is what the schema asks for."""
    if parallel:
        made = loaded.chat(questions, seed=7, parallel=parallel)
    else:
        made = [loaded.chat(question, seed=7) for question in questions]
    for answer in made:
        assert answer.finish_reason == "stop"
        jsonschema.validate(json.loads(answer.text), PERSON, format_checker=jsonschema.FormatChecker())
    return [answer.text for answer in made]


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_answers_of_the_demo_match_and_are_the_same_with_and_without_drafts(temperature: float) -> None:
    recipe = find_recipe("demo").replace(json_schema=json.dumps(PERSON), temperature=temperature, threads=1)
    questions = ["What is the capital of Peru?", "Who are you?", "What is the largest animal?"]
    with Emulator.load(recipe.replace(draft="off")) as loaded:
        plain = people(loaded, questions)
        assert people(loaded, questions, parallel=3) == plain
        for draft in ("auto", 8):
            loaded.recipe = recipe.replace(draft=draft)
            assert people(loaded, questions) == plain


@pytest.mark.parametrize("options", [{"plausibility_mask": 0.2}, {"plausibility_top_p": 0.7}])
def test_plausible_is_what_is_so_among_what_may_be_written(options: dict[str, float]) -> None:
    """The base would begin with words: of those tokens a schema or grammar allows none."""
    recipe = find_recipe("demo").replace(threads=1, **options)
    with Emulator.load(recipe.replace(json_schema=json.dumps(PERSON), draft="off")) as loaded:
        plain = people(loaded, ["Who are you?"])
        loaded.recipe = recipe.replace(json_schema=json.dumps(PERSON), draft=4)
        assert people(loaded, ["Who are you?"]) == plain
        loaded.recipe = recipe.replace(grammar='root ::= "{" [0-9] "}"')
        assert loaded.chat("Who are you?").text[::2] == "{}"


def test_a_real_model_writes_what_its_question_says(smollm2: Path) -> None:
    recipe = Recipe(
        name="one",
        base=Role(model=str(smollm2)),
        antiexpert=Role(model=str(smollm2)),
        experts={"assistant": Expert(model=str(smollm2))},
        placement=Placement(threads=1, threads_batch=1),
        sampling=Sampling(temperature=0, json_schema=json.dumps(PERSON)),
    )
    question = "Describe this person: Anna, age 31, likes red, born on 2024-02-29."
    with Emulator.load(recipe) as loaded:
        [text] = people(loaded, [question])
    assert {"age": 31, "born": "2024-02-29"}.items() <= json.loads(text).items()


@pytest.mark.parametrize("name", ["tuned", "small-spm"])
def test_a_vocabulary_is_read_once_and_goes_with_its_model(ggufs: Path, name: str) -> None:
    with Model.load(ggufs / f"{name}.gguf") as model:
        vocabulary = model.vocabulary
        made = tokenizer(vocabulary)
        assert tokenizer(vocabulary) is made
        text = '{"name": "Zoë 名前", "n": [1, 2]}'
        tokens = verbatim(vocabulary, text)
        answer = Matcher.of_schema(vocabulary, "{}")
        assert all(map(answer.accept, tokens))
        ends = [token for token in range(vocabulary.n_tokens) if vocabulary.is_eog(token)]
        assert ends
        assert answer.allowed(np.array(ends)).all()
        assert made.decode_bytes(tokens) == text.encode()
        # Text that is certain comes as the vocabulary's own tokens of it.
        certain = Matcher.of_schema(vocabulary, '{"const": "there they were"}')
        for token in verbatim(vocabulary, '"there they were"')[:-2]:
            assert list(np.flatnonzero(certain.allowed(np.arange(vocabulary.n_tokens)))) == [token]
            assert certain.accept(token)
    alive = ref(vocabulary)
    del vocabulary, model, made, answer, certain
    gc.collect()
    assert alive() is None


def test_a_vocabulary_without_an_end_token() -> None:
    endless = Bytes()
    endless.ends = ()
    answer = Matcher.of_schema(endless, '{"const": 1}')
    assert answer.accept(ord("1"))
    assert not answer.allowed(IDS).any()
