"""The record of chats: questions and answers, in branches, in one SQLite file that survives `kill -9`."""

from eft_local.chats.export import summary, to_json, to_markdown, turn_title
from eft_local.chats.history import KEPT_AFTER_DELETION, History
from eft_local.chats.records import AnswerRecord, Chat, FinishReason, Hit, Message, Snapshot
from eft_local.chats.writer import AnswerWriter

__all__ = [
    "KEPT_AFTER_DELETION",
    "AnswerRecord",
    "AnswerWriter",
    "Chat",
    "FinishReason",
    "History",
    "Hit",
    "Message",
    "Snapshot",
    "summary",
    "to_json",
    "to_markdown",
    "turn_title",
]
