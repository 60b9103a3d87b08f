"""Demand: never below what is served, just that where nobody waits, and the more the longer the queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.control.apply import apply
from moiety.control.commands import Command, ScaleUp
from moiety.control.demand import at_planned_pace, demand_tokens_per_s
from moiety.control.events import RequestMetrics
from moiety.control.policy import Policy
from tests.control.deployments import at_rest, deployment, started

if TYPE_CHECKING:
    from moiety.control.state import State

AMOUNT = st.floats(0, 1e9)
SECONDS = st.floats(0.1, 1e4)
RATE = 1000.0


@given(AMOUNT, AMOUNT, AMOUNT, st.just(0.0) | SECONDS, SECONDS)
def test_it_is_never_below_what_is_served(served: float, now: float, before: float, since: float, drain: float) -> None:
    assert demand_tokens_per_s(served, now, before=before, since_s=since, drain_s=drain) >= served


@given(AMOUNT, AMOUNT, SECONDS, SECONDS)
def test_without_a_backlog_it_is_what_is_served_to_the_bit(
    served: float, before: float, since: float, drain: float
) -> None:
    assert demand_tokens_per_s(served, 0.0, before=before, since_s=since, drain_s=drain) == served


@given(AMOUNT, AMOUNT, AMOUNT, AMOUNT, SECONDS, SECONDS)
def test_a_longer_queue_asks_for_no_less(
    served: float, one: float, other: float, before: float, since: float, drain: float
) -> None:
    shorter, longer = sorted((one, other))
    found = [
        demand_tokens_per_s(served, each, before=before, since_s=since, drain_s=drain) for each in (shorter, longer)
    ]
    assert found[0] <= found[1]


@given(st.floats(1, 1e6), st.floats(0, 1e6), SECONDS, SECONDS)
def test_nodes_that_do_it_have_done_what_waits_in_time(come: float, backlog: float, since: float, drain: float) -> None:
    served = come / 2  # so that the backlog has grown by the other half
    demand = demand_tokens_per_s(served, backlog + served * since, before=backlog, since_s=since, drain_s=drain)
    left = backlog + served * since + (come - demand) * drain
    assert left == pytest.approx(0.0, abs=1e-6 * (backlog + come * (since + drain)))


@given(st.floats(0.01, 1e4), SECONDS, SECONDS)
def test_as_many_sequences_ask_for_the_same_however_fast_their_tokens_come(
    in_flight: float, tpot_s: float, planned_s: float
) -> None:
    demand = at_planned_pace(in_flight / tpot_s, tpot_s, planned_s)
    assert demand == pytest.approx(in_flight / max(tpot_s, planned_s))


@given(AMOUNT, st.none() | SECONDS)
def test_what_is_served_is_the_demand_where_a_pace_is_not_known(served: float, tpot_s: float | None) -> None:
    assert at_planned_pace(served, tpot_s, None) == at_planned_pace(served, None, tpot_s) == served


def reported(state: State, now: float, served: float, backlog: float | None) -> tuple[State, list[Command]]:
    return at_rest(apply(RequestMetrics(now, served, backlog_tokens=backlog), state), now)


def test_a_queue_that_grows_calls_for_nodes_though_no_more_is_served() -> None:
    state, now = started(deployment(8, tokens_per_s_per_node=RATE), 16), 0.0
    for _ in range(2 * Policy().scale_patience):
        now += 60.0
        state, _ = reported(state, now, 600.0, 0.0)
    assert int(state.ranks.working.sum()) == 4, "one node of two"
    state, given_out = reported(state, now + 60.0, 600.0, 6000.0)
    assert not any(isinstance(each, ScaleUp) for each in given_out), "600 served, 100 come, 100 to work off"
    state, given_out = reported(state, now + 120.0, 600.0, 18000.0)
    assert state.demands[-1] == 600.0 + 200.0 + 300.0
    assert any(isinstance(each, ScaleUp) for each in given_out)


@pytest.mark.parametrize("backlog", [None, float("nan"), float("inf"), -1.0])
def test_a_backlog_that_is_not_known_counts_for_nothing_and_is_no_growth_later(backlog: float | None) -> None:
    state, _ = reported(started(deployment(8)), 60.0, 600.0, 3000.0)
    state, _ = reported(state, 120.0, 600.0, backlog)
    assert state.demands[-1] == 600.0
    state, _ = reported(state, 180.0, 600.0, 3000.0)
    assert state.demands[-1] == 600.0 + 3000.0 / Policy().drain_s
