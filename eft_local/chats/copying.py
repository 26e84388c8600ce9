"""What is shown of a chat, copied into another history: for a chat that continues without being saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from eft_local.chats.history import History
from eft_local.chats.records import Chat, Message, Snapshot
from eft_local.errors import RecipeError
from eft_local.recipe import Recipe


def copied(
    messages: Sequence[Message],
    history: History,
    recipe: Recipe,
    *,
    system_prompt: str | None,
    title: str,
    statistics: Callable[[int], bytes | None] = lambda message: None,
) -> Chat:
    """Copy a branch into a history, as a chat of its own. Raises: HistoryError.

    recipe: with which the chat continues; it also stands for an answer's own that this version cannot read.
    statistics: returns what is kept of a message for the inspector; without it the copy has none.
    """
    chat = history.create(recipe, system_prompt=system_prompt, title=title)
    parent = None
    for message in messages:
        if message.role == "user":
            parent = history.ask(chat.id, message.text, parent=parent).id
        elif parent is not None and message.answer is not None:
            parent = _answer(history, parent, message, recipe, statistics(message.id))
    history.set_recipe(chat.id, recipe)
    return history.chat(chat.id)


def _answer(history: History, question: int, message: Message, recipe: Recipe, statistics: bytes | None) -> int:
    """Copy an answer, and return its id there."""
    answer = message.answer
    assert answer is not None
    writer = history.answer(
        question,
        _readable(answer.recipe, recipe),
        written_by=answer.written_by,
        seed=answer.seed,
        text=message.text,
        tokens=answer.tokens,
    )
    writer.finish(
        answer.finish_reason or "failed",
        tokens_per_second=answer.tokens_per_second,
        figures=answer.figures,
        statistics=statistics,
    )
    return writer.id


def _readable(snapshot: Snapshot, otherwise: Recipe) -> Recipe:
    try:
        return snapshot.recipe()
    except RecipeError:
        return otherwise
