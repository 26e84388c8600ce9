"""The chat behind the app: which messages are shown, what is asked of the engine, what is saved. Knows no widgets."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from eft_local.chats import AnswerWriter, Chat, FinishReason, History, Message, to_json, to_markdown
from eft_local.errors import HistoryError, UsageError
from eft_local.prompts import Message as Turn
from eft_local.prompts import conversation
from eft_local.tui.engine import Engine, Failed, Finished, Known, Request, Wrote
from eft_local.tui.writing import Writing, add, figures

if TYPE_CHECKING:
    from eft_local.engine.step import Answer, Step
    from eft_local.recipe import Recipe

CANDIDATES = 10
"""Rows of the inspector's table."""


Result = TypeVar("Result")


class Session:
    """One conversation at a time, in a History; answers come from an Engine."""

    def __init__(
        self, history: History, engine: Engine, recipe: Recipe, only: str = "eft", record: bool = True
    ) -> None:
        """recipe: the knobs, to begin with.  record: keep what each role thought of every token.

        history: of all chats. Where it fails, the chat goes on in one that is not saved, and `unsaved` says why.
        """
        self.archive = history
        self.history = history  # that has this chat
        self.unsaved: HistoryError | None = None
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

    def close(self) -> None:
        """Forget what is not saved. The archive stays open."""
        if self.history is not self.archive:
            self.history.close()

    def open(self, chat: str) -> None:
        """Show a saved chat. Raises: UsageError, HistoryError; RecipeError if its recipe cannot be read any more."""
        self._check_idle()
        found = self.archive.chat(chat)
        recipe, messages = found.recipe.recipe(), self.archive.shown(found.id)
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
        self._saving(lambda: self._ask(text))
        self.answer(self.messages[-1].id)

    def _ask(self, text: str) -> None:
        if self.chat is None:
            self.chat = self.history.create(self.recipe, system_prompt=self.system)
        last = self.messages[-1] if self.messages else None
        if last is not None and last.role == "user":
            self._put(self.history.edit(last.id, text), len(self.messages) - 1)
        else:
            parent = last.id if last is not None else None
            self._put(self.history.ask(self.chat.id, text, parent=parent), len(self.messages))

    def edit(self, message: int, text: str) -> None:
        """Ask a question in other words: a branch. Raises: UsageError, HistoryError."""
        self._check_idle()
        place = self._place(message)

        self._saving(lambda: self._put(self.history.edit(self.messages[place].id, text), place))
        self.answer(self.messages[place].id)

    def regenerate(self, message: int | None = None) -> None:
        """Answer a question again: the one of this answer, or the last. A recipe without a seed draws a new one."""
        self._check_idle()
        self.answer(self.question_of(message).id)

    def question_of(self, message: int | None = None) -> Message:
        """Return the question that a message asks or answers; None is the last one. Raises: UsageError."""
        end = self._place(message) if message is not None else len(self.messages) - 1
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
        request = Request(
            self.turns(question),
            self.recipe,
            only=self.only,
            prefix=tuple(tokens),
            seed=seed,
            candidates=CANDIDATES if self.record else 0,
            kept=tuple(kept),
        )
        writer = self._begin(question, seed, text, tokens)
        self.writing = Writing(request.number, writer, self.recipe, len(tokens), tuple(kept))
        self.engine.write(request)

    def _begin(self, question: int, seed: int | None, text: str, tokens: Sequence[int]) -> AnswerWriter:
        """Show an answer that begins, in place of what followed its question."""
        place = self._place(question)

        def begin() -> AnswerWriter:
            asked = self.messages[place].id
            return self.history.answer(
                asked, self.recipe, written_by=self.only, seed=seed, text=text, tokens=tuple(tokens)
            )

        writer = self._saving(begin)
        self._put(self.history.message(writer.id), place + 1)
        return writer

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
        from eft_local.analysis import Inspection

        self._check_idle()
        kept = Inspection(self.steps(message)).branch(index, token)
        question = self.question_of(message.id).id
        seed = message.answer.seed if message.answer else None
        if kept.steps[-1].finish_reason is None:
            self.answer(question, kept=kept.steps, text=kept.text.lstrip(), tokens=kept.tokens, seed=seed)
            return
        writer = self._begin(question, seed, kept.text.lstrip(), kept.tokens)
        writer.finish("stop", facts=kept.dumps())
        self._put(self.history.message(writer.id), len(self.messages) - 1)

    def adopt(self, question: int, finished: Finished, recipe: Recipe, written_by: str) -> None:
        """Keep an answer that was written elsewhere (in a comparison) as a branch."""
        self._check_idle()
        writer = self.history.answer(question, recipe, written_by=written_by, seed=finished.answer.seed)
        for step in finished.steps:
            add(writer, step)
        self._finish(writer, finished.answer, finished.steps, finished.facts)
        self._put(self.history.message(writer.id), self._place(question) + 1)

    def rename(self, title: str) -> None:
        """Give the chat another title. Raises: UsageError, HistoryError."""
        assert self.chat is not None
        self.history.rename(self.chat.id, title)
        self.chat = self.history.chat(self.chat.id)

    def turns(self, question: int) -> tuple[Turn, ...]:
        """Return the conversation up to a question, as the prompts are made from it. Raises: PromptError."""
        branch = self.messages[2 * self.dropped : self._place(question) + 1]
        turns = [{"role": message.role, "content": message.text} for message in branch]
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
        text = add(writing.writer, step)
        writing.steps.append(step)
        writing.last = now()
        if writing.began is None:
            writing.began = writing.last
        return text

    def knew(self, event: Known) -> bool:
        """Keep what each role thought of some tokens; return whether they are of this chat's answer."""
        writing = self.writing
        if writing is None or event.number != writing.number:
            return False
        writing.steps[event.start : event.start + len(event.steps)] = event.steps
        writing.note(event.steps)
        return True

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
            self._finish(writing.writer, answer, event.steps, event.facts)
        finally:
            self._renew(writing, answer.finish_reason)
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
            self._renew(writing, "failed")
        return True

    def steps(self, message: Message) -> tuple[Step, ...]:
        """Return what was recorded of an answer, nothing if nothing was."""
        from eft_local.analysis import Inspection

        writing = self.writing
        if writing is not None and writing.writer.id == message.id:
            return (*writing.kept, *writing.steps)
        facts = self.history.facts(message.id) if message.answer and message.answer.has_facts else None
        return Inspection.loads(facts).steps if facts else ()

    def _finish(self, writer: AnswerWriter, answer: Answer, steps: Sequence[Step], facts: bytes | None) -> None:
        writer.finish(
            answer.finish_reason,
            tokens_per_second=answer.tokens_per_second,
            figures=figures(answer, steps),
            facts=facts,
        )

    def _saving(self, deed: Callable[[], Result]) -> Result:
        """Do something that is saved at once; where that fails, do it in a history that is not saved."""
        try:
            return deed()
        except HistoryError as error:
            if self.history is not self.archive:
                raise
            self._leave_archive(error)
            return deed()

    def _leave_archive(self, error: HistoryError) -> None:
        history = History.unsaved()
        chat = history.create(self.recipe, system_prompt=self.system, title=self.chat.title if self.chat else "")
        parent = None
        for message in self.messages:
            if message.role == "user":
                parent = history.ask(chat.id, message.text, parent=parent).id
            elif parent is not None and message.answer is not None:
                parent = _copied(history, parent, message)
        self.history, self.unsaved = history, error
        self.chat, self.messages = chat, history.shown(chat.id)

    def _renew(self, writing: Writing, reason: FinishReason) -> None:
        """Show an answer that has ended as it is saved, or, where it could not be saved, as it was written."""
        last, writer = self.messages[-1], writing.writer
        if writer.error is None:
            try:
                self._put(self.history.message(writer.id), len(self.messages) - 1)
            except UsageError:  # nothing was written, so nothing was kept
                self.reload()
        elif last.answer is not None:
            answer = replace(last.answer, finish_reason=reason, tokens=writer.tokens)
            self._put(replace(last, text=writer.text, answer=answer), len(self.messages) - 1)

    def _place(self, message: int) -> int:
        """Return where a message of the shown branch stands, looked for from its end; −1 if it is not there."""
        places = range(len(self.messages) - 1, -1, -1)
        return next((place for place in places if self.messages[place].id == message), -1)

    def _put(self, message: Message, place: int) -> None:
        """Let the shown branch end with a message. A long chat is not read again for each of its turns."""
        self.messages = [*self.messages[:place], message]

    def _check_idle(self) -> None:
        if self.writing is not None:
            raise UsageError("an answer is being written; Esc stops it")

    def _forget(self) -> None:
        self.close()
        self.history, self.unsaved = self.archive, None
        self.messages = []
        self.dropped = 0
        self.used = {}


def _copied(history: History, question: int, message: Message) -> int:
    """Copy an answer into another history, and return its id there."""
    answer = message.answer
    assert answer is not None
    recipe = answer.recipe.recipe()
    writer = history.answer(
        question, recipe, written_by=answer.written_by, seed=answer.seed, text=message.text, tokens=answer.tokens
    )
    writer.finish(answer.finish_reason or "failed", tokens_per_second=answer.tokens_per_second, figures=answer.figures)
    return writer.id
