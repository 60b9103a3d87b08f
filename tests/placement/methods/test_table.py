"""Laws of every placement method, over the table of methods."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moiety.placement.linear import place_linear
from moiety.placement.lower_bound import peak_lower_bound
from moiety.placement.methods.balance import peaks
from moiety.placement.methods.packing import has_twins
from moiety.placement.methods.table import METHODS
from moiety.placement.problem import PlacementProblem

if TYPE_CHECKING:
    from moiety.placement.problem import SlotMap

NAMES = sorted(METHODS)
APART = [name for name in NAMES if not name.startswith("eplb")]  # EPLB may put two copies on one GPU


@st.composite
def problems(draw: st.DrawFn) -> PlacementProblem:
    num_nodes, gpus_per_node = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    num_gpus = num_nodes * gpus_per_node
    experts = draw(st.integers(1, 14))
    per_gpu = draw(st.integers(-(-experts // num_gpus), min(experts, -(-experts // num_gpus) + 2)))
    groups = draw(st.sampled_from([count for count in range(1, experts + 1) if experts % count == 0]))
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 3)), experts)
    size = int(np.prod(shape))
    some = st.one_of(st.integers(0, 4), st.integers(0, 10_000))
    counts = draw(st.lists(some, min_size=size, max_size=size))
    return PlacementProblem(
        counts=np.array(counts, dtype=np.float64).reshape(shape),
        num_gpus=num_gpus,
        num_nodes=num_nodes,
        num_slots=per_gpu * num_gpus,
        num_groups=groups,
    )


def height(problem: PlacementProblem, slots: SlotMap) -> np.ndarray:
    return peaks(problem, problem.shares(), slots)


def by_gpu(problem: PlacementProblem, slots: SlotMap) -> SlotMap:
    return slots.reshape(problem.num_layers, problem.num_gpus, -1)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(problem=problems())
def test_every_expert_has_a_copy_and_every_slot_an_expert(name: str, problem: PlacementProblem) -> None:
    slots = METHODS[name](problem)
    assert slots.shape == (problem.num_layers, problem.num_slots)
    assert slots.dtype == np.int64
    for row in slots:
        assert set(row.tolist()) == set(range(problem.num_experts))


@pytest.mark.parametrize("name", APART)
@settings(max_examples=25, deadline=None)
@given(problem=problems())
def test_no_gpu_holds_two_copies_of_an_expert(name: str, problem: PlacementProblem) -> None:
    for layer in by_gpu(problem, METHODS[name](problem)):
        for gpu in layer.tolist():
            assert len(set(gpu)) == len(gpu)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None)
@given(problem=problems())
def test_the_same_problem_has_the_same_answer(name: str, problem: PlacementProblem) -> None:
    assert np.array_equal(METHODS[name](problem), METHODS[name](replace(problem, counts=problem.counts.copy())))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30, deadline=None)
@given(problem=problems())
def test_no_peak_is_below_the_bound(name: str, problem: PlacementProblem) -> None:
    slots = METHODS[name](problem)
    shares = problem.shares()
    assert (height(problem, slots) >= 1 / problem.num_gpus - 1e-9).all()
    apart = ~has_twins(by_gpu(problem, slots))
    bound = peak_lower_bound(shares, num_gpus=problem.num_gpus, num_slots=problem.num_slots).max(axis=0)
    assert (height(problem, slots) >= bound - 1e-9)[apart].all()


@settings(max_examples=60, deadline=None)
@given(problem=problems())
def test_balance_is_never_worse_than_the_simple_methods(problem: PlacementProblem) -> None:
    ours = height(problem, METHODS["balance"](problem))
    for name in NAMES:
        slots = METHODS[name](problem)
        apart = ~has_twins(by_gpu(problem, slots))
        if name != "eplb":  # the hierarchical one is no candidate of ours
            assert (ours <= height(problem, slots) * (1 + 2e-4))[apart].all()


@pytest.mark.parametrize("seed", range(8))
def test_renumbering_the_experts_leaves_the_peaks(seed: int) -> None:
    random = np.random.default_rng(seed)
    counts = random.lognormal(0, 0.8, (1 + seed % 2, 3, 24))  # no two alike: ties go by number
    problem = PlacementProblem(counts, 4, 2, 28)
    order = random.permutation(24)
    renamed = replace(problem, counts=counts[:, :, order])
    after = height(renamed, METHODS["balance"](renamed))
    assert after == pytest.approx(height(problem, METHODS["balance"](problem)), rel=2e-4)


@settings(max_examples=20, deadline=None)
@given(problem=problems(), data=st.data())
def test_eplb_does_not_care_for_numbers_where_loads_differ(problem: PlacementProblem, data: st.DataObject) -> None:
    size = problem.num_layers * problem.num_experts
    loads = data.draw(st.lists(st.integers(1, 10**6), min_size=size, max_size=size, unique=True))
    counts = np.array(loads, dtype=np.float64).reshape(1, problem.num_layers, -1)
    order = data.draw(st.permutations(range(problem.num_experts)))
    plain, renamed = replace(problem, counts=counts), replace(problem, counts=counts[:, :, order])
    copies = [np.bincount(row, minlength=problem.num_experts) for row in METHODS["eplb-global"](plain)]
    again = [np.bincount(row, minlength=problem.num_experts) for row in METHODS["eplb-global"](renamed)]
    scale = [load / count for load, count in zip(counts[0], copies, strict=True)]
    rescale = [load[order] / count for load, count in zip(counts[0], again, strict=True)]
    for one, other in zip(scale, rescale, strict=True):
        assert other.max() == pytest.approx(one.max(), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_one_gpu_holds_everything(name: str) -> None:
    problem = PlacementProblem(np.array([[[3.0, 1.0, 2.0]]]), 1, 1, 3)
    assert sorted(METHODS[name](problem)[0]) == [0, 1, 2]


@pytest.mark.parametrize("name", NAMES)
def test_one_slot_a_gpu(name: str) -> None:
    problem = PlacementProblem(np.array([[[3.0, 1.0, 2.0, 0.0]]]), 4, 2, 4, num_groups=2)
    assert sorted(METHODS[name](problem)[0]) == [0, 1, 2, 3]


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_without_tokens_is_placed(name: str) -> None:
    counts = np.zeros((2, 2, 8))
    counts[:, 0] = np.arange(8)
    problem = PlacementProblem(counts, 4, 2, 12, num_groups=2)
    for row in METHODS[name](problem):
        assert set(row.tolist()) == set(range(8))


def test_an_expert_with_all_tokens_gets_a_copy_on_every_gpu() -> None:
    problem = PlacementProblem(np.array([[[0.0, 0.0, 9.0, 0.0, 0.0, 0.0]]]), 4, 1, 12)
    slots = METHODS["balance"](problem)
    assert np.bincount(slots[0])[2] == 4
    assert height(problem, slots) == pytest.approx([0.25])


@pytest.mark.parametrize("name", APART)
def test_as_many_slots_as_experts_on_every_gpu(name: str) -> None:
    problem = PlacementProblem(np.array([[[5.0, 1.0, 0.0]]]), 4, 2, 12)
    assert (np.sort(by_gpu(problem, METHODS[name](problem)), axis=2) == [0, 1, 2]).all()


def test_linear_is_the_placement_of_a_plan_without_routing() -> None:
    problem = PlacementProblem(np.ones((1, 2, 8)), 4, 2, 12)
    placement = place_linear(layers=(0, 1), num_experts=8, redundant_experts=4, num_gpus=4, num_nodes=2, expert_tp=1)
    assert METHODS["linear"](problem).tolist() == [list(row) for row in placement.physical_to_logical_map]
