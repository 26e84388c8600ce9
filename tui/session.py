"""The chat behind the app: which messages are shown, what is asked of the engine, what is saved. Knows no widgets."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from eft_local.errors import UsageError
from eft_local.history import AnswerWriter, Chat, History, Message, to_json, to_markdown
from eft_local.prompts import Message as Turn
from eft_local.prompts import conversation
from eft_local.tui.engine import Engine, Failed, Finished, Request, Wrote

if TYPE_CHECKING:
    from eft_local.emulator import Answer, Step
    from eft_local.recipe import Recipe

CANDIDATES = 10
"""Rows of the inspector's table."""


@dataclass(slots=True)
class Writing:
    """The answer that is being written, as far as the app has heard.

    prefix: tokens that it began with.  kept: their steps.
    """

    number: int
    writer: AnswerWriter
    recipe: Recipe
    prefix: int = 0
    kept: tuple[Step, ...] = ()
    steps: list[Step] = field(default_factory=list)
    began: float | None = None
    last: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Speed after the first token so far."""
        if self.began is None or self.last <= self.began:
            return 0.0
        return (len(self.steps) - 1) / (self.last - self.began)

    @property
    def drafted(self) -> float | None:
        """The share of tokens that a draft had guessed, None when none was drafted."""
        drafted = sum(step.drafted for step in self.steps)
        return drafted / len(self.steps) if drafted else None


class Session:
    """One conversation at a time, in a History; answers come from an Engine."""

    def __init__(
        self, history: History, engine: Engine, recipe: Recipe, only: str = "eft", record: bool = True
    ) -> None:
        """recipe: the knobs, to begin with.  record: keep what each role thought of every token."""
        self.history = history
        self.engine = engine
        self.recipe = recipe
        self.only = only
        self.record = record
        self.chat: Chat | None = None
        self.system: str | None = None
        self.messages: list[Message] = []
        self.dropped = 0  # oldest turns that are left out of the prompt
        self.writing: Writing | None = None
        self.used: Mapping[str, int] = {}  # tokens in each role's context after the last answer

    # Chats

    def new(self) -> None:
        """Begin an empty chat; it is saved with its first question. Recipe and system prompt stay."""
        self._check_idle()
        self.chat = None
        self._forget()

    def open(self, chat: str) -> None:
        """Show a saved chat. Raises: UsageError, HistoryError; RecipeError if its recipe cannot be read any more."""
        self._check_idle()
        found = self.history.chat(chat)
        recipe, messages = found.recipe.recipe(), self.history.shown(found.id)
        self._forget()
        self.chat, self.recipe, self.messages = found, recipe, messages
        self.system = found.system_prompt

    def reload(self) -> None:
        """Read the shown branch again."""
        if self.chat is not None:
            self.chat = self.history.chat(self.chat.id)
            self.messages = self.history.shown(self.chat.id)

    def set_system(self, text: str | None) -> None:
        """Set or remove the system prompt; it acts from the next answer on."""
        self.system = text or None
        if self.chat is not None:
            self.history.set_system_prompt(self.chat.id, self.system)

    # Asking

    def ask(self, text: str) -> None:
        """Ask something; a question that got no answer is replaced. Raises: UsageError, HistoryError."""
        self._check_idle()
        if not text.strip():
            raise UsageError("the question is empty; type something first")
        if self.chat is None:
            self.chat = self.history.create(self.recipe, system_prompt=self.system)
        last = self.messages[-1] if self.messages else None
        if last is not None and last.role == "user":
            question = self.history.edit(last.id, text)
        else:
            question = self.history.ask(self.chat.id, text)
        self.messages = self.history.branch(question.id)
        self.answer(question.id)

    def edit(self, message: int, text: str) -> None:
        """Ask a question in other words: a branch. Raises: UsageError, HistoryError."""
        self._check_idle()
        question = self.history.edit(message, text)
        self.messages = self.history.branch(question.id)
        self.answer(question.id)

    def regenerate(self, message: int | None = None) -> None:
        """Answer a question again: the one of this answer, or the last. A recipe without a seed draws a new one."""
        self._check_idle()
        question = self.question_of(message)
        self.messages = self.history.branch(question.id)
        self.answer(question.id)

    def question_of(self, message: int | None = None) -> Message:
        """Return the question that a message asks or answers; None is the last one. Raises: UsageError."""
        places = {each.id: place for place, each in enumerate(self.messages)}
        end = places.get(message, -1) if message is not None else len(self.messages) - 1
        for each in reversed(self.messages[: end + 1]):
            if each.role == "user":
                return each
        raise UsageError("there is no question yet; type one")

    def answer(
        self,
        question: int,
        *,
        kept: Sequence[Step] = (),
        text: str = "",
        tokens: Sequence[int] = (),
        seed: int | None = None,
    ) -> None:
        """Let the engine answer a question; text, tokens: what the answer begins with (and its steps, `kept`)."""
        if seed is None:
            seed = self.recipe.sampling.seed
        if seed is None:
            seed = secrets.randbits(32)
        turns = self.turns(question)
        writer = self.history.answer(
            question, self.recipe, written_by=self.only, seed=seed, text=text, tokens=tuple(tokens)
        )
        request = Request(
            turns,
            self.recipe,
            only=self.only,
            prefix=tuple(tokens),
            seed=seed,
            candidates=CANDIDATES if self.record else 0,
        )
        self.writing = Writing(request.number, writer, self.recipe, len(tokens), tuple(kept))
        self.reload()
        self.engine.write(request)

    def go_on(self) -> None:
        """Continue the last answer where it was stopped or cut off: a branch. Raises: UsageError, HistoryError."""
        self._check_idle()
        last = self.messages[-1] if self.messages else None
        if last is None or last.answer is None:
            raise UsageError("there is no answer to continue; ask something")
        if last.answer.finish_reason == "stop":
            raise UsageError("the answer ended by itself; /retry writes another one")
        if not last.answer.tokens:
            raise UsageError("nothing of the answer was kept; /retry writes another one")
        self.answer(
            self.question_of(last.id).id,
            kept=self.steps(last),
            text=last.text,
            tokens=last.answer.tokens,
            seed=last.answer.seed,
        )

    def branch_from(self, message: Message, index: int, token: int) -> None:
        """Let an answer continue from another candidate of its step `index`: a branch. Raises: UsageError."""
        from eft_local.inspection import Inspection

        self._check_idle()
        kept = Inspection(self.steps(message)).branch(index, token)
        question = self.question_of(message.id).id
        seed = message.answer.seed if message.answer else None
        if kept.steps[-1].finish_reason is None:
            self.answer(question, kept=kept.steps, text=kept.text.lstrip(), tokens=kept.tokens, seed=seed)
            return
        writer = self.history.answer(
            question, self.recipe, written_by=self.only, seed=seed, text=kept.text.lstrip(), tokens=kept.tokens
        )
        writer.finish("stop", facts=kept.dumps())
        self.reload()

    def adopt(self, question: int, answer: Answer, recipe: Recipe, written_by: str, steps: Sequence[Step]) -> None:
        """Keep an answer that was written elsewhere (in a comparison) as a branch."""
        self._check_idle()
        writer = self.history.answer(question, recipe, written_by=written_by, seed=answer.seed)
        for step in steps:
            _add(writer, step)
        self._finish(writer, answer, steps)
        self.reload()

    def turns(self, question: int) -> tuple[Turn, ...]:
        """Return the conversation up to a question, as the prompts are made from it. Raises: PromptError."""
        branch = self.history.branch(question)
        turns = [{"role": message.role, "content": message.text} for message in branch][2 * self.dropped :]
        return conversation(turns, self.system)

    def switch(self, message: Message, by: int) -> bool:
        """Show the branch with another sibling of a message; return whether there is one."""
        self._check_idle()
        place = message.position - 1 + by
        if not 0 <= place < len(message.siblings):
            return False
        self.messages = self.history.show(message.siblings[place])
        return True

    def drop(self, turns: int) -> None:
        """Leave so many of the oldest turns out of the prompt. Raises: UsageError."""
        self._check_idle()
        there = sum(message.role == "user" for message in self.messages)
        if turns >= max(1, there):
            raise UsageError(f"{turns} turns cannot be dropped: the chat has {there}, and the last one is asked")
        self.dropped = turns

    def exported(self, *, as_json: bool) -> str:
        """Return the chat as Markdown (the shown branch), or as JSON with all its branches."""
        assert self.chat is not None
        if as_json:
            return json.dumps(to_json(self.history, self.chat.id), ensure_ascii=False, indent=2) + "\n"
        return to_markdown(self.history, self.chat.id)

    # Knobs

    def turn(self, recipe: Recipe) -> None:
        """Change the knobs; the next token obeys."""
        self.recipe = recipe
        if self.writing is not None:
            self.writing.recipe = recipe
            self.writing.writer.steer(recipe)
            self.engine.change(recipe)

    # What the engine says

    def wrote(self, event: Wrote, now: Callable[[], float] = time.monotonic) -> str | None:
        """Keep a token; return its text, None if it is not of this chat's answer."""
        writing = self.writing
        if writing is None or event.number != writing.number:
            return None
        step = event.step
        text = _add(writing.writer, step)
        writing.steps.append(step)
        writing.last = now()
        if writing.began is None:
            writing.began = writing.last
        return text

    def finished(self, event: Finished) -> bool:
        """Save the answer with its exact figures; return whether it was this chat's."""
        writing = self.writing
        if writing is None or event.number != writing.number:
            return False
        self.writing = None
        answer = event.answer
        written = writing.prefix + len(answer.tokens)
        self.used = {name: count + written for name, count in answer.prompt_tokens.items()}
        try:
            self._finish(writing.writer, answer, (*writing.kept, *writing.steps))
        finally:
            self.reload()
        return True

    def failed(self, event: Failed) -> bool:
        """Keep what was written before an error; return whether it was this chat's."""
        writing = self.writing
        if writing is None or event.number != writing.number:
            return False
        self.writing = None
        try:
            writing.writer.finish("failed")
        finally:
            self.reload()
        return True

    def steps(self, message: Message) -> tuple[Step, ...]:
        """Return what was recorded of an answer, nothing if nothing was."""
        from eft_local.inspection import Inspection

        writing = self.writing
        if writing is not None and writing.writer.id == message.id:
            return (*writing.kept, *writing.steps)
        facts = self.history.facts(message.id) if message.answer and message.answer.has_facts else None
        return Inspection.loads(facts).steps if facts else ()

    def _finish(self, writer: AnswerWriter, answer: Answer, steps: Sequence[Step]) -> None:
        from eft_local.inspection import Inspection

        inspection = Inspection(tuple(steps))
        recorded = self.record and any(step.change is not None for step in steps)
        writer.finish(
            answer.finish_reason,
            tokens_per_second=answer.tokens_per_second,
            figures=figures(answer, steps),
            facts=inspection.dumps() if recorded else None,
        )

    def _check_idle(self) -> None:
        if self.writing is not None:
            raise UsageError("an answer is being written; Esc stops it")

    def _forget(self) -> None:
        self.messages = []
        self.dropped = 0
        self.used = {}


def _add(writer: AnswerWriter, step: Step) -> str:
    """Add a step to what is saved, and return its text, without the space that begins an answer.

    A token that ended the answer is no part of it: a `prefix` must not hold it.
    """
    text = step.text if writer.text else step.text.lstrip()
    writer.add(text, None if step.finish_reason == "stop" else step.token)
    return text


def figures(answer: Answer, steps: Sequence[Step]) -> dict[str, Any]:
    """Return what is kept of an answer's measurements, ready for JSON."""
    from eft_local.inspection import sparkline

    changes = [step.change for step in steps if step.change is not None]
    moved = [step.top_changed for step in steps if step.top_changed is not None]
    drafted = sum(step.drafted for step in steps)
    return {
        "prompt_tokens": dict(answer.prompt_tokens),
        "milliseconds": {
            role: round(timing.prompt_ms + timing.generation_ms, 3) for role, timing in answer.timings.items()
        },
        "overhead_milliseconds": round(answer.overhead_ms, 3),
        "drafted": round(drafted / len(steps), 4) if drafted else None,
        "changed": round(sum(moved) / len(moved), 4) if moved else None,
        "strip": sparkline(changes, STRIP_WIDTH) if changes else "",
    }


STRIP_WIDTH = 60
"""Characters of the strip over an answer."""
