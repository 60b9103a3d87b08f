"""Products of rows with the weights of their slots, slot by slot, as a CPU is fastest at them."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from moiety.runtime.expansion import matrix_of, room_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.runtime.block_scaled import Weight
    from moiety.runtime.expansion import Room

FEW_ROWS = 6
"""Of a slot, for which a CPU's products are limited by reading the weights, and ..."""
_MOST_INNER = 1024
"""... the inner size up to which they are faster as weights times columns."""
_PAIR = 2


def multiply_by_slot(
    rows: torch.Tensor,
    weights: Weight,
    bounds: Sequence[int],
    out: torch.Tensor,
    room: torch.Tensor | None = None,
    expanded: Room | None = None,
) -> None:
    """Fill `out` [rows, out] with the rows [rows, inner] of each slot times its weights [slots, inner, out].

    `bounds` are where each slot's rows begin, and the end of the last one's. Empty slots cost nothing. `room` is as for
    `multiply_few`. Weights in FP8 are expanded slot by slot, into `expanded`, which is made where there is none. Where
    slots have many rows, these are the bits of `grouped_mm`.
    """
    expanded = room_for(weights) if expanded is None else expanded
    is_few = bounds[-1] <= FEW_ROWS * weights.shape[0]
    for slot, (low, high) in enumerate(pairwise(bounds)):
        if low == high:
            continue
        matrix = matrix_of(weights, slot, expanded)
        if is_few:
            multiply_few(rows[low:high], matrix, out[low:high], room)
        else:
            torch.mm(rows[low:high], matrix, out=out[low:high])


def multiply_few(
    rows: torch.Tensor, weights: torch.Tensor, out: torch.Tensor, room: torch.Tensor | None = None
) -> None:
    """Fill `out` with rows times weights: as weights times columns, where a CPU's library is faster at that.

    It is by up to five times for 2 to 6 rows in float32 against weights that lie as rows of `inner`; one row is
    doubled, as a product with a vector is the slowest (torch 2.13 with MKL: `benchmarks/few_rows.py`). `room` is what
    that takes beside the result, of `room_for_few` items; it is made where there is none.
    """
    count, inner = rows.shape
    is_faster = count == _PAIR or (count <= FEW_ROWS and inner <= _MOST_INNER)
    if rows.dtype != torch.float32 or weights.stride(0) != 1 or not is_faster:
        torch.mm(rows, weights, out=out)
        return
    room = weights.new_empty(room_for_few(*weights.shape)) if room is None else room
    columns = max(count, _PAIR)
    if count == 1:
        doubled = room[: _PAIR * inner].view(_PAIR, inner)
        rows = doubled.copy_(rows.expand(_PAIR, -1))
    products = room[_PAIR * inner :][: weights.shape[1] * columns].view(-1, columns)
    torch.mm(weights.t(), rows.t(), out=products)
    out.copy_(products.t()[:count])


def room_for_few(inner: int, outer: int) -> int:
    """Return the items that `multiply_few` needs room for."""
    return _PAIR * inner + FEW_ROWS * outer
