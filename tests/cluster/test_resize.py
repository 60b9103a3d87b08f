"""The same kind of cluster with another number of GPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.cluster.catalog import load_cluster
from moiety.cluster.resize import resized
from moiety.errors import InputError

if TYPE_CHECKING:
    from moiety.cluster.cluster import Cluster


def spans(cluster: Cluster) -> list[tuple[str, int]]:
    return [(tier.name, tier.num_gpus) for tier in cluster.tiers]


@pytest.mark.parametrize(
    ("name", "num_gpus", "expected"),
    [
        ("h200x8", 16, [("nvlink", 8), ("infiniband", 16)]),
        ("h200x32", 8, [("nvlink", 8)]),
        ("h200x32", 4, [("nvlink", 4)]),
        ("gb200-nvl72", 144, [("nvlink", 72), ("infiniband", 144)]),
        ("gb200x36", 144, [("nvlink", 72), ("infiniband", 144)]),
        ("gb200x144", 72, [("nvlink", 72)]),
    ],
)
def test_links_keep_their_reach(name: str, num_gpus: int, expected: list[tuple[str, int]]) -> None:
    assert spans(resized(load_cluster(name), num_gpus)) == expected


@given(st.sampled_from(["h100x8", "h100x16", "h100x64", "reference-128"]), st.integers(1, 40))
def test_there_and_back_is_the_same_cluster(name: str, nodes: int) -> None:
    cluster = load_cluster(name)
    other = resized(cluster, 8 * nodes)
    assert other.num_gpus == 8 * nodes
    assert resized(other, cluster.num_gpus).tiers == cluster.tiers
    assert other.bandwidth_per_gpu(0) == cluster.bandwidth_per_gpu(0)


@pytest.mark.parametrize(("name", "num_gpus"), [("h200x32", 12), ("gb200-nvl72", 100), ("h100x8", 0), ("h100x8", -8)])
def test_nodes_and_domains_are_not_cut(name: str, num_gpus: int) -> None:
    with pytest.raises(InputError, match="comes in nodes of"):
        resized(load_cluster(name), num_gpus)


def test_a_cluster_without_a_wider_link_does_not_grow() -> None:
    alone = load_cluster("h100x8").model_copy(update={"beyond": ()})
    with pytest.raises(InputError, match="join 8 GPUs at most"):
        resized(alone, 16)
