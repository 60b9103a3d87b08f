"""The cluster record: ranks, nodes, tiers and bandwidths."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from moiety.cluster.catalog import catalog_clusters, load_cluster, load_device
from moiety.cluster.cluster import Cluster
from moiety.cluster.device import Device

H200X32 = load_cluster("h200x32")
NVL = load_cluster("gb200-nvl72x144")


def test_nodes_and_tiers_of_ranks() -> None:
    assert H200X32.num_gpus == 32
    assert [H200X32.node_of(rank) for rank in (0, 7, 8, 31)] == [0, 0, 1, 3]
    assert H200X32.tier_between(0, 7) == 0
    assert H200X32.tier_between(7, 8) == 1
    assert H200X32.tier_of_group(range(8, 16)) == 0
    assert H200X32.tier_of_group((0, 31)) == 1
    assert H200X32.fast_domain_gpus == 8


def test_nvlink_domain_is_wider_than_a_node() -> None:
    assert NVL.gpus_per_node == 4
    assert NVL.fast_domain_gpus == 72
    assert NVL.tier_between(0, 71) == 0
    assert NVL.tier_between(71, 72) == 1


def test_bandwidth_is_one_way_per_gpu() -> None:
    reference = load_cluster("reference-128")
    assert reference.bandwidth_per_gpu(0) == 300e9
    assert reference.bandwidth_per_gpu(1) == 25e9
    assert H200X32.bandwidth_per_gpu(0) == 450e9
    assert H200X32.bandwidth_per_gpu(1) == 50e9


@given(st.sampled_from([H200X32, NVL, load_cluster("reference-128")]), st.data())
def test_wider_groups_need_no_inner_tier(cluster: Cluster, data: st.DataObject) -> None:
    ranks = data.draw(st.lists(st.integers(0, cluster.num_gpus - 1), min_size=1, max_size=6))
    tier = cluster.tier_of_group(tuple(ranks))
    assert all(cluster.tier_between(first, second) <= tier for first, second in pairwise(ranks))
    span = cluster.tiers[tier].num_gpus
    assert len({rank // span for rank in ranks}) == 1


@given(st.sampled_from(catalog_clusters()), st.integers(0, 1), st.floats(1, 8))
def test_oversubscription_divides_the_bandwidth(name: str, tier: int, factor: float) -> None:
    cluster = load_cluster(name)
    tier = min(tier, len(cluster.tiers) - 1)
    tiers = list(cluster.tiers)
    tiers[tier] = tiers[tier].model_copy(update={"oversubscription": factor})
    slower = cluster.model_copy(update={"tiers": tuple(tiers)})
    assert slower.bandwidth_per_gpu(tier) == pytest.approx(cluster.bandwidth_per_gpu(tier) / factor)


@pytest.mark.parametrize("name", catalog_clusters())
def test_json_round_trip(name: str) -> None:
    cluster = load_cluster(name)
    assert Cluster.model_validate_json(cluster.model_dump_json()) == cluster


@pytest.mark.parametrize("spans", [[32, 8], [8, 8, 32], [8], [8, 16], [12, 32], [8, 64]])
def test_tiers_that_do_not_nest_are_refused(spans: list[int]) -> None:
    tiers = [{**H200X32.tiers[0].model_dump(), "num_gpus": span} for span in spans]
    with pytest.raises(ValidationError):
        Cluster.model_validate({**H200X32.model_dump(), "tiers": tiers})


def test_device_computes_in_the_next_wider_format_it_has() -> None:
    h100, a100, b200 = load_device("h100"), load_device("a100"), load_device("b200")
    assert h100.compute_dtype("fp8") == "fp8"
    assert h100.compute_dtype("mxfp4") == "bf16"  # four-bit weights are widened to their activations' 16 bits
    assert h100.compute_dtype("int4") == "bf16"
    assert a100.peak("fp8") == a100.peak("bf16") == 312e12
    assert b200.peak("mxfp4") > b200.peak("fp8") > b200.peak("bf16") > b200.peak("fp32")


@pytest.mark.parametrize(
    "change",
    [
        {"peak_flops_per_s": {}},
        {"peak_flops_per_s": {"fp8": 1e15}},
        {"peak_flops_per_s": {"bf16": float("nan")}},
        {"memory_bytes": 0},
        {"memory_bytes": 2**60},
        {"idle_power_w": 800.0},
        {"max_clock_hz": float("inf")},
        {"unknown": 1},
    ],
)
def test_impossible_device_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Device.model_validate({**load_device("h100").model_dump(), **change})
