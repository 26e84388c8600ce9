"""What clients of OpenAI's API send, with the fields of ours that stand beside it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_N = 16
MAX_PROMPTS = 64
MAX_LOGPROBS = 100
MAX_STOPS = 16
MAX_BIASES = 1024
MAX_TOOLS = 64
MAX_MESSAGES = 2048
MAX_GRAMMAR = 1 << 16

Probability = Annotated[float, Field(gt=0, le=1)]
Strength = Annotated[float, Field(ge=-100, le=100)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
Prompt = str | Annotated[list[TokenId], Field(min_length=1)]


class Incoming(BaseModel):
    """What a client sends: types are what they are in JSON, numbers are finite, unknown fields are ignored."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore")


class StreamOptions(Incoming):
    """How an answer is streamed."""

    include_usage: bool | None = None


class Sampled(Incoming):
    """What both kinds of request say about how an answer is written. What is left out is as the recipe says."""

    model: str | None = Field(
        default=None, max_length=512, description="RECIPE, or RECIPE:TARGET; the first recipe if missing"
    )
    n: int | None = Field(default=None, ge=1, le=MAX_N)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    seed: int | None = Field(default=None, ge=-1, le=2**63 - 1, description="-1 draws one")
    temperature: float | None = Field(default=None, ge=0, le=5)
    top_p: float | None = Field(default=None, ge=0, le=1)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(default=None, max_length=MAX_BIASES)
    user: str | None = Field(
        default=None, max_length=512, description="clients that share an address are told apart by it"
    )

    top_k: int | None = Field(default=None, ge=0, le=2**31 - 1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    typical_p: Probability | None = None
    repeat_penalty: float | None = Field(default=None, ge=0.1, le=10)
    repeat_last_n: int | None = Field(default=None, ge=-1, le=2**31 - 1)
    grammar: str | None = Field(
        default=None, min_length=1, max_length=MAX_GRAMMAR, description="GBNF, or llguidance's Lark"
    )

    alpha: Strength | dict[str, Strength] | None = Field(
        default=None, description="strength of the behaviour, or {EXPERT: it}"
    )
    beta: Strength | None = Field(default=None, description="strength of the scale")
    conservative_filter: Probability | None = None
    plausibility_mask: Probability | None = None
    plausibility_top_p: Probability | None = None
    draft: Literal["off", "auto"] | Annotated[int, Field(ge=1, le=64)] | None = None
    record: bool | None = Field(
        default=None, description="say what every role thought of every token, in the choice's `eft`"
    )


class TextPart(Incoming):
    """A piece of a message."""

    type: Literal["text", "input_text", "refusal"]
    text: str | None = None
    refusal: str | None = None


class OtherPart(Incoming):
    """A piece of a message that is no text."""

    type: str = Field(max_length=64)


class FunctionCall(Incoming):
    """A function with its arguments, JSON in a text."""

    name: str = Field(min_length=1, max_length=256)
    arguments: str = "{}"


class ToolCall(Incoming):
    """A call that the assistant made."""

    id: str | None = Field(default=None, max_length=256)
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(Incoming):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart | OtherPart] | None = None
    tool_calls: list[ToolCall] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_call_id: str | None = Field(default=None, max_length=256)


class Function(Incoming):
    """A function that may be called."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Incoming):
    """A tool: OpenAI's API has functions alone here."""

    type: Literal["function"]
    function: Function


class FunctionName(Incoming):
    """The function that must be called."""

    name: str


class NamedTool(Incoming):
    """The tool that must be called."""

    type: Literal["function"] = "function"
    function: FunctionName


class JsonSchema(Incoming):
    """A schema with its name."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore", populate_by_name=True)

    name: str | None = None
    schema_: dict[str, Any] | bool | None = Field(default=None, alias="schema")


class ResponseFormat(Incoming):
    """What an answer must be. schema: as llama-server takes it."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore", populate_by_name=True)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


class ChatRequest(Sampled):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None


class CompletionRequest(Sampled):
    """`POST /v1/completions`."""

    prompt: Prompt | Annotated[list[Prompt], Field(min_length=1, max_length=MAX_PROMPTS)]
    max_tokens: int | None = Field(default=None, ge=0, le=2**31 - 1, description="16 if missing, as OpenAI has it")
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    echo: bool | None = None
    suffix: str | None = None
    response_format: ResponseFormat | None = None


class TokenizeRequest(Incoming):
    """`POST /tokenize`: llama.cpp's names, or vLLM's."""

    model: str | None = None
    content: str | None = None
    prompt: str | None = None
    add_special: bool | None = None
    add_special_tokens: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None


class DetokenizeRequest(Incoming):
    """`POST /detokenize`."""

    model: str | None = None
    tokens: list[TokenId] = Field(max_length=1 << 20)
