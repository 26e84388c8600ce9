"""OpenAI's completions: `/v1/completions`, with echoes that are scored exactly."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from fastapi import APIRouter, Request
from fastapi.responses import Response

from eft_local.backends.tokenize import tokenize_text
from eft_local.engine.step import Step
from eft_local.server import logprobs
from eft_local.server.answers import Completion, CompletionChoice, CompletionLogprobs
from eft_local.server.calls import Order, begin, service_of, whole
from eft_local.server.figures import timings, usage
from eft_local.server.replies import ERRORS, Reply, finish, json_of, reader, recorded, usage_wanted, variants
from eft_local.server.sampling import changed, constraint, seed_of
from eft_local.server.schema import CompletionRequest
from eft_local.server.service import Model, Writing
from eft_local.server.streaming import EventStream, merged, sse, text_of

COMPLETION_TOKENS = 16
"""Tokens of a completion that names no number, as OpenAI has it."""

router = APIRouter(responses=ERRORS)


@router.post(
    "/v1/completions",
    response_model=Completion,
    responses={200: {"content": {"text/event-stream": {}}, "description": "Continuations, or events of them"}},
)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Continue prompts: texts, token ids, or lists of either."""
    service = service_of(request)
    model = service.model(body.model)
    prompts = _prompts(body.prompt)
    echoes: list[Echo] = []
    scores = bool(body.echo) and body.logprobs is not None

    def prepare() -> list[Order]:
        recipe = changed(model.recipe, body, **constraint(body.response_format))
        wanted = COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
        limit = service.limit(wanted or 1, recipe)
        found: list[Order] = []
        for prompt in prompts:
            ids = _ids(model, prompt) if body.echo else prompt
            first = model.request(
                ids, recipe, raw=True, seed=seed_of(body, 0), max_tokens=limit, **recorded(body, body.logprobs)
            )
            given = None
            if scores and len(ids) > 1:
                given = model.request(ids[:1], recipe, raw=True, seed=0, given=ids[1:], **recorded(body, body.logprobs))
            for each in variants(first, body):
                found.append(Order(each, given, writes=wanted > 0))
                echoes.append(Echo.of(model, prompt, cast(list[int], ids)) if body.echo else Echo())
        return found

    answers = await begin(request, model, len(prompts) * (body.n or 1), prepare, body.user)
    reply = CompletionReply(
        kind="text_completion",
        model=model,
        answers=answers,
        prompts=answers[:: body.n or 1],
        top=body.logprobs,
        record=bool(body.record),
        include_usage=usage_wanted(body),
        echoes=echoes,
    )
    if body.stream:
        return EventStream(reply.events(), answers, service.settings.patience)
    return await whole(request, answers, reply.whole())


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt that is part of its answer; empty where nothing is echoed.

    first: its first token, which nothing precedes; None where BOS does, which is no part of the text.
    """

    text: str = ""
    first: int | None = None

    @classmethod
    def of(cls, model: Model, prompt: str | list[int], ids: Sequence[int]) -> Echo:
        """Return the echo of a prompt."""
        vocabulary = model.vocabulary
        if isinstance(prompt, str):
            return cls(prompt, None if ids[0] == vocabulary.bos else ids[0])
        return cls(b"".join(map(vocabulary.piece, ids)).decode("utf-8", "replace"), ids[0])


def _prompts(prompt: Any) -> list[str | list[int]]:
    """Return the prompts of a request, one by one."""
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        return [prompt]
    return list(prompt)


def _tokens(steps: Sequence[Step]) -> Sequence[Step]:
    """Return the steps that are tokens, an end token as well, as vLLM has it: harnesses count on one after an echo."""
    return [step for step in steps if step.token is not None]


def _ids(model: Model, prompt: str | list[int]) -> list[int]:
    """Return a prompt that is echoed as tokens, which every role then reads alike."""
    if not isinstance(prompt, str):
        return prompt
    return tokenize_text(model.vocabulary, prompt, add_special=True)


@dataclass(slots=True, kw_only=True)
class CompletionReply(Reply):
    """The continuations of prompts. echoes: what stands before each."""

    echoes: Sequence[Echo]

    async def whole(self) -> Response:
        """Return all choices."""
        steps: dict[int, list[Step]] = {index: [] for index in range(len(self.answers))}
        texts: dict[int, list[str]] = {index: [self.echoes[index].text] for index in steps}
        async for index, found in merged([self._scoring_reader(answer) for answer in self.answers]):
            steps[index] += _tokens(found)
            texts[index] += [step.text for step in found]
        completion = Completion(
            **self.head,
            choices=[self._choice(index, steps[index], "".join(texts[index])) for index in steps],
            usage=usage(self.answers, self.prompts),
            timings=timings(self.answers),
        )
        return json_of(completion)

    def _choice(self, index: int, steps: Sequence[Step], text: str) -> CompletionChoice:
        answer = self.answers[index]
        return CompletionChoice(
            index=index,
            text=text,
            logprobs=None if self.top is None else self._logprobs(index, self.echoes[index].first, steps, 0),
            finish_reason=finish(answer),
            eft=self.emulation(answer, steps),
        )

    def _logprobs(self, index: int, first: int | None, steps: Sequence[Step], offset: int) -> CompletionLogprobs:
        piece = self.answers[index].request.target.vocabulary.piece
        return logprobs.completion(first, steps, piece, self.top or 0, offset)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Give the choices as events."""
        offsets = [0] * len(self.answers)
        simple = self.top is None and not self.record
        around = [
            self.around(f'{{"index":{index},"text":', ',"logprobs":null,"finish_reason":null}')
            for index in range(len(self.answers))
        ]
        for index, echo in enumerate(self.echoes):
            if echo != Echo() and self.answers[index].given is None:
                yield self._event(index, echo.text, echo.first, (), offsets)
        async for index, steps in merged([self._scoring_reader(answer) for answer in self.answers]):
            answer = self.answers[index]
            if simple and not answer.ended:
                before, after = around[index]
                yield b"".join(before + text_of(step.text) + after for step in steps if step.text)
                continue
            kept = _tokens(steps)
            if not answer.read_steps:  # the prompt was scored
                echo = self.echoes[index]
                yield self._event(index, echo.text, echo.first, kept, offsets)
                continue
            events = b"".join(
                self._event(index, step.text, None, [step] if number < len(kept) else (), offsets)
                for number, step in enumerate(steps)
                if step.text or ((self.top is not None or self.record) and number < len(kept))
            )
            yield events + (self._last_event(index) if answer.ended else b"")
        yield b"".join(self._last_event(index) for index, answer in enumerate(self.answers) if not answer.writes)
        yield self.last_events()

    def _event(self, index: int, text: str, first: int | None, steps: Sequence[Step], offsets: list[int]) -> bytes:
        choice: dict[str, Any] = {"index": index, "text": text, "logprobs": None, "finish_reason": None}
        if self.top is not None:
            shown = self._logprobs(index, first, steps, offsets[index])
            offsets[index] += sum(map(len, shown.tokens))
            choice["logprobs"] = shown.model_dump()
        if self.record and steps:
            piece = self.answers[index].request.target.vocabulary.piece
            choice["eft"] = {"tokens": [logprobs.record(step, piece) for step in steps]}
        return sse({**self.chunk, "choices": [choice]})

    def _last_event(self, index: int) -> bytes:
        answer = self.answers[index]
        choice = {
            "index": index,
            "text": "",
            "logprobs": None,
            "finish_reason": finish(answer),
            "eft": self.emulation(answer, ()).model_dump(exclude={"tokens"}),
        }
        return sse({**self.chunk, "choices": [choice], "timings": timings([answer]).model_dump()})

    def _scoring_reader(self, answer: Writing) -> Callable[[], Awaitable[list[Step] | None]]:
        """Return what gives the steps of the echoed prompt, then of the answer, and None at the end."""
        read, scored = reader(answer), answer.given is None

        async def following() -> list[Step] | None:
            nonlocal scored
            if scored:
                return await read()
            scored = True
            return await answer.score()

        return following
