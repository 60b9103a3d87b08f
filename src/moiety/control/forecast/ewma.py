"""EWMA: the exponentially weighted moving average, for loads that scatter about a level."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from moiety.placement.problem import Loads

_ALPHA = 0.2
"""Weight of the newest window; NIST's e-Handbook of Statistical Methods (6.3.2.4) has 0.2 to 0.3 as usual."""


def ewma(history: Loads) -> Loads:
    """Return the weighted mean of the shares [windows, layers, experts], the newest heaviest."""
    age = np.arange(len(history), dtype=np.float64)[::-1]
    weight = (1 - _ALPHA) ** age
    weight[1:] *= _ALPHA  # the oldest carries what is left
    mean: Loads = np.tensordot(weight, history, axes=1)
    return mean
