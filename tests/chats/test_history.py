"""The record of chats: branches, answers that are being written, search, export."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eft_local.chats import AnswerWriter, History, Message, Snapshot, to_json, to_markdown
from eft_local.chats import writer as writer_module
from eft_local.errors import HistoryError, UsageError
from eft_local.hub.references import find_recipe
from tests.helpers.crash_history import check_file

RECIPE = find_recipe("demo")


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    with History(tmp_path / "chats.db") as history:
        yield history


def ask(history: History, *questions: str, chat: str | None = None) -> str:
    """Ask in a chat (or a new one), let each question be answered by its echo, and return the chat."""
    chat = chat or history.create(RECIPE).id
    for question in questions:
        reply(history, history.ask(chat, question).id, f"re {question}")
    return chat


def reply(history: History, question: int, text: str, reason: Any = "stop") -> int:
    writer = history.answer(question, RECIPE)
    writer.add(text, len(text))
    writer.finish(reason)
    return writer.id


def texts(messages: list[Message]) -> list[str]:
    return [message.text for message in messages]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.005)


# Chats


def test_a_chat_is_named_after_its_first_question(history: History) -> None:
    assert history.create(RECIPE).title == ""
    long = ask(history, "  What   is\nthis?", "And that?")
    assert history.chat(long).title == "What is"
    assert history.chat(ask(history, "x" * 81)).title == "x" * 79 + "…"
    assert history.chat(ask(history, "x" * 80)).title == "x" * 80


def test_a_chat_that_has_a_title_keeps_it(history: History) -> None:
    chat = history.create(RECIPE, title="Mine").id
    history.ask(chat, "hello")
    assert history.chat(chat).title == "Mine"
    history.rename(chat, " Yours,\nnow ")
    assert history.chat(chat).title == "Yours, now"
    with pytest.raises(UsageError, match="empty title"):
        history.rename(chat, " ")


def test_chats_come_by_their_last_message(history: History) -> None:
    assert history.latest() is None
    first, second = ask(history, "one"), ask(history, "two")
    assert [chat.id for chat in history.chats()] == [second, first]
    ask(history, "more", chat=first)
    history.rename(second, "renaming is no message")
    assert [chat.id for chat in history.chats()] == [first, second]
    assert [chat.id for chat in history.chats(limit=1)] == [first]
    latest = history.latest()
    assert latest is not None
    assert latest.id == first
    assert latest.created < latest.updated


def test_an_id_may_be_shortened_while_it_is_clear(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    given_ids = iter(["aaaaaa", "aaaabb", "aaaa"])
    monkeypatch.setattr("eft_local.chats.history.new_id", lambda db: next(given_ids))
    for question in ("one", "two"):
        ask(history, question)
    assert history.chat("aaaab").title == "two"
    assert history.chat(" AAAAA").title == "one"
    with pytest.raises(UsageError, match=r"could be one of 2 \(aaaabb, aaaaaa\)"):
        history.chat("aaa")
    ask(history, "three")
    assert history.chat("aaaa").title == "three"  # whole, though it begins others
    for unknown in ("b", "", "%", "aaaaaaa"):
        with pytest.raises(UsageError, match="there is no chat"):
            history.chat(unknown)


def test_ids_are_short_typeable_and_new(history: History) -> None:
    ids = [history.create(RECIPE).id for _ in range(50)]
    assert len(set(ids)) == 50
    assert all(len(each) == 6 and each.isalnum() and each == each.lower() for each in ids)


def test_a_deleted_chat_can_be_restored(history: History) -> None:
    first, second = ask(history, "one"), ask(history, "two")
    history.delete(first)
    history.delete(second)
    assert history.chats() == []
    assert [chat.id for chat in history.chats(deleted=True)] == [second, first]
    assert history.chat(first).deleted is not None
    assert history.restore().id == second
    assert history.restore(first[:5]).deleted is None
    assert texts(history.shown(first)) == ["one", "re one"]
    with pytest.raises(UsageError, match="no deleted chat"):
        history.restore()


def test_a_purged_chat_leaves_nothing(history: History) -> None:
    kept, gone = ask(history, "kept"), ask(history, "secretword")
    reply(history, history.shown(gone)[0].id, "another secretword")
    history.set_recipe(gone, RECIPE.replace(alpha=0.123))
    history.purge(gone)
    with pytest.raises(UsageError):
        history.chat(gone)
    assert texts(history.shown(kept)) == ["kept", "re kept"]
    history.close()
    content = history.path.read_bytes()
    assert b"kept" in content
    assert b"secretword" not in content
    assert b"0.123" not in content
    check_file(history.path)


# Messages


def test_an_answer_keeps_how_it_was_written(history: History) -> None:
    chat = history.create(RECIPE, system_prompt="Be brief.").id
    question = history.ask(chat, "Where is Lima?")
    steered = RECIPE.replace(alpha=0.5, temperature=0.7)
    with history.answer(question.id, RECIPE, written_by="base", seed=2**63 - 1) as writer:
        writer.add(" In", 5)
        writer.steer(RECIPE.replace(alpha=0.9))  # overtaken before a token
        writer.steer(steered)
        writer.add(" Peru", 2**31 - 1)
        writer.add("")
        writer.finish("length", tokens_per_second=12.5, figures={"roles": {"base": 1.5}}, statistics=b"\x00facts")
    message = history.message(writer.id)
    answer = message.answer
    assert answer is not None
    assert (message.role, message.parent, message.text) == ("assistant", question.id, " In Peru")
    assert (answer.written_by, answer.system_prompt, answer.finish_reason) == ("base", "Be brief.", "length")
    assert (answer.tokens, answer.prefix_tokens, answer.seed) == ((5, 2**31 - 1), 0, 2**63 - 1)
    assert answer.recipes == ((0, Snapshot.of(RECIPE)), (1, Snapshot.of(steered)))
    assert answer.recipe.recipe() == steered
    assert history.chat(chat).recipe.recipe() == steered
    assert (answer.tokens_per_second, answer.figures) == (12.5, {"roles": {"base": 1.5}})
    assert answer.has_statistics
    assert history.statistics(writer.id) == b"\x00facts"


def test_a_knob_turned_before_the_first_token_holds_for_all(history: History) -> None:
    chat = history.create(RECIPE).id
    with history.answer(history.ask(chat, "one").id, RECIPE) as writer:
        writer.steer(RECIPE.replace(alpha=0.9))
        writer.add("x", 1)
        writer.finish("stop")
    answer = history.message(writer.id).answer
    assert answer is not None
    assert [(position, recipe.recipe().alphas["assistant"]) for position, recipe in answer.recipes] == [(0, 0.9)]


def test_statistics_may_come_before_or_after_the_end(history: History) -> None:
    chat = ask(history, "one")
    question, answered = history.shown(chat)
    assert history.statistics(answered.id) is None
    writer = history.answer(question.id, RECIPE, text="x")
    history.set_statistics(writer.id, b"early")
    writer.finish("stop")
    assert history.statistics(writer.id) == b"early"
    history.set_statistics(writer.id, b"late")
    assert history.statistics(writer.id) == b"late"
    with pytest.raises(UsageError, match="is a question"):
        history.set_statistics(question.id, b"")


def test_another_answer_is_a_branch_that_is_shown(history: History) -> None:
    chat = ask(history, "one", "two")
    question = history.shown(chat)[0]
    new = reply(history, question.id, "other")
    assert texts(history.shown(chat)) == ["one", "other"]
    message = history.message(new)
    assert (message.position, len(message.siblings)) == (2, 2)
    assert message.siblings[1] == new
    assert texts(history.show(message.siblings[0])) == ["one", "re one", "two", "re two"]
    assert texts(history.branch(new)) == ["one", "other"]
    assert len(history.messages(chat)) == 5


def test_an_edited_question_is_a_branch_also_the_first(history: History) -> None:
    chat = ask(history, "one", "two")
    first, _, second, _ = history.shown(chat)
    edited = history.edit(second.id, "two!")
    assert texts(history.shown(chat)) == ["one", "re one", "two!"]
    assert edited.siblings == (second.id, edited.id)
    root = history.edit(first.id, "one!")
    assert root.parent is None
    assert root.siblings == (first.id, root.id)
    assert texts(history.shown(chat)) == ["one!"]
    assert texts(history.show(first.id)) == ["one", "re one", "two!"]
    assert history.chat(chat).title == "one"


def test_a_branch_is_found_again_as_it_was_left(history: History) -> None:
    chat = ask(history, "one", "two")
    first, _, second, _ = history.shown(chat)
    inner = reply(history, second.id, "inner")
    outer = history.edit(first.id, "one!")
    reply(history, second.id, "newest")
    history.show(inner)
    assert texts(history.show(outer.id)) == ["one!"]
    assert texts(history.show(first.id)) == ["one", "re one", "two", "inner"]


def test_a_question_without_an_answer_is_replaced_by_the_next(history: History) -> None:
    chat = ask(history, "one")
    answer = history.shown(chat)[-1]
    unanswered = history.ask(chat, "two")
    again = history.ask(chat, "three")
    assert again.parent == unanswered.parent == answer.id
    assert again.siblings == (unanswered.id, again.id)
    assert history.ask(chat, "four", parent=answer.id).siblings == (unanswered.id, again.id, again.id + 1)


def test_a_branch_is_asked_and_answered_where_it_can_be(history: History) -> None:
    chat, other = ask(history, "one"), ask(history, "two")
    question, answer = history.shown(chat)
    with pytest.raises(UsageError, match="no answer of chat"):
        history.ask(chat, "x", parent=question.id)
    with pytest.raises(UsageError, match="no answer of chat"):
        history.ask(other, "x", parent=answer.id)
    with pytest.raises(UsageError, match="only questions are edited"):
        history.edit(answer.id, "x")
    with pytest.raises(UsageError, match="only questions are answered"):
        history.answer(answer.id, RECIPE)
    for unknown in (history.message, history.branch, history.show, history.statistics):
        with pytest.raises(UsageError, match="there is no message 99"):
            unknown(99)
    assert len(history.messages(chat)) == len(history.messages(other)) == 2


def test_a_text_that_cannot_be_stored_is_refused(history: History) -> None:
    chat = history.create(RECIPE).id
    for attempt in (
        lambda: history.ask(chat, "caf\udce9"),
        lambda: history.rename(chat, "caf\udce9"),
        lambda: history.search("caf\udce9"),
        lambda: history.chat("caf\udce9"),
    ):
        with pytest.raises(UsageError, match=r"is not valid Unicode at character \d"):
            attempt()
    assert history.shown(chat) == []


def test_an_answer_continues_from_a_stopped_one(history: History) -> None:
    chat = history.create(RECIPE).id
    question = history.ask(chat, "Count.").id
    stopped = history.answer(question, RECIPE)
    for number in range(3):
        stopped.add(f" {number}", number)
    stopped.finish("cancelled")
    before = history.message(stopped.id)
    assert before.answer is not None
    with history.answer(question, RECIPE, text=before.text, tokens=before.answer.tokens) as writer:
        writer.add(" 3", 3)
        writer.finish("stop")
    after = history.message(writer.id)
    assert after.answer is not None
    assert (after.text, after.answer.tokens, after.answer.prefix_tokens) == (" 0 1 2 3", (0, 1, 2, 3), 3)
    assert after.answer.recipes[0][0] == 3
    assert after.siblings == (before.id, after.id)


# An answer that is being written


def test_text_is_saved_while_it_is_written(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "SAVE_SECONDS", 0.01)
    chat = history.create(RECIPE).id
    writer = history.answer(history.ask(chat, "one").id, RECIPE)
    writer.add("half", 1)
    with History(history.path) as other:
        wait_for(lambda: other.message(writer.id).text == "half")
        message, same = other.message(writer.id), history.message(writer.id)
    assert message.answer is not None
    assert same.answer is not None
    assert message.answer.finish_reason == "interrupted"  # so it would read if this process died now
    assert same.answer.finish_reason is None
    writer.add(" way", 2)
    wait_for(lambda: history.message(writer.id).text == "half way")
    writer.finish("stop")


def test_a_save_takes_all_that_came_since_the_last(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "SAVE_SECONDS", 3600)
    saves = []
    writer = AnswerWriter(7, lambda *given: saves.append(given), "So", [1])
    writer.add(" far", 2)
    writer.steer(RECIPE)
    assert saves == []
    assert writer.text == "So far"
    writer.save()
    writer.save()
    writer.finish("stop", figures={"a": 1})
    writer.finish("cancelled")
    writer.save()
    writer.add("late")
    writer.close()
    assert [(draft.text, draft.tokens, len(draft.recipes), draft.is_empty) for _, draft, _ in saves] == [
        ("So far", (1, 2), 1, False),
        ("So far", (1, 2), 0, False),
        ("So far", (1, 2), 0, False),
    ]
    assert [ending and ending.reason for _, _, ending in saves] == [None, None, "stop"]


def test_what_a_failed_save_had_is_saved_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "SAVE_SECONDS", 0.001)
    saves: list[Any] = []
    failing = True

    def save(message: int, draft: Any, ending: Any) -> None:
        if failing:
            raise HistoryError("the disk is full")
        saves.append(draft)

    writer = AnswerWriter(1, save, "", [])
    writer.steer(RECIPE)
    writer.add("x", 4)
    wait_for(lambda: writer.error is not None)
    assert str(writer.error) == "the disk is full"
    failing = False
    wait_for(lambda: writer.error is None)  # it tries again by itself
    failing = True
    with pytest.raises(HistoryError, match="full"):
        writer.finish("stop")
    failing = False
    writer.finish("stop")
    assert writer.error is None
    assert [each.text for each in saves] == ["x", "x"]
    assert [position for each in saves for position, _ in each.recipes] == [0]


@pytest.mark.parametrize("reason", ["cancelled", "failed"])
def test_an_answer_without_a_character_leaves_no_message(history: History, reason: Any) -> None:
    chat = ask(history, "one", "two")
    before, everything = history.shown(chat), history.messages(chat)
    for text, tokens in (("", ()), (before[1].text, (5,))):
        history.answer(before[0].id, RECIPE, text=text, tokens=tokens).finish(reason)
        assert history.shown(chat) == before
        assert history.messages(chat) == everything
    history.answer(before[0].id, RECIPE).finish("stop")  # nothing was said, but said to its end
    assert texts(history.shown(chat)) == ["one", ""]


def test_what_was_shown_before_is_shown_again(history: History) -> None:
    chat = ask(history, "one")
    question = history.shown(chat)[0].id
    second, _ = reply(history, question, "second"), reply(history, question, "third")
    history.show(second)
    history.answer(question, RECIPE).finish("cancelled")
    assert texts(history.shown(chat)) == ["one", "second"]


def test_two_answers_in_vain_show_what_is_left(history: History) -> None:
    chat = history.create(RECIPE).id
    question = history.ask(chat, "one").id
    first, second = history.answer(question, RECIPE), history.answer(question, RECIPE)
    first.finish("cancelled")
    assert history.shown(chat)[-1].id == second.id
    second.finish("cancelled")
    assert texts(history.shown(chat)) == ["one"]


def test_an_answer_in_vain_stays_if_something_follows_it(history: History) -> None:
    chat = history.create(RECIPE).id
    writer = history.answer(history.ask(chat, "one").id, RECIPE)
    history.ask(chat, "two")
    writer.finish("cancelled")
    assert texts(history.shown(chat)) == ["one", "", "two"]


@pytest.mark.parametrize(
    ("error", "reason"), [(None, "cancelled"), (ValueError, "failed"), (KeyboardInterrupt, "cancelled")]
)
def test_leaving_an_answer_ends_it(history: History, error: type[BaseException] | None, reason: str) -> None:
    chat = history.create(RECIPE).id

    def write() -> None:
        with history.answer(history.ask(chat, "one").id, RECIPE) as writer:
            writer.add("partial")
            if error:
                raise error

    if error:
        with pytest.raises(error):
            write()
    else:
        write()
    answer = history.shown(chat)[-1]
    assert answer.text == "partial"
    assert answer.answer is not None
    assert answer.answer.finish_reason == reason


def test_closing_saves_and_interrupts(history: History) -> None:
    chat = history.create(RECIPE).id
    writer = history.answer(history.ask(chat, "one").id, RECIPE)
    writer.add("partial", 3)
    history.close()
    history.close()
    with pytest.raises(UsageError, match="closed"):
        history.chats()
    with History(history.path) as again:
        message = again.shown(chat)[-1]
    assert message.text == "partial"
    assert message.answer is not None
    assert message.answer.finish_reason == "interrupted"


def test_a_purged_chat_does_not_come_back_with_its_answer(history: History) -> None:
    chat = history.create(RECIPE).id
    writer = history.answer(history.ask(chat, "one").id, RECIPE)
    writer.add("text")
    history.purge(chat)
    writer.steer(RECIPE.replace(alpha=0.3))
    writer.finish("stop")
    assert history.chats() == []
    assert history.search("text") == []


def test_many_threads_share_a_history(history: History) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            chat = ask(history, *(f"{threading.get_ident()} {number}" for number in range(10)))
            assert len(history.shown(chat)) == 20
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(history.chats()) == 8


# Search


@pytest.mark.parametrize(
    ("sought", "found"),
    [
        ("capital", ["Lima"]),
        ("CAPIT peru", ["Lima"]),  # beginnings, any case, in two messages
        ("pérù", ["Lima"]),
        ("sao", ["São Paulo"]),
        ("paulo lima", []),
        ("apital", []),
        ("首都", ["北京"]),
        ("的首都 北", ["北京"]),
        ("100%", ["100%"]),
        ("%", ["100%"]),
        ("_", ["np_empty"]),
        ("np_em", ["np_empty"]),
        ("++", ["C++"]),
        ('"quoted" AND (', ["C++"]),
        ("NEAR", []),
        ("re", ["np_empty", "C++", "100%", "北京", "São Paulo", "Lima"]),
    ],
)
def test_search_finds_words(history: History, sought: str, found: list[str]) -> None:
    questions = {
        "Lima": "What is the capital?",
        "São Paulo": "Where?",
        "北京": "中国的首都?",
        "100%": "How sure? 100%",
        "C++": 'Which "quoted" AND (bracketed) language? C++',
        "np_empty": "np_empty\\",
    }
    for title, question in questions.items():
        chat = ask(history, question, "In Peru.") if title == "Lima" else ask(history, question)
        history.rename(chat, title)
    assert [hit.chat.title for hit in history.search(sought)] == found


def test_a_hit_shows_where_the_words_are(history: History) -> None:
    chat = ask(history, "about the weather " * 20 + "and\nthe Capital, cápital of Peru " + "and so on " * 20, "Peru?")
    hit = history.search("peru capit")[0]
    assert hit.message == history.shown(chat)[1].id  # the newest of those that hold most
    assert [hit.snippet[start:end] for start, end in hit.marks] == ["Capital", "cápital", "Peru"]
    assert "\n" not in hit.snippet
    assert hit.snippet.startswith("…")
    assert hit.snippet.endswith("…")
    assert len(hit.snippet) <= 102


def test_a_title_alone_is_found_too(history: History) -> None:
    chat = ask(history, "hello")
    history.rename(chat, "Greetings, earth")
    hit = history.search("earth greet")[0]
    assert (hit.message, hit.snippet, hit.marks) == (None, "Greetings, earth", ((0, 9), (11, 16)))
    assert history.search("earth hello")[0].chat.id == chat  # one word here, one there


def test_search_follows_changes(history: History) -> None:
    chat = ask(history, "alpha")
    history.rename(chat, "beta")
    assert history.search("beta")
    history.rename(chat, "gamma")
    assert not history.search("beta")
    history.delete(chat)
    assert not history.search("alpha")
    history.restore(chat)
    assert history.search("alpha", limit=1)
    with pytest.raises(UsageError, match="nothing to search for"):
        history.search(" \0 ")


WORDS = st.text(st.characters(blacklist_categories=("Cs",)), max_size=30)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    with History(tmp_path_factory.mktemp("library") / "chats.db") as history:
        yield history


@given(text=WORDS, sought=WORDS)
@settings(max_examples=100, deadline=None)
def test_search_takes_any_text_and_finds_a_message_by_itself(text: str, sought: str, library: History) -> None:
    message = library.ask(library.create(RECIPE, title="-").id, text)
    assert library.message(message.id).text == text
    for query in (sought, text):
        if not query.replace("\0", " ").split():
            with pytest.raises(UsageError):
                library.search(query)
            continue
        hits = library.search(query, limit=10**6)
        assert all(0 <= start < end <= len(hit.snippet) for hit in hits for start, end in hit.marks)
        if query == text and "\0" not in text:  # SQLite's own functions stop there
            assert message.id in [hit.message for hit in hits]


# Export


def test_markdown_has_the_branch_that_is_shown(history: History) -> None:
    chat = history.create(RECIPE, system_prompt="Be brief.").id
    question = history.ask(chat, "Where is *Lima*?").id
    reply(history, question, " In Chile")
    reply(history, question, " In Peru", "cancelled")
    head, when, *rest = to_markdown(history, chat).split("\n\n")
    assert head == "# Where is *Lima*?"
    assert when.startswith(f"Chat {chat}, 2")
    assert when.endswith("UTC, recipe demo")
    assert rest == [
        "System prompt: Be brief.",
        "## Question",
        "Where is *Lima*?",
        "## Answer (stopped, 2/2)",
        "In Peru\n",
    ]


def test_json_has_everything(history: History) -> None:
    chat = ask(history, "one", "two")
    question = history.shown(chat)[0].id
    with history.answer(question, RECIPE.replace(alpha=0.5), seed=3, text="So", tokens=[9]) as writer:
        writer.add(" be it", 4)
        writer.steer(RECIPE)
        writer.finish("stop", tokens_per_second=2.5, figures={"ms": 1}, statistics=b"\xff")
    document = json.loads(json.dumps(to_json(history, chat[:4], statistics=True)))
    assert (document["format"], document["version"], document["id"]) == ("eft-local chat", 1, chat)
    assert document["shown"] == [question, writer.id]
    assert [(each["id"], each["parent"], each["role"], each["text"]) for each in document["messages"]] == [
        (each.id, each.parent, each.role, each.text) for each in history.messages(chat)
    ]
    answer = document["messages"][-1]["answer"]
    recipes = [document["recipes"][each["recipe"]] for each in answer["recipes"]]
    assert [RECIPE.from_text(recipe).alphas["assistant"] for recipe in recipes] == [0.5, 1.0]
    assert [each["from_token"] for each in answer["recipes"]] == [1, 2]
    assert answer["statistics"] == "/w=="
    assert (answer["tokens"], answer["prefix_tokens"], answer["seed"]) == ([9, 4], 1, 3)
    assert "statistics" not in to_json(history, chat)["messages"][-1]["answer"]
