"""The plain chat's place in the history."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple, cast

from eft_local.chats import AnswerWriter, Chat, FinishReason, History, Message
from eft_local.cli import output
from eft_local.errors import HistoryError, UsageError

if TYPE_CHECKING:
    from eft_local.engine.step import Step
    from eft_local.recipe import Recipe


class Asked(NamedTuple):
    """A question as it is put to the models; `again`: it is the last one, for another answer."""

    question: str
    recipe: Recipe
    system_prompt: str | None
    only: str
    seed: int
    again: bool


class Record:
    """Saves a chat as it goes. Where that fails it says so once, and the chat goes on unsaved.

    turns: the questions and answers that it began with.
    """

    def __init__(self, history: History | None, chat: Chat | None = None, shown: Sequence[Message] = ()) -> None:
        """history: None saves nothing.  chat: the one to go on with; None begins one at the first question.

        shown: what is said in it already.
        """
        self.history = history
        self.chat = chat
        self.turns = _turns(shown)
        self.last_question = next((message for message in reversed(shown) if message.role == "user"), None)

    @property
    def candidates(self) -> int:
        """How many candidates each step is to have: those that `eft inspect` shows of a saved answer."""
        if self.history is None:
            return 0
        from eft_local.analysis import CANDIDATES

        return CANDIDATES

    def reset(self) -> None:
        """Begin another chat at the next question."""
        self.chat = self.last_question = None

    def set_system_prompt(self, text: str | None) -> None:
        """Note a changed system prompt."""
        with self._unless_it_fails():
            if self.history and self.chat:
                self.history.set_system_prompt(self.chat.id, text)

    def saved(self, steps: Iterator[Step], asked: Asked) -> Iterator[Step]:
        """Return the steps of an answer, which is saved while they are read."""
        return self._noted(steps, asked) if self.history else steps

    def _noted(self, steps: Iterator[Step], asked: Asked) -> Iterator[Step]:
        writer = None
        with self._unless_it_fails():
            writer = self._begin(asked)
        reason: FinishReason = "failed"
        pace = _Pace()
        read: list[Step] = []
        try:
            with closing(cast("Generator[Step]", steps)):
                for step in steps:
                    reason = step.finish_reason or reason
                    pace.count()
                    read.append(step)
                    if writer:
                        writer.add(step.text, step.token if reason != "stop" else None)
                    yield step
        except GeneratorExit:
            reason = "cancelled"
            raise
        finally:
            with self._unless_it_fails():
                if writer:
                    from eft_local.analysis import Inspection

                    facts = Inspection(tuple(read)).recorded()
                    writer.finish(reason, tokens_per_second=pace.tokens_per_second, facts=facts)

    def _begin(self, asked: Asked) -> AnswerWriter:
        assert self.history is not None
        if self.chat is None:
            self.chat = self.history.create(asked.recipe, system_prompt=asked.system_prompt)
        if self.last_question is None or not asked.again:
            self.last_question = self.history.ask(self.chat.id, asked.question)
        return self.history.answer(self.last_question.id, asked.recipe, written_by=asked.only, seed=asked.seed)

    @contextmanager
    def _unless_it_fails(self) -> Iterator[None]:
        try:
            yield
        except HistoryError as error:
            self.history = None
            output.complain(f"{error}; this chat goes on unsaved")


class _Pace:
    """Tokens per second after the first, whose time is the prompt's."""

    def __init__(self) -> None:
        self.steps = 0
        self.first = self.last = 0.0

    def count(self) -> None:
        self.last = time.monotonic()
        self.first = self.first or self.last
        self.steps += 1

    @property
    def tokens_per_second(self) -> float | None:
        seconds = self.last - self.first
        return (self.steps - 1) / seconds if seconds > 0 else None


@contextmanager
def opened(*, save: bool, chat: str | None, resume: bool) -> Iterator[Record]:
    """Yield the record of a new chat, or of one to go on with: the one named `chat`, or (resume) the last.

    Raises: UsageError if there is no such chat, HistoryError if it cannot be read.
    """
    if chat is not None and resume:
        raise UsageError("--continue goes on with the last chat, --chat ID with that one; give one of them")
    history = History()
    try:
        found = _found(history, chat) if resume or chat is not None else None
        yield Record(history if save else None, found, history.shown(found.id) if found else ())
    finally:
        with suppress(HistoryError):  # what could not be saved was told
            history.close()


def _found(history: History, chat: str | None) -> Chat:
    found = history.latest() if chat is None else history.chat(chat)
    if found is None:
        raise UsageError("there is no chat to go on with yet; begin one with `eft chat`")
    if found.deleted:
        raise UsageError(f"chat {found.id} is deleted; `eft history undo {found.id}` brings it back")
    return found


def _turns(shown: Sequence[Message]) -> list[tuple[str, str]]:
    """Return the questions and answers of a branch; a question without an answer is no turn."""
    pairs = zip(shown[::2], shown[1::2], strict=False)
    return [(question.text, answer.text.lstrip()) for question, answer in pairs if answer.text.strip()]
