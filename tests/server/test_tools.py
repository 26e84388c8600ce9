"""Functions that a model may call: described by templates, enforced by grammars, found in answers."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai import OpenAI

from eft_local.errors import UsageError
from eft_local.server.schema import ChatMessage, Tool
from eft_local.server.tools import HERMES, LLAMA3, CallReader, Format, Toolbox, turns

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"enum": ["Lima", "Oslo"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["place", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK: Any = {
    "type": "function",
    "function": {"name": "clock", "parameters": {"type": "object", "additionalProperties": False}},
}
QUESTION: Any = [{"role": "user", "content": "How is the weather in Lima?"}]
NAMED: Any = {"type": "function", "function": {"name": "weather"}}


def box(form: Format) -> Toolbox:
    return Toolbox(form, [Tool(**WEATHER), Tool(**CLOCK)], forced=False, grammar=None)


def test_a_named_call_is_made(client: OpenAI) -> None:
    made = client.chat.completions.create(
        model="tools", messages=QUESTION, tools=[WEATHER, CLOCK], tool_choice=NAMED, max_tokens=80
    )
    [choice] = made.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls is not None
    [call] = choice.message.tool_calls
    assert call.type == "function"
    assert call.function.name == "weather"
    arguments = json.loads(call.function.arguments)
    assert arguments["place"] in ("Lima", "Oslo")
    assert 1 <= arguments["days"] <= 9


def test_a_required_call_is_streamed(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tools", messages=QUESTION, tools=[CLOCK], tool_choice="required", max_tokens=80, stream=True,
        parallel_tool_calls=False,
    )  # fmt: skip
    chunks = [chunk.choices[0] for chunk in stream if chunk.choices]
    calls = [call for chunk in chunks for call in chunk.delta.tool_calls or ()]
    assert [call.function.name for call in calls if call.function] == ["clock"]
    assert chunks[-1].finish_reason == "tool_calls"
    assert not "".join(chunk.delta.content or "" for chunk in chunks)


def test_tools_that_are_not_called_leave_a_text(client: OpenAI) -> None:
    made = client.chat.completions.create(model="tools", messages=QUESTION, tools=[WEATHER], max_tokens=10)
    assert made.choices[0].message.tool_calls is None
    assert made.choices[0].message.content
    none = client.chat.completions.create(
        model="tools", messages=QUESTION, tools=[WEATHER], tool_choice="none", max_tokens=10
    )
    plain = client.chat.completions.create(model="tools", messages=QUESTION, max_tokens=10)
    assert none.choices[0].message.content == plain.choices[0].message.content


def test_results_are_read(client: OpenAI) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"place": "Lima", "days": 1}'}}
    messages: Any = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "Sunny."},
    ]
    made = client.chat.completions.create(model="tools", messages=messages, tools=[WEATHER], max_tokens=5)
    assert made.usage is not None
    assert made.usage.prompt_tokens > 100


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "nobody"}}}, "nobody"),
        ({"tools": [WEATHER, WEATHER]}, "same name"),
        ({"tools": [], "tool_choice": "required"}, "no tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "json_schema"),
    ],
)
def test_wrong_tools_are_refused(client: OpenAI, options: Any, says: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**({"model": "tools", "messages": QUESTION, "tools": [WEATHER]} | options))
    assert says in refused.value.message


@pytest.mark.parametrize("cut", [1, 3, 1000])
def test_calls_are_found_however_the_text_is_cut(cut: int) -> None:
    text = (
        'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"place": "Lima"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
    )
    reader = CallReader(box(HERMES))
    shown, calls = "", []
    for start in range(0, len(text), cut):
        part, found = reader.push(text[start : start + cut])
        shown += part
        calls += found
    rest, late = reader.end()
    assert shown + rest == "Let me see.\n"
    assert [(call.function.name, call.index) for call in [*calls, *late]] == [("weather", 0), ("clock", 1)]


@pytest.mark.parametrize(
    "text",
    [
        "a < b",
        "<tool_call>\nnot JSON\n</tool_call>",
        '<tool_call>\n{"name": "other", "arguments": {}}\n</tool_call> x',
        "<tool",
    ],
)
def test_what_is_no_call_stays_text(text: str) -> None:
    reader = CallReader(box(HERMES))
    shown = "".join(reader.push(character)[0] for character in text)
    rest, calls = reader.end()
    assert shown + rest == text
    assert calls == []


def test_llama3_writes_an_object() -> None:
    reader = CallReader(box(LLAMA3))
    assert reader.push('{"name": "weather", "parameters": {"place"') == ("", [])
    assert reader.push(': "Oslo"}}') == ("", [])
    rest, [call] = reader.end()
    assert rest == ""
    assert json.loads(call.function.arguments) == {"place": "Oslo"}
    plain = CallReader(box(LLAMA3))
    assert plain.push("It is ")[0] + plain.push("sunny {")[0] + plain.end()[0] == "It is sunny {"


def test_turns_are_written_as_the_family_writes_them() -> None:
    messages = [
        ChatMessage(role="user", content="a"),
        ChatMessage(role="assistant", tool_calls=[{"function": {"name": "f", "arguments": '{"x": 1}'}}]),  # type: ignore[list-item]
        ChatMessage(role="tool", content="one"),
        ChatMessage(role="tool", content="two"),
    ]
    assert turns(messages, HERMES)[1:] == [
        {"role": "assistant", "content": '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'},
        {"role": "user", "content": "<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response>"},
    ]
    with pytest.raises(UsageError, match="not JSON"):
        HERMES.written("f", "{")
