"""Traffic: what users saw in a window, of the time in which ranks take steps."""

from __future__ import annotations

import pytest

from moiety.serve.journal import Drawing, Entry
from moiety.serve.scheduler import Scheduler
from moiety.serve.traffic import Traffic, Users


def test_a_meeting_of_the_ranks_is_no_part_of_the_time_per_token() -> None:
    users = Users()
    traffic = Traffic(users)
    entry = Entry((1, 2), 100, Drawing(), frozenset(), None, lambda: None)

    def took(now_s: float) -> None:
        entry.accept(3, now_s)
        users.got(entry, now_s)

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


def test_what_is_computed_anew_is_served_once() -> None:
    users = Users()
    traffic = Traffic(users)
    entry = Entry(tuple(range(40)), 3, Drawing(), frozenset(), None, lambda: None)
    scheduler = Scheduler(num_slots=1, prefill_chunk=16, max_waiting=0)
    scheduler.begin([None])
    traffic.begin(0.0)
    scheduler.admit([entry])
    computed, has_met_anew = 0, False
    while not entry.is_over:
        step = scheduler.next_step()
        assert step is not None
        rows = step.order.groups[0]
        computed += sum(len(each.token_ids) for each in rows)
        for each in scheduler.accept(step, [[7 for row in rows if row.emits]], 1.0):
            users.got(each, 1.0)
        if len(entry.accepted) == 2 and not has_met_anew:
            scheduler.begin([None])
            has_met_anew = True
    assert computed == 40 + 1 + 42, "the prompt, a token, and all of it again for the last one"
    found = traffic.metrics(1.0, 2.0)
    assert found is not None
    assert found.served_tokens_per_s == 3 / 2
