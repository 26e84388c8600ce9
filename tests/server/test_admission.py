"""Who is answered now, and who waits."""

from __future__ import annotations

import pytest

from eft_local.server.admission import Admission, Ticket
from eft_local.server.errors import ApiError


def granted(tickets: list[Ticket]) -> list[bool]:
    return [ticket.granted.is_set() for ticket in tickets]


def test_places_are_granted_as_they_become_free() -> None:
    admission = Admission(2, 2)
    tickets = admission.take("a", 4)
    assert granted(tickets) == [True, True, False, False]
    tickets[0].give_back()
    tickets[0].give_back()
    assert granted(tickets) == [True, True, True, False]
    tickets[3].give_back()  # that one no longer waits
    assert (admission.running, admission.waiting) == (2, 0)


def test_the_queue_is_bounded() -> None:
    admission = Admission(1, 1)
    admission.take("a", 2)
    with pytest.raises(ApiError) as refused:
        admission.take("b")
    assert refused.value.status == 429
    assert refused.value.response().headers["retry-after"]
    with pytest.raises(ApiError) as never:
        admission.take("b", 3)
    assert never.value.status == 400


def test_who_has_the_fewest_answers_is_next() -> None:
    admission = Admission(2, 10)
    greedy = admission.take("greedy", 6)
    modest = admission.take("modest")
    other = admission.take("other")
    greedy[0].give_back()
    assert granted(modest) == [True]
    greedy[1].give_back()
    assert granted(other) == [True]
    modest[0].give_back()
    assert granted(greedy)[2]
