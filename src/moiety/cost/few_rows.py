"""Products of a slot's few rows with its weights, as a CPU is fastest at them: which are turned, and what that takes.

In decoding an expert gets a row or two, and reading its weights takes the time. `runtime/experts/by_slot.py` computes
by these rules, and the plan counts by them.
"""

from __future__ import annotations

_FEW_ROWS = 6
"""Of a slot, for which a CPU's products are limited by reading the weights, and ..."""
_MOST_INNER = 1024
"""... the inner size up to which they are faster as weights times columns."""
PAIR = 2
"""Rows that a single one is made of for that: a product with a vector is the slowest."""


def are_few(pairs: int, slots: int) -> bool:
    """Return whether so many pairs of a row and a slot are few rows for each of the slots."""
    return pairs <= _FEW_ROWS * slots


def is_turned(rows: int, inner: int) -> bool:
    """Return whether a product of so many rows is faster as weights times columns, in FP32, of rows of `inner`."""
    return rows == PAIR or (rows <= _FEW_ROWS and inner <= _MOST_INNER)


def room_items(most_rows: int, inner: int, outer: int) -> int:
    """Return the items that turned products of up to so many rows need beside their result, [outer, rows] and rows."""
    turned = [rows for rows in range(1, min(most_rows, _FEW_ROWS) + 1) if is_turned(rows, inner)]
    if not turned:
        return 0
    return max(PAIR, *turned) * outer + (PAIR * inner if turned[0] == 1 else 0)
