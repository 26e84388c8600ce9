"""What clients of OpenAI's API are answered, with the fields of ours that stand beside it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


class Outgoing(BaseModel):
    """What the server answers."""


class TopLogprob(Outgoing):
    """A token that might have been chosen. roles: what each role thinks of it."""

    token: str
    logprob: float
    bytes: list[int] | None
    roles: dict[str, float] | None = None


class TokenLogprob(TopLogprob):
    """A token of an answer: its log-probability under the mixture, before the samplers."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Outgoing):
    """The tokens of a chat's answer."""

    content: list[TokenLogprob]
    refusal: None = None


class CompletionLogprobs(Outgoing):
    """The tokens of a completion, echoed ones first. roles: log-probabilities by role."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]
    roles: dict[str, list[float | None]] | None = None


class CalledFunction(Outgoing):
    """A function that is to be called, its arguments JSON in a text."""

    name: str
    arguments: str


class Called(Outgoing):
    """A call that the answer makes."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


class AnswerMessage(Outgoing):
    """The assistant's turn."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[Called] | None = None


FinishReason = Literal["stop", "length", "tool_calls"]


class Emulation(Outgoing):
    """What is ours about a choice.

    target: who answered.  seed: reproduces it.  ended: why it ended: stop, length, context, or deadline.
    exact: whether it is the same in company as alone.  tokens: on `record`, what each role thought of each token.
    """

    target: str
    seed: int
    ended: str
    exact: str
    tokens: list[dict[str, Any]] | None = None


class ChatChoice(Outgoing):
    """One answer of a chat."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    eft: Emulation


class CompletionChoice(Outgoing):
    """One continuation."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason
    eft: Emulation


class PromptDetails(Outgoing):
    """cached_tokens: of the prompt, those that needed no evaluation."""

    cached_tokens: int


class Usage(Outgoing):
    """Tokens: of the longest role's prompt, and of the answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class RoleTimings(Outgoing):
    """Milliseconds in llama.cpp for one role."""

    prompt_ms: float
    generation_ms: float


class Timings(Outgoing):
    """llama-server's figures, and where the time went.

    cache_n, prompt_n: tokens of the prompt that were cached, and evaluated.  draft_n_accepted: tokens from drafts.
    overhead_ms: outside llama.cpp.
    """

    cache_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_second: float
    draft_n_accepted: int
    overhead_ms: float
    roles: dict[str, RoleTimings]


class Completed(Outgoing):
    """What both kinds of answer have."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage
    timings: Timings


class ChatCompletion(Completed):
    """The answer of `/v1/chat/completions`."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]


class Completion(Completed):
    """The answer of `/v1/completions`."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]


class ModelEntry(Outgoing):
    """A model that can be named. eft: its recipe, target and roles; meta: as llama-server has it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "eft-local"
    eft: dict[str, Any]
    meta: dict[str, Any]


class ModelList(Outgoing):
    """The answer of `/v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelEntry]


class ErrorBody(Outgoing):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Outgoing):
    """Every error."""

    error: ErrorBody
