"""Placement in a plan: what it gives in tokens per second and in bytes between nodes."""

from __future__ import annotations

import pytest

from moiety.placement.methods.table import METHODS
from moiety.plan import Options, Plan
from moiety.projection.project import evaluate
from moiety.search.ablation import ablate
from moiety.search.options import baseline_options, default_options, original_options
from moiety.search.planner import make_plan, replan, with_options
from tests.routed import routed_plan, routed_scenario
from tests.scenarios import CALIBRATION, prefill_load, scenario, small_model

CROSSING = "cross_node_bytes_per_token"


def test_the_methods_of_the_options_are_those_of_the_table() -> None:
    schema = Options.model_json_schema()["properties"]["placement"]
    assert set(schema["enum"]) == set(METHODS)


def test_measured_routing_turns_placement_on() -> None:
    assert default_options(routed_scenario()).placement == "joint"
    assert default_options(scenario(small_model(), "h100x16", prefill_load())).placement == "linear"
    options = default_options(routed_scenario())
    assert baseline_options(options).placement == original_options(options).placement == "linear"


def test_placement_is_worth_tokens_and_bytes() -> None:
    plan = routed_plan()
    variants = {each.name: each.projection for each in plan.comparison}
    assert list(variants) == ["baseline", "original", "linear-placement", "enhanced"]
    linear, ours = variants["linear-placement"], variants["enhanced"]
    assert ours == plan.projection
    assert ours.throughput_tokens_per_s > 1.05 * linear.throughput_tokens_per_s
    assert ours.cross_node_bytes_per_token < 0.7 * linear.cross_node_bytes_per_token
    assert ours.provenance[CROSSING] == "measured"
    (pool,) = plan.pools
    assert pool.placement is not None
    assert pool.placement.traffic is not None
    nodes = {each.method: each.traffic.remote_domains for each in pool.measured}
    assert pool.placement.traffic.remote_domains < 0.7 * min(nodes.values())
    ratio = ours.cross_node_bytes_per_token / linear.cross_node_bytes_per_token
    assert ratio == pytest.approx(pool.placement.traffic.remote_domains / nodes["linear"], rel=1e-3)


def test_a_plan_comes_back_from_its_file_with_the_same_figures() -> None:
    plan = routed_plan()
    text = plan.model_dump_json()
    again = Plan.model_validate_json(text)
    assert again == plan
    assert again.model_dump_json() == text
    assert evaluate(again, CALIBRATION).plan.projection == plan.projection
    # the comparison needs no trace either
    linear = with_options(again, again.options.model_copy(update={"placement": "linear"}), CALIBRATION).plan
    assert linear.projection == next(each.projection for each in plan.comparison if each.name == "linear-placement")


def test_ablation_knows_what_placement_is_worth_without_the_trace() -> None:
    plan = Plan.model_validate_json(routed_plan().model_dump_json())
    worth = {each.option: each for each in ablate(plan, CALIBRATION)}["placement"]
    assert worth.setting == "joint"
    assert worth.throughput_without < 0.95
    assert worth.throughput_alone is not None
    assert worth.throughput_alone > 1.05


def test_a_dump_of_counts_balances_and_takes_routing_for_uniform() -> None:
    plan = routed_plan(traced=False)
    (pool,) = plan.pools
    assert pool.placement is not None
    assert pool.placement.traffic is None
    assert pool.measured == ()
    assert plan.projection is not None
    assert plan.projection.provenance[CROSSING] == "assumed"
    variants = {each.name: each.projection for each in plan.comparison}
    ours, linear = variants["enhanced"], variants["linear-placement"]
    assert ours.throughput_tokens_per_s > linear.throughput_tokens_per_s
    assert ours.cross_node_bytes_per_token == linear.cross_node_bytes_per_token


def test_a_plan_made_anew_from_its_file_says_that_its_traffic_is_assumed() -> None:
    anew = replan(routed_plan(), CALIBRATION).plan
    assert anew.projection is not None
    spread = any(pool.strategy.ep > 1 for pool in anew.pools)
    assert anew.projection.provenance[CROSSING] == ("assumed" if spread else "computed")


def test_a_search_places_what_it_chooses() -> None:
    case = routed_scenario(2, 4, 8)
    plan = make_plan(case, default_options(case, 8), name="routed", version="test").plan
    for pool in plan.pools:
        assert pool.placement is not None
        if pool.strategy.ep > 1:
            assert pool.placement.method == "joint"
            assert pool.placement.traffic is not None
