"""The cost of a migration: every byte passes two ports, the nearest holder sends, the busiest port sets the time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moiety.placement.migration.cost import CopyLinks, copies_between, migration_cost, settled
from moiety.placement.problem import PlacementProblem

LINKS = CopyLinks(expert_bytes=100.0, node_bytes_per_s=1000.0, network_bytes_per_s=10.0)


def problem_of(experts: int, gpus: int, nodes: int, slots: int, layers: int = 1) -> PlacementProblem:
    return PlacementProblem(np.ones((1, layers, experts)), gpus, nodes, slots)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[PlacementProblem, np.ndarray, np.ndarray]:
    nodes, per_node, per_gpu = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    slots = nodes * per_node * per_gpu
    experts, layers = draw(st.integers(1, slots)), draw(st.integers(1, 3))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))

    def one() -> np.ndarray:
        spare = random.integers(0, experts, slots - experts)
        return random.permutation(np.concatenate([np.arange(experts), spare]))

    old, new = (np.stack([one() for _ in range(layers)]) for _ in range(2))
    return problem_of(experts, nodes * per_node, nodes, slots, layers), old, new


@settings(deadline=None)
@given(pairs())
def test_bytes_are_the_changed_slots_new_to_their_gpu(case: tuple[PlacementProblem, np.ndarray, np.ndarray]) -> None:
    problem, old, new = case
    width, node_width = problem.slots_per_gpu, problem.slots_per_node
    near = far = 0
    for before, after in zip(old.tolist(), new.tolist(), strict=True):
        for slot, expert in enumerate(after):
            gpu = before[slot // width * width : (slot // width + 1) * width]
            node = before[slot // node_width * node_width : (slot // node_width + 1) * node_width]
            near += expert not in gpu and expert in node
            far += expert not in node
    cost = migration_cost(problem, old, new, LINKS)
    assert cost.node_bytes == near * LINKS.expert_bytes
    assert cost.network_bytes == far * LINKS.expert_bytes
    assert cost.size_bytes == cost.num_copies * LINKS.expert_bytes
    assert cost.num_changed_slots == (old != new).sum()
    assert max(cost.layer_time_s) <= cost.time_s * (1 + 1e-9)
    assert cost.time_s <= sum(cost.layer_time_s) * (1 + 1e-9)


@settings(deadline=None)
@given(pairs())
def test_every_copy_has_a_source_in_the_previous_map(case: tuple[PlacementProblem, np.ndarray, np.ndarray]) -> None:
    problem, old, new = case
    copies = copies_between(problem, old, new)
    np.testing.assert_array_equal(old[copies.layer, copies.source_slot], copies.expert)
    np.testing.assert_array_equal(new[copies.layer, copies.slot], copies.expert)


@settings(deadline=None)
@given(pairs())
def test_settling_keeps_what_each_gpu_holds_and_moves_least(
    case: tuple[PlacementProblem, np.ndarray, np.ndarray],
) -> None:
    problem, old, new = case
    calm = settled(problem, old, new)
    shape = (-1, problem.slots_per_gpu)
    np.testing.assert_array_equal(np.sort(calm.reshape(shape)), np.sort(new.reshape(shape)))
    held = zip(old.reshape(shape).tolist(), new.reshape(shape).tolist(), strict=True)
    stay = sum(min(a.count(expert), b.count(expert)) for a, b in held for expert in set(a))
    assert (calm == old).sum() == stay
    assert migration_cost(problem, old, calm, LINKS).size_bytes == migration_cost(problem, old, new, LINKS).size_bytes


def test_no_change_costs_nothing() -> None:
    slots = np.array([[0, 1, 2, 0]])
    cost = migration_cost(problem_of(3, 2, 1, 4), slots, slots, LINKS)
    assert (cost.size_bytes, cost.time_s, cost.layer_time_s) == (0, 0, (0.0,))


def test_the_busiest_port_sets_the_time() -> None:
    problem = problem_of(4, 4, 2, 8)
    old = np.array([[0, 1, 2, 3, 2, 3, 2, 3]])
    new = np.array([[0, 1, 2, 0, 0, 1, 2, 3]])  # 0 to GPU 1 of its node, 0 and 1 to GPU 2 of the other
    cost = migration_cost(problem, old, new, LINKS)
    assert (cost.node_bytes, cost.network_bytes) == (100, 200)
    assert cost.time_s == pytest.approx(200 / 10)


def test_sources_take_turns() -> None:
    problem = problem_of(4, 4, 1, 8)
    old = np.array([[0, 1, 0, 2, 1, 2, 1, 3]])
    new = np.array([[0, 1, 0, 2, 0, 2, 0, 3]])
    copies = copies_between(problem, old, new)
    assert sorted(copies.source_slot.tolist()) == [0, 2]
    assert migration_cost(problem, old, new, LINKS).time_s == pytest.approx(0.1)
