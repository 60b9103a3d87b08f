"""Laws of traffic: bytes fall on the innermost tier that joins two ranks, and are those that the formulas say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from moiety.cluster.catalog import load_cluster
from moiety.runtime.comm.priority import Priority
from moiety.runtime.comm.traffic import Traffic, tier_between
from tests.ranks import run_ranks
from tests.runtime.comm.traffic_laws import WORLD, counted

ITEM_BYTES = 4


@pytest.mark.parametrize("name", ["reference-128", "gb200-nvl72", "h100x32"])
def test_a_tier_between_ranks_is_the_planners(name: str) -> None:
    cluster = load_cluster(name)
    for first in range(0, cluster.num_gpus, 3):
        for second in range(cluster.num_gpus):
            assert tier_between(cluster.tiers, first, second) == cluster.tier_between(first, second)


def by_tier(rank: int, sent: dict[int, int]) -> dict[str, int]:
    """Return bytes by tier of bytes to each other rank, where pairs of ranks are the inner tier."""
    return {
        "pair": sum(size for other, size in sent.items() if other // 2 == rank // 2),
        "all": sum(size for other, size in sent.items() if other // 2 != rank // 2),
    }


@pytest.mark.parametrize("num_items", [1000, 100_000])  # summed in one step, and round a ring
def test_counted_bytes_are_those_of_the_formulas(num_items: int) -> None:
    size_bytes = num_items * ITEM_BYTES
    for rank, counts in enumerate(run_ranks(counted, 4, num_items)):
        others = [other for other in WORLD if other != rank]
        reduced = dict.fromkeys(others, size_bytes)
        if num_items > 1000:  # a partial sum but from the last, and the sum but to the last
            reduced = {(rank + 1) % 4: size_bytes * (rank != 3) + size_bytes * (rank != 2)}
        assert counts == {
            "all_reduce": by_tier(rank, reduced),
            "all_gather": by_tier(rank, dict.fromkeys(others, size_bytes)),
            "reduce_scatter": by_tier(rank, dict.fromkeys(others, size_bytes)),
            "broadcast": by_tier(rank, dict.fromkeys(others, size_bytes if rank == 1 else 0)),
            "exchange_counts": by_tier(rank, dict.fromkeys(others, 7 * 8)),
            "all_to_all": by_tier(rank, {other: (5 * rank + other) * 3 * 2 for other in others}),
            "bulk broadcast": by_tier(rank, {(rank + 1) % 4: size_bytes if rank != 0 else 0}),
        }


@given(
    st.lists(
        st.tuples(st.sampled_from(Priority), st.tuples(st.integers(0, 1 << 40), st.integers(0, 1 << 40))), max_size=20
    )
)
def test_a_snapshot_is_the_sum_of_what_was_added_since_the_reset(
    transfers: list[tuple[Priority, tuple[int, int]]],
) -> None:
    traffic = Traffic(("inner", "outer"))
    traffic.add(Priority.EXCHANGE, (1, 2))
    traffic.reset()
    for priority, tier_bytes in transfers:
        traffic.add(priority, tier_bytes)
    snapshot = traffic.snapshot()
    for priority in Priority:
        mine = [tier_bytes for each, tier_bytes in transfers if each == priority]
        assert snapshot[priority.name.lower()] == {
            "num_transfers": len(mine),
            "sent_bytes": {"inner": sum(inner for inner, _ in mine), "outer": sum(outer for _, outer in mine)},
        }
