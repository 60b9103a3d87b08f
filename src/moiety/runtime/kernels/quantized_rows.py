# pyright: basic, reportArgumentType=false, reportAttributeAccessIssue=false
# Triton is untyped: what a kernel computes with has the types of its call.
"""Rows in FP8 for the wire: gathered into the order they are sent in, with a scale for every 128 values."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moiety.runtime.fp8 import BLOCK, LARGEST_FRACTION
from moiety.runtime.kernels.configs import INTERPRETED

_GROUPS = 8
"""Of values with one scale, that a program quantizes."""


@triton.jit
def _rounded(values, SMALLEST_NORMAL: tl.constexpr):
    """Return float32 values rounded to the nearest of float8_e4m3: the interpreter's conversion loses the carry."""
    bits = values.to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000  # three bits of the mantissa stay
    small = (values + 24576.0) - 24576.0  # below it steps are 2**-9: the last bit of a number near 2**14
    return tl.where(tl.abs(values) < SMALLEST_NORMAL, small, bits.to(tl.float32, bitcast=True))


@triton.jit
def quantize_kernel(
    hidden_ptr,
    index_ptr,
    codes_ptr,
    scales_ptr,
    hidden_size,
    row_stride,
    code_stride,
    scale_stride,
    num_groups,
    FRACTION: tl.constexpr,
    SCALED: tl.constexpr,
    GROUPS: tl.constexpr,
    ROUND: tl.constexpr,
):
    """Gather and quantize GROUPS groups of SCALED values of one row; scales as in `dispatch/quantize.py`."""
    row = tl.program_id(0).to(tl.int64)
    source = tl.load(index_ptr + row).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    column = group[:, None] * SCALED + tl.arange(0, SCALED)[None, :]
    inside = column < hidden_size
    states = tl.load(hidden_ptr + source * row_stride + column, mask=inside, other=0.0).to(tl.float32)
    bits = tl.max(tl.abs(states), axis=1).to(tl.int32, bitcast=True)
    exponent = (bits >> 23) - 127 - 8 + ((bits & 0x7FFFFF) > FRACTION).to(tl.int32)
    exponent = tl.maximum(exponent, -126)
    scale = ((exponent + 127) << 23).to(tl.float32, bitcast=True)
    scaled = states * ((127 - exponent) << 23).to(tl.float32, bitcast=True)[:, None]
    if ROUND:
        scaled = _rounded(scaled, SMALLEST_NORMAL=2.0**-6)
    tl.store(codes_ptr + row * code_stride + column, scaled.to(tl.float8e4nv), mask=inside)
    tl.store(scales_ptr + row * scale_stride + group, scale, mask=group < num_groups)


def quantize_into(codes: torch.Tensor, scales: torch.Tensor, hidden: torch.Tensor, index: torch.Tensor) -> None:
    """Fill `codes` and `scales` with the rows of `hidden` [tokens, hidden] at `index` [rows].

    `codes` [rows, hidden] are float8_e4m3fn, `scales` [rows, hidden / 128 rounded up] float32; the bits are those of
    `dispatch/quantize.py`, in one pass and without a copy in between.
    """
    rows, hidden_size = codes.shape
    assert hidden.stride(1) == codes.stride(1) == scales.stride(1) == 1, "a row's values lie side by side"
    if rows == 0:
        return
    num_groups = triton.cdiv(hidden_size, BLOCK)
    groups = min(_GROUPS, triton.next_power_of_2(num_groups))
    with torch.cuda.device_of(hidden):
        quantize_kernel[(rows, triton.cdiv(num_groups, groups))](
            hidden,
            index,
            codes,
            scales,
            hidden_size,
            hidden.stride(0),
            codes.stride(0),
            scales.stride(0),
            num_groups,
            FRACTION=LARGEST_FRACTION,
            SCALED=BLOCK,
            GROUPS=groups,
            ROUND=INTERPRETED,
        )
