"""The queue of prompts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.projection.queue import closed_loop_load, queue_wait_s

seconds = st.floats(1e-4, 1e3)


@given(seconds, seconds, seconds)
def test_requests_in_flight_obey_little_s_law(demand: float, other: float, service: float) -> None:
    load = closed_loop_load(demand, other, service)
    assert 0 < load <= 1
    if load < 1 - 1e-6:
        assert load * (other + queue_wait_s(load, service)) == pytest.approx(demand, rel=1e-6)


@given(seconds, seconds, seconds, st.floats(1, 10))
def test_more_demand_is_more_load_and_more_time_elsewhere_less(
    demand: float, other: float, service: float, factor: float
) -> None:
    load = closed_loop_load(demand, other, service)
    assert closed_loop_load(demand * factor, other, service) >= load * (1 - 1e-12)
    assert closed_loop_load(demand, other * factor, service) <= load * (1 + 1e-12)


def test_an_idle_server_keeps_nobody_waiting() -> None:
    assert queue_wait_s(0, 1) == 0
    assert queue_wait_s(0.5, 1) == 0.5
    assert queue_wait_s(1, 1) > 1e8
