"""The queue of prompts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.projection.queue import queue_wait_s


@given(st.floats(0, 0.99), st.floats(1.001, 2), st.floats(1e-4, 1e3))
def test_a_busier_server_keeps_waiting_longer(load: float, factor: float, service: float) -> None:
    assert queue_wait_s(min(load * factor, 1), service) >= queue_wait_s(load, service)


@pytest.mark.parametrize("load", [0.3, 0.8])
def test_requests_that_come_at_random_wait_as_long(load: float) -> None:
    draws, free_s, now, waited_s, count = np.random.default_rng(1), 0.0, 0.0, 0.0, 200_000
    for _ in range(count):
        now += draws.exponential(1 / load)
        waited_s += max(free_s - now, 0.0)
        free_s = max(free_s, now) + 1.0
    assert queue_wait_s(load, 1.0) == pytest.approx(waited_s / count, rel=0.05)


def test_an_idle_server_keeps_nobody_waiting() -> None:
    assert queue_wait_s(0, 1) == 0
    assert queue_wait_s(0.5, 1) == 0.5
    assert queue_wait_s(1, 1) > 1e8
