"""One saved conversation in use: what is shown, what is to be answered, and what is saved while it is written.

Faces and engines are other people's business: a method that wants an answer leaves it in `writing`; whoever writes it
reports each step with `wrote`, and the end with `finish` or `fail`.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from eft_local.analysis.format import CANDIDATES
from eft_local.chats.copying import copied
from eft_local.chats.export import to_json, to_markdown
from eft_local.chats.history import History
from eft_local.chats.records import Chat, FinishReason, Message
from eft_local.chats.writer import AnswerWriter
from eft_local.chats.writing import AnswerRequest, Writing, add, figures
from eft_local.errors import HistoryError, UsageError
from eft_local.prompts.render import Message as PromptMessage
from eft_local.prompts.render import conversation
from eft_local.recipe.names import MIXTURE

if TYPE_CHECKING:
    from eft_local.engine.step import Answer, Step
    from eft_local.recipe import Recipe

Result = TypeVar("Result")


class Session:
    """One conversation at a time, in a History."""

    def __init__(self, history: History, recipe: Recipe, target: str = MIXTURE, record: bool = True) -> None:
        """recipe: the settings, to begin with.  target: who answers.  record: keep what each role thought of tokens.

        history: of all chats. Where it fails, the chat continues in one that is not saved, and `unsaved` says why.
        """
        self.archive = history
        self.history = history  # that has this chat
        self.unsaved: HistoryError | None = None
        self.recipe = recipe
        self.target = target
        self.record = record
        self.chat: Chat | None = None
        self.system: str | None = None
        self.messages: list[Message] = []
        self.dropped = 0  # oldest turns that are left out of the prompt
        self.writing: Writing | None = None

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

    def open(self, chat: str, recipe: Recipe | None = None) -> None:
        """Show a saved chat, with its own recipe or another one.

        Raises: UsageError, HistoryError; RecipeError if its recipe cannot be read any more.
        """
        self._check_idle()
        found = self.archive.chat(chat)
        recipe, messages = recipe or found.recipe.recipe(), self.archive.shown(found.id)
        self._forget()
        self.chat, self.recipe, self.messages = found, recipe, messages
        self.system = found.system_prompt

    def reload(self) -> None:
        """Read the shown branch again."""
        if self.chat is not None:
            self.chat = self.history.chat(self.chat.id)
            self.messages = self.history.shown(self.chat.id)

    def set_system(self, text: str | None) -> None:
        """Set or remove the system prompt; it acts from the next answer on. Raises: HistoryError."""
        self.system = text or None
        if self.chat is not None:
            self.history.set_system_prompt(self.chat.id, self.system)

    def rename(self, title: str) -> None:
        """Give the chat another title. Raises: UsageError, HistoryError."""
        assert self.chat is not None
        self.history.rename(self.chat.id, title)
        self.chat = self.history.chat(self.chat.id)

    def exported(self, *, as_json: bool) -> str:
        """Return the chat as Markdown (the shown branch), or as JSON with all its branches."""
        assert self.chat is not None
        if as_json:
            return json.dumps(to_json(self.history, self.chat.id), ensure_ascii=False, indent=2) + "\n"
        return to_markdown(self.history, self.chat.id)

    # What is to be answered

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
        """Begin the answer to a question; text, tokens: what it begins with (and its steps, `kept`)."""
        if seed is None:
            seed = self.recipe.sampling.seed
        if seed is None:
            seed = secrets.randbits(32)
        request = AnswerRequest(
            self.turns(question),
            self.recipe,
            self.target,
            seed,
            prefix=tuple(tokens),
            kept=tuple(kept),
            candidates=CANDIDATES if self.record else 0,
        )
        self.writing = Writing(request, self._begin(question, seed, text, tokens))

    def _begin(self, question: int, seed: int | None, text: str, tokens: Sequence[int]) -> AnswerWriter:
        """Show an answer that begins, in place of what followed its question."""
        place = self._place(question)

        def begin() -> AnswerWriter:
            answered = self.messages[place].id
            return self.history.answer(
                answered, self.recipe, written_by=self.target, seed=seed, text=text, tokens=tuple(tokens)
            )

        writer = self._saving(begin)
        self._put(self.history.message(writer.id), place + 1)
        return writer

    def continue_answer(self) -> None:
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
        """Let an answer continue from another candidate of its step `index`: a branch. Raises: UsageError.

        A candidate that ends the answer leaves nothing to write.
        """
        from eft_local.analysis import Inspection

        self._check_idle()
        kept = Inspection(self.steps(message)).branch(index, token)
        question = self.question_of(message.id).id
        seed = message.answer.seed if message.answer else None
        if kept.steps[-1].finish_reason is None:
            self.answer(question, kept=kept.steps, text=kept.text.lstrip(), tokens=kept.tokens, seed=seed)
            return
        writer = self._begin(question, seed, kept.text.lstrip(), kept.tokens)
        writer.finish("stop", statistics=kept.dumps())
        self._put(self.history.message(writer.id), len(self.messages) - 1)

    def turns(self, question: int) -> tuple[PromptMessage, ...]:
        """Return the conversation up to a question, as the prompts are made from it. Raises: PromptError.

        A question whose answer is empty is no turn of it.
        """
        branch = self.messages[2 * self.dropped : self._place(question) + 1]
        turns: list[dict[str, str]] = []
        for message in branch:
            if message.role == "assistant" and not message.text.strip():
                turns.pop()
            else:
                turns.append({"role": message.role, "content": message.text})
        return conversation(turns, self.system)

    # What is shown

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
            raise UsageError(f"{turns} turns cannot be dropped: the chat has {there}, and the last one stays")
        self.dropped = turns

    def steps(self, message: Message) -> tuple[Step, ...]:
        """Return what was recorded of an answer, nothing if nothing was."""
        from eft_local.analysis import Inspection

        writing = self.writing
        if writing is not None and writing.writer.id == message.id:
            return writing.all_steps
        statistics = self.history.statistics(message.id) if message.answer and message.answer.has_statistics else None
        return Inspection.loads(statistics).steps if statistics else ()

    # While an answer is written

    def steer(self, recipe: Recipe) -> None:
        """Change the settings; an answer that is being written notes from which token on they hold."""
        self.recipe = recipe
        if self.writing is not None:
            self.writing.writer.steer(recipe)

    def wrote(self, step: Step) -> str:
        """Keep a step; return its text, without the space that begins an answer."""
        assert self.writing is not None
        return self.writing.add(step)

    def finish(self, answer: Answer, steps: Sequence[Step], statistics: bytes | None) -> None:
        """Save the answer whole, with its exact figures.

        steps: all of it, those that it began with too.  statistics: what `recorded` makes of them.
        Raises: HistoryError if it cannot be saved; it is shown as it was written then.
        """
        writing, self.writing = self.writing, None
        assert writing is not None
        try:
            _finish(writing.writer, answer, steps, statistics)
        finally:
            self._renew(writing, answer.finish_reason)

    def fail(self, reason: FinishReason = "failed") -> None:
        """Keep what was written before an error, or before the writing was given up. Raises: HistoryError."""
        writing, self.writing = self.writing, None
        assert writing is not None
        try:
            writing.writer.finish(reason)
        finally:
            self._renew(writing, reason)

    def adopt(
        self,
        question: int,
        recipe: Recipe,
        target: str,
        answer: Answer,
        steps: Sequence[Step],
        statistics: bytes | None,
    ) -> None:
        """Keep an answer that a comparison wrote as a branch."""
        self._check_idle()
        writer = self.history.answer(question, recipe, written_by=target, seed=answer.seed)
        for step in steps:
            add(writer, step)
        _finish(writer, answer, steps, statistics)
        self._put(self.history.message(writer.id), self._place(question) + 1)

    # Saving

    def stop_saving(self, error: HistoryError) -> None:
        """Continue in a history that is not saved. error: why."""
        if self.history is not self.archive:
            return
        history = History.unsaved()
        title = self.chat.title if self.chat else ""
        chat = copied(self.messages, history, self.recipe, system_prompt=self.system, title=title)
        self.history, self.unsaved = history, error
        self.chat, self.messages = chat, history.shown(chat.id)

    def _saving(self, save: Callable[[], Result]) -> Result:
        """Do something that is saved at once; where that fails, do it in a history that is not saved."""
        try:
            return save()
        except HistoryError as error:
            if self.history is not self.archive:
                raise
            self.stop_saving(error)
            return save()

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


def _finish(writer: AnswerWriter, answer: Answer, steps: Sequence[Step], statistics: bytes | None) -> None:
    writer.finish(
        answer.finish_reason,
        tokens_per_second=answer.tokens_per_second,
        figures=figures(answer, steps),
        statistics=statistics,
    )
