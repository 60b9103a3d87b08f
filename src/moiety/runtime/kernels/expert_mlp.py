# pyright: basic, reportArgumentType=false, reportAttributeAccessIssue=false
# Triton is untyped: what a kernel computes with has the types of its call.
"""The gated MLP of experts over rows sorted by slot: two kernels, FP32 inside, gate and router's weights fused."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from moiety.runtime.kernels.configs import DOWN, FEW_ROWS, GATE_UP, INTERPRETED, rows_class, tuned
from moiety.runtime.kernels.tiles import place_of, tile_of

if TYPE_CHECKING:
    from moiety.runtime.kernels.tiles import Groups

_LARGEST_OFFSET = 2**31
"""Inside a slot's weights offsets are 32 bits; between slots and rows they are 64."""


def _gate_up(
    hidden_ptr,
    order_ptr,
    row_ptr,
    weight_ptr,
    middle_ptr,
    offsets_ptr,
    ranks_ptr,
    num_rows,
    rows_class,  # noqa: ARG001 - tiles are chosen by it
    num_slots,
    hidden_size,
    width,
    row_stride,
    slot_stride,
    in_stride,
    out_stride,
    ROW_UNIT: tl.constexpr,
    SLOTS: tl.constexpr,
    EVEN_K: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    num_m = num_rows // BLOCK_M + tl.minimum(num_slots, num_rows)
    m_tile, n_tile = place_of(tl.program_id(0), num_m, tl.cdiv(width, BLOCK_N), GROUP_M)
    slot, first, end = tile_of(m_tile, offsets_ptr, ranks_ptr, num_slots, BLOCK_M, SLOTS)
    if first >= end:
        return
    at = first + tl.arange(0, BLOCK_M)
    pair = tl.load(order_ptr + tl.where(at < end, at, first))  # rows past the end are read as the first, never stored
    source = tl.load(row_ptr + pair).to(tl.int64)
    column = n_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = column % width  # columns past the end likewise
    k = tl.arange(0, BLOCK_K)
    hidden_at = hidden_ptr + source[:, None] * (row_stride * ROW_UNIT) + k[None, :]
    gate_at = weight_ptr + slot.to(tl.int64) * slot_stride + k[:, None] * in_stride + inside[None, :] * out_stride
    up_at = gate_at + width * out_stride
    gate = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    up = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(tl.cdiv(hidden_size, BLOCK_K)):
        if EVEN_K:
            states = tl.load(hidden_at)
            gate_weights = tl.load(gate_at)
            up_weights = tl.load(up_at)
        else:
            is_k = k < hidden_size - step * BLOCK_K
            states = tl.load(hidden_at, mask=is_k[None, :], other=0.0)
            gate_weights = tl.load(gate_at, mask=is_k[:, None], other=0.0)
            up_weights = tl.load(up_at, mask=is_k[:, None], other=0.0)
        if UPCAST:
            states = states.to(tl.float32)
            gate_weights = gate_weights.to(tl.float32)
            up_weights = up_weights.to(tl.float32)
        gate = tl.dot(states, gate_weights, gate, input_precision="ieee")
        up = tl.dot(states, up_weights, up, input_precision="ieee")
        hidden_at += BLOCK_K
        gate_at += BLOCK_K * in_stride
        up_at += BLOCK_K * in_stride
    middle = gate * tl.sigmoid(gate) * up
    middle_at = middle_ptr + at.to(tl.int64)[:, None] * width + column[None, :]
    is_stored = (at < end)[:, None] & (column < width)[None, :]
    tl.store(middle_at, middle.to(middle_ptr.dtype.element_ty), mask=is_stored)


def _down(
    middle_ptr,
    order_ptr,
    scale_ptr,
    weight_ptr,
    out_ptr,
    offsets_ptr,
    ranks_ptr,
    num_rows,
    rows_class,  # noqa: ARG001 - tiles are chosen by it
    num_slots,
    width,
    hidden_size,
    slot_stride,
    in_stride,
    out_stride,
    SLOTS: tl.constexpr,
    EVEN_K: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    num_m = num_rows // BLOCK_M + tl.minimum(num_slots, num_rows)
    m_tile, n_tile = place_of(tl.program_id(0), num_m, tl.cdiv(hidden_size, BLOCK_N), GROUP_M)
    slot, first, end = tile_of(m_tile, offsets_ptr, ranks_ptr, num_slots, BLOCK_M, SLOTS)
    if first >= end:
        return
    at = first + tl.arange(0, BLOCK_M)
    source = tl.where(at < end, at, first)
    pair = tl.load(order_ptr + source).to(tl.int64)
    column = n_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    middle_at = middle_ptr + source.to(tl.int64)[:, None] * width + k[None, :]
    weight_at = weight_ptr + slot.to(tl.int64) * slot_stride
    weight_at += k[:, None] * in_stride + (column % hidden_size)[None, :] * out_stride
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(tl.cdiv(width, BLOCK_K)):
        if EVEN_K:
            middle = tl.load(middle_at)
            weights = tl.load(weight_at)
        else:
            is_k = k < width - step * BLOCK_K
            middle = tl.load(middle_at, mask=is_k[None, :], other=0.0)
            weights = tl.load(weight_at, mask=is_k[:, None], other=0.0)
        if UPCAST:
            middle = middle.to(tl.float32)
            weights = weights.to(tl.float32)
        total = tl.dot(middle, weights, total, input_precision="ieee")
        middle_at += BLOCK_K
        weight_at += BLOCK_K * in_stride
    total *= tl.load(scale_ptr + pair)[:, None]
    out_at = out_ptr + pair[:, None] * hidden_size + column[None, :]
    is_stored = (at < end)[:, None] & (column < hidden_size)[None, :]
    tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=is_stored)


GATE_UP_KERNELS = tuned(_gate_up, GATE_UP, inner="hidden_size", key=("rows_class", "hidden_size", "width", "in_stride"))
DOWN_KERNELS = tuned(_down, DOWN, inner="width", key=("rows_class", "hidden_size", "width", "in_stride"))


@dataclass(frozen=True, slots=True, eq=False)
class SortedPairs:
    """The (row, slot) pairs of a rank, in two orders: as they are added up, and sorted by slot."""

    order: torch.Tensor
    """[pairs], int64: the places of the sorted pairs among the pairs."""
    row: torch.Tensor
    """[pairs], int64: of each pair, the row that it reads."""
    scale: torch.Tensor
    """[pairs], float32: of each pair, the router's weight."""
    groups: Groups
    """Of the sorted pairs."""


def gated_rows(hidden: torch.Tensor, gate_up: torch.Tensor, pairs: SortedPairs) -> torch.Tensor:
    """Return silu(gate) * up of the sorted pairs, [pairs, width] in the format of `hidden`.

    `hidden` [rows, hidden] is read where the pairs' rows lie, so that nothing is copied into order; `gate_up`
    [slots, hidden, 2 x width] has all gates before all ups, in any layout of its last two dimensions.
    """
    groups, hidden_size, width = pairs.groups, gate_up.shape[1], gate_up.shape[2] // 2
    _check(hidden, gate_up)
    middle = hidden.new_empty(groups.num_rows, width)
    unit = math.gcd(hidden.stride(0), 16)  # what is known of a row's alignment
    _launch(
        GATE_UP_KERNELS,
        pairs,
        width,
        (hidden, pairs.order, pairs.row, gate_up, middle),
        (hidden_size, width, hidden.stride(0) // unit, *gate_up.stride()),
        ROW_UNIT=unit,
    )
    return middle


def weighted_outputs(middle: torch.Tensor, down: torch.Tensor, pairs: SortedPairs) -> torch.Tensor:
    """Return the pairs' outputs times the router's weights, [pairs, hidden] in the format of `middle`, not sorted.

    `middle` [pairs, width] is of the sorted pairs; `down` is [slots, width, hidden].
    """
    width, hidden_size = down.shape[1:]
    _check(middle, down)
    out = middle.new_empty(pairs.groups.num_rows, hidden_size)
    tensors = (middle, pairs.order, pairs.scale, down, out)
    _launch(DOWN_KERNELS, pairs, hidden_size, tensors, (width, hidden_size, *down.stride()))
    return out


def _check(rows: torch.Tensor, weights: torch.Tensor) -> None:
    assert rows.dtype == weights.dtype, "rows and weights have one format"
    assert rows.stride(1) == 1, "a row's values lie side by side"
    assert 1 in weights.stride()[1:], "and so do a weight's rows or columns"
    assert weights.shape[1] * weights.shape[2] < _LARGEST_OFFSET, "a slot's weights are within 32 bits"


def _launch(
    kernels: dict[str, Any],
    pairs: SortedPairs,
    columns: int,
    tensors: tuple[torch.Tensor, ...],
    sizes: tuple[int, ...],
    **constants: int,
) -> None:
    """Run the kernel that suits the rows, over the tiles of rows and `columns`."""
    groups = pairs.groups
    if groups.num_rows == 0:
        return
    each = rows_class(groups.num_rows, groups.num_slots)
    name = "few" if each <= FEW_ROWS else "many"
    if tensors[0].dtype == torch.float32:
        name = "exact"

    def grid(given: dict[str, int]) -> tuple[int]:
        return (groups.num_tiles(given["BLOCK_M"]) * triton.cdiv(columns, given["BLOCK_N"]),)

    with torch.cuda.device_of(tensors[0]):
        kernels[name][grid](
            *tensors,
            groups.offsets,
            groups.ranks,
            groups.num_rows,
            each,
            groups.num_slots,
            *sizes,
            SLOTS=groups.padded_slots,
            UPCAST=INTERPRETED,
            **constants,
        )
