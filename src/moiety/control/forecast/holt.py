"""Holt: level and trend, for loads that rise or fall steadily."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moiety.placement.problem import Loads

_LEVEL, _TREND = 0.5, 0.2
_DAMPING = 0.9
"""Gardner and McKenzie, "Forecasting trends in time series" (1985): a damped trend overshoots less."""


def holt(history: Loads) -> Loads:
    """Return the level after the shares [windows, layers, experts] plus a damped step of their trend."""
    level, trend = history[0], history[0] * 0.0
    for window in history[1:]:
        before = level
        level = _LEVEL * window + (1 - _LEVEL) * (level + _DAMPING * trend)
        trend = _TREND * (level - before) + (1 - _TREND) * _DAMPING * trend
    return level + _DAMPING * trend
