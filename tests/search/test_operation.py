"""What-ifs of operating a plan."""

from __future__ import annotations

import pytest

from moiety.search.operation import INTERRUPTIONS_PER_GPU_HOUR, interruptions, priced, skewed
from tests.scenarios import CALIBRATION, served_plan


def test_skew_slows_the_busiest_rank_and_so_the_plan() -> None:
    plan = served_plan("ep16_tp1")
    assert plan.projection is not None
    rates = [skewed(plan, skew, CALIBRATION).throughput_tokens_per_s for skew in (0.0, 0.3, 1.0)]
    assert rates[0] == pytest.approx(plan.projection.throughput_tokens_per_s)
    assert rates == sorted(rates, reverse=True)
    assert rates[2] < rates[0]


def test_a_token_costs_what_its_gpus_cost() -> None:
    plan = served_plan("tp8_x2")
    assert plan.projection is not None
    price = priced(plan, 2.5)
    assert price.per_hour == 2.5 * 16
    tokens_per_hour = 3600 * plan.projection.throughput_tokens_per_s
    assert price.per_million_tokens * tokens_per_hour / 1e6 == pytest.approx(price.per_hour)


def test_interruptions_cost_the_lost_share_while_they_last() -> None:
    found = interruptions(served_plan("tp8_x2"), 24.0, CALIBRATION)
    rate = 16 * INTERRUPTIONS_PER_GPU_HOUR
    assert found.per_month == pytest.approx(730 * rate)
    assert found.lost_share == pytest.approx(0.5)
    assert found.throughput_share == pytest.approx(1 - rate * 24 * 0.5)
    assert interruptions(served_plan("tp8_x2"), 0.0, CALIBRATION).throughput_share == 1
    assert interruptions(served_plan("ep16_tp1"), 1e9, CALIBRATION).throughput_share >= 0
