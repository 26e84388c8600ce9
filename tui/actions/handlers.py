"""The handler of each action in the registry."""

from __future__ import annotations

from eft_local.tui.actions import chat, composer, messages, models, steering, view
from eft_local.tui.app import Handlers

HANDLERS: Handlers = {
    **composer.HANDLERS,
    **messages.HANDLERS,
    **chat.HANDLERS,
    **steering.HANDLERS,
    **models.HANDLERS,
    **view.HANDLERS,
}
