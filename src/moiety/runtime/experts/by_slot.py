"""Products of rows with the weights of their slots, slot by slot, as a CPU is fastest at them."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from moiety.cost.few_rows import PAIR, are_few, is_turned, room_items
from moiety.runtime.expansion import matrix_of, room_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.runtime.block_scaled import Weight
    from moiety.runtime.expansion import Room


def multiply_by_slot(
    rows: torch.Tensor,
    weights: Weight,
    bounds: Sequence[int],
    out: torch.Tensor,
    room: torch.Tensor | None = None,
    expanded: Room | None = None,
) -> None:
    """Fill `out` [rows, out] with the rows [rows, inner] of each slot times its weights [slots, inner, out].

    `bounds` are where each slot's rows begin, and the end of the last one's. Empty slots cost nothing. `room` is of
    `room_for_few`. Weights in FP8 are expanded slot by slot, into `expanded`, which is made where there is none. Where
    slots have many rows, these are the bits of `grouped_mm`.
    """
    expanded = room_for(weights) if expanded is None else expanded
    is_few = are_few(bounds[-1], weights.shape[0])
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
    that takes beside the result, of `room_items` of `cost/few_rows.py`; it is made where there is none.
    """
    count, inner = rows.shape
    if rows.dtype != torch.float32 or weights.stride(0) != 1 or not is_turned(count, inner):
        torch.mm(rows, weights, out=out)
        return
    room = weights.new_empty(room_items(count, *weights.shape)) if room is None else room
    columns = max(count, PAIR)
    held = weights.shape[1] * columns
    if count == 1:
        doubled = room[held : held + PAIR * inner].view(PAIR, inner)
        rows = doubled.copy_(rows.expand(PAIR, -1))
    products = room[:held].view(-1, columns)
    torch.mm(weights.t(), rows.t(), out=products)
    out.copy_(products.t()[:count])


def room_for_few(pairs: int, weights: Weight, *, all_here: bool) -> torch.Tensor | None:
    """Return the room that `multiply_by_slot` needs of `pairs` of a row and a slot in FP32; None where it needs none.

    `all_here`: whether all of them are of slots here, and not of others too.
    """
    slots, inner, outer = weights.shape
    lies_in_rows = weights.stride(1) == 1 if isinstance(weights, torch.Tensor) else weights.is_turned
    if weights.dtype != torch.float32 or not lies_in_rows or (all_here and not are_few(pairs, slots)):
        return None
    items = room_items(pairs, inner, outer)
    return torch.empty(items, dtype=weights.dtype, device=weights.device) if items else None
