"""Functions that a model may call: how families write a call, how one is enforced, and how it is found in an answer."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eft_local.engine.loading import LoadedRole
from eft_local.errors import PromptError, UsageError
from eft_local.recipe.json_schema import compiled
from eft_local.recipe.sampling import LARK
from eft_local.server.answers import Called, CalledFunction
from eft_local.server.sampling import bounded_json
from eft_local.server.schema import ChatMessage, NamedTool, OtherPart, Tool

Turn = dict[str, object]
"""A message with `role` and `content`, as the emulator takes it."""


@dataclass(frozen=True, slots=True)
class Format:
    """How a family writes calls.

    begin, end: what stands around one.  arguments: the key of its arguments.  result: what stands around a result.
    """

    begin: str
    end: str
    arguments: str
    result: tuple[str, str]

    def written(self, name: str, arguments: str) -> str:
        """Return a call as the model would have written it."""
        try:
            values = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            raise UsageError(
                f"the arguments of a call of {name} are not JSON; send back what the answer held"
            ) from None
        return self.begin + json.dumps({"name": name, self.arguments: values}, ensure_ascii=False) + self.end


HERMES = Format("<tool_call>\n", "\n</tool_call>", "arguments", ("<tool_response>\n", "\n</tool_response>"))
LLAMA3 = Format("", "", "parameters", ("", ""))
_SIGNS = {"<tool_call>": HERMES, '{"name": function name, "parameters"': LLAMA3}
"""What a template writes of the format when it describes tools."""

_PROBE = {
    "type": "function",
    "function": {"name": "probe", "description": "", "parameters": {"type": "object", "properties": {}}},
}


def format_of(roles: Mapping[str, LoadedRole]) -> Format:
    """Return how calls are written by the roles whose templates know tools. Raises: UsageError if there are none."""
    for role in roles.values():
        found = _format_of(role)
        if found:
            return found
    raise UsageError(
        "tools: no chat template of this model describes functions in a form that is known (Qwen's and Hermes's "
        "<tool_call>, Llama 3's JSON); leave them out, or describe them in a system message"
    )


def _format_of(role: LoadedRole) -> Format | None:
    if role.template is None:
        return None
    messages = [{"role": "user", "content": "?"}]
    try:
        text = role.template(messages, {**role.role.prompt.template_args, "tools": [_PROBE]})
    except PromptError:
        return None
    return next((form for sign, form in _SIGNS.items() if sign in text), None)


@dataclass(frozen=True, slots=True)
class Toolbox:
    """The tools of one request.

    described: for the templates.  forced: whether the answer is a call and nothing else.
    """

    form: Format
    tools: Sequence[Tool]
    forced: bool
    grammar: str | None

    @property
    def described(self) -> list[dict[str, Any]]:
        """The tools as templates take them."""
        return [tool.model_dump(exclude_none=True) for tool in self.tools]

    @classmethod
    def of(
        cls, roles: Mapping[str, LoadedRole], tools: Sequence[Tool], choice: str | NamedTool | None, *, several: bool
    ) -> Toolbox | None:
        """Return what a request's tools mean; None where there are none, or none is to be called.

        several: whether a required answer may hold several calls. Raises: UsageError.
        """
        if not tools or choice == "none":
            if isinstance(choice, NamedTool) or choice == "required":
                raise UsageError("tool_choice asks for a call, but there are no tools")
            return None
        form = format_of(roles)
        _refuse_markup(roles, tools)
        names = [tool.function.name for tool in tools]
        if len(set(names)) < len(names):
            raise UsageError("tools: two functions have the same name; rename one")
        if isinstance(choice, NamedTool):
            if choice.function.name not in names:
                raise UsageError(f"tool_choice names {choice.function.name!r}; the tools are {', '.join(names)}")
            forced = [tool for tool in tools if tool.function.name == choice.function.name]
        else:
            forced = list(tools) if choice == "required" else []
        grammar = call_grammar(form, forced, several=several and choice == "required") if forced else None
        return cls(form, tools, bool(forced), grammar)


def _refuse_markup(roles: Mapping[str, LoadedRole], tools: Sequence[Tool]) -> None:
    """Raise UsageError where a description holds a text that a template would turn into a control token."""
    text = json.dumps([tool.model_dump(exclude_none=True) for tool in tools], ensure_ascii=False)
    for role in roles.values():
        for special in role.vocabulary.specials().within(text):
            if special.is_markup:
                raise UsageError(f"tools: a description holds {special.text!r}, which is markup; remove it")


def call_grammar(form: Format, tools: Sequence[Tool], *, several: bool) -> str:
    """Return a grammar (Lark) of calls of some tools. Raises: UsageError for parameters that cannot be enforced."""
    rules = [f"start: call{' (' + _quoted(chr(10)) + ' call)*' if several and form.begin else ''}"]
    rules.append(f"call: {' | '.join(f'call_{index}' for index in range(len(tools)))}")
    for index, tool in enumerate(tools):
        parameters = tool.function.parameters or {"type": "object"}
        name = json.dumps(tool.function.name)
        head = f'{form.begin}{{"name": {name}, "{form.arguments}": '
        what = f"tools.{tool.function.name}"
        rules.append(f"call_{index}: {_quoted(head)} values_{index} {_quoted('}' + form.end)}")
        rules.append(f"values_{index}: %json {_enforced(bounded_json(what, parameters))}")
    return f"{LARK} {{}}\n" + "\n".join(rules)


def _enforced(schema: str) -> str:
    """Return a schema with nothing in it that is not enforced. Raises: RecipeError."""
    grammar = json.loads(compiled(schema))
    return json.dumps(grammar["grammars"][0]["json_schema"], ensure_ascii=True)


def _quoted(text: str) -> str:
    return json.dumps(text)


def turns(messages: Sequence[ChatMessage], form: Format | None) -> list[Turn]:
    """Return a conversation as the emulator takes it: turns of one side in a row become one.

    form: how calls and results are written in it. Raises: UsageError.
    """
    found: list[Turn] = []
    for number, message in enumerate(messages, start=1):
        role, content = _turn(number, message, form)
        if found and found[-1]["role"] == role:
            between = "\n" if message.role == "tool" else "\n\n"
            found[-1]["content"] = f"{found[-1]['content']}{between}{content}"
        else:
            found.append({"role": role, "content": content})
    return found


def _turn(number: int, message: ChatMessage, form: Format | None) -> tuple[str, str]:
    content = _text(number, message)
    if message.role == "tool":
        before, after = (form or HERMES).result
        return "user", before + content + after
    if message.tool_calls:
        calls = ((form or HERMES).written(call.function.name, call.function.arguments) for call in message.tool_calls)
        content = "\n".join([*([content] if content else []), *calls])
    return {"developer": "system"}.get(message.role, message.role), content


def _text(number: int, message: ChatMessage) -> str:
    if not isinstance(message.content, list):
        return message.content or ""
    for part in message.content:
        if isinstance(part, OtherPart):
            raise UsageError(f"message {number} holds {part.type!r}; these models read text alone")
    return "".join(part.text or part.refusal or "" for part in message.content if not isinstance(part, OtherPart))


class CallReader:
    """Finds calls in an answer while it is written: text that may be one is held back until it is certain."""

    def __init__(self, box: Toolbox) -> None:
        self._form = box.form
        self._names = {tool.function.name for tool in box.tools}
        self._held = ""
        self.calls: list[Called] = []

    def push(self, text: str) -> tuple[str, list[Called]]:
        """Add text; return what is certainly none of a call, and the calls that are complete."""
        self._held += text
        shown = ""
        found: list[Called] = []
        while self._held:
            at = self._begins()
            shown, self._held = shown + self._held[:at], self._held[at:]
            end = self._held.find(self._form.end.strip()) if self._form.end else -1
            if not self._held or end < 0:
                break
            end += len(self._form.end.strip())
            call = self._read(self._held[len(self._mark) : end - len(self._form.end.strip())])
            shown += "" if call else self._held[:end]
            found += [call] if call else []
            self._held = self._held[end:].lstrip("\n") if call else self._held[end:]
        return self._tidied(shown, found), found

    def end(self) -> tuple[str, list[Called]]:
        """The answer is complete: return what was held back, as text or as a call."""
        held, self._held = self._held, ""
        call = self._read(held[len(self._mark) :] if held.startswith(self._mark) else held) if held else None
        return ("", [call]) if call else (held, [])

    @property
    def _mark(self) -> str:
        return self._form.begin.strip() or ""

    def _begins(self) -> int:
        """Return where a call may begin in what is held; its length if nowhere."""
        mark = self._mark
        if not mark:  # a call is the whole answer, an object
            whole = not self.calls and self._held.lstrip().startswith("{")
            return 0 if whole or not self._held.strip() else len(self._held)
        at = self._held.find(mark)
        if at >= 0:
            return at
        for length in range(min(len(mark) - 1, len(self._held)), 0, -1):
            if mark.startswith(self._held[-length:]):
                return len(self._held) - length
        return len(self._held)

    def _tidied(self, shown: str, found: list[Called]) -> str:
        """Drop white space that only separates calls."""
        return "" if (found or self.calls) and not shown.strip() else shown

    def _read(self, text: str) -> Called | None:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(value, dict) or value.get("name") not in self._names:
            return None
        arguments = value.get(self._form.arguments, {})
        if not isinstance(arguments, dict):
            return None
        function = CalledFunction(name=value["name"], arguments=json.dumps(arguments, ensure_ascii=False))
        call = Called(id=f"call_{secrets.token_hex(12)}", function=function, index=len(self.calls))
        self.calls.append(call)
        return call
