"""The traffic metric beside an independent one: the (lambda - 1) cost of Mt-KaHyPar, and its partitions."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moiety.placement.metrics import measure
from moiety.placement.serving.traffic import traffic
from tests.placement.placed import problem_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

if importlib.util.find_spec("mtkahypar") is None:
    pytest.skip("mtkahypar has no wheel for this platform", allow_module_level=True)

from tests.placement.reference import partition_cost, reference_partition, remote_nodes


def planted_tokens(num_tokens: int, experts: int, groups: int, stray: float) -> NDArray[np.int64]:
    """Return tokens whose 4 experts are of one shuffled group, but for strays, [tokens, 4]."""
    random = np.random.default_rng(11)
    members = random.permutation(experts).reshape(groups, -1)
    group = random.integers(0, groups, num_tokens)
    topk = np.take_along_axis(members[group], random.random((num_tokens, experts // groups)).argsort(axis=1), axis=1)
    topk = topk[:, :4]
    lost = random.random(num_tokens) < stray
    topk[lost] = random.random((int(lost.sum()), experts)).argsort(axis=1)[:, :4]
    return topk


def row_of(node: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the slots [1, experts] of experts of which equally many are on each node."""
    return np.argsort(node, kind="stable")[None]


@given(st.integers(2, 5), st.integers(1, 4), st.integers(2, 6), st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_exact_traffic_without_copies_is_the_partitioners_cost(nodes: int, each: int, k: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    experts = nodes * each
    topk = random.random((40, experts)).argsort(axis=1)[:, : min(k, experts)]
    node = random.permuted(np.repeat(np.arange(nodes), each))
    problem = problem_of(topk[None], num_experts=experts, num_gpus=nodes, num_nodes=nodes, num_slots=experts)
    expected = remote_nodes(partition_cost(topk, node, nodes), 40, nodes)
    for served in traffic(problem, row_of(node)).served.values():
        assert served.remote_nodes == pytest.approx([expected], abs=1e-9)


@pytest.mark.parametrize(("nodes", "experts"), [(2, 32), (4, 32), (8, 64)])
def test_the_reference_recovers_planted_groups(nodes: int, experts: int) -> None:
    topk = planted_tokens(2000, experts, nodes, 0.1)
    node = reference_partition(topk, num_experts=experts, num_nodes=nodes)
    assert (np.bincount(node) == experts // nodes).all()
    problem = problem_of(topk[None], num_experts=experts, num_gpus=nodes, num_nodes=nodes, num_slots=experts)
    shuffled = np.random.default_rng(2).permutation(experts)[None]
    found, random = measure(problem, row_of(node)).traffic, measure(problem, shuffled).traffic
    assert found is not None
    assert random is not None
    expected = remote_nodes(partition_cost(topk, node, nodes), 2000, nodes)
    assert found.cover.remote_nodes == pytest.approx(expected, abs=1e-9)
    strays = 0.1 * (nodes - 1) * (1 - 1 / nodes)  # even if each stray reached every node
    assert found.cover.remote_nodes <= 1 - 1 / nodes + strays
    assert found.cover.remote_nodes < random.cover.remote_nodes


def test_the_reference_keeps_the_load_within_its_slack() -> None:
    topk = planted_tokens(4000, 32, 4, 0.1)
    hot = topk[(topk < 16).sum(axis=1) >= 2]  # half the experts carry more
    node = reference_partition(hot, num_experts=32, num_nodes=4, slack=0.05)
    loads = np.bincount(node[hot].ravel(), minlength=4)
    assert loads.max() <= 1.051 * loads.mean()
    by_count = reference_partition(hot, num_experts=32, num_nodes=4)
    assert np.bincount(by_count[hot].ravel(), minlength=4).max() > 1.051 * loads.mean()
