"""EPLB: the published algorithm's answers, and its published defects."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moiety.placement.methods.balance import peaks
from moiety.placement.methods.eplb import eplb, eplb_global
from moiety.placement.methods.packing import has_twins
from moiety.placement.problem import PlacementProblem

# The worked example of the README of github.com/deepseek-ai/EPLB: 2 layers, 12 experts in 4 groups, 16 slots,
# 8 GPUs in 2 nodes.
README_LOADS = [
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]
README_MAP = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]


def example(loads: list[list[int]], gpus: int, nodes: int, slots: int, groups: int) -> PlacementProblem:
    return PlacementProblem(np.array([loads], dtype=np.float64), gpus, nodes, slots, num_groups=groups)


def test_the_published_example() -> None:
    assert eplb(example(README_LOADS, 8, 2, 16, 4)).tolist() == README_MAP


def test_groups_that_do_not_divide_over_the_nodes_are_placed_globally() -> None:
    problem = example(README_LOADS, 8, 2, 16, 3)
    assert np.array_equal(eplb(problem), eplb_global(problem))


def test_the_hierarchical_one_keeps_groups_and_their_copies_on_one_node() -> None:
    problem = example(README_LOADS, 8, 2, 16, 4)
    for row in eplb(problem):
        for group in range(4):
            members = np.flatnonzero(row // 3 == group)
            assert len(set((members // problem.slots_per_node).tolist())) == 1


def test_the_windows_are_summed() -> None:
    windows = np.array([README_LOADS, README_LOADS[::-1]], dtype=np.float64)
    apart = PlacementProblem(windows, 8, 2, 16, num_groups=4)
    summed = PlacementProblem(windows.sum(axis=0, keepdims=True), 8, 2, 16, num_groups=4)
    assert np.array_equal(eplb(apart), eplb(summed))


def test_two_copies_may_land_on_one_gpu() -> None:
    slots = eplb_global(example([[8, 1, 1]], 2, 1, 6, 1))
    assert has_twins(slots.reshape(1, 2, 3)).all()


def test_the_toy_of_flashlb_is_missed() -> None:
    problem = example([[600, 560, 120, 120, 20, 10, 10, 10]], 8, 1, 16, 1)
    assert 1450 * peaks(problem, problem.shares(), eplb_global(problem))[0] == pytest.approx(232)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 10), st.integers(0, 12), st.data())
def test_the_heaviest_copy_is_as_light_as_any_counts_make_it(experts: int, spare: int, data: st.DataObject) -> None:
    loads = data.draw(st.lists(st.integers(1, 1000), min_size=experts, max_size=experts))
    row = eplb_global(example([loads], 1, 1, experts + spare, 1))[0]
    counts = np.bincount(row, minlength=experts)
    heaviest = (np.array(loads) / counts).max()
    fewest = np.ceil(np.array(loads) / (heaviest * (1 - 1e-5)))  # what any lighter heaviest copy would take
    assert fewest.sum() > experts + spare
