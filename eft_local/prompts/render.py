"""Conversations, and how each role sees them: through a chat template, or in the papers' frame."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from eft_local import locations
from eft_local.backends.specials import Specials
from eft_local.errors import PromptError, shown
from eft_local.prompts.markup import Template, render_marked
from eft_local.recipe import Frame, Prompt

_NO_SPECIALS = Specials()

_ROLES = ("system", "user", "assistant")


class Message(TypedDict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt as text, and what of it is markup, such as <|im_end|>.

    marked: the same text with every character changed that is not the template's own (see `markup`); None where no
        template wrote it: then nothing is markup.
    moved: whether the system text was put before the first user turn, as the template takes no system turn.
    """

    text: str
    marked: str | None = None
    moved: bool = False


def conversation(
    messages_or_prompt: str | Sequence[Mapping[str, object]], system: str | None = None
) -> tuple[Message, ...]:
    """Return a checked conversation: perhaps a system turn, then user and assistant by turns, a user last.

    messages_or_prompt: a bare text is one user turn; otherwise mappings with exactly `role` and `content`.
    system: a system text to put in front. An empty one is kept: it silences a template's own default.
    Raises: PromptError.
    """
    if messages_or_prompt is None:
        raise PromptError("prompt = None: a text or a list of messages is needed")
    if isinstance(messages_or_prompt, str):
        messages_or_prompt = [{"role": "user", "content": messages_or_prompt}]
    if isinstance(messages_or_prompt, bytes) or not isinstance(messages_or_prompt, Sequence):
        raise PromptError(f"prompt = {shown(messages_or_prompt)}: a text or a list of messages is needed")
    turns = [_message(number, given) for number, given in enumerate(messages_or_prompt, start=1)]
    if system is not None:
        if turns and turns[0]["role"] == "system":
            raise PromptError("there is a system text already, in message 1; give it once")
        turns.insert(0, _message(0, {"role": "system", "content": system}))
    _check_order(turns)
    return tuple(turns)


def _message(number: int, given: Any) -> Message:
    """Return message `number` (counted from 1; 0 is the separate system text) if it can be used."""
    name = f"message {number}" if number else "the system text"
    if not isinstance(given, Mapping) or set(given) != {"role", "content"}:
        raise PromptError(f'{name} = {shown(given)}: {{"role": …, "content": …}} is needed')
    role, content = given["role"], given["content"]
    if role not in _ROLES:
        raise PromptError(f"{name} has the role {shown(role)}; the roles are {', '.join(_ROLES)}")
    if not isinstance(content, str):
        raise PromptError(f"{name} has the content {shown(content)}; a text is needed")
    if role == "user" and not content.strip():
        raise PromptError(f"{name} is an empty prompt ({shown(content)}); write a question")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise PromptError(f"{name} is not valid Unicode at character {error.start}; send UTF-8 text") from None
    return cast(Message, {"role": role, "content": content})


def _check_order(turns: Sequence[Message]) -> None:
    """Raise PromptError unless the turns alternate, as templates and frames expect, and end with a user's."""
    roles = [turn["role"] for turn in turns]
    if roles[:1] == ["system"]:
        del roles[0]
    if not roles:
        raise PromptError("the conversation has no user turn; add a question")
    if any(role != ("user", "assistant")[position % 2] for position, role in enumerate(roles)):
        raise PromptError(
            f"the conversation runs {', '.join(turn['role'] for turn in turns)}; after one optional "
            "system text at the start, user and assistant must take turns, the user first"
        )
    if roles[-1] != "user":
        raise PromptError(
            "the conversation ends with an assistant turn; end it with a user turn "
            "(to continue an answer, leave it out of the messages and pass its tokens as prefix=)"
        )


def template_for(
    prompt: Prompt,
    own: str | None,
    factory: Callable[[str], Template],
    folder: Path | None,
    model: str = "the model",
) -> Template | None:
    """Return the compiled template that `render` needs for this prompt; None for plain and few-shot.

    own: the chat template inside the model's file, if it has one.  factory: compiles a template's source.
    folder: where a relative Jinja file is looked for.  model: what errors call the model.
    Raises: PromptError if there is no template or its file cannot be read, and what `factory` raises.
    """
    if prompt.is_framed:
        return None
    if prompt.is_file:
        return factory(_read_template(prompt.style, folder))
    if own is None:
        raise PromptError(f'{model} has no chat template; use prompt = "plain" or a Jinja file')
    return factory(own)


def _read_template(style: str, folder: Path | None) -> str:
    path = (folder or Path.cwd()) / locations.expanded(style)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(f"template {path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PromptError(f"template {path} cannot be read ({reason}); correct prompt = {shown(style)}") from None


def render(
    prompt: Prompt,
    messages: Sequence[Message],
    template: Template | None,
    specials: Specials = _NO_SPECIALS,
    tools: Sequence[Mapping[str, Any]] = (),
) -> Rendered:
    """Return the text that a role continues. messages: from `conversation`; template: from `template_for`.

    specials: the vocabulary's, which are markup in the template and text in messages.
    tools: functions in OpenAI's form, for the template to describe; what is markup in them becomes markup.
    The prompt's instructions and examples stand in front, as a system text and as turns of the conversation.
    Raises: PromptError if the template is missing or cannot render these messages.
    """
    messages = _introduced(prompt, messages)
    if prompt.is_framed:
        return Rendered(_framed(prompt.frame, messages))
    if template is None:
        raise PromptError(f'prompt = {shown(prompt.style)} needs a template; use prompt = "plain" or a Jinja file')
    args = {**prompt.template_args, "tools": list(tools)} if tools else prompt.template_args
    if messages[0]["role"] == "system" and _takes_no_system(template, messages, args):
        with suppress(PromptError):  # what the template says of the conversation as it is says more
            return Rendered(*render_marked(template, _system_moved(messages), args, specials), moved=True)
    return Rendered(*render_marked(template, messages, args, specials))


def _takes_no_system(template: Template, messages: Sequence[Message], args: Mapping[str, Any]) -> bool:
    """Whether the template refuses the system turn, or leaves it out without a word."""
    try:
        text = template(messages, args)
    except PromptError:
        return True
    with suppress(PromptError):
        return bool(messages[0]["content"].strip()) and template(messages[1:], args) == text
    return False


def _system_moved(messages: Sequence[Message]) -> list[Message]:
    """Return the conversation with its system text before the first user turn."""
    system, first, *rest = messages
    texts = [turn["content"] for turn in (system, first) if turn["content"]]
    return [{"role": "user", "content": "\n\n".join(texts)}, *rest]


def _introduced(prompt: Prompt, messages: Sequence[Message]) -> list[Message]:
    """Return the conversation with the prompt's instructions, in one system text with its own, and its examples."""
    system = [turn for turn in messages if turn["role"] == "system"]
    turns = [turn for turn in messages if turn["role"] != "system"]
    if prompt.instructions:
        texts = [prompt.instructions, *(turn["content"] for turn in system if turn["content"])]
        system = [{"role": "system", "content": "\n\n".join(texts)}]
    shots: list[Message] = []
    for question, answer in prompt.examples:
        shots += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return [*system, *shots, *turns]


def introduction(prompt: Prompt) -> str:
    """Return what a plain or few-shot prompt writes before the conversation: its instructions and examples."""
    return _framed(prompt.frame, _introduced(prompt, ()))


def _framed(frame: Frame, messages: Sequence[Message]) -> str:
    """Write the turns in the frame's words.

    An empty system text is none here: what it silences elsewhere, a template's default, does not exist.
    """
    return "".join(_written(frame, turn) for turn in messages if turn["role"] != "system" or turn["content"])


def _written(frame: Frame, turn: Message) -> str:
    """Put a turn into its slot; the turn's own braces mean nothing.

    The white space before an answer is written once, by the frame or by the answer: one that was generated
    after "Answer:" begins with a space, so it reads in the next turn as it was written, token for token.
    """
    before, after = getattr(frame, turn["role"]).split("{text}")
    text = turn["content"]
    if turn["role"] == "assistant":
        gap = before[len(before.rstrip()) :]
        text = text.removeprefix(gap)
    return str(before + text + after)
