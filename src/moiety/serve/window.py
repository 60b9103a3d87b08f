"""Window: what the experts were asked for, added up over steps and attention groups until it is worth telling."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moiety.placement.problem import Loads

_LEAST_ROWS = 100
"""Of an expert of a layer, in the mean, that a window must hold: fewer scatter by more than a tenth."""


class Window:
    """One window's counts; they are asked for once it is over and, where they were too few, again after as long."""

    def __init__(self, began_s: float) -> None:
        self._since_s = began_s
        """When the window began, or its counts were found too few."""
        self._is_asked = False
        """Whether a step has been told to bring the counts."""
        self._counts: Loads | None = None
        self._heard = 0
        """Attention groups that have said theirs since they were asked for."""

    def asks(self, length_s: float, now_s: float) -> bool:
        """Return whether the next step shall bring the counts, as it has been `length_s` and none has been told so."""
        if self._is_asked:
            return False
        self._is_asked = now_s - self._since_s >= length_s
        return self._is_asked

    def take(self, counts: Loads, groups: int, now_s: float) -> Loads | None:
        """Add an attention group's counts [layers with experts, experts]; return all of them if the window is complete.

        It is when each of the `groups` has said what it was asked for, and it is enough.
        """
        self._counts = counts if self._counts is None else self._counts + counts
        self._heard += 1
        if self._heard < groups:
            return None
        if self._counts.sum() < _LEAST_ROWS * self._counts.size:
            self._since_s, self._is_asked, self._heard = now_s, False, 0
            return None
        return self._counts
