"""Placements: every expert lives somewhere, and how unevenly work falls on the ranks."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.placement.linear import place_linear
from moiety.placement.load import coverage, rank_loads, zipf_share
from moiety.placement.placement import Placement


def linear(num_experts: int, redundant: int, ranks: int, expert_tp: int = 1) -> Placement:
    return place_linear(
        layers=(0, 1),
        num_experts=num_experts,
        redundant_experts=redundant,
        num_gpus=ranks * expert_tp,
        num_nodes=1,
        expert_tp=expert_tp,
    )


@given(st.integers(1, 8), st.integers(1, 16), st.integers(0, 4), st.sampled_from([1, 2]))
def test_every_expert_lives_somewhere(per_rank: int, ranks: int, spare: int, expert_tp: int) -> None:
    placement = linear(per_rank * ranks, min(spare, per_rank) * ranks, ranks, expert_tp)
    for row in range(2):
        held = [expert for rank in range(ranks) for expert in placement.experts_of_rank(row, rank)]
        assert set(held) == set(range(per_rank * ranks))
        assert len(held) == placement.num_slots


@given(st.integers(2, 8), st.integers(2, 12), st.data())
def test_more_redundancy_never_lowers_coverage(per_rank: int, ranks: int, data: st.DataObject) -> None:
    lost = frozenset(data.draw(st.sets(st.integers(0, ranks - 1), max_size=ranks - 1)))
    kept = [coverage(linear(per_rank * ranks, spare * ranks, ranks), lost) for spare in range(per_rank + 1)]
    assert kept[0] == pytest.approx(1 - len(lost) / ranks)
    assert kept == sorted(kept)
    assert coverage(linear(per_rank * ranks, 0, ranks), frozenset()) == 1


def test_coverage_counts_pairs_of_layers_and_experts() -> None:
    placement = linear(8, 4, 4)  # ranks hold 012, 234, 456, 670
    assert placement.physical_to_logical_map[0] == (0, 1, 2, 2, 3, 4, 4, 5, 6, 6, 7, 0)
    assert coverage(placement, frozenset({0})) == pytest.approx(7 / 8)
    assert coverage(placement, frozenset({0, 2})) == pytest.approx(6 / 8)
    assert coverage(placement, frozenset({0, 3})) == pytest.approx(5 / 8)


def test_experts_that_do_not_divide_fill_the_ranks_in_order() -> None:
    assert linear(10, 2, 4).physical_to_logical_map[0] == (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1)


@given(st.integers(1, 64), st.floats(0, 3), st.integers(1, 16), st.sampled_from([0, 1]))
def test_loads_average_one(num_experts: int, exponent: float, ranks: int, spare: int) -> None:
    experts = num_experts * ranks
    share = zipf_share(experts, exponent)
    assert math.isclose(sum(share), 1, rel_tol=1e-9)
    assert all(each > 0 for each in share)
    loads = rank_loads(linear(experts, spare * ranks, ranks), 0, share)
    assert math.isclose(sum(loads) / ranks, 1, rel_tol=1e-9)


def test_the_law_has_its_exponent() -> None:
    ordered = sorted(zipf_share(64, 1.0), reverse=True)
    assert ordered[0] / ordered[9] == pytest.approx(10)
    assert len(set(zipf_share(64, 0.0))) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"physical_to_logical_map": ((0, 1, 2, 2), (0, 1, 2, 3))}, "experts without a slot"),
        ({"physical_to_logical_map": ((0, 1, 2, 9), (0, 1, 2, 3))}, "unknown experts"),
        ({"physical_to_logical_map": ((0, 1, 2, 3, 0), (0, 1, 2, 3, 0))}, "do not divide"),
        ({"layers": (0,)}, "1 layers but 2 rows"),
        ({"expert_tp": 3}, "must divide"),
    ],
)
def test_impossible_placements_are_refused(changes: dict[str, object], said: str) -> None:
    fields = linear(4, 0, 2).model_dump() | changes
    with pytest.raises(ValueError, match=said):
        Placement.model_validate(fields)
