"""What a cluster and a model mean for placement: distances from links, slots from memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.cluster.catalog import load_cluster, load_device
from moiety.cluster.cluster import Cluster, LinkTier
from moiety.model.catalog import load_catalog_model
from moiety.placement.machine import expert_size_bytes, most_slots, node_distance, num_link_domains


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    spans = np.cumprod([2, *draw(st.lists(st.integers(2, 4), max_size=3))]).tolist()
    tiers = tuple(
        LinkTier(
            name=f"tier{at}",
            num_gpus=span,
            bandwidth_bytes_per_s=draw(st.sampled_from([1e9, 1e10, 5e10, 1e11])),
            per="gpu",
            latency_s=0.0,
        )
        for at, span in enumerate(spans)
    )
    return Cluster(name="c", device=load_device("h200"), num_nodes=spans[-1] // 2, gpus_per_node=2, tiers=tiers)


@given(clusters())
def test_distance_is_the_slowest_link_on_the_way(cluster: Cluster) -> None:
    nodes, width = num_link_domains(cluster), cluster.fast_domain_gpus
    found = node_distance(cluster)
    rates = [tier.bandwidth_bytes_per_s for tier in cluster.tiers]
    for one in range(nodes):
        for other in range(nodes):
            tier = cluster.tier_between(one * width, other * width)
            expected = 0.0 if one == other else rates[1] / min(rates[1 : tier + 1])
            if found is None:
                assert expected in {0.0, 1.0}
            else:
                assert found[one, other] == pytest.approx(expected)


def test_an_expert_has_the_bytes_of_its_format() -> None:
    deepseek, gpt_oss, dense = (load_catalog_model(name) for name in ("deepseek-v3", "gpt-oss-20b", "llama-3.1-8b"))
    assert expert_size_bytes(deepseek) == pytest.approx(3 * 7168 * 2048, rel=1e-3)  # FP8 and its scales
    parameters = 3 * 2880 * 2880 + 3 * 2880
    assert expert_size_bytes(gpt_oss) == pytest.approx(parameters * (0.5 + 1 / 32), rel=1e-6)
    assert expert_size_bytes(dense) == 0


def test_more_gpus_hold_more_slots_and_all_experts_fit_where_the_weights_do() -> None:
    model = load_catalog_model("deepseek-v3")
    most = [most_slots(model, load_cluster(f"h200x{gpus}"), expert_size_bytes(model)) for gpus in (1, 2, 8, 32)]
    assert most == sorted(most)
    assert most[0] < 256 <= most[2]  # 671 GB of weights; eight GPUs hold 1,206 GB
    weights = most[2] * expert_size_bytes(model) * model.num_moe_layers
    memory = 8 * load_cluster("h200").device.memory_bytes
    assert 0.9 * memory < weights < memory
    assert most_slots(model, load_cluster("l40sx1"), 10**12) == 0
