# pyright: basic, reportArgumentType=false, reportAttributeAccessIssue=false
# Triton is untyped: what a kernel computes with has the types of its call.
"""Tiles of weights held in FP8, made into the numbers that a product takes: those of `expansion.py`, to the bit.

Along what is summed over, blocks are of one size and a tile lies in two of them at most, so that two rows of scales
are read for it, and one where tiles divide blocks. Along the columns every one has the scale of its own block, wherever
blocks are cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from moiety.runtime.block_scaled import BlockScaled, block_index, even_blocks

if TYPE_CHECKING:
    import torch

    from moiety.runtime.block_scaled import Weight


@triton.jit
def rounded_to_bfloat16(numbers):
    """Return FP32 rounded to BF16's numbers, ties to even, as FP32: the interpreter's own conversion cuts off."""
    bits = numbers.to(tl.int32, bitcast=True)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)


@triton.jit
def scaled(
    codes, scales_at, in_stride, first, size, block_offset, block_size,
    DTYPE: tl.constexpr, WHOLE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Return codes [inner, columns] times the scales of their blocks in FP32, rounded once to `DTYPE`.

    The tile begins at `first` of `size` rows. `scales_at` [columns] points to the scales of the first row of blocks,
    the next one lies `in_stride` further; `block_offset` is the place of row 0 in its block of `block_size` rows.
    `WHOLE`: tiles lie in one block. `UPCAST`: the numbers of `DTYPE` as FP32, for the interpreter.
    """
    at = block_offset + first
    block = at // block_size
    scales_at += block * in_stride
    codes = codes.to(tl.float32)
    numbers = codes * tl.load(scales_at)[None, :]
    if not WHOLE:
        left = (block + 1) * block_size - at
        k = tl.arange(0, codes.shape[0])
        following = tl.load(scales_at + in_stride * (left < size - first).to(tl.int32))  # there may be none after it
        numbers = tl.where((k < left)[:, None], numbers, codes * following[None, :])
    if UPCAST and DTYPE.is_bf16():
        return rounded_to_bfloat16(numbers)
    return numbers.to(DTYPE)


def scale_arguments(weights: Weight) -> tuple[tuple[torch.Tensor | None, ...], tuple[int | None, ...]]:
    """Return what a kernel is told of the scales of `weights` [slots, in, out]; None for all where there are none.

    Tensors: the scales, and the block of each column. Numbers: the scales' strides, and of the blocks along what is
    summed over the place of the first row in its block, and the size.
    """
    if not isinstance(weights, BlockScaled):
        return (None, None), (None,) * 5
    blocks = even_blocks(weights.row_bounds)
    assert blocks is not None, "the back end takes such blocks"
    tensors = weights.scales, block_index(weights.column_bounds, weights.device)
    return tensors, (*weights.scales.stride(), *blocks)
