"""Last value: the next window is like this one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moiety.placement.problem import Loads


def last_value(history: Loads) -> Loads:
    """Return the last of the shares `history` [windows, layers, experts] as those of the next window."""
    last: Loads = history[-1]
    return last
