"""Conversations are checked, and each role's prompt is rendered to the character."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from eft_local.errors import PromptError
from eft_local.prompts.markup import Messages, Template
from eft_local.prompts.render import Rendered, conversation, render, template_for
from eft_local.recipe import Frame, Prompt

SECOND_TURN = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Capital of Peru?"},
    {"role": "assistant", "content": "Lima"},
    {"role": "user", "content": "And {text} of Chile?"},
]


def factory(source: str) -> Template:
    """Stand in for llama.ChatTemplate: shows what it was given."""

    return Shown(source)


class Shown:
    literals = ()

    def __init__(self, source: str) -> None:
        self._source = source

    def __call__(self, messages: Messages, args: Mapping[str, Any]) -> str:
        shown = json.dumps([list(message.values()) for message in messages], ensure_ascii=False)
        return self._source + shown + json.dumps(dict(args))


def framed(prompt: Prompt, messages: Any, system: str | None = None) -> str:
    return render(prompt, conversation(messages, system), None).text


# conversation


def test_a_bare_text_is_one_user_turn() -> None:
    assert conversation("Hi") == ({"role": "user", "content": "Hi"},)
    assert conversation("Hi", system="Be brief.")[0] == {"role": "system", "content": "Be brief."}
    assert conversation(SECOND_TURN) == tuple(SECOND_TURN)
    assert conversation(tuple(SECOND_TURN[1:]), system="")[0] == {"role": "system", "content": ""}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (None, "prompt = None: a text or a list of messages is needed"),
        (b"Hi", "prompt = b'Hi': a text or a list"),
        ({"role": "user", "content": "Hi"}, "a text or a list of messages is needed"),
        (7, "prompt = 7: a text or a list"),
        ("", 'message 1 is an empty prompt ("")'),
        (" \n", 'message 1 is an empty prompt (" \\n")'),
        ([], "the conversation has no user turn"),
        ([{"role": "system", "content": "x"}], "the conversation has no user turn"),
        (
            [{"role": "bot", "content": "x"}],
            'message 1 has the role "bot"; the roles are system, user, assistant',
        ),
        ([{"role": "user"}], "message 1 = {'role': 'user'}: {\"role\": …, \"content\": …} is needed"),
        ([{"role": "user", "content": "x", "name": "y"}], "message 1 = "),
        (["x"], 'message 1 = "x"'),
        ([{"role": "user", "content": None}], "message 1 has the content None; a text is needed"),
        ("a\udcff", "message 1 is not valid Unicode at character 1"),
        (SECOND_TURN[:3], "the conversation ends with an assistant turn; end it with a user turn"),
        (SECOND_TURN[1:2] * 2, "the conversation runs user, user; "),
        (SECOND_TURN[2:], "the conversation runs assistant, user; "),
        ([SECOND_TURN[1], SECOND_TURN[0], SECOND_TURN[3]], "the conversation runs user, system, user; "),
    ],
)
def test_conversations_that_cannot_be_answered(messages: Any, expected: str) -> None:
    with pytest.raises(PromptError) as caught:
        conversation(messages)
    assert str(caught.value).startswith(expected) or expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_system_text_is_given_once() -> None:
    with pytest.raises(PromptError, match="there is a system text already"):
        conversation(SECOND_TURN, system="x")
    with pytest.raises(PromptError, match="the system text has the content 5"):
        conversation("Hi", system=5)  # type: ignore[arg-type]


# plain and few-shot


def test_plain_is_the_papers_frame() -> None:
    rendered = render(Prompt("plain"), conversation(SECOND_TURN), None)
    assert rendered == Rendered(
        "Be brief.\n\nQuestion: Capital of Peru?\nAnswer: Lima\n\nQuestion: And {text} of Chile?\nAnswer:", marked=None
    )


def test_a_recipe_can_replace_the_frame() -> None:
    frame = Frame(user="Q: {text}\nA:\n", assistant="{text}\n---\n", system="[{text}]\n")
    text = framed(Prompt("plain", frame=frame), SECOND_TURN)
    assert text == "[Be brief.]\nQ: Capital of Peru?\nA:\nLima\n---\nQ: And {text} of Chile?\nA:\n"


def test_a_generated_answer_keeps_its_own_space() -> None:
    """The next turn begins with exactly the text that the role has seen, so its tokens are kept."""
    seen = framed(Prompt("plain"), "Capital of Peru?") + " Lima"
    turns = [
        {"role": "user", "content": "Capital of Peru?"},
        {"role": "assistant", "content": " Lima"},
        {"role": "user", "content": "Why?"},
    ]
    assert framed(Prompt("plain"), turns) == seen + "\n\nQuestion: Why?\nAnswer:"
    turns[1]["content"] = "  two spaces are the answer's"
    assert "Answer:  two spaces are the answer's\n\n" in framed(Prompt("plain"), turns)


def test_few_shot_examples_stand_between_system_text_and_conversation() -> None:
    prompt = Prompt("few-shot", examples=(("1+1?", "2"), ("2+2?", "4")))
    assert framed(prompt, "3+3?", "Add.") == (
        "Add.\n\nQuestion: 1+1?\nAnswer: 2\n\nQuestion: 2+2?\nAnswer: 4\n\nQuestion: 3+3?\nAnswer:"
    )


def test_instructions_stand_in_front_of_everything() -> None:
    shown = (("1+1?", "2"),)
    assert framed(Prompt("plain", instructions="Add."), "3+3?") == "Add.\n\nQuestion: 3+3?\nAnswer:"
    assert framed(Prompt("few-shot", instructions="Add.", examples=shown), "3+3?", "Be brief.") == (
        "Add.\n\nBe brief.\n\nQuestion: 1+1?\nAnswer: 2\n\nQuestion: 3+3?\nAnswer:"
    )
    assert framed(Prompt("plain", instructions="Add."), SECOND_TURN[1:], "") == "Add.\n\n" + framed(
        Prompt("plain"), SECOND_TURN[1:]
    )


def test_an_empty_system_text_leaves_no_trace_in_a_frame() -> None:
    assert framed(Prompt("plain"), "Hi", "") == framed(Prompt("plain"), "Hi")


# templates


def test_chat_renders_the_models_own_template() -> None:
    prompt = Prompt("chat", template_args={"enable_thinking": False})
    template = template_for(prompt, "OWN", factory, None)
    text = 'OWN[["system", ""], ["user", "Hi"]]{"enable_thinking": false}'
    marked = text.replace("Hi", "\U00040048\U00040069")
    assert render(prompt, conversation("Hi", ""), template) == Rendered(text, marked)


@pytest.mark.parametrize("style", ["chat", "my.jinja"])
def test_instructions_and_examples_are_turns_for_a_template(style: str) -> None:
    def seen(prompt: Prompt, messages: Any, system: str | None = None) -> Any:
        text = render(prompt, conversation(messages, system), factory("")).text
        return json.loads(text.removesuffix("{}"))

    reported = Prompt(style, instructions="Add.", examples=(("1+1?", "2"), ("2+2?", "4")))
    shots = [["user", "1+1?"], ["assistant", "2"], ["user", "2+2?"], ["assistant", "4"]]
    assert seen(reported, "Hi") == [["system", "Add."], *shots, ["user", "Hi"]]
    assert seen(reported, "Hi", "Be brief.") == [["system", "Add.\n\nBe brief."], *shots, ["user", "Hi"]]
    assert seen(reported, "Hi", "") == [["system", "Add."], *shots, ["user", "Hi"]]
    assert seen(Prompt(style, examples=(("1+1?", "2"),)), "Hi", "") == [["system", ""], *shots[:2], ["user", "Hi"]]
    turns = [list(turn.values()) for turn in SECOND_TURN]
    assert seen(Prompt(style, examples=(("1+1?", "2"),)), SECOND_TURN) == [turns[0], *shots[:2], *turns[1:]]


def test_a_jinja_file_is_read_from_the_recipes_folder(tmp_path: Path) -> None:
    (tmp_path / "my.jinja").write_text("FILE é", encoding="utf-8")
    template = template_for(Prompt("my.jinja"), "OWN", factory, tmp_path)
    assert template_for(Prompt(str(tmp_path / "my.jinja")), None, factory, None) is not None
    assert render(Prompt("my.jinja"), conversation("Hi"), template).text == 'FILE é[["user", "Hi"]]{}'


def test_framed_prompts_need_no_template() -> None:
    assert template_for(Prompt("plain"), "OWN", factory, None) is None


def test_missing_templates_are_reported(tmp_path: Path) -> None:
    def message(prompt: Prompt) -> str:
        with pytest.raises(PromptError) as caught:
            template_for(prompt, None, factory, tmp_path, "small.gguf")
        return str(caught.value)

    assert message(Prompt("chat")) == 'small.gguf has no chat template; use prompt = "plain" or a Jinja file'
    reason = 'cannot be read (No such file or directory); correct prompt = "no.jinja"'
    assert message(Prompt("no.jinja")) == f"template {tmp_path / 'no.jinja'} {reason}"
    (tmp_path / "bad.jinja").write_bytes(b"a\xff")
    assert f"template {tmp_path / 'bad.jinja'}: byte 1 is not UTF-8" in message(Prompt("bad.jinja"))
    assert "cannot be read (Is a directory)" in message(Prompt("./"))
    with pytest.raises(PromptError, match="needs a template"):
        render(Prompt("chat"), conversation("Hi"), None)
