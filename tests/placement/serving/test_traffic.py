"""Traffic: the flat identity, what order and names may not change, and which rule is never above which."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moiety.placement.serving.affinity import even_homes, sequence_affinity
from moiety.placement.serving.rule import serve
from moiety.placement.serving.traffic import RULES, traffic
from tests.placement.placed import by_gpu, placed_traces, problem_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moiety.placement.problem import PlacementProblem

    Placed = tuple[PlacementProblem, NDArray[np.int64]]


def k_of(problem: PlacementProblem) -> int:
    assert problem.topk is not None
    return problem.topk.shape[2]


@given(placed_traces(copies=False))
def test_flat_messages_without_copies_are_k_times_1_less_1_over_nodes(placed: Placed) -> None:
    problem, slot_map = placed
    flat = k_of(problem) * (1 - 1 / problem.num_nodes)
    for served in traffic(problem, slot_map).served.values():
        assert served.remote_messages == pytest.approx(flat, abs=1e-9)


@given(placed_traces())
def test_even_copies_send_as_many_flat_messages_as_one_copy(placed: Placed) -> None:
    problem, slot_map = placed
    flat = k_of(problem) * (1 - 1 / problem.num_nodes)
    found = traffic(problem, slot_map, rules=("even",)).served
    assert list(found) == ["even"]
    assert found["even"].remote_messages == pytest.approx(flat, abs=1e-9)


@given(placed_traces(), st.integers(1, 200))
def test_all_work_is_served_and_each_dedup_sends_less(placed: Placed, max_served: int) -> None:
    problem, slot_map = placed
    for limit in (10**9, max_served):
        for served in traffic(problem, slot_map, max_served=limit).served.values():
            assert served.gpu_loads.sum(axis=1) == pytest.approx(k_of(problem))
            assert served.messages.sum(axis=(1, 2)) == pytest.approx(k_of(problem))
            assert (served.nodes <= served.gpus + 1e-9).all()
            assert (served.gpus <= served.messages + 1e-9).all()
            assert (served.reached_nodes - served.remote_nodes <= 1 + 1e-9).all()
            assert (served.remote_nodes <= problem.num_nodes - 1 + 1e-9).all()


@given(placed_traces(max_nodes=1))
def test_one_node_has_nothing_remote(placed: Placed) -> None:
    problem, slot_map = placed
    for served in traffic(problem, slot_map).served.values():
        for amount in (served.remote_messages, served.remote_gpus, served.remote_nodes):
            assert not amount.any()
        assert served.reached_nodes == pytest.approx(1)


@given(placed_traces())
def test_local_is_never_above_even(placed: Placed) -> None:
    """Token by token: what is not at home is served where `even` serves it, so `local` reaches a part of the same."""
    problem, slot_map = placed
    found = traffic(problem, slot_map).served
    off = ~np.eye(problem.num_nodes, dtype=bool)
    for matrix in ("messages", "gpus", "nodes"):
        local, even = getattr(found["local"], matrix), getattr(found["even"], matrix)
        assert (local[:, off] <= even[:, off] + 1e-9).all()


@given(st.one_of(placed_traces(max_nodes=3), placed_traces(max_k=3)))
def test_cover_is_never_above_local_in_nodes_up_to_three_nodes_or_three_experts(placed: Placed) -> None:
    """There the greedy cover is the least one, and what `local` reaches is a cover; beyond it is within H(k)."""
    problem, slot_map = placed
    found = traffic(problem, slot_map).served
    assert (found["cover"].remote_nodes <= found["local"].remote_nodes + 1e-9).all()
    assert found["cover"].remote_messages == pytest.approx(found["local"].remote_messages)


@given(placed_traces(max_nodes=6, max_k=8))
def test_cover_is_within_the_greedy_factor_of_local(placed: Placed) -> None:
    problem, slot_map = placed
    found = traffic(problem, slot_map).served
    factor = sum(1 / i for i in range(1, k_of(problem) + 1))
    assert (found["cover"].remote_nodes <= factor * found["local"].remote_nodes + 1e-9).all()


@given(placed_traces(), st.integers(0, 2**32 - 1))
def test_names_of_experts_do_not_matter(placed: Placed, seed: int) -> None:
    problem, slot_map = placed
    assert problem.topk is not None
    names = np.random.default_rng(seed).permutation(problem.num_experts)
    renamed = renamed_problem(problem, topk=names[problem.topk])
    one, other = traffic(problem, slot_map).served, traffic(renamed, names[slot_map]).served
    for rule in RULES:
        for part in ("messages", "gpus", "nodes", "gpu_loads"):
            assert (getattr(one[rule], part) == getattr(other[rule], part)).all()


@given(placed_traces(), st.integers(0, 2**32 - 1))
def test_order_of_gpus_in_a_node_does_not_matter_to_nodes(placed: Placed, seed: int) -> None:
    """Only which GPUs of the node take turns for which tokens may change, and with it GPUs reached."""
    problem, slot_map = placed
    order = np.random.default_rng(seed).permutation(problem.gpus_per_node)
    moved = by_gpu(problem, slot_map)[:, :, order]
    one = traffic(problem, slot_map).served
    other = traffic(problem, moved.reshape(slot_map.shape)).served
    for rule in RULES:
        assert (one[rule].nodes == other[rule].nodes).all()
        assert (one[rule].messages == other[rule].messages).all()


@given(placed_traces(), st.integers(1, 4))
def test_turning_the_nodes_around_turns_the_traffic(placed: Placed, step: int) -> None:
    """The rotation that decides between equal nodes turns along, so that the cost stays to the last tie."""
    problem, slot_map = placed
    distance = problem.node_distance
    turned = renamed_problem(
        problem, node_distance=None if distance is None else np.roll(distance, (step, step), axis=(0, 1))
    )
    moved = np.roll(by_gpu(problem, slot_map), step, axis=1).reshape(slot_map.shape)
    one = traffic(problem, slot_map).served["cover"]
    other = traffic(turned, moved).served["cover"]
    for part in ("messages", "nodes"):
        assert np.roll(getattr(one, part), (step, step), axis=(1, 2)) == pytest.approx(getattr(other, part))


@given(placed_traces(copies=False), st.integers(0, 2**32 - 1))
def test_any_order_of_nodes_leaves_the_cost_where_there_is_no_choice(placed: Placed, seed: int) -> None:
    problem, slot_map = placed
    order = np.random.default_rng(seed).permutation(problem.num_nodes)
    distance = problem.node_distance
    renamed = renamed_problem(problem, node_distance=None if distance is None else distance[np.ix_(order, order)])
    moved = by_gpu(problem, slot_map)[:, order].reshape(slot_map.shape)
    one, other = traffic(problem, slot_map).served["cover"], traffic(renamed, moved).served["cover"]
    for part in ("messages", "gpus", "nodes"):
        assert getattr(one, part)[:, order][:, :, order] == pytest.approx(getattr(other, part))


@given(placed_traces(max_nodes=4), st.integers(0, 2**32 - 1))
def test_any_order_of_nodes_stays_within_the_greedy_factor(placed: Placed, seed: int) -> None:
    """Another order breaks ties between equal nodes differently; both covers are within H(k) of the same least one."""
    problem, slot_map = placed
    order = np.random.default_rng(seed).permutation(problem.num_nodes)
    plain = renamed_problem(problem, node_distance=None)
    moved = by_gpu(problem, slot_map)[:, order].reshape(slot_map.shape)
    one, other = traffic(plain, slot_map).served["cover"], traffic(plain, moved).served["cover"]
    factor = sum(1 / i for i in range(1, k_of(problem) + 1))
    assert (one.remote_nodes <= factor * other.remote_nodes + 1e-9).all()
    assert one.remote_messages == pytest.approx(other.remote_messages)
    if k_of(problem) <= 3 or problem.num_nodes <= 3:
        assert one.remote_nodes == pytest.approx(other.remote_nodes)


@given(placed_traces())
@settings(max_examples=40)
def test_the_matrices_are_counts_of_what_serve_answers(placed: Placed) -> None:
    problem, slot_map = placed
    assert problem.topk is not None
    found = traffic(problem, slot_map, rules=("cover",))
    assert found.all_homes
    served = found.served["cover"]
    tokens = problem.topk.shape[1]
    for layer, row in enumerate(slot_map):
        for home in range(problem.num_nodes):
            slots = serve(
                row,
                problem.topk[layer],
                np.full(tokens, home),
                np.arange(tokens),
                num_gpus=problem.num_gpus,
                num_nodes=problem.num_nodes,
                node_distance=problem.node_distance,
            )
            reached = [set((token // problem.slots_per_node).tolist()) for token in slots]
            for node in range(problem.num_nodes):
                expected = sum(node in nodes for nodes in reached) / tokens / problem.num_nodes
                assert served.nodes[layer, home, node] == pytest.approx(expected)
    if problem.node_distance is not None:
        assert served.remote_distance(problem.node_distance).max() <= 2 * served.remote_nodes.max() + 1e-9


def big_trace() -> tuple[PlacementProblem, NDArray[np.int64]]:
    random = np.random.default_rng(8)
    topk = random.random((2, 6000, 24)).argsort(axis=2)[:, :, :4]
    problem = problem_of(topk, num_experts=24, num_gpus=8, num_nodes=4, num_slots=32)
    rows = [np.concatenate([random.permutation(24), random.permutation(24)[:8]]) for _ in range(2)]
    return problem, np.stack(rows)


def test_a_sample_says_so_and_is_near_the_exact_mean() -> None:
    problem, slot_map = big_trace()
    exact = traffic(problem, slot_map)
    assert exact.all_homes
    assert exact.num_tokens == 6000
    for limit, tokens in ((6000 * 2, 6000), (5000, 2500)):
        sample = traffic(problem, slot_map, max_served=limit)
        assert not sample.all_homes
        assert sample.num_tokens == tokens
        for rule in RULES:
            assert sample.served[rule].remote_nodes == pytest.approx(exact.served[rule].remote_nodes, rel=0.05)
            assert sample.served[rule].gpu_loads == pytest.approx(exact.served[rule].gpu_loads, rel=0.2)
    assert (exact.served["cover"].remote_nodes < 0.97 * exact.served["local"].remote_nodes).all()
    assert (exact.served["local"].remote_nodes < 0.97 * exact.served["even"].remote_nodes).all()


def test_fewer_tokens_than_nodes_start_from_as_many_homes_as_they_are() -> None:
    topk = np.random.default_rng(2).random((2, 5, 32)).argsort(axis=2)[:, :, :3]
    problem = problem_of(topk, num_experts=32, num_gpus=16, num_nodes=16, num_slots=32)
    found = traffic(problem, np.stack([np.arange(32)] * 2), max_served=20)
    assert (found.all_homes, found.num_tokens) == (False, 5)
    for rule in RULES:
        assert found.served[rule].gpu_loads.sum(axis=1) == pytest.approx(3)
        assert found.served[rule].remote_messages == pytest.approx(3 * (1 - 1 / 16))  # one copy: any home


def test_on_many_nodes_fewer_tokens_are_served() -> None:
    topk = np.random.default_rng(2).integers(0, 64, (1, 4000, 1))
    copies = np.concatenate([np.arange(64), np.arange(64)])[None]
    problem = problem_of(topk, num_experts=64, num_gpus=64, num_nodes=64, num_slots=128)
    found = traffic(problem, copies)
    assert (found.all_homes, found.num_tokens) == (False, 4000)
    assert traffic(problem, copies, max_served=4000 * 64).all_homes


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_homes_of_sequences_are_even(sequences: int, nodes: int, seed: int) -> None:
    cost = np.random.default_rng(seed).integers(0, 4, (sequences, nodes)).astype(float)
    counts = np.bincount(even_homes(cost), minlength=nodes)
    assert counts.sum() == sequences
    assert counts.max() - counts.min() <= 1


def test_who_would_lose_most_by_the_second_choice_chooses_first() -> None:
    assert even_homes(np.array([[0.0, 1], [0, 10], [3, 3], [5, 1]])).tolist() == [0, 0, 1, 1]
    assert even_homes(np.array([[0.0, 1], [0, 10]])).tolist() == [1, 0]


def test_sequences_that_live_on_a_node_reach_no_other_once_they_are_home() -> None:
    random = np.random.default_rng(1)
    group = np.repeat(random.permutation(np.repeat(np.arange(4), 3)), 50)  # 12 sequences of 50 tokens, 3 a group
    sequence = np.repeat(np.arange(12), 50)
    topk = (group[:, None] * 4 + random.random((600, 4)).argsort(axis=1)[:, :2])[None]
    problem = problem_of(topk, num_experts=16, num_gpus=4, num_nodes=4, num_slots=16)
    slot_map = np.arange(16)[None]
    found = sequence_affinity(problem, slot_map, sequence)
    assert found is not None
    assert found.remote_nodes == 0
    assert found.uniform_remote_nodes == pytest.approx(0.75)
    assert (found.num_tokens, found.num_sequences) == (12 * 18, 12)
    few = sequence_affinity(problem, slot_map, sequence, max_served=400)
    assert few is not None
    assert (few.num_tokens, few.num_sequences) == (100, 6)
    assert sequence_affinity(problem, slot_map, sequence, max_served=60) is None
    assert sequence_affinity(problem, slot_map, np.arange(600) // 32) is None


def renamed_problem(problem: PlacementProblem, **changes: NDArray[np.generic] | None) -> PlacementProblem:
    fields = {
        "topk": problem.topk,
        "num_experts": problem.num_experts,
        "num_gpus": problem.num_gpus,
        "num_nodes": problem.num_nodes,
        "num_slots": problem.num_slots,
        "node_distance": problem.node_distance,
    }
    return problem_of(**(fields | changes))
