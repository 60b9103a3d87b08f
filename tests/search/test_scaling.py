"""Scaling tables."""

from __future__ import annotations

import pytest

from moiety.search.scaling import scale, scaled_load
from tests.scenarios import CALIBRATION, LOADS, evaluated, mixed_load, prefill_load, scenario, served_plan, small_model


def test_strong_and_weak_scaling_start_at_one_and_say_what_stops_them() -> None:
    points = scale(served_plan(), [8, 16, 64], CALIBRATION)
    assert [(each.scaling, each.num_gpus) for each in points] == [
        (kind, gpus) for kind in ("strong", "weak") for gpus in (8, 16, 64)
    ]
    for kind in ("strong", "weak"):
        first, *rest = [each for each in points if each.scaling == kind]
        assert first.efficiency == 1.0
        for each in rest:
            assert each.efficiency is not None
            assert bool(each.limited_by) is (each.efficiency < 0.9)
    strong, weak = points[2].efficiency, points[5].efficiency
    assert strong is not None
    assert weak is not None
    assert weak >= strong


def test_sizes_that_do_not_work_are_lines_too() -> None:
    case = scenario(small_model(num_layers=4), "h100x8", prefill_load(tokens=1024))
    plan = evaluated(case, "tp8")
    points = scale(plan, [8, 4096], CALIBRATION)
    failed = next(each for each in points if each.scaling == "strong" and each.num_gpus == 4096)
    assert failed.throughput_tokens_per_s is None
    assert failed.limited_by


@pytest.mark.parametrize("factor", [0.25, 1.0, 4.0])
def test_load_scales_with_the_gpus(factor: float) -> None:
    assert scaled_load(LOADS["prefill"], factor).tokens_in_flight == 131_072 * factor
    assert scaled_load(LOADS["decode"], factor).concurrency == 512 * factor
    rate = mixed_load().model_copy(update={"concurrency": None, "request_rate_per_s": 3.0})
    assert scaled_load(rate, factor).request_rate_per_s == 3.0 * factor
