"""OpenAI's API by its own client."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from openai import OpenAI

from eft_local.emulator import Emulator
from tests.server.conftest import Served, serving, until

QUESTION = [{"role": "user", "content": "What is the capital of Peru?"}]
LONG = [{"role": "user", "content": "Tell me about Peru."}]


def test_every_target_is_a_model(client: OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names[:6] == ["demo", "demo:base", "demo:antiexpert", "demo:assistant", "demo:expert", "demo:base-tuned"]
    assert "tools" in names
    described: Any = client.models.retrieve("demo:base")
    assert described.eft["target"] == "base"
    assert described.meta["n_ctx"] == 512


@pytest.mark.parametrize("target", ["eft", "base", "expert", "base-tuned"])
def test_an_answer_is_the_emulators(client: OpenAI, alone: Emulator, target: str) -> None:
    name = "demo" if target == "eft" else f"demo:{target}"
    answer = client.chat.completions.create(model=name, messages=QUESTION, max_tokens=12)
    expected = alone.chat(QUESTION, target=target, max_tokens=12)
    [choice] = answer.choices
    assert choice.message.content == expected.text
    assert choice.finish_reason == expected.finish_reason
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(expected.tokens)
    assert answer.usage.prompt_tokens == max(expected.prompt_tokens.values())


def test_a_stream_is_the_whole_answer(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="demo", messages=LONG, max_tokens=40)
    chunks = list(
        client.chat.completions.create(
            model="demo", messages=LONG, max_tokens=40, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_choices_have_seeds_of_their_own(client: OpenAI) -> None:
    options: dict[str, Any] = {"model": "demo:base", "messages": LONG, "temperature": 5, "top_p": 1, "max_tokens": 16}
    options["extra_body"] = {"top_k": 0, "min_p": 0.0}
    several = client.chat.completions.create(**options, n=3, seed=7)
    texts = [choice.message.content for choice in several.choices]
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    for index, text in enumerate(texts):
        again = client.chat.completions.create(**options, seed=7 + index)
        assert again.choices[0].message.content == text
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(**options, n=3, seed=7, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_sampling_is_the_requests(client: OpenAI) -> None:
    def written(**options: Any) -> str | None:
        made = client.chat.completions.create(model="demo", messages=QUESTION, max_tokens=12, **options)
        return made.choices[0].message.content

    plain = written()
    assert plain == "The capital of Peru is Lima."
    assert written(stop=[" Peru"]) == "The capital of"
    assert written(stop=" is") == "The capital of Peru"
    assert written(extra_body={"alpha": 0.0}) == written(extra_body={"alpha": {"assistant": 0.0}}) != plain
    assert written(temperature=1e-9, top_p=0) == plain
    lima = client.chat.completions.create(model="demo", messages=QUESTION, logprobs=True).choices[0].logprobs
    assert lima is not None
    assert lima.content is not None
    with_bias = written(logit_bias={"300": -100, "301": 3})
    assert with_bias is not None
    for extra in (
        {"beta": 1.1},
        {"conservative_filter": 0.9, "draft": "off"},
        {"plausibility_mask": 0.1, "draft": 4},
        {"plausibility_top_p": 0.9, "min_p": 0.1, "top_k": 5, "typical_p": 0.9},
        {"repeat_penalty": 1.3, "repeat_last_n": 8},
    ):
        assert written(extra_body=extra, presence_penalty=0.5, frequency_penalty=0.5) is not None


def test_log_probabilities_are_the_mixtures(client: OpenAI, alone: Emulator) -> None:
    made = client.chat.completions.create(
        model="demo", messages=QUESTION, logprobs=True, top_logprobs=3, extra_body={"record": True}
    )
    expected = alone.chat(QUESTION, statistics=True)
    assert expected.logprobs is not None
    [choice] = made.choices
    assert choice.logprobs is not None
    tokens = choice.logprobs.content
    assert tokens is not None
    assert "".join(token.token for token in tokens) == choice.message.content
    np.testing.assert_allclose([token.logprob for token in tokens], expected.logprobs, atol=1e-5)
    for token in tokens:
        best = [each.logprob for each in token.top_logprobs]
        assert len(best) == 3
        assert best == sorted(best, reverse=True)
        assert token.bytes == list(token.token.encode())
    record = choice.eft["tokens"]  # type: ignore[attr-defined]
    for token, known in zip(tokens, record, strict=True):
        assert set(known["roles"]) == {"base", "antiexpert", "assistant", "eft"}
        assert known["roles"]["eft"]["logprob"] == token.logprob
        assert 0 <= known["change"] <= 1
        assert len(known["candidates"]) >= 10


def test_streamed_log_probabilities_are_the_same(client: OpenAI) -> None:
    options: dict[str, Any] = {"model": "demo", "messages": QUESTION, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**options).choices[0].logprobs
    assert whole is not None
    streamed = [
        token
        for chunk in client.chat.completions.create(**options, stream=True)
        if chunk.choices and chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content or ()
    ]
    assert streamed == whole.content


def test_an_echo_is_scored_exactly(client: OpenAI, alone: Emulator) -> None:
    text = "The capital of Peru is Lima"
    made = client.completions.create(model="demo", prompt=text, max_tokens=1, echo=True, logprobs=2)
    [choice] = made.choices
    shown = choice.logprobs
    assert shown is not None
    assert shown.tokens is not None
    assert shown.token_logprobs is not None
    assert shown.text_offset is not None
    assert choice.text.startswith(text)
    assert "".join(shown.tokens) == choice.text
    assert shown.text_offset == [len("".join(shown.tokens[:index])) for index in range(len(shown.tokens))]

    ids = alone.models.target("eft").vocabulary.tokenize(text, add_special=True, parse_special=False)
    scored = alone.stream(alone.models.request(ids[:1], {}, raw=True, given=ids[1:]))
    scored.wait()
    expected = scored._task.score
    # BOS, which the model's tokeniser puts first, is no part of the text.
    np.testing.assert_allclose(shown.token_logprobs[:-1], expected.logprobs, atol=1e-5)
    roles = shown.roles  # type: ignore[attr-defined]
    np.testing.assert_allclose(roles["base"][: len(ids) - 1], expected.by_role["base"], atol=1e-5)


def test_token_ids_are_echoed_one_to_one(client: OpenAI) -> None:
    prompts = [[5, 6, 7], [8, 9]]
    made = client.completions.create(model="demo:base", prompt=prompts, max_tokens=1, echo=True, logprobs=1)
    assert [choice.index for choice in made.choices] == [0, 1]
    for prompt, choice in zip(prompts, made.choices, strict=True):
        assert choice.logprobs is not None
        assert choice.logprobs.token_logprobs is not None
        assert len(choice.logprobs.token_logprobs) == len(prompt) + 1
        assert all(math.isfinite(logprob) for logprob in choice.logprobs.token_logprobs[1:] if logprob is not None)
    nothing = client.completions.create(model="demo:base", prompt=prompts[0], max_tokens=0, echo=True, logprobs=1)
    assert nothing.choices[0].logprobs is not None
    assert nothing.choices[0].logprobs.token_logprobs == made.choices[0].logprobs.token_logprobs[:-1]


def test_completions_continue_texts(client: OpenAI, alone: Emulator) -> None:
    made = client.completions.create(model="demo", prompt=["The capital of", "Peru is"], max_tokens=6, n=2)
    assert [choice.index for choice in made.choices] == [0, 1, 2, 3]
    assert made.choices[0].text == alone.generate("The capital of", max_tokens=6).text
    assert made.choices[2].text == alone.generate("Peru is", max_tokens=6).text
    assert made.choices[0].logprobs is None
    streamed = client.completions.create(
        model="demo", prompt="The capital of", max_tokens=6, echo=True, logprobs=1, stream=True
    )
    texts, offsets = "", []
    for chunk in streamed:
        for choice in chunk.choices:
            texts += choice.text
            offsets += (choice.logprobs and choice.logprobs.text_offset) or []
    assert texts == "The capital of" + made.choices[0].text
    assert offsets == sorted(offsets)


@pytest.mark.parametrize("options", [{"max_tokens": 3}, {"max_tokens": 0, "echo": True, "logprobs": 1}])
def test_more_answers_than_places_are_written_in_turn(client: OpenAI, options: dict[str, Any]) -> None:
    made = client.completions.create(model="demo", prompt=["Peru", "Oman", "Cuba", "Chile", "Kenya"], n=2, **options)
    assert [choice.index for choice in made.choices] == list(range(10))


def test_answers_match_schemas(client: OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"yes": {"type": "boolean"}, "word": {"enum": ["red", "blue"]}},
        "required": ["yes", "word"],
        "additionalProperties": False,
    }
    made = client.chat.completions.create(
        model="demo",
        messages=QUESTION,
        response_format={"type": "json_schema", "json_schema": {"name": "it", "schema": schema}},
    )
    value = json.loads(made.choices[0].message.content or "")
    assert isinstance(value["yes"], bool)
    assert value["word"] in ("red", "blue")
    anything = client.chat.completions.create(
        model="demo:base-tuned", messages=QUESTION, response_format={"type": "json_object"}, max_tokens=200
    )
    if anything.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(anything.choices[0].message.content or ""), dict)
    chosen = client.chat.completions.create(
        model="demo", messages=QUESTION, extra_body={"grammar": 'root ::= "yes" | "no" | "per" [a-z]+ "s"'}
    )
    assert re.fullmatch("yes|no|per[a-z]+s", chosen.choices[0].message.content or "")


def test_turns_of_one_side_in_a_row_are_one(client: OpenAI, alone: Emulator) -> None:
    messages: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hello."}]},
        {"role": "user", "content": "What is the capital of Peru?"},
    ]
    made = client.chat.completions.create(model="demo", messages=messages, max_tokens=8)
    merged = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello.\n\nWhat is the capital of Peru?"},
    ]
    assert made.choices[0].message.content == alone.chat(merged, max_tokens=8).text


def test_a_wrong_key_opens_nothing(served: Served) -> None:
    with served.openai(api_key="wrong") as stranger, pytest.raises(openai.AuthenticationError) as refused:
        stranger.models.list()
    assert refused.value.code == "invalid_api_key"


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"model": "demon"}, openai.NotFoundError, "'demo"),
        ({"temperature": "hot"}, openai.BadRequestError, 'temperature = "hot"'),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"stop": [""]}, openai.BadRequestError, "stop.0"),
        ({"logit_bias": {"99999": 1}}, openai.BadRequestError, "99999"),
        ({"extra_body": {"alpha": {"nobody": 1}}}, openai.BadRequestError, "nobody"),
        ({"extra_body": {"grammar": "root ::= ("}}, openai.BadRequestError, "grammar"),
        ({"messages": [{"role": "user", "content": "word " * 700}]}, openai.BadRequestError, "512"),
        ({"messages": [{"role": "assistant", "content": "no"}]}, openai.BadRequestError, "user"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError, "tools"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"oneOf": [{}, {}]}}}},
            openai.BadRequestError,
            "oneOf",
        ),
    ],
)
def test_what_is_wrong_is_said_once(
    client: OpenAI, options: dict[str, Any], error: type[openai.APIStatusError], says: str
) -> None:
    with pytest.raises(error) as refused:
        client.chat.completions.create(**({"model": "demo", "messages": QUESTION} | options))
    assert says in refused.value.message
    assert set(refused.value.body) == {"message", "type", "param", "code"}  # type: ignore[call-overload]


def test_a_client_that_stops_reading_frees_its_place(served: Served, client: OpenAI) -> None:
    with client.chat.completions.create(
        model="demo:base", messages=LONG, stream=True, extra_body={"max_tokens": 400}
    ) as stream:
        next(iter(stream))
    until(lambda: served.metric("eft_running") == 0)


def test_a_client_that_waits_no_longer_frees_its_place(served: Served) -> None:
    with served.openai(timeout=0.05) as hasty, pytest.raises(openai.APITimeoutError):
        hasty.chat.completions.create(model="demo:base", messages=LONG, n=4, max_tokens=400)
    until(lambda: served.metric("eft_running") == 0)


def test_a_busy_server_is_tried_again(recipes: dict[str, Path], tmp_path: Path, alone: Emulator) -> None:
    options: dict[str, Any] = {"model": "demo", "messages": QUESTION, "max_tokens": 12}
    with serving(tmp_path, "-r", str(recipes["demo"]), "--parallel", "1", "--queue", "0") as busy:
        first = busy.openai().chat.completions.create(
            **options | {"model": "demo:base", "max_tokens": 400}, stream=True
        )
        next(iter(first))
        with busy.openai() as hasty, pytest.raises(openai.RateLimitError) as refused:
            hasty.chat.completions.create(**options)
        assert refused.value.response.headers["retry-after"] == "1"
        refusals: list[int] = []

        def make_room(response: httpx.Response) -> None:
            if response.status_code == 429:
                refusals.append(response.status_code)
                first.close()

        with busy.openai(max_retries=5, http_client=httpx.Client(event_hooks={"response": [make_room]})) as patient:
            made = patient.chat.completions.create(**options)
    assert refusals
    assert made.choices[0].message.content == alone.chat(QUESTION, max_tokens=12).text


def test_texts_are_tokenised_as_other_servers_do(served: Served, alone: Emulator) -> None:
    vocabulary = alone.models.target("eft").vocabulary
    end = vocabulary.texts()[vocabulary.ends()[0]].decode()

    def tokens(**body: Any) -> list[int]:
        with served.http() as client:
            found: list[int] = client.post("/tokenize", json=body).json()["tokens"]
            return found

    assert tokens(prompt=end, add_special_tokens=False) == [vocabulary.ends()[0]] == tokens(content=end)
    assert len(tokens(content=end, parse_special=False)) > 1
    assert tokens(prompt="Peru")[0] == vocabulary.bos != tokens(content="Peru")[0]
