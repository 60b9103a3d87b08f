"""The figures of a slot map: worked by hand on small cases, bounded, and the same after JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings

from moiety.placement.metrics import PlacementMetrics, gpu_loads, measure, wasted_slots
from moiety.placement.problem import PlacementProblem
from tests.placement.placed import by_gpu, placed_traces, problem_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Placed = tuple[PlacementProblem, NDArray[np.int64]]


def counted(counts: list[list[float]], **machine: int | NDArray[np.float64]) -> PlacementProblem:
    """Return the problem of one layer's counts by window, [windows, experts]."""
    return PlacementProblem(counts=np.array(counts, dtype=float)[:, None], **machine)


def test_balance_by_hand() -> None:
    problem = counted([[4, 2, 2], [0, 6, 2]], num_gpus=4, num_nodes=2, num_slots=4)
    slot_map = np.array([[0, 1, 2, 0]])
    assert gpu_loads(problem, slot_map) == pytest.approx(np.array([[[2, 2, 2, 2]], [[0, 6, 2, 0]]]) / 8)
    found = measure(problem, slot_map)
    assert found.gpu_balance.by_window == pytest.approx((1, 1 / 3))
    assert found.gpu_balance.mean == pytest.approx(2 / 3)
    assert found.gpu_balance.worst_layer == pytest.approx(1 / 3)
    assert found.node_balance.by_window == pytest.approx((1, 4 / 6))
    assert found.balance_bound.by_window == pytest.approx((1, 2 / 3))  # 6 on at most two of the four slots
    assert found.redundancy == pytest.approx(1 / 3)
    assert (found.wasted_slots, found.traffic, found.versus) == (0, None, None)


def test_a_fast_gpu_should_carry_more() -> None:
    speed = np.array([3.0, 1.0])
    problem = counted([[6, 2]], num_gpus=2, num_nodes=1, num_slots=2, gpu_speed=speed)
    assert measure(problem, np.array([[0, 1]])).gpu_balance.mean == pytest.approx(1)
    assert measure(problem, np.array([[1, 0]])).gpu_balance.mean == pytest.approx(4 / 12)


def test_copies_on_their_own_gpu_are_wasted() -> None:
    problem = counted([[1, 1, 1]], num_gpus=2, num_nodes=1, num_slots=8)
    assert wasted_slots(problem, np.array([[0, 1, 0, 0, 2, 1, 2, 0]])) == 3
    assert measure(problem, np.array([[0, 1, 0, 0, 2, 1, 2, 0]])).wasted_slots == 3


def test_a_window_or_layer_without_tokens_is_measured_all_the_same() -> None:
    counts = np.array([[[1.0, 3], [0, 0]], [[0, 0], [0, 0]]])
    found = measure(PlacementProblem(counts, num_gpus=2, num_nodes=2, num_slots=2), np.array([[0, 1], [0, 1]]))
    assert found.gpu_balance.by_window == pytest.approx(((2 / 3 + 1) / 2,) * 2)


@given(placed_traces())
@settings(max_examples=60)
def test_figures_are_legal_bounded_and_survive_json(placed: Placed) -> None:
    problem, slot_map = placed
    assert problem.topk is not None
    sequence = np.zeros(problem.topk.shape[1], dtype=np.int64)
    found = measure(problem, slot_map, sequence=sequence)
    assert PlacementMetrics.model_validate_json(found.model_dump_json()) == found
    if found.wasted_slots == 0:
        assert found.gpu_balance.mean <= found.balance_bound.mean + 1e-9
    assert found.gpu_balance.mean <= found.node_balance.mean + 1e-9
    assert found.traffic is not None
    assert found.traffic.even.remote_messages == pytest.approx(found.traffic.flat_messages)
    if problem.node_distance is None:
        assert found.traffic.cover.remote_distance == found.traffic.cover.remote_nodes


@given(placed_traces())
@settings(max_examples=40)
def test_balance_does_not_depend_on_the_order_of_slots_gpus_and_nodes(placed: Placed) -> None:
    problem, slot_map = placed
    shapes = by_gpu(problem, slot_map)
    for moved in (shapes[:, :, :, ::-1], shapes[:, :, ::-1], shapes[:, ::-1]):
        found = measure(problem, moved.reshape(slot_map.shape))
        expected = measure(problem, slot_map)
        assert found.gpu_balance.mean == pytest.approx(expected.gpu_balance.mean)
        assert found.node_balance.mean == pytest.approx(expected.node_balance.mean)
        assert found.wasted_slots == expected.wasted_slots
        assert found.balance_bound == expected.balance_bound


def test_a_map_beside_another() -> None:
    topk = np.tile(np.array([[0, 1], [2, 3]]), (200, 1))[None]
    problem = problem_of(topk, num_experts=4, num_gpus=2, num_nodes=2, num_slots=4)
    apart = measure(problem, np.array([[0, 2, 1, 3]]))
    found = measure(problem, np.array([[0, 1, 2, 3]]), versus=("apart", apart))
    assert found.traffic is not None
    assert found.traffic.cover.remote_nodes == pytest.approx(0.5)
    assert found.versus is not None
    assert found.versus.name == "apart"
    assert found.versus.balance_gain == 0
    assert found.versus.remote_nodes_below_even == pytest.approx(0.5)
    assert found.versus.remote_nodes_below_local == pytest.approx(0.5)
    assert found.versus.remote_nodes_below_cover == pytest.approx(0.5)
    assert found.versus.remote_nodes_below_flat == pytest.approx(0.5)


def test_remote_nodes_are_weighed_by_their_distance() -> None:
    distance = np.array([[0.0, 5], [7, 0]])
    topk = np.array([[[0], [1], [1]]])
    problem = problem_of(topk, num_experts=2, num_gpus=2, num_nodes=2, num_slots=2, node_distance=distance)
    found = measure(problem, np.array([[0, 1]])).traffic
    assert found is not None
    assert found.cover.remote_nodes == pytest.approx(0.5)
    assert found.cover.remote_distance == pytest.approx((2 * 5 + 1 * 7) / 6)


def test_on_one_node_there_is_no_traffic_to_be_below() -> None:
    problem = problem_of(np.array([[[0, 1]]]), num_experts=2, num_gpus=2, num_nodes=1, num_slots=2)
    one = measure(problem, np.array([[0, 1]]))
    two = measure(problem, np.array([[1, 0]]), versus=("one", one)).versus
    assert two is not None
    assert two.remote_nodes_below_even is None
    assert two.remote_nodes_below_flat is None
