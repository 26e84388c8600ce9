"""Steps of an answer, each made on request: what is measured runs in turns with something else."""

from __future__ import annotations

from collections.abc import Generator
from typing import Unpack

from eft_local.emulator import Emulator
from eft_local.engine.models import Messages
from eft_local.engine.request import Options
from eft_local.engine.step import Step


def lockstep(emulator: Emulator, messages: Messages, **options: Unpack[Options]) -> Generator[Step, None, None]:
    """Yield the steps of an answer; the engine runs in this thread, so nobody else may use the emulator meanwhile.

    Raises: as `Emulator.stream_chat`.
    """
    engine = emulator.engine
    sequence = engine.add(emulator.models.request(messages, options))
    try:
        while not engine.idle:
            for output in engine.step():
                if output.error is not None:
                    raise output.error
                if output.step is not None:
                    yield output.step
    finally:
        engine.abort([sequence])
        while not engine.idle:
            engine.step()
