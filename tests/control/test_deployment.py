"""A plan as a deployment: figures of the planner's own, and clocks whose steps and watts follow its laws."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from moiety.control.deployment import clock_points, deployment_of, pool_of, slot_map_of
from moiety.control.energy import best_point
from moiety.control.policy import Policy
from moiety.control.state import initial_state
from moiety.errors import InputError
from moiety.projection.project import evaluate
from tests.scenarios import CALIBRATION, decode_load, evaluated, scenario, small_model

if TYPE_CHECKING:
    from moiety.plan import Plan


def decode_plan(strategy: str) -> Plan:
    return evaluated(scenario(small_model(), "h100x16", decode_load()), strategy)


@pytest.fixture(scope="module", params=["ep16_tp1", "tp4_dp4_ep8", "tp2_dp8_ep4"])
def plan(request: pytest.FixtureRequest) -> Plan:
    return decode_plan(request.param)


def test_the_figures_are_those_of_the_plan(plan: Plan) -> None:
    of, pool = deployment_of(plan, CALIBRATION), pool_of(plan)
    evaluated = evaluate(plan, CALIBRATION).plan.pools[0]
    assert evaluated.projection is not None
    assert of.step_s == evaluated.projection.step_s
    assert of.num_ranks * of.gpus_per_rank == pool.strategy.gpus_per_instance
    assert of.tokens_per_s_per_node is not None
    rate = of.tokens_per_s_per_node * of.num_nodes * pool.strategy.instances
    assert rate == pytest.approx(evaluated.projection.throughput_tokens_per_s)
    assert of.tpot_s == evaluated.projection.tpot_s
    memory, width = evaluated.memory, slot_map_of(pool).shape[1] // of.num_ranks
    assert memory is not None
    grown = memory.bytes_by_kind["expert_weights"] / width
    assert memory.total_bytes + (of.most_slots - width) * grown <= memory.capacity_bytes
    assert memory.total_bytes + (of.most_slots - width + 1) * grown > memory.capacity_bytes
    assert initial_state(of, Policy(), slot_map_of(pool)).slot_map.shape == (of.num_layers, of.num_ranks, width)


def test_a_lower_clock_takes_no_less_time_and_no_more_power(plan: Plan) -> None:
    points = clock_points(plan, pool_of(plan), CALIBRATION)
    projection = evaluate(plan, CALIBRATION).plan.pools[0].projection
    assert projection is not None
    assert (points[0].clock_hz, points[0].step_s, points[0].power_w) == (
        plan.cluster.device.max_clock_hz,
        projection.step_s,
        projection.power_w_per_gpu,
    )
    for high, low in pairwise(points):
        assert low.clock_hz < high.clock_hz
        assert low.step_s >= high.step_s
        assert low.power_w <= high.power_w
        assert low.step_s <= high.step_s * high.clock_hz / low.clock_hz * (1 + 1e-9)
    best = best_point(points, Policy().most_slowdown, current=points[0])
    assert best.step_s <= (1 + Policy().most_slowdown) * points[0].step_s
    assert best.power_w < points[0].power_w


def test_stages_are_not_looked_after() -> None:
    with pytest.raises(InputError, match="pipeline"):
        deployment_of(decode_plan("ep8_tp1_pp2"), CALIBRATION)
