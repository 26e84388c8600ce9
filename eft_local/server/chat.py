"""OpenAI's chats: `/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from eft_local.engine.step import Step
from eft_local.server import logprobs
from eft_local.server.answers import AnswerMessage, Called, ChatChoice, ChatCompletion
from eft_local.server.calls import Order, begin, service_of, whole
from eft_local.server.figures import timings, usage
from eft_local.server.replies import ERRORS, Reply, finish, json_of, reader, recorded, usage_wanted, variants
from eft_local.server.sampling import changed, constraint, seed_of
from eft_local.server.schema import ChatRequest
from eft_local.server.streaming import EventStream, merged, sse, text_of
from eft_local.server.tools import CallReader, Toolbox, turns

router = APIRouter(responses=ERRORS)


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    responses={200: {"content": {"text/event-stream": {}}, "description": "An answer, or events of one"}},
)
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation."""
    service = service_of(request)
    model = service.model(body.model)
    boxes: list[Toolbox | None] = []

    def prepare() -> list[Order]:
        box = Toolbox.of(model.roles, body.tools or (), body.tool_choice, several=body.parallel_tool_calls is not False)
        boxes.append(box)
        more: dict[str, Any] = constraint(body.response_format)
        if box and box.grammar:
            more["grammar"] = box.grammar
        recipe = changed(model.recipe, body, **more)
        first = model.request(
            turns(body.messages, box.form if box else None),
            recipe,
            seed=seed_of(body, 0),
            max_tokens=service.limit(body.max_completion_tokens or body.max_tokens, recipe),
            tools=box.described if box else (),
            **recorded(body, top),
        )
        return [Order(each) for each in variants(first, body)]

    top = (body.top_logprobs or 0) if body.logprobs else None
    answers = await begin(request, model, body.n or 1, prepare, body.user)
    reply = ChatReply(
        kind="chat.completion",
        model=model,
        answers=answers,
        prompts=answers[:1],
        top=top,
        record=bool(body.record),
        include_usage=usage_wanted(body),
        box=boxes[0],
    )
    if body.stream:
        return EventStream(reply.events(), answers, service.settings.patience)
    return await whole(request, answers, reply.whole())


@dataclass(slots=True, kw_only=True)
class ChatReply(Reply):
    """The answers of a chat. box: the tools that they may call."""

    box: Toolbox | None = None

    async def whole(self) -> Response:
        """Return all choices."""
        steps: dict[int, list[Step]] = {index: [] for index in range(len(self.answers))}
        texts: dict[int, list[str]] = {index: [] for index in steps}
        async for index, found in merged([reader(answer) for answer in self.answers]):
            steps[index] += self.answers[index].tokens(found) if self.top is not None or self.record else ()
            texts[index] += [step.text for step in found]
        completion = ChatCompletion(
            **self.head,
            choices=[self._choice(index, steps[index], "".join(texts[index])) for index in steps],
            usage=usage(self.answers, self.prompts),
            timings=timings(self.answers),
        )
        return json_of(completion)

    def _choice(self, index: int, steps: Sequence[Step], text: str) -> ChatChoice:
        answer = self.answers[index]
        calls: list[Called] = []
        content: str | None = text
        if self.box:
            finder = CallReader(self.box)
            (before, calls), (after, late) = finder.push(text), finder.end()
            calls = [*calls, *late]
            content = before + after or (None if calls else "")
        piece = answer.request.target.vocabulary.piece
        return ChatChoice(
            index=index,
            message=AnswerMessage(content=content, tool_calls=calls or None),
            logprobs=None if self.top is None else logprobs.chat(steps, piece, self.top),
            finish_reason=finish(answer, calls),
            eft=self.emulation(answer, steps),
        )

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Give the choices as events."""
        finders = [CallReader(self.box) if self.box else None for _ in self.answers]
        simple = self.box is None and self.top is None and not self.record
        around = [
            self.around(f'{{"index":{index},"delta":{{"content":', '},"finish_reason":null}')
            for index in range(len(self.answers))
        ]
        first = {"role": "assistant", "content": ""}
        yield b"".join(self._event(index, first) for index in range(len(self.answers)))
        async for index, steps in merged([reader(answer) for answer in self.answers]):
            answer, finder = self.answers[index], finders[index]
            if simple and not answer.ended:
                before, after = around[index]
                yield b"".join(before + text_of(step.text) + after for step in steps if step.text)
                continue
            kept = len(answer.tokens(steps))
            events = b""
            for number, step in enumerate(steps):
                text, calls = finder.push(step.text) if finder else (step.text, [])
                events += self._step_events(index, step if number < kept else None, text, calls)
            if answer.ended:
                if finder:
                    text, calls = finder.end()
                    events += self._step_events(index, None, text, calls)
                events += self._last_event(index, finder.calls if finder else [])
            yield events
        yield self.last_events()

    def _step_events(self, index: int, step: Step | None, text: str, calls: Sequence[Called]) -> bytes:
        """Return what one token adds. step: None where it is not part of the answer."""
        answer = self.answers[index]
        piece = answer.request.target.vocabulary.piece
        more: dict[str, Any] = {}
        if step is not None and self.top is not None:
            more["logprobs"] = logprobs.chat([step], piece, self.top).model_dump()
        if step is not None and self.record:
            more["eft"] = {"tokens": [logprobs.record(step, piece)]}
        events = self._event(index, {"content": text} if text else {}, **more) if text or more else b""
        for call in calls:
            events += self._event(index, {"tool_calls": [call.model_dump()]})
        return events

    def _last_event(self, index: int, calls: Sequence[Called]) -> bytes:
        answer = self.answers[index]
        more = {
            "finish_reason": finish(answer, calls),
            "eft": self.emulation(answer, ()).model_dump(exclude={"tokens"}),
        }
        return sse(
            {
                **self.chunk,
                "choices": [{"index": index, "delta": {}, **more}],
                "timings": timings([answer]).model_dump(),
            }
        )

    def _event(self, index: int, delta: dict[str, Any], **more: Any) -> bytes:
        return sse({**self.chunk, "choices": [{"index": index, "delta": delta, "finish_reason": None, **more}]})
