"""The choice of a predictor: never much worse than the last value, on average better than any fixed one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.control.forecast.backtest import empty_forecast, observe
from moiety.control.forecast.table import PREDICTORS

WINDOWS, LAYERS, EXPERTS = 160, 2, 32
_FIRST = 20
"""Windows before errors count: each predictor has seen something."""


def traces() -> dict[str, np.ndarray]:
    """Return loads of several kinds, each [windows, layers, experts]."""
    rng = np.random.default_rng(0)
    base = rng.normal(0.0, 0.8, (LAYERS, EXPERTS))
    other = rng.normal(0.0, 0.8, (LAYERS, EXPERTS))
    time = np.arange(WINDOWS)[:, None, None]
    noise = rng.normal(0.0, 1.0, (WINDOWS, LAYERS, EXPERTS))
    walk = np.cumsum(rng.normal(0.0, 0.1, noise.shape), axis=0)
    logs = {
        "noise": base + 0.2 * noise,
        "walk": base + walk,
        "walk and noise": base + 0.3 * walk + 0.1 * noise,
        "day": base + other * np.sin(2 * np.pi * time / WINDOWS) + 0.02 * noise,
        "jumps": np.where((time // 40) % 2 == 0, base, other) + 0.05 * noise,
        "swing": base + 0.4 * other * np.cos(2 * np.pi * time / 7) + 0.03 * noise,
    }
    return {name: np.exp(log) for name, log in logs.items()}


def errors(trace: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the mean error of the chosen predictor, and those of each by itself."""
    forecast = empty_forecast(LAYERS, EXPERTS)
    chosen, fixed = [], []
    for at, loads in enumerate(trace):
        expected, each = forecast.shares, forecast.predicted
        forecast = observe(forecast, 1e5 * loads)
        if at >= _FIRST:
            actual = forecast.history[-1]
            chosen.append(np.abs(expected - actual).sum(axis=1).mean())
            fixed.append(np.abs(each - actual).sum(axis=2).mean(axis=1))
    return float(np.mean(chosen)), np.mean(fixed, axis=0)


def test_the_choice_is_never_much_worse_than_the_last_value_and_beats_every_fixed_one_on_average() -> None:
    relative: list[float] = []
    fixed: list[np.ndarray] = []
    for name, trace in traces().items():
        chosen, each = errors(trace)
        assert chosen <= 1.1 * each[0], name
        relative.append(chosen / each[0])
        fixed.append(each / each[0])
    assert np.mean(relative) < np.mean(fixed, axis=0).min()


@pytest.mark.parametrize("name", PREDICTORS)
@given(windows=st.integers(1, 12), seed=st.integers(0, 1000))
def test_a_load_that_never_changes_is_predicted(name: str, windows: int, seed: int) -> None:
    shares = np.random.default_rng(seed).dirichlet(np.ones(EXPERTS), size=LAYERS)
    predicted = PREDICTORS[name](np.repeat(shares[None], windows, axis=0))
    assert predicted == pytest.approx(shares, abs=1e-9)


@given(st.integers(0, 1000), st.integers(1, 40))
def test_forecasts_are_shares_whatever_is_seen(seed: int, windows: int) -> None:
    rng = np.random.default_rng(seed)
    forecast = empty_forecast(LAYERS, EXPERTS)
    for _ in range(windows):
        counts = rng.pareto(0.5, (LAYERS, EXPERTS))
        counts[rng.random(counts.shape) < 0.3] = rng.choice([0.0, np.nan, np.inf, -1.0])
        if rng.random() < 0.2:
            counts[:] = 0.0
        forecast = observe(forecast, counts)
    assert forecast.shares.sum(axis=1) == pytest.approx(np.ones(LAYERS))
    assert forecast.shares.min() >= 0
