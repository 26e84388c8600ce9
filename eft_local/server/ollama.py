"""Ollama's API, for the terminal clients that speak it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from eft_local.engine.step import Step
from eft_local.errors import UsageError
from eft_local.server import logprobs
from eft_local.server.answers import Called
from eft_local.server.calls import Order, begin, service_of, whole
from eft_local.server.errors import ApiError, json_response
from eft_local.server.figures import prompt_tokens, timings
from eft_local.server.sampling import bounded_json, changed
from eft_local.server.schema import (
    MAX_LOGPROBS,
    MAX_MESSAGES,
    MAX_STOPS,
    MAX_TOOLS,
    ChatMessage,
    FunctionCall,
    Incoming,
    Probability,
    Sampled,
    Stop,
    Strength,
    Tool,
    ToolCall,
)
from eft_local.server.service import Model, Service, Writing
from eft_local.server.streaming import EventStream, line
from eft_local.server.tools import CallReader, Toolbox, format_of, turns

VERSION = "0.12.11"
"""Ollama's version whose API this is: clients ask for it."""

_DETAILS = {
    "parent_model": "",
    "format": "gguf",
    "family": "eft",
    "families": ["eft"],
    "parameter_size": "",
    "quantization_level": "",
}

router = APIRouter()


class Options(Incoming):
    """How an answer is written; what concerns Ollama's own runner (num_gpu, num_thread …) is ignored."""

    temperature: float | None = Field(default=None, ge=0, le=5)
    top_k: int | None = Field(default=None, ge=0, le=2**31 - 1)
    top_p: float | None = Field(default=None, ge=0, le=1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    typical_p: Probability | None = None
    repeat_penalty: float | None = Field(default=None, ge=0.1, le=10)
    repeat_last_n: int | None = Field(default=None, ge=-1, le=2**31 - 1)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    seed: int | None = Field(default=None, ge=-1, le=2**63 - 1)
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    num_predict: int | None = Field(default=None, ge=-2, le=2**31 - 1, description="-1 and -2: as many as fit")
    alpha: Strength | dict[str, Strength] | None = None
    beta: Strength | None = None


class OllamaRequest(Incoming):
    """What both kinds of request have."""

    model: str = Field(min_length=1, max_length=512)
    stream: bool | None = None
    options: Options | None = None
    format: Literal["", "json"] | dict[str, Any] | None = None
    think: bool | Literal["low", "medium", "high"] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)


class OllamaCall(Incoming):
    """A call that the assistant made; its arguments are an object."""

    class Function(Incoming):
        """The function."""

        name: str = Field(min_length=1, max_length=256)
        arguments: dict[str, Any] = Field(default_factory=dict)

    function: Function


class OllamaMessage(Incoming):
    """One turn."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    images: list[Any] | None = None
    tool_calls: list[OllamaCall] | None = Field(default=None, max_length=MAX_TOOLS)


class ChatBody(OllamaRequest):
    """`POST /api/chat`."""

    messages: list[OllamaMessage] = Field(default_factory=list, max_length=MAX_MESSAGES)
    tools: list[Tool] | None = Field(default=None, max_length=MAX_TOOLS)


class GenerateBody(OllamaRequest):
    """`POST /api/generate`."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    template: str | None = None
    suffix: str | None = None
    images: list[Any] | None = None


class ShowBody(Incoming):
    """`POST /api/show`."""

    model: str | None = Field(default=None, max_length=512)
    name: str | None = Field(default=None, max_length=512)


@router.get("/api/version")
async def version() -> Response:
    """Return the version of Ollama's API."""
    return json_response({"version": VERSION})


@router.get("/api/tags")
async def tags(request: Request) -> Response:
    """List the models."""
    service = service_of(request)
    service.check_ready()
    return json_response({"models": [_listed(service, model) for model in service.models.values()]})


@router.get("/api/ps")
async def running(request: Request) -> Response:
    """List the models that are loaded: all of them."""
    service = service_of(request)
    service.check_ready()
    never = datetime.fromtimestamp(2**32, UTC).isoformat()
    models = [{**_listed(service, model), "expires_at": never, "size_vram": 0} for model in service.models.values()]
    return json_response({"models": models})


@router.post("/api/show")
async def show(body: ShowBody, request: Request) -> Response:
    """Describe a model."""
    model = service_of(request).model(body.model or body.name)
    recipe = model.recipe
    try:
        format_of(model.roles)
        capabilities = ["completion", "tools"]
    except UsageError:
        capabilities = ["completion"]
    sampling = recipe.sampling
    parameters = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    return json_response(
        {
            "modelfile": "",
            "parameters": "\n".join(f"{name} {value:g}" for name, value in parameters.items()),
            "template": "{{ .Prompt }}",
            "license": recipe.about.licence or "",
            "details": _DETAILS,
            "model_info": {
                "general.architecture": "eft",
                "general.basename": recipe.name,
                "eft.context_length": recipe.context,
                "eft.target": model.target,
                "eft.alpha": json.dumps(recipe.alphas),
                "eft.beta": recipe.beta,
            },
            "capabilities": capabilities,
            "modified_at": _time(service_of(request).started),
        }
    )


def _listed(service: Service, model: Model) -> dict[str, Any]:
    digest = hashlib.sha256(f"{model.name} {model.recipe.to_toml()}".encode()).hexdigest()
    return {
        "name": model.name,
        "model": model.name,
        "modified_at": _time(service.started),
        "size": sum(path.stat().st_size for path in _files(model)),
        "digest": digest,
        "details": _DETAILS,
    }


def _files(model: Model) -> set[Path]:
    """Return the files of the roles that are loaded of this target."""
    loaded = model.emulator.models.roles
    return {path for name in model.names if name in loaded and (path := loaded[name].model.path)}


def _time(seconds: float | None = None) -> str:
    moment = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat().replace("+00:00", "Z")


# Answers


@router.post("/api/chat")
async def chat(body: ChatBody, request: Request) -> Response:
    """Answer a conversation; without messages, say that the model is loaded."""
    model = service_of(request).model(body.model)
    if not body.messages:
        return _loaded(model, {"message": {"role": "assistant", "content": ""}})
    if any(message.images for message in body.messages):
        raise UsageError("a message holds images; these models read text alone")
    boxes: list[Toolbox | None] = []

    def prepare() -> list[Order]:
        box = Toolbox.of(model.roles, body.tools or (), None, several=True)
        boxes.append(box)
        messages = turns([_message(each) for each in body.messages], box.form if box else None)
        return [_order(model, body, messages, request, tools=box.described if box else ())]

    [answer] = await begin(request, model, 1, prepare)
    reply = OllamaReply(model, answer, body, CallReader(boxes[0]) if boxes[0] else None, chat=True)
    return await _answered(request, reply, stream=body.stream is not False)


@router.post("/api/generate")
async def generate(body: GenerateBody, request: Request) -> Response:
    """Answer a prompt; without one, say that the model is loaded."""
    model = service_of(request).model(body.model)
    if not body.prompt:
        return _loaded(model, {"response": ""})
    for name in ("images", "suffix", "template"):
        if getattr(body, name):
            raise UsageError(f"{name} is not taken here: a model has its own template, and reads text alone")

    def prepare() -> list[Order]:
        prompt: Any = body.prompt
        if not body.raw:
            system = [{"role": "system", "content": body.system}] if body.system is not None else []
            prompt = [*system, {"role": "user", "content": body.prompt}]
        return [_order(model, body, prompt, request, raw=bool(body.raw))]

    [answer] = await begin(request, model, 1, prepare)
    return await _answered(request, OllamaReply(model, answer, body, None, chat=False), stream=body.stream is not False)


def _loaded(model: Model, empty: Mapping[str, Any]) -> Response:
    return json_response({"model": model.name, "created_at": _time(), **empty, "done": True, "done_reason": "load"})


def _message(message: OllamaMessage) -> ChatMessage:
    """Return a turn as OpenAI's API has it."""
    calls = [
        ToolCall(function=FunctionCall(name=each.function.name, arguments=json.dumps(each.function.arguments)))
        for each in message.tool_calls or ()
    ]
    return ChatMessage(role=message.role, content=message.content, tool_calls=calls or None)


def _order(model: Model, body: OllamaRequest, prompt: Any, request: Request, **more: Any) -> Order:
    """Return what the engine is to do. Raises: UsageError, ApiError."""
    if body.think:
        raise ApiError(400, f"{model.name!r} does not support thinking")
    options = body.options or Options()
    given = options.model_dump(exclude_none=True, exclude={"num_predict"})
    sampled = Sampled(**given)
    changes: dict[str, Any] = {}
    if body.format:
        schema = {"type": "object"} if body.format == "json" else body.format
        changes["json_schema"] = bounded_json("format", schema)
    predict = options.num_predict
    if predict is not None and predict <= 0:
        changes["max_tokens"], predict = None, None
    recipe = changed(model.recipe, sampled, **changes)
    top = body.top_logprobs or 0
    return Order(
        model.request(
            prompt,
            recipe,
            seed=None if sampled.seed is None or sampled.seed < 0 else sampled.seed,
            max_tokens=service_of(request).limit(predict, recipe),
            statistics=bool(body.logprobs),
            top=top if body.logprobs else 0,
            **more,
        )
    )


async def _answered(request: Request, reply: OllamaReply, *, stream: bool) -> Response:
    if stream:
        return EventStream(
            reply.events(),
            [reply.answer],
            service_of(request).settings.patience,
            media_type="application/x-ndjson",
            error=lambda error: line({"error": error.message}),
        )
    return await whole(request, [reply.answer], reply.whole())


@dataclass(slots=True)
class OllamaReply:
    """An answer, whole or as lines. reader: finds calls of tools."""

    model: Model
    answer: Writing
    body: OllamaRequest
    reader: CallReader | None
    chat: bool

    async def whole(self) -> Response:
        """Return the answer."""
        text, calls, shown = "", [], []
        while steps := await self.answer.read():
            shown += self._logprobs(steps)
            for part, found in self._parts(steps):
                text += part
                calls += found
        more = {"logprobs": shown} if self.body.logprobs else {}
        return json_response({**self._said(text, calls), **more, **self._end()})

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Give the answer as lines."""
        while steps := await self.answer.read():
            lines = b""
            shown = self._logprobs(steps)
            for number, (part, calls) in enumerate(self._parts(steps)):
                more = {"logprobs": shown[number : number + 1]} if self.body.logprobs and number < len(shown) else {}
                if part or calls or more:
                    lines += line({**self._said(part, calls), **more, "done": False})
            yield lines
        yield line({**self._said("", []), **self._end()})

    def _parts(self, steps: Sequence[Step]) -> list[tuple[str, list[Called]]]:
        """Return what each step adds: text, and calls; at the end, what was held back as well."""
        if self.reader is None:
            return [(step.text, []) for step in steps]
        found = [self.reader.push(step.text) for step in steps]
        return [*found, self.reader.end()] if self.answer.ended else found

    def _logprobs(self, steps: Sequence[Step]) -> list[dict[str, Any]]:
        if not self.body.logprobs:
            return []
        piece = self.answer.request.target.vocabulary.piece
        top = self.body.top_logprobs or 0
        return [logprobs.token(step, piece, top).model_dump() for step in self.answer.tokens(steps)]

    def _said(self, text: str, calls: Sequence[Called]) -> dict[str, Any]:
        if not self.chat:
            return {"model": self.body.model, "created_at": _time(), "response": text}
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if calls:
            message["tool_calls"] = [
                {"function": {"name": each.function.name, "arguments": json.loads(each.function.arguments)}}
                for each in calls
            ]
        return {"model": self.body.model, "created_at": _time(), "message": message}

    def _end(self) -> dict[str, Any]:
        took, answer = timings([self.answer]), self.answer.answer
        prompt, rest = round(1e6 * took.prompt_ms), round(1e6 * took.predicted_ms)
        return {
            "done": True,
            "done_reason": "stop" if self.answer.ended == "stop" else "length",
            "total_duration": prompt + rest,
            "load_duration": 0,
            "prompt_eval_count": prompt_tokens(self.answer),
            "prompt_eval_duration": prompt,
            "eval_count": len(answer.tokens),
            "eval_duration": rest,
        }
