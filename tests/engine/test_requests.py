"""Requests as a server makes them: given tokens, Lark grammars, tools in templates, shared models, batches of steps."""

from __future__ import annotations

import asyncio
from contextlib import closing

import numpy as np
import pytest

from eft_local.backends.llamacpp import ChatTemplate
from eft_local.emulator import Emulator
from eft_local.engine.loading import Library
from eft_local.errors import UsageError
from eft_local.hub.references import find_recipe
from eft_local.prompts.render import conversation, render
from eft_local.recipe import Prompt, Recipe

QUESTION = "What is the capital of Peru?"


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return find_recipe("demo").replace(threads=1)


@pytest.fixture(scope="module")
def emulator(recipe: Recipe):
    with Emulator.load(recipe) as loaded:
        yield loaded


def test_given_tokens_are_scored_as_their_text(emulator: Emulator) -> None:
    text = " Lima is the capital of Peru."
    scored = emulator.score(QUESTION, text)
    request = emulator.models.request(QUESTION, {"statistics": True, "top": 3}, given=scored.tokens, followed=True)
    steps = list(emulator.stream(request))
    assert [step.token for step in steps] == list(scored.tokens)
    np.testing.assert_allclose([step.logprob for step in steps], scored.logprobs, atol=1e-5)
    assert all(len(step.candidates) >= 3 for step in steps)
    with pytest.raises(UsageError, match="99999"):
        emulator.models.request(QUESTION, {}, given=[99999])


def test_steps_come_as_many_as_are_ready(emulator: Emulator) -> None:
    async def read() -> tuple[list[int], str]:
        stream = emulator.stream_chat(QUESTION)
        counts, text = [], ""
        while steps := await stream.steps():
            counts.append(len(steps))
            text += "".join(step.text for step in steps)
        return counts, text

    counts, text = asyncio.run(read())
    assert text == emulator.chat(QUESTION).text
    assert all(counts)


def test_a_lark_grammar_is_obeyed(emulator: Emulator) -> None:
    recipe = emulator.recipe.replace(grammar='%llguidance {}\nstart: "It is " /[a-z]{3}/ "."')
    assert emulator.chat(QUESTION, recipe=recipe).text.startswith("It is ")
    with pytest.raises(UsageError, match="llguidance"):
        emulator.chat(QUESTION, recipe=emulator.recipe.replace(grammar="%llguidance {}\nstart: nothing"))


def test_a_grammar_that_could_explode_harms_nobody(emulator: Emulator) -> None:
    ambiguous = "\n".join(f"r{i}: r{i + 1} r{i + 1} | r{i + 1}" for i in range(30)) + '\nr30: "a" | "b" |'
    recipe = emulator.recipe.replace(grammar=f"%llguidance {{}}\nstart: r0\n{ambiguous}")
    streams = [emulator.stream_chat(QUESTION, recipe=recipe, max_tokens=20), emulator.stream_chat(QUESTION)]
    assert set(streams[0].wait().text) <= {"a", "b"}
    assert streams[1].wait().text == "The capital of Peru is Lima."


def test_emulators_share_a_library(recipe: Recipe) -> None:
    with closing(Library()) as library:
        other = recipe.replace(beta=1.1)
        with Emulator.load(recipe, library=library) as first, Emulator.load(other, library=library) as second:
            assert first.models.roles["base"].model is second.models.roles["base"].model
            assert first.chat(QUESTION).text == second.chat(QUESTION, beta=1.0).text
        with Emulator.load(recipe, library=library) as again:
            assert again.chat(QUESTION).text == "The capital of Peru is Lima."


def test_templates_describe_tools() -> None:
    source = "{% if tools %}{{ tools[0].name }}: {% endif %}{{ messages[0].content }}"
    template = ChatTemplate(source, bos="", eos="", origin="a test")
    messages = conversation("Hello.")
    assert render(Prompt("chat"), messages, template, tools=[{"name": "clock"}]).text == "clock: Hello."
    assert render(Prompt("chat"), messages, template).text == "Hello."
    assert "clock" not in render(Prompt("plain"), messages, None, tools=[{"name": "clock"}]).text
