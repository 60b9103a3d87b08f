"""Dispatch and combine: the tier that is busiest sets the pace."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.cost.expert_exchange import exchange_transfer
from moiety.cost.op_times import OpTimes
from moiety.cost.price import Pricer, distinct_groups
from moiety.graph.op import Collective
from moiety.plan import Options
from moiety.strategy.strategy import Strategy
from tests.scenarios import CALIBRATION, graph_of, moe, small_model, tiered

if TYPE_CHECKING:
    from moiety.strategy.strategy import Axis

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


@given(
    sizes=st.tuples(*[st.integers(1, 6)] * 4),
    first=st.integers(0, 20),
    node=st.integers(1, 9),
    axis=st.sampled_from(["tp", "attn_dp", "ep", "etp", "stage", "pp"]),
)
def test_no_group_lies_otherwise_than_one_that_is_priced(
    sizes: tuple[int, int, int, int], first: int, node: int, axis: Axis
) -> None:
    tp, groups, pp, copies = sizes
    strategy = Strategy(tp=tp, attn_dp=groups, pp=pp, ep=groups, etp=tp, instances=copies)
    spans = (node, 4 * node)
    groups_there = strategy.groups(axis, first)[:64]
    if axis == "pp" and pp > 1:  # neighbours exchange
        stage = strategy.gpus_per_stage
        groups_there = tuple((first + at * stage, first + (at + 1) * stage) for at in range(pp - 1))

    def lies(group: tuple[int, ...]) -> tuple[list[int], ...]:
        return tuple(sorted(Counter(rank // span for rank in group).values()) for span in spans)

    priced = distinct_groups(strategy, axis, first, spans)
    assert set(priced) <= set(groups_there)
    assert sorted(map(lies, priced)) == sorted({str(each): each for each in map(lies, groups_there)}.values())


def test_times_that_are_shared_are_those_of_each_alone() -> None:
    shared = OpTimes(CLUSTER, CALIBRATION)
    for strategy in (WIDE, Strategy(tp=8, attn_dp=4, ep=32), WIDE):
        graph = graph_of(small_model(), strategy, "prefill", Options())
        for load in (1.0, 2.5):
            alone = Pricer(graph, CLUSTER, CALIBRATION).priced_graph(load)
            assert Pricer(graph, CLUSTER, CALIBRATION, times=shared).priced_graph(load) == alone


def test_computation_gives_sms_to_the_other_micro_batch_s_transfers() -> None:
    def seconds(options: Options) -> float:
        graph = graph_of(small_model(), WIDE, "prefill", options)
        prices = Pricer(graph, CLUSTER, CALIBRATION).priced_graph().layers[0]
        return sum(price.compute_s for price in prices)

    assert seconds(Options(two_batch_overlap=True)) > seconds(Options(two_batch_overlap=False))
