# pyright: basic, reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# Triton is untyped: what a kernel computes with has the types of its call.
"""The gated MLP of experts over rows sorted by slot: two kernels, FP32 inside, gate and router's weights fused."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from moiety.runtime.block_scaled import BlockScaled
from moiety.runtime.gates import Gate
from moiety.runtime.kernels.configs import (
    DOWN,
    DOWN_OF_CODES,
    FEW_ROWS,
    GATE_UP,
    GATE_UP_OF_CODES,
    INTERPRETED,
    MOST_ROWS,
    num_multiprocessors,
    rows_class,
    tuned,
)
from moiety.runtime.kernels.gating import GPT_OSS, add_biases, gated, joint_columns, wide_products
from moiety.runtime.kernels.scaled_tiles import scale_arguments, scaled
from moiety.runtime.kernels.tile_copies import LINE_BYTES, has_tile_copies, tiled
from moiety.runtime.kernels.tiles import needed_tile_of, needed_tiles, place_of, tile_of

if TYPE_CHECKING:
    from moiety.runtime.block_scaled import Weight
    from moiety.runtime.kernels.tiles import Groups

_LARGEST_OFFSET = 2**31
"""Inside a slot's weights offsets are 32 bits; between slots and rows they are 64."""


@triton.jit
def _joint_products(
    hidden_at, weights, scales_at, slot, n_tile, hidden_size, scale_in_stride, block_offset, block_size,
    EVEN_K: tl.constexpr, WHOLE: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Return the gates and the ups of a tile; the accelerator fetches both weights as one tile, for one product."""
    k = tl.arange(0, BLOCK_K)
    both = tl.zeros((BLOCK_M, 2 * BLOCK_N), dtype=tl.float32)
    for step in range(tl.cdiv(hidden_size, BLOCK_K)):
        is_k = k < hidden_size - step * BLOCK_K
        states = tl.load(hidden_at) if EVEN_K else tl.load(hidden_at, mask=is_k[None, :], other=0.0)
        tile = weights.load([2 * slot, n_tile * BLOCK_N, step * BLOCK_K]).reshape(2 * BLOCK_N, BLOCK_K)
        if scales_at is not None:
            tile = scaled(
                tile.T, scales_at, scale_in_stride, step * BLOCK_K, hidden_size, block_offset, block_size,
                states.dtype, WHOLE, UPCAST,
            ).T  # fmt: skip
        if UPCAST:
            states = states.to(tl.float32)
            tile = tile.to(tl.float32)
        both = tl.dot(states, tile.T, both, input_precision="ieee")
        hidden_at += BLOCK_K
    return tl.split(both.reshape(BLOCK_M, 2, BLOCK_N).permute(0, 2, 1))


@triton.jit
def _two_products(
    hidden_at, gate_at, up_at, hidden_size, in_stride, EVEN_K: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Return the gates and the ups of a tile, the weights read where the pointers say."""
    k = tl.arange(0, BLOCK_K)
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
    return gate, up


@triton.jit
def _gate_up_tile(
    hidden_ptr, order_ptr, row_ptr, weights, scales_ptr, column_block_ptr, bias_ptr, middle_ptr,
    slot, first, end, n_tile, hidden_size, width, row_stride, slot_stride, in_stride, out_stride,
    scale_slot_stride, scale_in_stride, scale_out_stride, block_offset, block_size,
    GATE: tl.constexpr, ROW_UNIT: tl.constexpr, EVEN_K: tl.constexpr, WHOLE: tl.constexpr, TMA: tl.constexpr,
    UPCAST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Store the gated products of the rows from `first` on, up to BLOCK_M of them, and a tile's columns."""
    at = first + tl.arange(0, BLOCK_M)
    pair = tl.load(order_ptr + tl.where(at < end, at, first))  # rows past the end are read as the first, never stored
    source = tl.load(row_ptr + pair).to(tl.int64)
    column = n_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    hidden_at = hidden_ptr + source[:, None] * (row_stride * ROW_UNIT) + k[None, :]
    scales_at = None
    if scales_ptr is not None:
        block = tl.load(column_block_ptr + joint_columns(n_tile, width, GATE, BLOCK_N))
        scales_at = scales_ptr + slot * scale_slot_stride + block * scale_out_stride
    if TMA:
        gate, up = _joint_products(
            hidden_at, weights, scales_at, slot, n_tile, hidden_size, scale_in_stride, block_offset, block_size,
            EVEN_K, WHOLE, UPCAST, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
    elif scales_ptr is not None or GATE == GPT_OSS:
        weights_at = weights + slot.to(tl.int64) * slot_stride + k[:, None] * in_stride
        weights_at += joint_columns(n_tile, width, GATE, BLOCK_N)[None, :] * out_stride
        gate, up = wide_products(
            hidden_at, weights_at, scales_at, hidden_size, in_stride, scale_in_stride, block_offset, block_size,
            GATE, EVEN_K, WHOLE, UPCAST, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
    else:
        inside = column % width  # columns past the end likewise
        gate_at = weights + slot.to(tl.int64) * slot_stride + k[:, None] * in_stride + inside[None, :] * out_stride
        up_at = gate_at + width * out_stride
        gate, up = _two_products(
            hidden_at, gate_at, up_at, hidden_size, in_stride, EVEN_K, UPCAST, BLOCK_M, BLOCK_N, BLOCK_K
        )
    if bias_ptr is not None:
        gate, up = add_biases(gate, up, bias_ptr + slot.to(tl.int64) * 2 * width, column, width, GATE)
    middle = gated(gate, up, GATE)
    middle_at = middle_ptr + at.to(tl.int64)[:, None] * width + column[None, :]
    is_stored = (at < end)[:, None] & (column < width)[None, :]
    tl.store(middle_at, middle.to(middle_ptr.dtype.element_ty), mask=is_stored)


def _gate_up(
    hidden_ptr,
    order_ptr,
    row_ptr,
    weights,  # a pointer or, with TMA, a descriptor of [slots x 2, width, hidden]
    scales_ptr,  # of weights in FP8, whose arguments are None for others
    column_block_ptr,
    bias_ptr,  # or None
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
    scale_slot_stride,
    scale_in_stride,
    scale_out_stride,
    block_offset,
    block_size,
    GATE: tl.constexpr,
    ROW_UNIT: tl.constexpr,
    SLOTS: tl.constexpr,
    EVEN_K: tl.constexpr,
    WHOLE: tl.constexpr,
    TMA: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    HALVES: tl.constexpr,
):
    num_m = num_rows // BLOCK_M + tl.minimum(num_slots, num_rows)
    m_tile, n_tile = place_of(tl.program_id(0), num_m, tl.cdiv(width, BLOCK_N), GROUP_M)
    slot, first, end = tile_of(m_tile, offsets_ptr, ranks_ptr, num_slots, BLOCK_M, SLOTS)
    if first >= end:
        return
    few = HALVES & (end - first <= BLOCK_M // 2)
    for halves in tl.static_range(1 + HALVES):
        if few == halves:
            _gate_up_tile(
                hidden_ptr, order_ptr, row_ptr, weights, scales_ptr, column_block_ptr, bias_ptr, middle_ptr,
                slot, first, end, n_tile, hidden_size, width, row_stride, slot_stride, in_stride, out_stride,
                scale_slot_stride, scale_in_stride, scale_out_stride, block_offset, block_size,
                GATE, ROW_UNIT, EVEN_K, WHOLE, TMA, UPCAST, BLOCK_M // (1 + halves), BLOCK_N, BLOCK_K,
            )  # fmt: skip


@triton.jit
def _store_weighted(total, pair, scale, is_row, slot, column, bias_ptr, out_ptr, hidden_size):
    """Store a tile's outputs, with their biases, times the router's weights, where their pairs lie."""
    if bias_ptr is not None:
        bias_at = bias_ptr + slot.to(tl.int64) * hidden_size + column
        total += tl.load(bias_at, mask=column < hidden_size, other=0.0).to(tl.float32)[None, :]
    total *= scale[:, None]
    out_at = out_ptr + pair[:, None] * hidden_size + column[None, :]
    is_stored = is_row[:, None] & (column < hidden_size)[None, :]
    tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=is_stored)


@triton.jit
def _down_tile(
    middle, order_ptr, scale_ptr, weights, scales_ptr, column_block_ptr, bias_ptr, out_ptr,
    slot, first, end, n_tile, width, hidden_size, slot_stride, in_stride, out_stride,
    scale_slot_stride, scale_in_stride, scale_out_stride, block_offset, block_size,
    EVEN_K: tl.constexpr, WHOLE: tl.constexpr, TMA: tl.constexpr, UPCAST: tl.constexpr, STAYS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Store the weighted outputs of the rows from `first` on, up to BLOCK_M of them, and a tile's columns."""
    at = first + tl.arange(0, BLOCK_M)
    source = tl.where(at < end, at, first)
    if not STAYS:  # before the products, which hide how long that takes
        pair = tl.load(order_ptr + source).to(tl.int64)
        scale = tl.load(scale_ptr + pair)
    column = n_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    if TMA:
        weight_row = slot * hidden_size + n_tile * BLOCK_N
    else:
        middle_at = middle + source.to(tl.int64)[:, None] * width + k[None, :]
        weight_at = weights + slot.to(tl.int64) * slot_stride
        weight_at += k[:, None] * in_stride + (column % hidden_size)[None, :] * out_stride
    if scales_ptr is not None:
        block = tl.load(column_block_ptr + column % hidden_size)
        scales_at = scales_ptr + slot * scale_slot_stride + block * scale_out_stride
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(tl.cdiv(width, BLOCK_K)):
        if TMA:
            rows = middle.load([first, step * BLOCK_K])  # those past the end are another slot's, never stored
            columns = weights.load([weight_row, step * BLOCK_K]).T
        else:
            is_k = k < width - step * BLOCK_K
            if EVEN_K:
                rows = tl.load(middle_at)
                columns = tl.load(weight_at)
            else:
                rows = tl.load(middle_at, mask=is_k[None, :], other=0.0)
                columns = tl.load(weight_at, mask=is_k[:, None], other=0.0)
            middle_at += BLOCK_K
            weight_at += BLOCK_K * in_stride
        if scales_ptr is not None:
            columns = scaled(
                columns, scales_at, scale_in_stride, step * BLOCK_K, width, block_offset, block_size,
                rows.dtype, WHOLE, UPCAST,
            )  # fmt: skip
        if UPCAST:
            rows = rows.to(tl.float32)
            columns = columns.to(tl.float32)
        total = tl.dot(rows, columns, total, input_precision="ieee")
    if STAYS:  # after them: the next tile is on its way, and registers are free
        pair = tl.load(order_ptr + source).to(tl.int64)
        scale = tl.load(scale_ptr + pair)
    _store_weighted(total, pair, scale, at < end, slot, column, bias_ptr, out_ptr, hidden_size)


def _down(
    middle,  # a pointer or, with TMA, a descriptor of [pairs, width]
    half_middle,  # the same, of tiles of half as many rows
    order_ptr,
    scale_ptr,
    weights,  # likewise, of [slots x hidden, width]
    scales_ptr,  # as above
    column_block_ptr,
    bias_ptr,
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
    scale_slot_stride,
    scale_in_stride,
    scale_out_stride,
    block_offset,
    block_size,
    SLOTS: tl.constexpr,
    EVEN_K: tl.constexpr,
    WHOLE: tl.constexpr,
    TMA: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    HALVES: tl.constexpr,
    STAYS: tl.constexpr = 0,
):
    num_n = tl.cdiv(hidden_size, BLOCK_N)
    if STAYS:
        needed, so_far = needed_tiles(offsets_ptr, num_slots, BLOCK_M, SLOTS)
        num_m = tl.sum(needed, axis=0)
        for place in tl.range(tl.program_id(0), num_m * num_n, tl.num_programs(0), flatten=True):
            m_tile, n_tile = place_of(place, num_m, num_n, GROUP_M)
            slot, first, end = needed_tile_of(m_tile, needed, so_far, offsets_ptr, BLOCK_M)
            _down_tile(
                middle, order_ptr, scale_ptr, weights, scales_ptr, column_block_ptr,
                bias_ptr, out_ptr, slot, first, end, n_tile, width, hidden_size, slot_stride, in_stride, out_stride,
                scale_slot_stride, scale_in_stride, scale_out_stride, block_offset, block_size,
                EVEN_K, WHOLE, TMA, UPCAST, STAYS, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
        return
    num_m = num_rows // BLOCK_M + tl.minimum(num_slots, num_rows)
    m_tile, n_tile = place_of(tl.program_id(0), num_m, num_n, GROUP_M)
    slot, first, end = tile_of(m_tile, offsets_ptr, ranks_ptr, num_slots, BLOCK_M, SLOTS)
    if first >= end:
        return
    few = HALVES & (end - first <= BLOCK_M // 2)
    for halves in tl.static_range(1 + HALVES):
        if few == halves:
            _down_tile(
                half_middle if halves else middle, order_ptr, scale_ptr, weights, scales_ptr, column_block_ptr,
                bias_ptr, out_ptr, slot, first, end, n_tile, width, hidden_size, slot_stride, in_stride, out_stride,
                scale_slot_stride, scale_in_stride, scale_out_stride, block_offset, block_size,
                EVEN_K, WHOLE, TMA, UPCAST, STAYS, BLOCK_M // (1 + halves), BLOCK_N, BLOCK_K,
            )  # fmt: skip


_KEY = ("rows_class", "hidden_size", "width", "in_stride", "TMA")
GATE_UP_KERNELS = tuned(_gate_up, GATE_UP | GATE_UP_OF_CODES, inner="hidden_size", key=_KEY)
DOWN_KERNELS = tuned(_down, DOWN | DOWN_OF_CODES, inner="width", key=_KEY)


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


def gated_rows(
    hidden: torch.Tensor,
    gate_up: Weight,
    pairs: SortedPairs,
    gate: Gate = Gate.SILU,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the gated products of the sorted pairs, [pairs, width] in the format of `hidden`.

    `hidden` [rows, hidden] is read where the pairs' rows lie, so that nothing is copied into order; `gate_up`
    [slots, hidden, 2 x width], in any layout of its last two dimensions, and `bias` [slots, 2 x width] have gates and
    ups in the order of `gate`.
    """
    groups, hidden_size, width = pairs.groups, gate_up.shape[1], gate_up.shape[2] // 2
    stored = _checked(hidden, gate_up, bias)
    middle = hidden.new_empty(groups.num_rows, width)
    unit = math.gcd(hidden.stride(0), 16)  # what is known of a row's alignment
    is_tiled = not gate.is_by_turns and _is_tiled(groups, stored, hidden.dtype)
    weights = tiled(stored.transpose(1, 2).reshape(-1, width, hidden_size)) if is_tiled else stored
    scales, blocks = scale_arguments(gate_up)
    _launch(
        GATE_UP_KERNELS,
        pairs,
        width,
        (hidden, pairs.order, pairs.row, weights, *scales, bias, middle),
        (hidden_size, width, hidden.stride(0) // unit, *stored.stride(), *blocks),
        TMA=is_tiled,
        ROW_UNIT=unit,
        GATE=gate.value,
    )
    return middle


def weighted_outputs(
    middle: torch.Tensor, down: Weight, pairs: SortedPairs, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the pairs' outputs times the router's weights, [pairs, hidden] in the format of `middle`, not sorted.

    `middle` [pairs, width] is of the sorted pairs; `down` is [slots, width, hidden], `bias` [slots, hidden].
    """
    width, hidden_size = down.shape[1:]
    stored = _checked(middle, down, bias)
    out = middle.new_empty(pairs.groups.num_rows, hidden_size)
    is_tiled = _is_tiled(pairs.groups, stored, middle.dtype)
    weights = tiled(stored.transpose(1, 2).reshape(-1, width)) if is_tiled else stored
    rows = (tiled(middle), tiled(middle)) if is_tiled else (middle, middle)
    scales, blocks = scale_arguments(down)
    tensors = (*rows, pairs.order, pairs.scale, weights, *scales, bias, out)
    _launch(DOWN_KERNELS, pairs, hidden_size, tensors, (width, hidden_size, *stored.stride(), *blocks), TMA=is_tiled)
    return out


def _checked(rows: torch.Tensor, weights: Weight, bias: torch.Tensor | None) -> torch.Tensor:
    """Return what is stored of the weights: their numbers, or their codes."""
    stored = weights.codes if isinstance(weights, BlockScaled) else weights
    assert rows.dtype == weights.dtype, "rows and weights have one format"
    assert rows.stride(1) == 1, "a row's values lie side by side"
    assert 1 in stored.stride()[1:], "and so do a weight's rows or columns"
    assert stored.shape[1] * stored.shape[2] < _LARGEST_OFFSET, "a slot's weights are within 32 bits"
    assert bias is None or bias.is_contiguous(), "biases have no gaps"
    return stored


def _is_tiled(groups: Groups, stored: torch.Tensor, dtype: torch.dtype) -> bool:
    """Return whether the tensor memory accelerator fetches tiles of weights [slots, in, out]: it wants whole lines.

    Few rows are as fast without it; products in FP32 are not for speed.
    """
    if rows_class(groups.num_rows, groups.num_slots) <= FEW_ROWS or dtype == torch.float32:
        return False
    if not (INTERPRETED or has_tile_copies(stored.device)):
        return False
    has_lines = stored.transpose(1, 2).is_contiguous() and stored.shape[1] * stored.itemsize % LINE_BYTES == 0
    return has_lines and stored.data_ptr() % LINE_BYTES == 0


def _launch(
    kernels: dict[str, Any],
    pairs: SortedPairs,
    columns: int,
    tensors: tuple[Any, ...],
    sizes: tuple[int | None, ...],
    **constants: int,
) -> None:
    """Run the kernel that suits the rows, over the tiles of rows and `columns`; the last of the tensors is written."""
    groups, out = pairs.groups, tensors[-1]
    if groups.num_rows == 0:
        return
    is_in_codes = sizes[-1] is not None
    each = rows_class(groups.num_rows, groups.num_slots)
    name = "few" if each <= FEW_ROWS else "many"
    if is_in_codes:
        name += " codes"
    elif constants["TMA"] and each == MOST_ROWS and "most" in kernels:
        name = "most"
    if out.dtype == torch.float32:
        name = "exact"

    def grid(given: dict[str, int]) -> tuple[int]:
        places = groups.num_tiles(given["BLOCK_M"]) * triton.cdiv(columns, given["BLOCK_N"])
        return (min(places, num_multiprocessors(out.device)) if given.get("STAYS") else places,)

    with torch.cuda.device_of(out):
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
