"""What codes and scales stand for, made a matrix at a time where a product needs it: code times scale, rounded once."""

from __future__ import annotations

import math
from functools import cache
from importlib.util import find_spec
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch

from moiety.cost.expansion import ROWS_AT_A_TIME
from moiety.runtime.arena.trace import called
from moiety.runtime.block_scaled import block_index
from moiety.runtime.fp8 import FP8, triton_reads
from moiety.runtime.mxfp4 import unpack_into

if TYPE_CHECKING:
    from moiety.runtime.block_scaled import BlockScaled, Bounds, Weight

_HAS_TRITON = find_spec("triton") is not None
_SHIFT = torch.tensor(20, dtype=torch.int32)
"""From the last of E4M3's 3 bits of fraction to the last but 20 of FP32's 23."""
_SIGN_AND_REST = torch.tensor(0x87F00000 - (1 << 32), dtype=torch.int32)
"""Where a code's bits lie then; those in between have copies of the sign."""
_BIAS = torch.tensor(2.0**120)
"""2 ** (127 - 7), by the exponents' biases."""


class Room(NamedTuple):
    """Memory that a matrix is expanded into."""

    matrix: torch.Tensor
    """[rows x columns], in the format of the products."""
    wide: torch.Tensor | None
    """[rows of a block x columns], float32; None where products take that themselves, or a kernel needs none."""
    scales: torch.Tensor | None = None
    """[rows x groups] of as many rows in MXFP4, float32; None in FP8, whose scales are that."""


def room_for(weight: Weight) -> Room | None:
    """Return room for one matrix, or one of a stack; None where it is held as products take it."""
    return None if isinstance(weight, torch.Tensor) else _room(weight)


def room_bytes(weight: Weight) -> int:
    """Return the bytes of the room that products with a weight take."""
    if isinstance(weight, torch.Tensor):
        return 0
    items = _wide_items(weight) + _scale_items(weight)
    return math.prod(weight.shape[-2:]) * weight.dtype.itemsize + items * torch.float32.itemsize


def _room(weight: BlockScaled) -> Room:
    def floats(items: int) -> torch.Tensor | None:
        return torch.empty(items, dtype=torch.float32, device=weight.device) if items else None

    matrix = torch.empty(math.prod(weight.shape[-2:]), dtype=weight.dtype, device=weight.device)
    return Room(matrix, floats(_wide_items(weight)), floats(_scale_items(weight)))


def _wide_items(weight: BlockScaled) -> int:
    """Return how many items in FP32 a row of blocks has, whichever way the codes of FP8 lie; 0: none are needed."""
    if weight.dtype == torch.float32 or _has_kernel(weight):
        return 0
    if weight.has_pairs:
        rows, columns = weight.stored.shape[-2:]
        return min(ROWS_AT_A_TIME, rows) * columns
    along_rows, along_columns = (
        max((high - low for low, high in pairwise(bounds)), default=0)
        for bounds in (weight.row_bounds, weight.column_bounds)
    )
    rows, columns = weight.shape[-2:]
    return max(along_rows * columns, along_columns * rows)


def _scale_items(weight: BlockScaled) -> int:
    rows, groups = weight.stored.scales.shape[-2:]
    return min(ROWS_AT_A_TIME, rows) * groups if weight.has_pairs else 0


def matrix_of(weights: Weight, place: int, room: Room | None) -> torch.Tensor:
    """Return one matrix of a stack in the format that products take; it lies in `room` where the stack is of codes."""
    if isinstance(weights, torch.Tensor):
        return weights[place]
    assert room is not None, "there is room for it"
    return expand(weights[place], room)


def expanded(weight: BlockScaled) -> torch.Tensor:
    """Return a matrix in the format that products take, in memory of its own."""
    return expand(weight, _room(weight))


def whole(weight: Weight) -> torch.Tensor:
    """Return a matrix in the format that products take, expanded into memory of the step where it is held as codes."""
    if isinstance(weight, torch.Tensor):
        return weight
    room = _room(weight)
    called(expand, weight, room)
    return _laid_out(weight, room)


def expand(weight: BlockScaled, room: Room) -> torch.Tensor:
    """Fill `room` with a matrix and return it, [rows, columns], in the order of its codes; asks for no memory.

    Code times scale is taken in FP32 and rounded once.
    """
    stored = weight.stored
    out = _laid_out(stored, room)
    if weight.has_pairs:
        _expand_pairs(stored, out, room)
    elif _has_kernel(weight):
        from moiety.runtime.kernels.expanded_weights import expand_into  # noqa: PLC0415 - where there is one

        index = (block_index(each, weight.device) for each in (stored.row_bounds, stored.column_bounds))
        expand_into(out, stored.codes, stored.scales, *index)
    else:
        for place, (low, high) in enumerate(pairwise(stored.row_bounds)):
            wide = _wide_rows(out, room, low, high)
            _convert(stored.codes[low:high], wide)
            _scale(wide, stored.scales[place : place + 1], stored.column_bounds)
            if room.wide is not None:
                out[low:high].copy_(wide)
    return _laid_out(weight, room)


def _expand_pairs(stored: BlockScaled, out: torch.Tensor, room: Room) -> None:
    """Fill `out` [rows, columns] with the numbers of MXFP4, some rows at a time."""
    if room.scales is None:  # of nothing
        return
    rows, groups = stored.scales.shape
    for low in range(0, rows, ROWS_AT_A_TIME):
        high = min(low + ROWS_AT_A_TIME, rows)
        wide = _wide_rows(out, room, low, high)
        unpack_into(wide, stored.codes[low:high])
        scales = room.scales[: (high - low) * groups].view(high - low, groups)
        scales.copy_(stored.scales[low:high])
        _scale(wide, scales, stored.column_bounds)
        if room.wide is not None:
            out[low:high].copy_(wide)


def _wide_rows(out: torch.Tensor, room: Room, low: int, high: int) -> torch.Tensor:
    """Return where rows of `out` are made in FP32."""
    wide = out[low:high] if room.wide is None else room.wide[: (high - low) * out.shape[1]]
    return wide.view(high - low, out.shape[1])


def _scale(wide: torch.Tensor, scales: torch.Tensor, column_bounds: Bounds) -> None:
    """Multiply rows of numbers by the scales [rows or 1, blocks] of the blocks that their columns lie in."""
    for first, count, start, width in _runs(column_bounds):
        blocks = wide[:, start : start + count * width].view(wide.shape[0], count, width)
        blocks.mul_(scales[:, first : first + count, None])


def _laid_out(weight: BlockScaled, room: Room) -> torch.Tensor:
    """Return the matrix [rows, columns] that lies in `room`, in the order of its codes."""
    rows, columns = weight.shape
    return room.matrix.view(columns, rows).t() if weight.is_turned else room.matrix.view(rows, columns)


def _convert(codes: torch.Tensor, out: torch.Tensor) -> None:
    """Fill `out` float32 with the numbers of codes.

    On CPUs E4M3's bits are moved to where FP32 has them, which takes an eighth of the time of torch's own conversion
    (torch 2.13: `benchmarks/held_fp8.py`); NaN, which no weights have, would become 480.
    """
    if codes.dtype != FP8 or codes.device.type != "cpu":
        out.copy_(codes)
        return
    bits = out.view(torch.int32)
    bits.copy_(codes.view(torch.int8))
    torch.bitwise_left_shift(bits, _SHIFT, out=bits)
    torch.bitwise_and(bits, _SIGN_AND_REST, out=bits)
    out.mul_(_BIAS)


def _has_kernel(weight: BlockScaled) -> bool:
    return _HAS_TRITON and triton_reads(weight.device) and not weight.has_pairs


@cache
def _runs(bounds: Bounds) -> tuple[tuple[int, int, int, int], ...]:
    """Return the runs of blocks of one width: the first block, how many, where the first begins, the width."""
    widths = [high - low for low, high in pairwise(bounds)]
    found: list[tuple[int, int, int, int]] = []
    first = 0
    for width, alike in groupby(widths):
        count = len(list(alike))
        found.append((first, count, bounds[first], width))
        first += count
    return tuple(found)
