"""Any sequence of changes to chats, against a plain model of their branches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from eft_local.chats import AnswerWriter, History
from eft_local.hub.references import find_recipe
from tests.helpers.crash_history import check_file, check_tree

RECIPE = find_recipe("demo")


class Branches(RuleBasedStateMachine):
    """A History beside a plain model of it: who follows whom, and what was shown last after each message."""

    messages = Bundle("messages")
    chats = Bundle("chats")

    @initialize(target=chats)
    def open(self) -> str:
        self.folder = Path(self.make_folder())
        self.history = History(self.folder / "chats.db")
        self.chat_of: dict[int, str] = {}
        self.parent: dict[int, int | None] = {}
        self.text: dict[int, str] = {}
        self.next: dict[int | str, int] = {}  # after a message, or at a chat's beginning
        self.alive: set[str] = set()
        self.deleted: list[str] = []
        self.writing: dict[int, AnswerWriter] = {}
        return self.create()

    make_folder: Callable[[], Any]

    def show_in_model(self, message: int) -> None:
        parent = self.parent[message]
        if parent is None:
            self.next[self.chat_of[message]] = message
        else:
            self.next[parent] = message
            self.show_in_model(parent)

    def add_to_model(self, chat: str, message: int, parent: int | None, text: str) -> int:
        self.chat_of[message], self.parent[message], self.text[message] = chat, parent, text
        self.show_in_model(message)
        return message

    def shown_in_model(self, chat: str) -> list[int]:
        shown: list[int] = []
        place: int | str = chat
        while place in self.next:
            place = self.next[place]
            shown.append(place)
        return shown

    def is_question(self, message: int) -> bool:
        parent = self.parent[message]
        return parent is None or not self.is_question(parent)

    @rule(target=chats)
    def create(self) -> str:
        chat = self.history.create(RECIPE).id
        self.alive.add(chat)
        return chat

    @rule(target=messages, chat=chats)
    def ask(self, chat: str) -> Any:
        if chat not in self.alive:
            return multiple()
        shown = self.shown_in_model(chat)
        parent = next((message for message in reversed(shown) if not self.is_question(message)), None)
        text = f"question {len(self.text)}"
        return self.add_to_model(chat, self.history.ask(chat, text).id, parent, text)

    @rule(target=messages, message=messages)
    def edit(self, message: int) -> Any:
        if self.chat_of[message] not in self.alive or not self.is_question(message):
            return multiple()
        text = f"edited {len(self.text)}"
        new = self.history.edit(message, text).id
        return self.add_to_model(self.chat_of[message], new, self.parent[message], text)

    @rule(target=messages, message=messages, ended=st.booleans())
    def answer(self, message: int, ended: bool) -> Any:
        if self.chat_of[message] not in self.alive or not self.is_question(message):
            return multiple()
        writer = self.history.answer(message, RECIPE)
        text = f"answer {len(self.text)}"
        writer.add(text, 1)
        if ended:
            writer.finish("stop")
        else:
            writer.save()
            self.writing[writer.id] = writer
        return self.add_to_model(self.chat_of[message], writer.id, message, text)

    @rule(message=messages)
    def answer_in_vain(self, message: int) -> None:
        if self.chat_of[message] in self.alive and self.is_question(message):
            self.show_in_model(message)
            self.history.answer(message, RECIPE).finish("cancelled")

    @rule(message=messages)
    def switch(self, message: int) -> None:
        if self.chat_of[message] in self.alive:
            self.show_in_model(message)
            shown = self.history.show(message)
            assert [each.id for each in shown] == self.shown_in_model(self.chat_of[message])

    @rule(chat=chats)
    def delete(self, chat: str) -> None:
        if chat in self.alive and chat not in self.deleted:
            self.history.delete(chat)
            self.deleted.append(chat)

    @rule()
    def undo(self) -> None:
        if self.deleted:
            restored = self.history.restore().id
            assert restored in self.deleted
            self.deleted.remove(restored)

    @rule(chat=chats)
    def purge(self, chat: str) -> None:
        if chat in self.alive:
            self.history.purge(chat)
            self.alive.remove(chat)
            self.deleted = [each for each in self.deleted if each != chat]

    @rule()
    def reopen(self) -> None:
        self.history.close()
        self.history = History(self.history.path)
        self.writing.clear()

    @invariant()
    def is_as_in_the_model(self) -> None:
        assert {chat.id for chat in self.history.chats()} == self.alive - set(self.deleted)
        assert {chat.id for chat in self.history.chats(deleted=True)} == set(self.deleted)
        for chat in self.alive:
            messages = check_tree(self.history, chat)
            assert [message.id for message in self.history.shown(chat)] == self.shown_in_model(chat)
            assert {each: message.text for each, message in messages.items()} == {
                each: self.text[each] for each in self.text if self.chat_of[each] == chat
            }
            for each, message in messages.items():
                assert message.parent == self.parent[each]
                if message.answer:
                    ends = (None,) if each in self.writing else ("stop", "interrupted")
                    assert message.answer.finish_reason in ends

    def teardown(self) -> None:
        self.history.close()
        check_file(self.history.path)


def test_any_sequence_of_changes_keeps_the_branches(tmp_path_factory: pytest.TempPathFactory) -> None:
    Branches.make_folder = staticmethod(lambda: tmp_path_factory.mktemp("branches"))  # type: ignore[method-assign]
    run_state_machine_as_test(Branches, settings=settings(max_examples=25, stateful_step_count=30, deadline=None))
