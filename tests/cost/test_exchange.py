"""Dispatch and combine: the tier that is busiest sets the pace."""

from __future__ import annotations

import pytest

from moiety.cost.expert_exchange import exchange_transfer
from moiety.cost.price import Pricer, distinct_groups
from moiety.graph.op import Collective
from moiety.plan import Options
from moiety.strategy.strategy import Strategy
from tests.scenarios import CALIBRATION, graph_of, moe, small_model, tiered

CONSTANTS = CALIBRATION.expert_exchange
CLUSTER = tiered(8, 32, per_node=8)
WIDE = Strategy(attn_dp=32, ep=32)


@pytest.mark.parametrize("method", ["flat", "dedup", "hierarchical"])
def test_the_network_matters(method: str) -> None:
    work = Collective("dispatch", "stage", 2048.0, tokens=4096, method=method)
    fast = exchange_transfer(work, moe(64, 4), WIDE, CLUSTER, CALIBRATION, decode=False)
    outer = CLUSTER.tiers[1].model_copy(update={"bandwidth_bytes_per_s": CLUSTER.tiers[1].bandwidth_bytes_per_s / 2})
    halved = CLUSTER.model_copy(update={"tiers": (CLUSTER.tiers[0], outer)})
    slow = exchange_transfer(work, moe(64, 4), WIDE, halved, CALIBRATION, decode=False)
    assert slow.tier_seconds[1] == pytest.approx(2 * fast.tier_seconds[1])
    assert slow.seconds > fast.seconds
    assert fast.seconds == pytest.approx(CONSTANTS.dispatch_latency_s + max(fast.tier_seconds))


def test_inside_a_node_no_byte_crosses_the_network() -> None:
    work = Collective("combine", "stage", 2048.0, tokens=4096, method="hierarchical")
    inside = exchange_transfer(work, moe(64, 4), Strategy(attn_dp=8, ep=8), CLUSTER, CALIBRATION, decode=True)
    assert inside.tier_bytes[1] == 0
    assert inside.seconds == pytest.approx(CONSTANTS.domain_combine_latency_s + inside.tier_seconds[0])


def test_the_busiest_rank_sets_the_pace() -> None:
    work = Collective("dispatch", "stage", 2048.0, tokens=4096)
    even, uneven = (
        exchange_transfer(work, moe(64, 4), WIDE, CLUSTER, CALIBRATION, decode=False, load=load) for load in (1.0, 3.0)
    )
    assert uneven.tier_seconds == pytest.approx([3 * each for each in even.tier_seconds])
    assert uneven.tier_bytes == even.tier_bytes


def test_groups_that_lie_alike_are_priced_once() -> None:
    assert len(distinct_groups(Strategy(tp=8, attn_dp=4, ep=32), "tp", 0, (8, 32))) == 1
    # groups of 6 on nodes of 8: whole ones, and ones cut 2 | 4
    cut = distinct_groups(Strategy(tp=6, attn_dp=4, ep=24), "tp", 0, (8, 24))
    assert {tuple(rank // 8 for rank in group) for group in cut} >= {(0,) * 6, (0, 0, 1, 1, 1, 1)}


def test_computation_gives_sms_to_the_other_micro_batch_s_transfers() -> None:
    def seconds(options: Options) -> float:
        graph = graph_of(small_model(), WIDE, "prefill", options)
        prices = Pricer(graph, CLUSTER, CALIBRATION).priced_graph().layers[0]
        return sum(price.compute_s for price in prices)

    assert seconds(Options(two_batch_overlap=True)) > seconds(Options(two_batch_overlap=False))
