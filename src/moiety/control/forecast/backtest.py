"""Rolling back-test: every predictor predicts each window before it is seen, and who was nearest lately is believed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from moiety.control.forecast.table import PREDICTORS

if TYPE_CHECKING:
    from moiety.placement.problem import Loads, SlotMap

HISTORY = 32
"""Windows that are kept."""
_TESTED = 16
"""Windows whose errors count."""
_FEWEST = 4
"""Errors before anything but the last value is believed."""
_MARGIN = 0.98
"""Of the last value's error: what another predictor must stay below."""

_SURPRISE = 3.0
"""Times its usual error: what was averaged before such a window is of another time; the last value is believed ..."""
_WORSE = 1.2
"""... as it is while another predictor did so much worse in the last window."""


@dataclass(frozen=True, slots=True, eq=False)
class Forecast:
    """Shares seen and predicted, and how far each prediction was off."""

    history: Loads
    """[windows, layers, experts], the newest last; rows sum to 1."""
    predicted: Loads
    """Of the next window, [predictors, layers, experts]."""
    errors: Loads
    """Sum of absolute errors, [windows, predictors, layers]."""

    @property
    def chosen(self) -> SlotMap:
        """The predictor that each layer believes, [layers]."""
        found = np.zeros(self.history.shape[1], dtype=np.int64)
        if len(self.errors) < _FEWEST:
            return found
        error = self.errors.mean(axis=0)
        best = error.argmin(axis=0)
        each = self.errors[:, best, np.arange(len(best))]  # [windows, layers]
        usual = (each[-1] <= _SURPRISE * np.median(each[:-1], axis=0)) & (each[-1] <= _WORSE * self.errors[-1, 0])
        return np.where((error.min(axis=0) < _MARGIN * error[0]) & usual, best, found)

    @property
    def shares(self) -> Loads:
        """The experts' shares expected in the next window, [layers, experts]."""
        expected: Loads = self.predicted[self.chosen, np.arange(self.history.shape[1])]
        return expected


def empty_forecast(num_layers: int, num_experts: int) -> Forecast:
    """Return what is known before the first window: nothing, so equal shares."""
    even = np.full((len(PREDICTORS), num_layers, num_experts), 1.0 / num_experts)
    return Forecast(np.zeros((0, num_layers, num_experts)), even, np.zeros((0, len(PREDICTORS), num_layers)))


def observe(forecast: Forecast, counts: Loads) -> Forecast:
    """Return the forecast after a window of counts [layers, experts].

    A layer without tokens says nothing: it is taken to be as expected. The counts are `cleaned`.
    """
    clean = cleaned(counts)
    total = clean.sum(axis=1, keepdims=True)
    seen = np.where(total > 0, clean / np.where(total > 0, total, 1.0), forecast.shares)
    errors = forecast.errors
    if len(forecast.history):
        errors = np.concatenate([errors, np.abs(forecast.predicted - seen).sum(axis=2)[None]])[-_TESTED:]
    history = np.concatenate([forecast.history, seen[None]])[-HISTORY:]
    predicted = np.stack([_as_shares(predict(history)) for predict in PREDICTORS.values()])
    return replace(forecast, history=history, predicted=predicted, errors=errors)


def cleaned(counts: Loads) -> Loads:
    """Return counts with 0 for what is no finite number above it."""
    return np.where(np.isfinite(counts) & (counts > 0), counts, 0.0)


def _as_shares(predicted: Loads) -> Loads:
    """Return predictions as shares: none below 0, each layer's sum 1."""
    positive = np.maximum(predicted, 0.0)
    total = positive.sum(axis=1, keepdims=True)
    return np.where(total > 0, positive / np.where(total > 0, total, 1.0), 1.0 / predicted.shape[1])
