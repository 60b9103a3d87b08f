"""The bound on a layer's peak: never above the optimum, and equal to it where one argument decides."""

from __future__ import annotations

from itertools import combinations, product
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moiety.placement.lower_bound import peak_lower_bound

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHAPES = [(experts, gpus, slots) for experts in range(1, 6) for gpus in range(1, 4) for slots in range(1, 4)]
POSSIBLE = [(e, g, s) for e, g, s in SHAPES if s <= e <= g * s]


def least_peak(loads: NDArray[np.float64], gpus: int, slots: int, speed: NDArray[np.float64]) -> float:
    """Return the least peak of any placement, by trying them all."""
    best = np.inf
    for chosen in product(combinations(range(loads.size), slots), repeat=gpus):
        held = np.array(chosen)
        copies = np.bincount(held.ravel(), minlength=loads.size)
        if copies.all():
            best = min(best, float(((loads / copies)[held].sum(axis=1) / speed).max()))
    return best


@given(st.sampled_from(POSSIBLE), st.data())
@settings(max_examples=150)
def test_no_placement_is_below_it(shape: tuple[int, int, int], data: st.DataObject) -> None:
    experts, gpus, slots = shape
    some = st.one_of(st.integers(0, 20), st.sampled_from([0, 50, 400]))
    loads = np.array(data.draw(st.lists(some, min_size=experts, max_size=experts)), dtype=float)
    speed = np.array(data.draw(st.lists(st.integers(1, 3), min_size=gpus, max_size=gpus)), dtype=float)
    speed *= gpus / speed.sum()
    bound = float(peak_lower_bound(loads, num_gpus=gpus, num_slots=gpus * slots, gpu_speed=speed))
    assert bound <= least_peak(loads, gpus, slots, speed) * (1 + 1e-9)
    assert bound >= loads.sum() / gpus - 1e-9


@pytest.mark.parametrize(
    ("loads", "gpus", "slots", "peak"),
    [
        ([1, 1, 1, 1], 4, 4, 1),  # the mean
        ([8, 1, 1, 1], 4, 4, 8),  # no spare slot for the hottest
        ([8, 1, 1, 1, 1], 4, 8, 3),  # the mean: 8 on all four, the rest beside it
        ([9, 9, 1], 4, 4, 9),  # one spare slot for two hot experts
        ([12, 3, 3], 2, 4, 9),  # the mean again
        ([10, 4, 4], 3, 3, 10),
        ([10, 10, 4, 4], 2, 4, 14),  # 10 with one of the light ones, whatever is done
        ([0, 0], 2, 2, 0),
    ],
)
def test_it_is_the_optimum_where_one_argument_decides(loads: list[float], gpus: int, slots: int, peak: float) -> None:
    found = float(peak_lower_bound(np.array(loads, dtype=float), num_gpus=gpus, num_slots=slots))
    assert found == pytest.approx(peak, rel=1e-6)
    assert least_peak(np.array(loads, dtype=float), gpus, slots // gpus, np.ones(gpus)) == pytest.approx(peak)


def test_company_lifts_it_above_mean_and_pigeonhole() -> None:
    loads = np.array([6.0, 2, 2, 2])  # 4 slots for 4 experts: 6 has a companion of at least 2, the mean is 6
    assert float(peak_lower_bound(loads, num_gpus=2, num_slots=4)) == pytest.approx(8, rel=1e-6)


def test_rows_are_bounded_apart_and_scale_with_the_loads() -> None:
    loads = np.random.default_rng(3).lognormal(0, 2, (2, 3, 32))
    together = peak_lower_bound(loads, num_gpus=8, num_slots=40)
    apart = [[float(peak_lower_bound(row, num_gpus=8, num_slots=40)) for row in window] for window in loads]
    assert together == pytest.approx(np.array(apart))
    assert peak_lower_bound(loads * 1e6, num_gpus=8, num_slots=40) == pytest.approx(together * 1e6)
