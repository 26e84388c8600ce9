"""Chat templates: a model's own Jinja source, rendered by llama-cpp-python's formatter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from eft_local.errors import PromptError


class ChatTemplate:
    """Renders messages up to and including the opening of the assistant's turn.

    source: Jinja text; bos, eos: the visible forms of the vocabulary's tokens, for templates that write them.
    origin: where the source came from, for error messages. Raises: PromptError if the source does not parse.
    """

    def __init__(self, source: str, *, bos: str, eos: str, origin: str) -> None:
        self._source = source
        self._origin = origin
        try:
            self._formatter = Jinja2ChatFormatter(template=source, bos_token=bos, eos_token=eos)
        except jinja2.TemplateError as error:
            raise PromptError(
                f"the chat template of {origin} does not parse ({error}); give the role another `prompt`"
            ) from error

    @cached_property
    def literals(self) -> frozenset[str]:
        """The texts between quotes in the template's source."""
        environment = jinja2.Environment(extensions=[Jinja2ChatFormatter.IgnoreGenerationTags, jinja2.ext.loopcontrols])
        found = (node.value for node in environment.parse(self._source).find_all(jinja2.nodes.Const))
        return frozenset(value for value in found if isinstance(value, str))

    def __call__(self, messages: Sequence[Mapping[str, object]], args: Mapping[str, Any]) -> str:
        """Render the conversation. Raises: PromptError if the template refuses it (roles out of order, say)."""
        try:
            return str(self._formatter(messages=list(messages), **args).prompt)
        except (jinja2.TemplateError, ValueError, TypeError, KeyError) as error:
            raise PromptError(
                f"the chat template of {self._origin} cannot render this conversation: {error}"
            ) from error
