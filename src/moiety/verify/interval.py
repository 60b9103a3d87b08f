"""Interval: a number as it was written down, with what its rounding leaves open."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Interval:
    """All values that a written number may stand for; arithmetic keeps the widest bounds."""

    low: float
    value: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> Interval:
        """Return the interval of a number without rounding."""
        return cls(value, value, value)

    def __mul__(self, other: Interval | float) -> Interval:
        other = other if isinstance(other, Interval) else Interval.exactly(other)
        corners = [a * b for a in (self.low, self.high) for b in (other.low, other.high)]
        return Interval(min(corners), self.value * other.value, max(corners))

    def __truediv__(self, other: Interval | float) -> Interval:
        other = other if isinstance(other, Interval) else Interval.exactly(other)
        if other.low <= 0 <= other.high:
            msg = "an interval that holds zero cannot divide"
            raise ZeroDivisionError(msg)
        return self * Interval(1 / other.high, 1 / other.value, 1 / other.low)

    def __add__(self, other: float) -> Interval:
        return Interval(self.low + other, self.value + other, self.high + other)

    def overlaps(self, other: Interval) -> bool:
        """Whether both may stand for the same value; bounds that touch up to the last bits of a float do."""
        slack = 1e-9 * max(abs(self.value), abs(other.value))
        return self.low <= other.high + slack and other.low <= self.high + slack

    def near(self, value: float, tolerance: float) -> bool:
        """Whether `value` lies within the relative `tolerance` of some value of the interval."""
        reach = tolerance * max(abs(value), abs(self.value))
        return self.low - reach <= value <= self.high + reach
