"""Copies of each expert: the lightest heaviest copy, and counts nearby."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moiety.placement.methods.replica_counts import least_peak_counts, nearby_counts


def every_count(experts: int, slots: int, most: int) -> list[tuple[int, ...]]:
    return [each for each in itertools.product(range(1, most + 1), repeat=experts) if sum(each) == slots]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 100), min_size=1, max_size=4), st.integers(1, 4), st.integers(0, 6))
def test_no_other_counts_have_a_lighter_heaviest_copy(loads: list[int], most: int, spare: int) -> None:
    slots = min(len(loads) + spare, len(loads) * most)
    counts = least_peak_counts(np.array([loads], dtype=np.float64), slots, most)[0]
    assert counts.sum() == slots
    assert counts.min() >= 1
    assert counts.max() <= most
    best = min(
        max(load / count for load, count in zip(loads, each, strict=True))
        for each in every_count(len(loads), slots, most)
    )
    assert (np.array(loads) / counts).max() == pytest.approx(best)


def test_experts_without_load_share_what_is_left() -> None:
    assert least_peak_counts(np.zeros((1, 4)), 8, 4).tolist() == [[2, 2, 2, 2]]
    assert least_peak_counts(np.array([[0.0, 5.0, 0.0]]), 6, 2).tolist() == [[2, 2, 2]]


def test_offsets_shift_copies_between_hot_and_warm() -> None:
    loads = np.array([[600, 560, 120, 120, 20, 10, 10, 10]], dtype=np.float64)
    assert least_peak_counts(loads, 16, 8).tolist() == [[5, 5, 1, 1, 1, 1, 1, 1]]
    assert least_peak_counts(loads, 16, 8, -0.5).tolist() == [[4, 4, 2, 2, 1, 1, 1, 1]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 100), min_size=2, max_size=6), st.integers(2, 4), st.integers(1, 8), st.integers(0, 9))
def test_nearby_counts_are_legal_and_near(loads: list[int], most: int, spare: int, seed: int) -> None:
    load = np.array([loads, loads[::-1]], dtype=np.float64)
    counts = least_peak_counts(load, min(len(loads) + spare, len(loads) * most), most)
    heaviest = np.full(2, load.sum() / 4)
    near = nearby_counts(counts, load, heaviest, most, 5, np.random.default_rng(seed))
    assert (near.sum(axis=2) == counts.sum(axis=1)[:, None]).all()
    assert near.min() >= 1
    assert near.max() <= most
    assert (np.abs(near - counts[:, None]).sum(axis=2) <= 4).all()
    fewer = near < counts[:, None]
    assert (load[:, None] / near < heaviest[:, None, None])[fewer].all()
