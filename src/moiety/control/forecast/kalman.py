"""Kalman: the local-level model, a level that walks at random and is seen through noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from moiety.placement.problem import Loads

_LEAST = 1e-30
_FEWEST = 3


def noise_and_walk(series: Loads) -> tuple[Loads, Loads]:
    """Return the variances of noise and of the level's steps, each [layers], from `series` [windows, layers, items].

    Under the local-level model successive differences have the covariance -noise and the variance walk + 2 noise
    (Harvey, "Forecasting, structural time series models and the Kalman filter", 1989, 2.4.1). The median over windows
    keeps one jump from counting. Zeros where there are fewer than three windows.
    """
    if len(series) < _FEWEST:
        nothing = np.zeros(series.shape[1])
        return nothing, nothing
    steps: Loads = np.diff(series, axis=0)
    square: Loads = (steps**2).mean(axis=2)
    product: Loads = (steps[1:] * steps[:-1]).mean(axis=2)
    spread, common = _median(square), _median(product)
    noise = np.clip(-common, 0.0, spread / 2)
    return noise, np.maximum(spread - 2 * noise, 0.0)


def _median(values: Loads) -> Loads:
    """Return the median over windows, [layers]."""
    found: Loads = np.asarray(np.median(values, axis=0), dtype=np.float64)
    return found


def steady_gain(noise: Loads, walk: Loads) -> Loads:
    """Return the weight of a new window in the level when the filter has settled, [layers] (Harvey 1989, 3.4.4)."""
    ratio = walk / np.maximum(noise, _LEAST)
    return np.where(noise > 0, (np.sqrt(ratio**2 + 4 * ratio) - ratio) / 2, 1.0)


def kalman(history: Loads) -> Loads:
    """Return the filtered level of the shares [windows, layers, experts], each layer with a gain of its own."""
    gain = steady_gain(*noise_and_walk(history))
    level = history[0]
    for age, window in enumerate(history[1:], start=2):
        level = level + np.maximum(gain, 1.0 / age)[:, None] * (window - level)
    return level
