"""Laws of the joint placement: balance and traffic together."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moiety.placement.methods.balance import balance, peaks
from moiety.placement.methods.eplb import eplb_global
from moiety.placement.methods.joint import joint, num_searched_nodes
from moiety.placement.methods.linear_map import linear
from moiety.placement.methods.packing import has_twins
from moiety.placement.methods.round_robin import round_robin
from moiety.placement.metrics import measure
from moiety.placement.serving.traffic import traffic
from moiety.workload.synthetic_routing import RoutingSize, RoutingTargets, synthesize_from
from tests.placement.placed import problem_of
from tests.placement.reference import partition_cost, reference_partition, remote_nodes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moiety.placement.problem import PlacementProblem


def communities(seed: int, *, experts: int, groups: int, tokens: int, k: int, layers: int = 1) -> NDArray[np.int64]:
    """Return [layers, tokens, k]: a token's experts come mostly from one of `groups` groups, scattered over the ids."""
    random = np.random.default_rng(seed)
    group = random.permuted(np.tile(np.arange(experts) % groups, (layers, 1)), axis=1)
    topic = random.integers(0, groups, (layers, tokens, 1))
    liking = 3.0 * (group[:, None] == topic) + 0.5 * random.normal(size=(layers, 1, experts))
    chance = random.gumbel(size=(layers, tokens, experts))
    return (liking + chance).argsort(axis=2)[:, :, : -k - 1 : -1]


@st.composite
def traced(draw: st.DrawFn) -> PlacementProblem:
    nodes, gpus_of_node = draw(st.integers(2, 4)), draw(st.integers(1, 2))
    gpus = nodes * gpus_of_node
    experts = draw(st.integers(2, 16))
    least = -(-experts // gpus)
    per_gpu = draw(st.integers(least, min(experts, least + 1)))
    topk = communities(
        draw(st.integers(0, 2**32 - 1)), experts=experts, groups=min(nodes, experts),
        tokens=draw(st.integers(1, 80)), k=draw(st.integers(1, min(experts, 4))), layers=draw(st.integers(1, 2)),
    )  # fmt: skip
    problem = problem_of(topk, num_experts=experts, num_gpus=gpus, num_nodes=nodes, num_slots=per_gpu * gpus)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):
        problem = replace(problem, gpu_speed=random.uniform(0.5, 2, gpus))
    if draw(st.booleans()):
        problem = replace(problem, node_distance=random.uniform(0.5, 2, (nodes, nodes)) * (1 - np.eye(nodes)))
    return problem


@settings(max_examples=40, deadline=None)
@given(traced())
def test_a_map_is_whole_and_keeps_copies_apart(problem: PlacementProblem) -> None:
    slots = joint(problem)
    assert slots.shape == (problem.num_layers, problem.num_slots)
    assert all(set(row.tolist()) == set(range(problem.num_experts)) for row in slots)
    assert not has_twins(slots.reshape(problem.num_layers, problem.num_gpus, -1)).any()
    assert np.array_equal(slots, joint(problem))


@pytest.mark.parametrize("seed", range(6))
def test_numbering_the_experts_otherwise_renumbers_the_map(seed: int) -> None:
    random = np.random.default_rng(seed)
    topk = communities(seed, experts=20, groups=5, tokens=900, k=3)
    problem = problem_of(topk, num_experts=20, num_gpus=4, num_nodes=2 + 2 * (seed % 2), num_slots=24)
    loads = problem.counts + random.uniform(0, 0.5, problem.counts.shape)  # no two alike: ties go by number
    problem = replace(problem, counts=loads)
    order = random.permutation(20)  # new expert i is the old order[i]
    renamed = replace(problem, counts=loads[:, :, order], topk=np.argsort(order)[topk])
    assert np.array_equal(order[joint(renamed)], joint(problem))


@settings(max_examples=20, deadline=None)
@given(traced(), st.data())
def test_numbering_gpus_and_nodes_otherwise_moves_the_experts_along(
    problem: PlacementProblem, data: st.DataObject
) -> None:
    nodes, within = problem.num_nodes, problem.gpus_per_node
    if problem.gpu_speed is None:  # alike GPUs take any order for the same
        return
    order = np.array(data.draw(st.permutations(range(nodes))))
    inside = np.stack([data.draw(st.permutations(range(within))) for _ in range(nodes)])
    gpus = (order[:, None] * within + inside).reshape(-1)  # new GPU i is the old gpus[i]
    distance = problem.node_distance
    moved = replace(
        problem,
        gpu_speed=problem.gpu_speed[gpus],
        node_distance=None if distance is None else distance[order][:, order],
    )
    shape = (problem.num_layers, problem.num_gpus, -1)
    assert np.array_equal(joint(moved).reshape(shape), joint(problem).reshape(shape)[:, gpus])


@settings(max_examples=30, deadline=None)
@given(traced())
def test_no_simple_map_of_the_same_balance_has_less_traffic(problem: PlacementProblem) -> None:
    problem = replace(problem, node_distance=None)
    ours, shares = joint(problem), problem.shares()
    for method in (linear, round_robin, eplb_global):
        other = method(problem)
        apart = ~has_twins(other.reshape(problem.num_layers, problem.num_gpus, -1))
        as_good = apart & (peaks(problem, shares, other) <= peaks(problem, shares, ours))
        if problem.num_slots == problem.num_experts:  # every home counts alike, in the sample too
            mine, theirs = (traffic(problem, each).served["cover"].remote_nodes for each in (ours, other))
            assert (mine <= theirs + 1e-9)[as_good].all()


@pytest.mark.parametrize("nodes", [2, 4, 8])
def test_without_copies_it_comes_near_a_hypergraph_partitioner(nodes: int) -> None:
    topk = communities(7, experts=32, groups=8, tokens=3000, k=4)
    problem = problem_of(topk, num_experts=32, num_gpus=nodes, num_nodes=nodes, num_slots=32)
    ours = measure(problem, joint(problem))
    reference = reference_partition(topk[0], num_experts=32, num_nodes=nodes, slack=0.05)
    plain = measure(problem, balance(problem))
    assert ours.traffic is not None
    assert plain.traffic is not None
    found = ours.traffic.cover.remote_nodes
    known = remote_nodes(partition_cost(topk[0], reference, nodes), len(topk[0]), nodes)
    assert found < 0.9 * plain.traffic.cover.remote_nodes
    assert found <= 1.1 * known  # which may leave 5 % more load on a node, and any number of experts


@pytest.mark.parametrize(("nodes", "gpus", "slots"), [(2, 4, 40), (4, 8, 40)])
def test_unseen_tokens_reach_fewer_nodes_than_under_eplb_at_its_balance(nodes: int, gpus: int, slots: int) -> None:
    routing = synthesize_from(
        RoutingTargets(),
        RoutingSize(num_layers=4, num_experts=32, top_k=4, num_tokens=40_000, num_sequences=400),
        seed=3,
    )
    assert routing.topk is not None
    seen, unseen = routing.topk[:, :20_000], routing.topk[:, 20_000:]
    shape = {"num_experts": 32, "num_gpus": gpus, "num_nodes": nodes, "num_slots": slots}
    planned, served = problem_of(seen, **shape), problem_of(unseen, **shape)
    ours, theirs = measure(served, joint(planned)), measure(served, eplb_global(planned))
    assert ours.traffic is not None
    assert theirs.traffic is not None
    assert ours.traffic.cover.remote_nodes <= 0.8 * theirs.traffic.even.remote_nodes
    assert ours.traffic.cover.remote_nodes < theirs.traffic.cover.remote_nodes
    assert ours.wasted_slots == 0
    balanced, by_eplb = measure(planned, joint(planned)), measure(planned, eplb_global(planned))
    assert balanced.gpu_balance.mean >= by_eplb.gpu_balance.mean - 0.01
    assert ours.gpu_balance.mean >= theirs.gpu_balance.mean - 0.05  # experts that go together drift together


def test_where_experts_are_chosen_independently_there_is_little_to_gain() -> None:
    random = np.random.default_rng(5)
    liking = random.normal(size=(3, 1, 32))
    topk = (liking + random.gumbel(size=(3, 30_000, 32))).argsort(axis=2)[:, :, -4:]
    shape = {"num_experts": 32, "num_gpus": 4, "num_nodes": 4, "num_slots": 32}
    planned, unseen = problem_of(topk[:, :15_000], **shape), problem_of(topk[:, 15_000:], **shape)
    ours, theirs = measure(unseen, joint(planned)), measure(unseen, eplb_global(planned))
    assert ours.traffic is not None
    assert theirs.traffic is not None
    gain = 1 - ours.traffic.cover.remote_nodes / theirs.traffic.cover.remote_nodes
    assert -0.005 <= gain <= 0.07
    assert ours.gpu_balance.mean >= theirs.gpu_balance.mean - 0.01


def test_the_groups_of_a_node_limited_router_stay_together() -> None:
    random = np.random.default_rng(2)
    group = np.arange(32) // 4  # 8 groups, a token uses 2 of them
    chosen = random.random((1, 4000, 8)).argsort(axis=2)[:, :, :2]
    allowed = (group == chosen[..., :1]) | (group == chosen[..., 1:])
    topk = np.where(allowed, random.random((1, 4000, 32)), -1.0).argsort(axis=2)[:, :, -4:]
    problem = problem_of(topk, num_experts=32, num_gpus=4, num_nodes=4, num_slots=32)
    aligned = measure(replace(problem, num_groups=8), joint(replace(problem, num_groups=8)))
    assert aligned.traffic is not None
    assert aligned.traffic.cover.reached_nodes <= 1.9  # two groups, now and then of one node


def test_counts_alone_are_placed_for_balance() -> None:
    topk = communities(1, experts=16, groups=4, tokens=200, k=2)
    problem = problem_of(topk, num_experts=16, num_gpus=4, num_nodes=2, num_slots=20)
    blind = replace(problem, topk=None)
    assert np.array_equal(joint(blind), balance(blind))
    one_node = replace(problem, num_nodes=1)
    assert np.array_equal(joint(one_node), balance(one_node))


def test_of_very_many_nodes_neighbours_are_searched_as_one() -> None:
    topk = communities(3, experts=128, groups=16, tokens=3000, k=4)
    problem = problem_of(topk, num_experts=128, num_gpus=64, num_nodes=64, num_slots=128)
    assert [num_searched_nodes(count) for count in (1, 62, 63, 64, 67, 128)] == [1, 62, 21, 32, 1, 32]
    ours, plain = measure(problem, joint(problem)), measure(problem, balance(problem))
    assert ours.traffic is not None
    assert plain.traffic is not None
    assert ours.traffic.cover.remote_nodes < plain.traffic.cover.remote_nodes
    assert ours.wasted_slots == 0
