"""Percentiles of a stream in memory that does not grow with it."""

from __future__ import annotations

import math

_RATIO = math.log(1.01)
_LEAST = 1e-9


class Histogram:
    """Counts positive values in buckets 1 % wide, so that quantiles are right to half of that."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._sum = 0.0
        self.count = 0

    def add(self, value: float, times: int = 1) -> None:
        """Count a value; what is not positive counts as the least that is."""
        bucket = round(math.log(max(value, _LEAST)) / _RATIO)
        self._counts[bucket] = self._counts.get(bucket, 0) + times
        self._sum += value * times
        self.count += times

    @property
    def mean(self) -> float:
        """Mean of the values, exact; 0 where there are none."""
        return self._sum / self.count if self.count else 0.0

    def quantile(self, share: float) -> float:
        """Return the value that a share of the values does not exceed; 0 where there are none."""
        left = share * self.count
        for bucket in sorted(self._counts):
            left -= self._counts[bucket]
            if left <= 0:
                return math.exp(bucket * _RATIO)
        return 0.0
