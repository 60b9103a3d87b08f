"""Autoregression: the next window from the last two, with coefficients that a layer's experts share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from moiety.placement.problem import Loads

_ORDER = 2
_FEWEST = 6
_RIDGE = 1e-3
"""Relative to the variance: keeps equations of nearly equal windows solvable."""
_LEAST = 1e-30


def autoregression(history: Loads) -> Loads:
    """Return the mean of the shares [windows, layers, experts] plus what the last two deviations from it imply.

    Least squares over all experts of a layer; the last value where there are few windows.
    """
    if len(history) < _FEWEST:
        last: Loads = history[-1]
        return last
    mean = history.mean(axis=0)
    off = history - mean
    lags = np.stack([off[_ORDER - lag : len(off) - lag] for lag in range(1, _ORDER + 1)])  # [lag, windows, layers, e]
    products: Loads = np.einsum("awle,bwle->lab", lags, lags)
    target: Loads = np.einsum("awle,wle->la", lags, off[_ORDER:])
    own = products[:, [0, 1], [0, 1]]  # [layers, lag]
    own = own + _RIDGE * own.mean(axis=1, keepdims=True) + _LEAST
    cross = products[:, 0, 1, None]
    determinant = own[:, :1] * own[:, 1:] - cross**2
    weight: Loads = (own[:, ::-1] * target - cross * target[:, ::-1]) / determinant  # Cramer's rule, [layers, lag]
    latest = np.stack([off[-lag] for lag in range(1, _ORDER + 1)])
    predicted: Loads = mean + np.einsum("la,ale->le", weight, latest)
    return predicted
