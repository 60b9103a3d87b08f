"""Rank correlation."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def spearman(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Return the rank correlation; ties share their mean rank. None where one side has no order."""
    first, second = _ranks([a for a, _ in pairs]), _ranks([b for _, b in pairs])
    try:
        return statistics.correlation(first, second)
    except statistics.StatisticsError:
        return None


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and values[order[end]] == values[order[start]]:
            end += 1
        for index in order[start:end]:
            ranks[index] = (start + end - 1) / 2
        start = end
    return ranks
