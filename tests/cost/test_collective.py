"""Collectives: the ring's formula, tier by tier."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moiety.calibration.calibration import CollectiveProtocols
from moiety.cost.collective import collective_transfer, fan_out
from moiety.cost.collective_library import library_times, protocols_of
from tests.scenarios import CALIBRATION, tiered

if TYPE_CHECKING:
    from moiety.graph.op import CollectiveKind

CONSTANTS = CALIBRATION.collectives
CLUSTER = tiered(8, 64, per_node=8)
KINDS: list[CollectiveKind] = ["all_reduce", "all_gather", "reduce_scatter", "send"]


def test_a_ring_inside_a_node_by_hand() -> None:
    size = 32e6
    ring = CALIBRATION.model_copy(update={"collectives": CONSTANTS.model_copy(update={"protocols": ()})})
    transfer = collective_transfer("all_reduce", size, tuple(range(8)), CLUSTER, ring)
    expected = CONSTANTS.latency_s[2] + 2 * 7 / 8 * size / (300e9 * CONSTANTS.link_efficiency[2])
    assert transfer.seconds == pytest.approx(expected)
    assert transfer.tier_bytes == (2 * 7 / 8 * size, 0.0)


def test_an_all_reduce_starts_a_second_time_where_one_shot_would_take_longer() -> None:
    update = {"protocols": (), "small_bytes": 0, "second_start": 0.5}
    calibration = CALIBRATION.model_copy(update={"collectives": CONSTANTS.model_copy(update=update)})
    once = CALIBRATION.model_copy(update={"collectives": CONSTANTS.model_copy(update=update | {"second_start": 0.0})})

    def added_s(kind: CollectiveKind, size: float, parts: int) -> float:
        group = tuple(range(parts))
        times = [collective_transfer(kind, size, group, CLUSTER, each).seconds for each in (calibration, once)]
        return times[0] - times[1]

    shot = 8192 * (7 - 2 * 7 / 8) / (300e9 * CONSTANTS.link_efficiency[2])
    assert added_s("all_reduce", 8192, 8) == pytest.approx(shot), "all to all others, at once"
    assert added_s("all_reduce", 32e6, 8) == pytest.approx(0.5 * CONSTANTS.latency_s[2])
    assert added_s("all_reduce", 32e6, 2) == 0, "two ranks have all after one shot"
    assert added_s("all_gather", 32e6, 8) == 0


def test_inside_a_node_the_fastest_protocol_counts() -> None:
    size = 32e6
    known = protocols_of(CONSTANTS, "all_gather", CLUSTER.device.architecture)
    assert known is not None
    times = [
        each.start_s
        + 7 * each.step_s
        + 7 / 8 * size / (300e9 * each.share * (8 / known.largest_group) ** known.share_exponent)
        for each in known.protocols
    ]
    transfer = collective_transfer("all_gather", size, tuple(range(8)), CLUSTER, CALIBRATION)
    assert transfer.seconds == pytest.approx(min(times))


def test_a_protocol_for_small_messages_is_left_where_they_end() -> None:
    known = protocols_of(CONSTANTS, "all_to_all", "hopper")
    assert known is not None
    small, any_size = known.protocols
    assert small.most_peer_bytes is not None
    last = 4 * small.most_peer_bytes
    start_s, _ = library_times(known, "all_to_all", last, 4, 450e9)
    assert start_s == small.start_s + 2 * small.step_s
    start_s, _ = library_times(known, "all_to_all", last + 4, 4, 450e9)
    assert start_s == any_size.start_s + 2 * any_size.step_s


def test_some_protocol_must_take_messages_of_any_size() -> None:
    known = protocols_of(CONSTANTS, "all_to_all", "hopper")
    assert known is not None
    with pytest.raises(ValueError, match="any size"):
        CollectiveProtocols.model_validate({**known.model_dump(), "protocols": known.protocols[:1]})


def test_a_ring_over_nodes_by_hand() -> None:
    size, nodes = 32e6, 4
    transfer = collective_transfer("all_gather", size, tuple(range(0, 8 * nodes, 8)), CLUSTER, CALIBRATION)
    wire = 3 / 4 * size / (50e9 * CONSTANTS.network_efficiency)
    latency = CONSTANTS.network_latency_s + 2 * math.ceil(math.log2(nodes)) * 2e-6
    assert transfer.seconds == pytest.approx(latency + wire)
    assert transfer.tier_seconds == pytest.approx((0.0, wire))


def test_over_two_tiers_the_outer_one_moves_what_the_inner_one_left() -> None:
    size = 64e6
    transfer = collective_transfer("reduce_scatter", size, tuple(range(16)), CLUSTER, CALIBRATION)
    assert transfer.tier_bytes == pytest.approx((7 / 8 * size, 1 / 2 * size / 8))


def test_a_switch_that_reduces_is_faster_for_large_sizes_only() -> None:
    tiers = (CLUSTER.tiers[0].model_copy(update={"in_network_reduction": True}), CLUSTER.tiers[1])
    switched = CLUSTER.model_copy(update={"tiers": tiers})
    for kind, size, faster in (("all_reduce", 1e9, True), ("all_reduce", 1e6, False), ("all_gather", 1e9, False)):
        plain, reduced = (collective_transfer(kind, size, tuple(range(8)), c, CALIBRATION) for c in (CLUSTER, switched))
        assert (reduced.seconds < plain.seconds) is faster


def test_a_small_all_reduce_starts_quickly() -> None:
    small, larger = (
        collective_transfer("all_reduce", size, tuple(range(8)), CLUSTER, CALIBRATION).seconds
        for size in (CONSTANTS.small_bytes, CONSTANTS.small_bytes + 1)
    )
    assert small < larger


@given(st.sets(st.integers(0, 63), min_size=1, max_size=32), st.sampled_from([(8, 64), (4, 16, 64), (64,)]))
def test_fan_out_covers_the_group(ranks: set[int], spans: tuple[int, ...]) -> None:
    parts = fan_out(tuple(sorted(ranks)), spans)
    assert math.prod(parts) >= len(ranks)
    assert all(each >= 1 for each in parts)


@settings(max_examples=60)
@given(
    st.sampled_from(KINDS),
    st.floats(1, 1e10),
    st.floats(1, 4),
    st.sampled_from([tuple(range(2)), tuple(range(8)), tuple(range(16)), tuple(range(0, 64, 8)), (0, 8)]),
)
def test_more_bytes_and_slower_links_never_take_less_time(
    kind: CollectiveKind, size: float, factor: float, ranks: tuple[int, ...]
) -> None:
    base = collective_transfer(kind, size, ranks, CLUSTER, CALIBRATION).seconds
    # rates rise with the size, so that the time of a byte falls; the time of all of them must not
    assert collective_transfer(kind, size * factor, ranks, CLUSTER, CALIBRATION).seconds >= base * (1 - 1e-12)
    for tier in range(2):
        slower = list(CLUSTER.tiers)
        slower[tier] = slower[tier].model_copy(
            update={"bandwidth_bytes_per_s": slower[tier].bandwidth_bytes_per_s / factor}
        )
        cluster = CLUSTER.model_copy(update={"tiers": tuple(slower)})
        assert collective_transfer(kind, size, ranks, cluster, CALIBRATION).seconds >= base * (1 - 1e-12)


def test_a_network_card_of_the_node_is_shared_by_its_gpus() -> None:
    shared = CLUSTER.tiers[1].model_copy(update={"per": "node", "oversubscription": 2.0})
    cluster = CLUSTER.model_copy(update={"tiers": (CLUSTER.tiers[0], shared)})
    ranks = tuple(range(0, 64, 8))
    alone, together = (collective_transfer("all_gather", 1e8, ranks, c, CALIBRATION) for c in (CLUSTER, cluster))
    assert together.tier_seconds[1] == pytest.approx(16 * alone.tier_seconds[1])
