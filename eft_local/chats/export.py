"""A chat as one document: Markdown to read, JSON with everything."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from eft_local.analysis.format import ENDINGS
from eft_local.chats.history import History
from eft_local.chats.records import AnswerRecord, Chat, Message, Snapshot
from eft_local.recipe.names import MIXTURE

FORMAT = {"format": "eft-local chat", "version": 1}


def to_markdown(history: History, chat: str) -> str:
    """Return the branch of a chat that is shown. Raises: UsageError, HistoryError."""
    found = history.chat(chat)
    return "\n\n".join([*_head(found), *(part for each in history.shown(found.id) for part in _turn(each))]) + "\n"


def to_json(history: History, chat: str, *, statistics: bool = False) -> dict[str, Any]:
    """Return a chat with all branches, ready for JSON.

    `shown` are the messages of the branch that is shown, `recipes` what the answers' recipes count in.
    statistics: also what the inspector keeps of each answer, as base64.  Raises: UsageError, HistoryError.
    """
    found, shown, messages = history.chat(chat), history.shown(chat), history.messages(chat)
    recipes: dict[str, int] = {}
    return {
        **FORMAT,
        **summary(found),
        "system_prompt": found.system_prompt,
        "shown": [message.id for message in shown],
        "messages": [_message(history, message, recipes, statistics) for message in messages],
        "recipe_number": recipes.setdefault(found.recipe.toml, len(recipes)),
        "recipes": list(recipes),
    }


def summary(chat: Chat) -> dict[str, Any]:
    """Return a chat without its messages, ready for JSON."""
    return {
        "id": chat.id,
        "title": chat.title,
        "recipe": chat.recipe.name,
        "created": chat.created.isoformat(),
        "updated": chat.updated.isoformat(),
        "deleted": chat.deleted.isoformat() if chat.deleted else None,
    }


def turn_title(message: Message) -> str:
    """Return a line about a message: who speaks, which of its siblings it is, and how it ended if not by itself."""
    notes = []
    if message.answer is not None:
        notes += [message.answer.written_by] if message.answer.written_by != MIXTURE else []
        notes += [ENDINGS[message.answer.finish_reason]] if message.answer.finish_reason != "stop" else []
    if len(message.siblings) > 1:
        notes.append(f"{message.position}/{len(message.siblings)}")
    return ("Question" if message.role == "user" else "Answer") + (f" ({', '.join(notes)})" if notes else "")


def _head(chat: Chat) -> Iterable[str]:
    yield f"# {chat.title or 'Untitled'}"
    yield f"Chat {chat.id}, {_minute(chat.created)} to {_minute(chat.updated)} UTC, recipe {chat.recipe.name}"
    if chat.system_prompt is not None:
        yield f"System prompt: {chat.system_prompt}"


def _minute(when: datetime) -> str:
    return when.strftime("%Y-%m-%d %H:%M")


def _turn(message: Message) -> Iterable[str]:
    yield f"## {turn_title(message)}"
    if message.text.strip():
        yield message.text.strip()


def _message(history: History, message: Message, recipes: dict[str, int], statistics: bool) -> dict[str, Any]:
    table: dict[str, Any] = {
        "id": message.id,
        "parent": message.parent,
        "role": message.role,
        "created": message.created.isoformat(),
        "text": message.text,
    }
    if message.answer is not None:
        table["answer"] = _answer(message.answer, recipes)
        blob = history.statistics(message.id) if statistics else None
        if blob is not None:
            table["answer"]["statistics"] = base64.b64encode(blob).decode()
    return table


def _answer(answer: AnswerRecord, recipes: dict[str, int]) -> dict[str, Any]:
    def number(recipe: Snapshot) -> int:
        return recipes.setdefault(recipe.toml, len(recipes))

    return {
        "written_by": answer.written_by,
        "recipes": [{"from_token": position, "recipe": number(recipe)} for position, recipe in answer.recipes],
        "system_prompt": answer.system_prompt,
        "finish_reason": answer.finish_reason,
        "seed": answer.seed,
        "tokens_per_second": answer.tokens_per_second,
        "figures": dict(answer.figures),
        "prefix_tokens": answer.prefix_tokens,
        "tokens": list(answer.tokens),
    }
