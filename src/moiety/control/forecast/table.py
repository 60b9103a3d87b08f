"""The predictors, by name; the first is what the others have to beat."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from moiety.control.forecast.autoregression import autoregression
from moiety.control.forecast.ewma import ewma
from moiety.control.forecast.holt import holt
from moiety.control.forecast.kalman import kalman
from moiety.control.forecast.last_value import last_value

if TYPE_CHECKING:
    from collections.abc import Callable

    from moiety.placement.problem import Loads

Predictor: TypeAlias = "Callable[[Loads], Loads]"
"""What makes shares of the next window, [layers, experts], of shares so far, [windows, layers, experts]."""

PREDICTORS: dict[str, Predictor] = {
    "last-value": last_value,
    "ewma": ewma,
    "holt": holt,
    "kalman": kalman,
    "autoregression": autoregression,
}
