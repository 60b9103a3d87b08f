"""Measurements of the machine, for real."""

from __future__ import annotations

import numpy as np
import pytest

from moiety.machine.speed import measured_speed


@pytest.mark.parametrize("workers", [1, 3])
def test_rates_are_what_this_machine_can_be_seen_to_do(workers: int) -> None:
    speed = measured_speed(workers)
    assert all(np.isfinite(each) and each > 0 for each in (speed.fp32_flops_per_s, speed.loopback_latency_s))
    # No copy over sockets is faster than a copy in memory; a message takes longer than a function call.
    assert speed.loopback_bytes_per_s < speed.copied_bytes_per_s * 2
    assert 1e-7 < speed.loopback_latency_s < 0.01
