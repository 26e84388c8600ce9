"""Ollama's API by its own client."""

from __future__ import annotations

import json
from collections.abc import Iterator

import ollama
import pytest

from eft_local.emulator import Emulator
from tests.server.conftest import KEY, Served

QUESTION = [{"role": "user", "content": "What is the capital of Peru?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[ollama.Client]:
    made = ollama.Client(served.url, headers={"Authorization": f"Bearer {KEY}"})
    yield made
    made._client.close()


def test_models_are_listed_and_shown(client: ollama.Client) -> None:
    models = {model.model: model for model in client.list().models}
    assert "demo:base" in models
    assert models["demo"].size == sum(models[f"demo:{role}"].size or 0 for role in ("base", "antiexpert", "assistant"))
    assert client.show("demo").capabilities == ["completion"]
    assert "tools" in (client.show("tools").capabilities or ())
    assert {model.model for model in client.ps().models} == set(models)


def test_a_chat_is_the_emulators(client: ollama.Client, alone: Emulator) -> None:
    expected = alone.chat(QUESTION)
    whole = client.chat("demo:latest", QUESTION)
    assert whole.message.content == expected.text
    assert whole.done_reason == "stop"
    assert whole.eval_count == len(expected.tokens)
    parts = list(client.chat("demo", QUESTION, stream=True))
    assert "".join(part.message.content or "" for part in parts) == expected.text
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]


def test_a_prompt_is_answered_or_continued(client: ollama.Client, alone: Emulator) -> None:
    assert client.generate("demo", QUESTION[0]["content"]).response == alone.chat(QUESTION).text
    raw = client.generate("demo", "The capital of", raw=True, options={"num_predict": 5, "num_ctx": 4096})
    assert raw.response == alone.generate("The capital of", max_tokens=5).text
    assert raw.done_reason == "length"
    assert client.generate("demo", "").done_reason == "load"


def test_an_answer_matches_a_format(client: ollama.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    assert set(json.loads(client.chat("demo", QUESTION, format=schema).message.content or "")) == {"a"}


def test_log_probabilities_are_told(client: ollama.Client, alone: Emulator) -> None:
    answer = client.chat("demo", QUESTION, logprobs=True, top_logprobs=2)
    expected = alone.chat(QUESTION, statistics=True)
    assert answer.logprobs is not None
    assert [each.logprob for each in answer.logprobs] == pytest.approx(expected.logprobs, abs=1e-5)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda client: client.chat("none", QUESTION), "none"),
        (lambda client: client.chat("demo", QUESTION, think=True), "thinking"),
        (lambda client: client.chat("demo", QUESTION, tools=[WEATHER]), "tools"),
        (lambda client: client.generate("demo", "a", suffix="b"), "suffix"),
        (lambda client: client.chat("demo", QUESTION, options={"temperature": -1}), "temperature"),
    ],
)
def test_what_is_wrong_is_said(client: ollama.Client, call: object, says: str) -> None:
    with pytest.raises(ollama.ResponseError) as refused:
        call(client)  # type: ignore[operator]
    assert says in refused.value.error
    assert 400 <= refused.value.status_code < 500
