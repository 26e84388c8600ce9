"""Requests that are wrong: a part of what `bench.studies.malformed` sends by the thousand."""

from __future__ import annotations

import asyncio
import random
from itertools import islice

from eft_local.bench.studies.malformed import attack, made_by_hand
from tests.server.conftest import KEY, Served


def test_wrong_requests_end_nothing_and_harm_nobody(served: Served) -> None:
    requests = list(islice(made_by_hand(random.Random(1)), 300))
    found = asyncio.run(attack(served.url, requests, random.Random(1), key=KEY))
    assert found["faults"] == []
    assert found["of them harmed"] == 0
    assert served.process.poll() is None
    assert set(found["statuses"]) <= {"0", "200", "400", "404", "413", "429"}
