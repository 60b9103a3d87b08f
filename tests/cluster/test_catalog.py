"""The catalogue of clusters and devices."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from moiety.cluster.catalog import (
    ALIASES,
    catalog_clusters,
    catalog_devices,
    cluster_text,
    load_cluster,
    load_device,
)
from moiety.cluster.cluster import MAX_GPUS
from moiety.cluster.reader import read_cluster
from moiety.errors import InputError


@pytest.mark.parametrize("name", catalog_clusters())
def test_every_cluster_loads_says_its_source_and_shows_a_file_that_reads_back(name: str) -> None:
    cluster = load_cluster(name)
    assert cluster.name == name
    assert cluster.source
    assert cluster.device.source
    assert any("latency" in each for each in cluster.assumptions)
    # What `catalog show` prints stands alone: its device is written out.
    assert read_cluster(cluster_text(name), source="copy.yaml", devices=no_devices) == cluster


def no_devices(name: str) -> None:
    pytest.fail(f"the file still needs the catalogue's {name}")


@pytest.mark.parametrize("name", catalog_devices())
def test_every_device_is_used_and_plausible(name: str) -> None:
    device = load_device(name)
    assert device.name == name
    assert name in {load_cluster(each).device.name for each in catalog_clusters()}
    assert 40e9 < device.memory_bytes < 300e9
    assert 0.5e12 < device.memory_bandwidth_bytes_per_s < 10e12
    peaks = device.peak_flops_per_s
    assert peaks["bf16"] == peaks["fp16"]
    assert peaks["fp32"] < peaks["bf16"]
    assert peaks.get("fp8", 2 * peaks["bf16"]) == pytest.approx(2 * peaks["bf16"], rel=0.02)
    assert peaks.get("fp4") == peaks.get("mxfp4")


def test_catalogue_has_what_it_promises() -> None:
    promised = {"a100", "h100", "h200", "h800", "b200", "b300", "gb200-nvl72", "gb300-nvl72", "mi300x", "l40s"}
    promised |= {"a100-40gb", "h100-pcie", "h20", "mi325x", "mi355x", "rtx-pro-6000"}
    assert {*promised, "reference-128"} <= set(catalog_clusters())
    assert set(ALIASES.values()) <= set(catalog_clusters())


def test_reference_cluster_is_the_specified_one() -> None:
    reference = load_cluster("reference-128")
    assert (reference.num_nodes, reference.gpus_per_node) == (16, 8)
    assert reference.device.memory_bytes == 64 * 10**9
    assert reference.device.peak("bf16") == 400e12
    assert reference.tiers[1].per == "node"
    assert any("memory_bandwidth" in each for each in reference.assumed)


@pytest.mark.parametrize(
    ("name", "num_nodes", "gpus_per_node", "spans"),
    [
        ("h200", 1, 8, [8]),
        ("h200x32", 4, 8, [8, 32]),
        ("H200_SXMx16", 2, 8, [8, 16]),
        ("h100x4", 1, 4, [4]),
        ("h100x1", 1, 1, [1]),
        ("mi300x8", 1, 8, [8]),
        ("mi300xx16", 2, 8, [8, 16]),
        ("gb200", 18, 4, [72]),
        ("gb200x4", 1, 4, [4]),
        ("gb200x36", 9, 4, [36]),
        ("gb300-nvl72x144", 36, 4, [72, 144]),
        ("reference-128x256", 32, 8, [8, 256]),
        (f"h100x{MAX_GPUS}", MAX_GPUS // 8, 8, [8, MAX_GPUS]),
    ],
)
def test_sizes(name: str, num_nodes: int, gpus_per_node: int, spans: list[int]) -> None:
    cluster = load_cluster(name)
    assert (cluster.num_nodes, cluster.gpus_per_node) == (num_nodes, gpus_per_node)
    assert [tier.num_gpus for tier in cluster.tiers] == spans


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("h2000", "did you mean 'h200'?"),
        ("h2000x8", "did you mean 'h200'?"),
        ("h100x12", "try h100x8 or h100x16"),
        ("h100x0", "try h100x1"),
        ("gb200x108", "try gb200-nvl72x72 or gb200-nvl72x144"),
        ("gb200x6", "try gb200-nvl72x4 or gb200-nvl72x8"),
        ("h100x99999999999", f"try h100x{MAX_GPUS}"),
    ],
)
def test_wrong_name_or_count_names_the_way_out(name: str, remedy: str) -> None:
    with pytest.raises(InputError) as caught:
        load_cluster(name)
    assert caught.value.remedy == remedy


@pytest.mark.parametrize("name", ["", "x", "x8", "h100x", "h100x-8", "h100x8.0", "h100x" + "9" * 5000, "../h100", "\0"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(InputError):
        load_cluster(name)


@given(st.sampled_from(catalog_clusters()), st.integers(1, 1200))
@example("h200", 7)
def test_refused_counts_name_counts_that_are_legal(base: str, num_gpus: int) -> None:
    try:
        cluster = load_cluster(f"{base}x{num_gpus}")
    except InputError as error:
        counts = re.findall(r"x([0-9]+)(?: or|$)", error.remedy or "")
        assert counts
        assert all(load_cluster(f"{base}x{count}").num_gpus == int(count) for count in counts)
    else:
        assert cluster.num_gpus == num_gpus


def test_unknown_device_names_the_nearest() -> None:
    with pytest.raises(InputError, match="h100"):
        load_device("h1000")
