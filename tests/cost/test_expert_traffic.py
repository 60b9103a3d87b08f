"""Traffic of dispatch: exact for uniform routing, against brute force."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moiety.cost.expert_traffic import expected_domains, is_measured, missed_probability, rows_per_token, stage_widths
from moiety.placement.serving.routed_traffic import DomainReach, RoutedTraffic
from moiety.strategy.strategy import Strategy
from tests.scenarios import moe, tiered

if TYPE_CHECKING:
    from moiety.cluster.cluster import Cluster
    from moiety.model.feed_forward import MoeFeedForward
    from moiety.plan import AllToAll

METHODS = ("flat", "dedup", "hierarchical")


def brute_force(part: MoeFeedForward, domains: int) -> float:
    """Return the domains that a token reaches, averaged over every choice of groups and of experts in them."""
    per_group = part.num_experts // part.num_groups
    bounds = [index * part.num_experts // domains for index in range(domains + 1)]
    domain_of = [d for d in range(domains) for _ in range(bounds[d], bounds[d + 1])]
    total = count = 0
    for groups in itertools.combinations(range(part.num_groups), part.top_k_groups):
        pool = [g * per_group + e for g in groups for e in range(per_group)]
        for chosen in itertools.combinations(pool, part.top_k):
            total += len({domain_of[expert] for expert in chosen})
            count += 1
    return total / count


@pytest.mark.parametrize("domains", [1, 2, 3, 4, 5, 6, 8, 12, 16])
@pytest.mark.parametrize(
    ("experts", "k", "groups", "top_groups"),
    [
        (12, 1, 1, 1),
        (12, 4, 1, 1),
        (8, 8, 1, 1),
        (12, 3, 4, 2),
        (12, 2, 3, 1),
        (10, 3, 1, 1),
        (8, 2, 4, 3),
        (12, 4, 2, 2),
    ],
)
def test_expected_domains_equal_the_average_over_all_choices(
    experts: int, k: int, groups: int, top_groups: int, domains: int
) -> None:
    part = moe(experts, k, groups, top_groups)
    assert math.isclose(expected_domains(part, domains), brute_force(part, domains), rel_tol=1e-9)


@given(st.integers(1, 300), st.data())
def test_missing_is_a_ratio_of_binomials(pool: int, data: st.DataObject) -> None:
    part, draws = data.draw(st.integers(0, pool)), data.draw(st.integers(0, min(pool, 12)))
    expected = math.comb(pool - part, draws) / math.comb(pool, draws)
    assert math.isclose(missed_probability(pool, part, draws), expected, rel_tol=1e-9, abs_tol=1e-15)


@given(st.integers(1, 64), st.data())
def test_a_token_reaches_no_more_domains_than_experts_or_domains(per: int, data: st.DataObject) -> None:
    domains = data.draw(st.integers(1, 64))
    part = moe(per * 4, data.draw(st.integers(1, min(per * 4, 8))))
    reached = expected_domains(part, domains)
    assert 1 - 1e-9 <= reached <= min(part.top_k, domains) + 1e-9


@pytest.mark.parametrize(("k", "saved"), [(2, 0.024), (4, 0.070), (8, 0.156)])
def test_one_copy_per_node_saves_what_the_reference_page_says(k: int, saved: float) -> None:
    assert 1 - expected_domains(moe(64, k), 16) / k == pytest.approx(saved, abs=5e-4)


def test_deepseek_tokens_go_to_four_nodes_at_most() -> None:
    limited = moe(256, 8, 8, 4)
    assert 3.5 < expected_domains(limited, 8) <= 4
    assert expected_domains(moe(256, 8), 8) > 5


@settings(max_examples=50)
@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4]), st.integers(1, 8), st.sampled_from([2, 4]))
def test_flat_dispatch_sends_the_same_across_nodes_for_any_mesh(nodes: int, tp: int, k: int, per_node: int) -> None:
    cluster = tiered(per_node * tp, nodes * per_node * tp, per_node=per_node * tp) if nodes > 1 else None
    if cluster is None:
        return
    ranks = nodes * per_node
    strategy = Strategy(tp=tp, attn_dp=ranks, ep=ranks, etp=tp)
    rows = rows_per_token(moe(ranks * 2, min(k, ranks)), strategy, cluster, "flat")
    assert abs(rows[1] - min(k, ranks) * (1 - 1 / nodes)) < 1e-9


MESHES = [
    Strategy(attn_dp=32, ep=32),
    Strategy(tp=2, attn_dp=16, ep=16, etp=2),
    Strategy(tp=2, attn_dp=16, ep=32),
    Strategy(attn_dp=32, ep=16, etp=2),
    Strategy(attn_dp=32, ep=2, etp=16),
    Strategy(tp=8, attn_dp=4, ep=8, etp=4),
    Strategy(attn_dp=16, ep=16, instances=2),
    Strategy(tp=2, attn_dp=4, ep=8, pp=4),
]


@pytest.mark.parametrize("spans", [(8, 32), (4, 8, 32), (2, 16, 32)])
@pytest.mark.parametrize("strategy", MESHES, ids=lambda each: each.name)
def test_deduplication_never_adds_slow_traffic(spans: tuple[int, ...], strategy: Strategy) -> None:
    cluster = tiered(*spans, per_node=spans[0])
    part = moe(64, 6)
    flat, dedup, hierarchical = (rows_per_token(part, strategy, cluster, method) for method in METHODS)
    assert hierarchical[-1] <= dedup[-1] + 1e-9
    assert dedup[-1] <= flat[-1] + 1e-9
    assert all(each >= 0 for each in (*flat, *dedup, *hierarchical))
    copies = part.top_k * strategy.etp / strategy.tp
    assert sum(flat) == pytest.approx(copies * (1 - 1 / strategy.gpus_per_stage))


@pytest.mark.parametrize("strategy", [each for each in MESHES if each.etp <= 8], ids=lambda each: each.name)
def test_ranks_that_share_experts_gather_from_each_other_what_flat_rows_bring_over_the_network(
    strategy: Strategy,
) -> None:
    part = moe(64, 6)
    alone, network = tiered(32, per_node=32), tiered(8, 32, per_node=8)
    assert rows_per_token(part, strategy, alone, "gathered") == pytest.approx(
        rows_per_token(part, strategy, alone, "flat")
    )
    gathered, flat = (rows_per_token(part, strategy, network, method) for method in ("gathered", "flat"))
    assert gathered[1] == pytest.approx(flat[1] / strategy.etp)
    assert sum(gathered) == pytest.approx(sum(flat))


def test_each_tier_passes_on_what_the_next_one_brought() -> None:
    # 2 racks of 2 nodes of 2 GPUs, an expert a GPU, top-1: by hand
    rows = rows_per_token(moe(8, 1), Strategy(attn_dp=8, ep=8), tiered(2, 4, 8, per_node=2), "hierarchical")
    assert rows == pytest.approx((1 / 2, 1 / 2, 1 / 2))


@pytest.mark.parametrize(
    ("strategy", "first", "crossing"),
    [
        (Strategy(attn_dp=4, ep=4), 0, 0.0),  # inside a node
        (Strategy(attn_dp=4, ep=4), 2, 0.0),
        (Strategy(attn_dp=4, ep=4), 6, 0.5),  # two GPUs on each side
        (Strategy(attn_dp=6, ep=6), 2, 0.0),
        (Strategy(attn_dp=8, ep=8), 4, 0.5),
        (Strategy(attn_dp=16, ep=16), 0, 0.5),
    ],
)
def test_where_a_pool_starts_decides_what_crosses_nodes(strategy: Strategy, first: int, crossing: float) -> None:
    part = moe(48, 1)
    rows = rows_per_token(part, strategy, tiered(8, 24, per_node=8), "flat", first)
    assert rows[1] == pytest.approx(crossing)
    assert sum(rows) == pytest.approx(1 - 1 / strategy.gpus_per_stage)


def uniform_traffic(part: MoeFeedForward, strategy: Strategy, cluster: Cluster) -> RoutedTraffic:
    """Return what uniform routing would measure: everything reached leaves a domain with the same chance."""
    stage = strategy.gpus_per_stage
    widths = [width for width in stage_widths(strategy, cluster) if width < stage]
    reached = {width: expected_domains(part, stage // width) for width in widths}
    ranks = expected_domains(part, strategy.ep)
    domains = [
        DomainReach(
            num_gpus=width,
            messages=part.top_k * (1 - width / stage),
            ranks=ranks * (1 - width / stage),
            narrower=(reached[inner] if inner else ranks) * (1 - width / stage),
            domains=reached[width] * (1 - width / stage),
        )
        for inner, width in itertools.pairwise([0, *widths])
    ]
    return RoutedTraffic(top_k=part.top_k, reached_ranks=ranks, domains=tuple(domains), num_tokens=1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spans", [(8, 32), (4, 8, 32), (2, 16, 32), (32,)])
@pytest.mark.parametrize("strategy", [each for each in MESHES if each.etp <= 2], ids=lambda each: each.name)
def test_measured_uniform_routing_sends_what_the_formula_says(
    strategy: Strategy, spans: tuple[int, ...], method: AllToAll
) -> None:
    cluster, part = tiered(*spans, per_node=spans[0]), moe(64, 6)
    traffic = uniform_traffic(part, strategy, cluster)
    assert is_measured(traffic, strategy, cluster)
    measured = rows_per_token(part, strategy, cluster, method, traffic=traffic)
    assert measured == pytest.approx(rows_per_token(part, strategy, cluster, method))


def test_tokens_that_reach_fewer_nodes_send_fewer_rows() -> None:
    cluster, part, strategy = tiered(8, 32, per_node=8), moe(64, 6), Strategy(attn_dp=32, ep=32)
    uniform = uniform_traffic(part, strategy, cluster)
    near = DomainReach(num_gpus=8, messages=2, ranks=1.5, narrower=1.5, domains=1)
    local = uniform.model_copy(update={"domains": (near,)})
    rows = {method: rows_per_token(part, strategy, cluster, method, traffic=local) for method in METHODS}
    assert [rows[method][1] for method in METHODS] == pytest.approx([2, 1.5, 1])
    assert rows["flat"][0] == pytest.approx(4 * 7 / 8)  # the others stay inside, but for those of the token's own GPU


def test_traffic_of_other_domains_does_not_count() -> None:
    part, strategy = moe(64, 6), Strategy(attn_dp=32, ep=32)
    traffic = uniform_traffic(part, strategy, tiered(8, 32, per_node=8)).model_copy(update={"reached_ranks": 1.0})
    wide = tiered(16, 32, per_node=16)
    assert not is_measured(traffic, strategy, wide)
    assert rows_per_token(part, strategy, wide, "dedup", traffic=traffic) == rows_per_token(
        part, strategy, wide, "dedup"
    )
