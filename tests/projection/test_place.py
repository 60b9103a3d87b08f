"""Placing experts by what is known of the routing: shapes, effort, and what a plan's file still knows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moiety.plan import Options
from moiety.projection.place import place, placed_again, settled, stage_shape
from moiety.projection.provenance import routing_basis
from moiety.search.judge import Judged, judge
from moiety.strategy.strategy import Strategy
from tests.routed import EXPERTS, LAYERS, routed_plan, routed_scenario
from tests.scenarios import CALIBRATION, dense_model, moe, prefill_load, scenario, small_model, tiered

WIDE = Strategy(attn_dp=8, ep=8)
BALANCED = Options(placement="balance", redundant_experts=8)


def test_a_method_sees_the_innermost_domains_as_nodes() -> None:
    case = routed_scenario(2, 4, 8)
    part = moe(EXPERTS, 4)
    shape = stage_shape(case, WIDE, Options(), part)
    assert (shape.domain_gpus, shape.num_domains, shape.num_ranks, shape.num_nodes) == ((2, 4), 4, 8, 2)
    assert shape.layers == tuple(range(1, LAYERS + 1))
    # 50 GB/s to the other domain of a rack, 25 GB/s to the other rack
    assert shape.domain_distance == ((0, 1, 2, 2), (1, 0, 2, 2), (2, 2, 0, 1), (2, 2, 1, 0))
    assert stage_shape(routed_scenario(), WIDE, Options(), part).domain_distance is None


def test_an_expert_wider_than_a_domain_is_not_measured() -> None:
    shape = stage_shape(routed_scenario(2, 4, 8), Strategy(tp=4, attn_dp=2, ep=2, etp=4), Options(), moe(EXPERTS, 4))
    assert (shape.domain_gpus, shape.num_domains) == (None, 1)


def test_only_what_is_ranked_is_placed_without_the_trace() -> None:
    case = routed_scenario()
    joint = BALANCED.model_copy(update={"placement": "joint"})
    ranked, simulated, planned = (place(case, WIDE, joint, effort=each) for each in ("rank", "simulate", "plan"))
    assert ranked is not None
    assert simulated is not None
    assert planned is not None
    assert (ranked.method, ranked.traffic) == ("balance", None)
    assert simulated.method == planned.method == "joint"
    assert simulated.traffic is not None
    assert planned.traffic is not None
    assert planned.traffic.remote_domains <= simulated.traffic.remote_domains * 1.05  # that one is placed quickly


def test_linear_experts_are_measured_too_where_there_is_a_trace() -> None:
    traced, counted = (place(routed_scenario(traced=each), WIDE, Options()) for each in (True, False))
    assert traced is not None
    assert counted is not None
    assert traced.traffic is not None
    assert counted.traffic is None
    assert traced.physical_to_logical_map == counted.physical_to_logical_map


def test_without_experts_or_ranks_there_is_nothing_to_solve() -> None:
    assert place(scenario(dense_model(), "h100x8", prefill_load()), Strategy(tp=8, etp=8), BALANCED) is None
    alone = place(routed_scenario(), Strategy(tp=8, etp=8), BALANCED.model_copy(update={"redundant_experts": 0}))
    assert alone is not None
    assert alone.method == "linear"


def test_the_workload_s_law_is_placed_where_nothing_is_measured() -> None:
    work = prefill_load().model_copy(update={"routing_skew": 1.0})
    case = scenario(small_model(part=moe(EXPERTS, 4)), tiered(4, 8, per_node=4), work)
    placement = place(case, WIDE, BALANCED)
    assert placement is not None
    assert (placement.method, placement.traffic) == ("balance", None)


def test_a_plan_from_its_file_keeps_what_was_measured() -> None:
    plan = routed_plan()
    from_file = replace(routed_scenario(), routing=None)
    again = placed_again(from_file, plan.pools, WIDE, plan.options)
    assert again == plan.pools[0].placement
    linear = placed_again(from_file, plan.pools, WIDE, plan.options.model_copy(update={"placement": "linear"}))
    assert linear is not None
    assert linear == place(routed_scenario(), WIDE, plan.options.model_copy(update={"placement": "linear"}))


@pytest.mark.parametrize(
    ("strategy", "changes"),
    [
        (Strategy(attn_dp=4, ep=4, instances=2), {}),
        (WIDE, {"redundant_experts": 0}),
        (WIDE, {"placement": "eplb"}),
    ],
)
def test_what_the_file_does_not_know_is_said_to_be_assumed(strategy: Strategy, changes: dict[str, object]) -> None:
    plan = routed_plan()
    from_file = replace(routed_scenario(), routing=None)
    options = plan.options.model_copy(update=changes)
    placement = placed_again(from_file, plan.pools, strategy, options)
    assert placement is not None
    assert placement.traffic is None
    pool = plan.pools[0].model_copy(update={"strategy": strategy, "placement": placement})
    assert routing_basis(from_file, pool) == "assumed"
    assert routing_basis(from_file, plan.pools[0]) == "measured"
    assert routing_basis(replace(from_file, expert_shares=None), plan.pools[0]) == "computed"


def test_settled_pools_have_the_plan_s_method_and_others_beside_it() -> None:
    case = routed_scenario()
    judged = judge(case, WIDE, Options(placement="joint"), timing="estimated")
    assert isinstance(judged, Judged)
    assert judged.pools[0].placement is not None
    assert judged.pools[0].placement.method == "balance"
    (pool,) = settled(case, judged.pools, judged.options)
    assert pool.placement is not None
    assert pool.placement.method == "joint"
    assert [each.method for each in pool.measured] == ["linear", "eplb-global"]
    assert case.calibration is CALIBRATION
