"""Traffic of a day: how much is asked for, and of which experts, window by window."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from moiety.control.day.conditions import Conditions
    from moiety.placement.problem import Loads

DAY_S = 86_400.0


class Traffic:
    """Draws the windows of a day one after the other; the same seed draws the same.

    `shares` [layers, experts] are the plan's; around noon the traffic is of another kind, equally skewed. Each expert's
    popularity walks besides, and scatters.
    """

    def __init__(self, shares: Loads, conditions: Conditions, window_s: float, seed: int) -> None:
        self._conditions = conditions
        self._rng = np.random.default_rng(seed)
        self._morning = shares
        self._noon = self._rng.permuted(shares, axis=1)
        self._walk = np.zeros_like(shares)
        self._kept = math.exp(-window_s / conditions.walk_s)

    def demand(self, time_s: float, capacity_tokens_per_s: float) -> float:
        """Return the tokens a second that are asked for in the window that ends at `time_s`."""
        of = self._conditions
        swing = _swing(time_s)
        share = of.trough_share + (of.peak_share - of.trough_share) * swing
        return max(capacity_tokens_per_s * share * (1 + of.demand_noise * float(self._rng.standard_normal())), 0.0)

    def counts(self, time_s: float, routed_tokens: float) -> Loads:
        """Return the tokens of each expert in that window, [layers, experts]."""
        of, rng, shape = self._conditions, self._rng, self._walk.shape
        drawn = rng.normal(0.0, of.walk_spread, shape)
        self._walk = self._kept * self._walk + math.sqrt(1 - self._kept**2) * drawn
        mix = _swing(time_s)
        shares = ((1 - mix) * self._morning + mix * self._noon) * np.exp(
            self._walk + rng.normal(0.0, of.scatter, shape)
        )
        shares /= shares.sum(axis=1, keepdims=True)
        counts: Loads = rng.multinomial(round(routed_tokens), shares).astype(np.float64)
        return counts


def _swing(time_s: float) -> float:
    """Return 0 at midnight and 1 at noon."""
    return 0.5 - 0.5 * math.cos(2 * math.pi * time_s / DAY_S)
