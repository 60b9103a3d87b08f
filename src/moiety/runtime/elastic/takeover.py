"""Takeover: who of the survivors holds which experts, such that as few of them as possible move."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def slots_needed(num_experts: int, num_ranks: int, most_before: int) -> int:
    """Return the slots of each expert rank: as many as before, or as many as hold every expert."""
    return max(most_before, -(-num_experts // num_ranks))


def taken_over(held: Sequence[Sequence[int]], num_experts: int, width: int) -> tuple[int, ...]:
    """Return a layer's experts by slot, `width` slots a rank, for ranks that hold the experts `held` now.

    Every expert gets a slot, and stays where it is as far as there is room. An expert without a copy goes to the rank
    that holds least, or where all are full in the place of one with several copies. Slots that are left get copies of
    the experts that have fewest. `width` slots on every rank hold all experts, and no rank more than there are.
    """
    assert width * len(held) >= num_experts, "there is a slot for every expert"
    assert width <= num_experts, "no rank holds an expert twice"
    rows = [list(dict.fromkeys(each)) for each in held]
    copies = Counter(expert for row in rows for expert in row)
    for row in rows:
        while len(row) > width:
            _drop(row, copies)
    for expert in range(num_experts):
        if not copies[expert]:
            _settle(expert, rows, copies, width)
    for row in rows:
        while len(row) < width:
            _add(min((each for each in range(num_experts) if each not in row), key=copies.__getitem__), row, copies)
    return tuple(expert for row in rows for expert in row)


def _drop(row: list[int], copies: Counter[int]) -> None:
    """Take the expert with most copies from a rank, of several the one that came last."""
    place = max(range(len(row)), key=lambda each: (copies[row[each]], each))
    copies[row.pop(place)] -= 1


def _add(expert: int, row: list[int], copies: Counter[int]) -> None:
    row.append(expert)
    copies[expert] += 1


def _settle(expert: int, rows: list[list[int]], copies: Counter[int], width: int) -> None:
    """Find a slot for an expert that has none."""
    emptiest = min(rows, key=len)
    if len(emptiest) < width:
        _add(expert, emptiest, copies)
        return
    row, place = max(
        ((row, place) for row in rows for place in range(width)), key=lambda each: copies[each[0][each[1]]]
    )
    copies[row[place]] -= 1
    row[place] = expert
    copies[expert] += 1
