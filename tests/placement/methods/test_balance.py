"""Our balance: published toys, loads like DeepSeek-V3's, several windows, GPUs of several speeds."""

from __future__ import annotations

import numpy as np
import pytest

from moiety.placement.methods.balance import balance, peaks
from moiety.placement.methods.eplb import eplb_global
from moiety.placement.methods.packing import has_twins
from moiety.placement.problem import PlacementProblem


def skewed(layers: int, experts: int, seed: int, sigma: float = 0.78) -> np.ndarray:
    """Return counts with the skew of DeepSeek-V3: coefficient of variation .73 to 1.07, max 5.6 to 8.1 x mean."""
    found: list[np.ndarray] = []
    random = np.random.default_rng(seed)
    while len(found) < layers:
        row = random.lognormal(0, sigma, experts)
        row /= row.mean()
        if experts < 256 or (0.73 <= row.std() <= 1.07 and 5.6 <= row.max() <= 8.1):
            found.append(np.round(row * 1e4))
    return np.array(found)


def balances(problem: PlacementProblem, slots: np.ndarray) -> np.ndarray:
    return 1 / (problem.num_gpus * peaks(problem, problem.shares(), slots))


def test_peaks_of_a_map_counted_by_hand() -> None:
    problem = PlacementProblem(np.array([[[6.0, 3, 1]], [[2.0, 6, 2]]]), 2, 1, 4, gpu_speed=np.array([3.0, 1.0]))
    # Shares .6 .3 .1 and .2 .6 .2; GPU 0 holds 0 and 1, GPU 1 holds 0 and 2; speeds 1.5 and .5.
    assert peaks(problem, problem.shares(), np.array([[0, 1, 0, 2]])) == pytest.approx([0.4 / 0.5])


def test_the_toy_of_flashlb() -> None:
    loads = np.array([[[600.0, 560, 120, 120, 20, 10, 10, 10]]])
    problem = PlacementProblem(loads, 8, 1, 16)
    assert 1450 * peaks(problem, problem.shares(), balance(problem))[0] <= 196.67


@pytest.mark.parametrize(
    ("slots", "gpus", "bar"), [(288, 32, 0.999), (288, 72, 0.998), (320, 64, 0.999), (384, 128, 0.996)]
)
def test_loads_like_those_of_deepseek_v3(slots: int, gpus: int, bar: float) -> None:
    problem = PlacementProblem(skewed(6, 256, 1)[None], gpus, 1, slots)
    found = balance(problem)
    assert balances(problem, found).mean() >= bar
    assert balances(problem, found).mean() > balances(problem, eplb_global(problem)).mean()
    assert not has_twins(found.reshape(6, gpus, -1)).any()


def test_more_effort_is_no_worse() -> None:
    problem = PlacementProblem(skewed(4, 48, 2)[None], 24, 1, 72)
    low, high = (balances(problem, balance(problem, effort=effort)) for effort in (0.0, 8.0))
    assert (high >= low - 1e-9).all()
    assert high.mean() > low.mean()


def test_two_windows_are_served_by_one_map() -> None:
    decode, prefill = skewed(6, 128, 3), skewed(6, 128, 4)
    both = PlacementProblem(np.array([decode, prefill]), 16, 1, 144)
    only = PlacementProblem(decode[None], 16, 1, 144)
    assert balances(both, balance(only)).mean() < 0.7
    assert balances(both, balance(both)).mean() > 0.98
    assert balances(both, eplb_global(both)).mean() < 0.9

    random = np.random.default_rng(5)
    for part in np.linspace(0, 1, 10):  # workloads between the two, each with tides of its own
        mixed = (1 - part) * decode + part * prefill
        seen = PlacementProblem((mixed * random.lognormal(0, 0.15, mixed.shape))[None], 16, 1, 144)
        assert balances(seen, balance(both)).mean() > 0.81


def test_faster_gpus_take_more() -> None:
    speed = np.repeat([1.0, 2.0], 8)
    loads = skewed(4, 64, 6)[None]
    varied = PlacementProblem(loads, 16, 1, 80, gpu_speed=speed)
    alike = PlacementProblem(loads, 16, 1, 80)
    assert balances(varied, balance(varied)).mean() > 0.98
    assert balances(varied, balance(alike)).mean() < 0.8
