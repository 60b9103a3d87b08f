"""Traffic: what users saw in a window, of the time in which ranks take steps."""

from __future__ import annotations

import pytest

from moiety.serve.journal import Drawing, Entry
from moiety.serve.traffic import Traffic, Users


def test_a_meeting_of_the_ranks_is_no_part_of_the_time_per_token() -> None:
    users = Users()
    traffic = Traffic(users)
    entry = Entry((1, 2), 100, Drawing(), frozenset(), None, lambda: None)

    def took(now_s: float) -> None:
        entry.accept(3, now_s)
        users.got(entry, now_s)
        traffic.served(1)

    users.ready(0.0)
    for each in (1.0, 1.5, 2.0):
        took(each)
    traffic.pause()
    users.ready(10.0)
    traffic.begin(10.0)
    for each in (10.25, 10.5, 10.75, 11.0):
        took(each)
    found = traffic.metrics(1.0, 11.0)
    assert found is not None
    assert found.tpot_s == pytest.approx(0.25)
    assert found.served_tokens_per_s * found.tpot_s == pytest.approx(1.0), "one sequence is in flight"
