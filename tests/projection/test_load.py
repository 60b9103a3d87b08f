"""Classes of ranks by their load."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moiety.placement.serving.routed_traffic import RoutedTraffic
from moiety.plan import Options
from moiety.projection.load import classes_of, load_classes
from moiety.search.judge import place
from moiety.strategy.strategy import Strategy
from tests.scenarios import decode_load, moe, prefill_load, scenario, schedule_of, small_model

STRATEGY = Strategy(attn_dp=16, ep=16)


@settings(max_examples=50)
@given(st.lists(st.floats(0.1, 8), min_size=1, max_size=20), st.floats(1, 1e6))
def test_every_rank_is_in_one_class_and_the_busiest_comes_first(loads: list[float], rows: float) -> None:
    per_rank = [(load, 1.0) for load in loads]
    classes = classes_of(per_rank, [True, False], rows)
    assert sum(each.num_expert_ranks for each in classes) == len(loads)
    assert len(classes) <= 7
    assert classes[0].loads[0] >= max(loads) * (1 - 1e-9) or len(classes) == 1
    assert all(each.loads[1] == 1.0 for each in classes)


def test_many_tokens_spread_evenly_and_few_do_not() -> None:
    case = scenario(small_model(part=moe(64, 4)), "h100x16", prefill_load())
    placement = place(case, STRATEGY, Options())
    many, few = (load_classes(case, STRATEGY, schedule_of("prefill", n), placement) for n in (1_000_000, 16))
    assert len(many) == 1
    assert [each.num_expert_ranks for each in few] == [1, 15]
    assert 1 < few[0].loads[0] < 16


def test_measured_shares_decide_the_loads() -> None:
    case = scenario(small_model(part=moe(16, 2), num_layers=2), "h100x16", decode_load())
    hot = (0.5, *(0.5 / 15,) * 15)
    case = replace(case, expert_shares=(hot, hot))
    placement = place(case, STRATEGY, Options())
    classes = load_classes(case, STRATEGY, schedule_of("prefill", 100_000_000), placement)
    assert classes[0].loads == pytest.approx((8.0, 8.0), rel=1e-3)
    assert classes[-1].loads == pytest.approx((8 / 15, 8 / 15), rel=1e-3)


def test_served_loads_come_before_equal_shares() -> None:
    case = scenario(small_model(part=moe(16, 2), num_layers=2), "h100x16", decode_load())
    case = replace(case, expert_shares=((1 / 16,) * 16,) * 2)
    placement = place(case, STRATEGY, Options(redundant_experts=16))
    assert placement is not None
    served = (1.5, 0.5, *(1.0,) * 14)
    traffic = RoutedTraffic(top_k=2, reached_ranks=2, domains=(), num_tokens=1, rank_loads=(served, served))
    placement = placement.model_copy(update={"traffic": traffic})
    classes = load_classes(case, STRATEGY, schedule_of("prefill", 100_000_000), placement)
    assert classes[0].loads == pytest.approx((1.5, 1.5), rel=1e-3)
    assert classes[-1].loads == (0.5, 0.5)
