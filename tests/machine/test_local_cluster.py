"""The machine at hand as a cluster, measured for real."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from moiety.cluster.cluster import Cluster
from moiety.errors import InputError
from moiety.machine.local_cluster import MAX_RANKS, local_cluster


@pytest.mark.parametrize(
    ("spelling", "nodes", "per_node", "spans"),
    [
        ("local:1", 1, 1, [1]),
        ("local:4", 1, 4, [4]),
        ("LOCAL:2x2", 2, 2, [2, 4]),
        ("local:4x1", 4, 1, [1, 4]),
        ("local:8x8", 8, 8, [8, 64]),
    ],
)
def test_nodes_and_ranks_are_as_spelled(spelling: str, nodes: int, per_node: int, spans: list[int]) -> None:
    cluster = local_cluster(spelling)
    assert (cluster.name, cluster.num_nodes, cluster.gpus_per_node) == (spelling.lower(), nodes, per_node)
    assert [tier.num_gpus for tier in cluster.tiers] == spans
    assert {tier.per for tier in cluster.tiers} == {"gpu"}
    assert Cluster.model_validate_json(cluster.model_dump_json()) == cluster


def test_figures_are_measured_within_physical_bounds_and_the_rest_is_named() -> None:
    cluster = local_cluster("local:2")
    device = cluster.device
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert (cluster.basis, device.architecture) == ("measured", "cpu")
    assert 1e7 < device.peak_flops_per_s["fp32"] < 1e12 * cores
    assert 1e7 < device.memory_bandwidth_bytes_per_s < 1e12
    assert device.num_sms == max(cores // 2, 1)
    assert 1e8 < device.max_clock_hz < 1e10
    for tier in cluster.tiers:
        assert 1e6 < tier.bandwidth_bytes_per_s < 1e11
        assert 1e-7 < tier.latency_s < 0.01
    named = {each.partition(":")[0] for each in device.assumed}
    assert named >= {"peak.bf16", "num_sms", "idle_power", "max_power"}
    assert not named & {"peak", "memory_bandwidth", "architecture"}


def test_ranks_share_the_memory_of_the_machine() -> None:
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        pytest.skip("the system has no /proc/meminfo to compare with")
    kib = int(next(line.split()[1] for line in meminfo.read_text().splitlines() if line.startswith("MemTotal:")))
    whole, quarter = (local_cluster(spelling).device.memory_bytes for spelling in ("local:1", "local:4"))
    assert 0 < whole <= kib * 1024
    assert 0 < 4 * quarter <= kib * 1024


def test_more_ranks_than_cores_divide_what_the_machine_reaches() -> None:
    few, many = local_cluster("local:8").device, local_cluster("local:64").device
    assert many.peak_flops_per_s["fp32"] < few.peak_flops_per_s["fp32"]
    assert many.memory_bytes < few.memory_bytes


def test_measuring_takes_a_moment() -> None:
    local_cluster("local:2")  # imports and first touches count once
    took: list[float] = []
    for _ in range(3):
        start = time.perf_counter()
        local_cluster("local:2x2")
        took.append(time.perf_counter() - start)
    assert min(took) < 2.5  # about 0.8 s on two idle cores; other tests run beside this one


@pytest.mark.parametrize(
    ("spelling", "rule"),
    [
        ("local:0", "makes 0 ranks"),
        ("local:3x0", "makes 0 ranks"),
        ("local:2x", "must be local:RANKS"),
        ("local:", "must be local:RANKS"),
        ("local", "must be local:RANKS"),
        ("local:-1", "must be local:RANKS"),
        ("local:2x2x2", "must be local:RANKS"),
        ("local:9999999", "runs 1 to 64"),
        ("local:9x8", "makes 72 ranks"),
        (f"local:{'9' * 5000}", "must be local:RANKS"),
    ],
)
def test_a_spelling_without_a_number_of_ranks_is_refused_with_the_way_out(spelling: str, rule: str) -> None:
    with pytest.raises(InputError, match=rule) as refused:
        local_cluster(spelling)
    assert (refused.value.field, refused.value.value) == ("--cluster", spelling)
    assert "local:2x2" in (refused.value.remedy or "")
    assert MAX_RANKS == 64
