# pyright: basic, reportArgumentType=false, reportAttributeAccessIssue=false
# Triton is untyped: what a kernel computes with has the types of its call.
"""Rows in FP8 for the wire: gathered into the order they are sent in, with a scale for every 128 values."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moiety.runtime.kernels.configs import INTERPRETED

SCALED = 128
"""Values of a row that share a scale, as DeepSeek-V3's dispatch has them."""
LARGEST = 448.0
"""That float8_e4m3 can hold."""
_SMALLEST_SCALE = 2.0**-126
"""The smallest normal float32: a scale must not be flushed to zero."""
_GROUPS = 8


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
    values_ptr,
    scales_ptr,
    hidden_size,
    row_stride,
    num_groups,
    LARGEST: tl.constexpr,
    SMALLEST_SCALE: tl.constexpr,
    SCALED: tl.constexpr,
    GROUPS: tl.constexpr,
    ROUND: tl.constexpr,
):
    """Gather and quantize GROUPS groups of SCALED values of one row."""
    row = tl.program_id(0).to(tl.int64)
    source = tl.load(index_ptr + row).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    column = group[:, None] * SCALED + tl.arange(0, SCALED)[None, :]
    inside = column < hidden_size
    states = tl.load(hidden_ptr + source * row_stride + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(states), axis=1) / LARGEST, SMALLEST_SCALE)
    scaled = tl.clamp(states / scale[:, None], -LARGEST, LARGEST)
    if ROUND:
        scaled = _rounded(scaled, SMALLEST_NORMAL=2.0**-6)
    tl.store(values_ptr + row * hidden_size + column, scaled.to(tl.float8e4nv), mask=inside)
    tl.store(scales_ptr + row * num_groups + group, scale, mask=group < num_groups)


def quantized_rows(hidden: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows of `hidden` [tokens, hidden] at `index` [rows] in FP8, and their scales.

    Values are [rows, hidden] float8_e4m3fn, scales [rows, hidden / 128 rounded up] float32: a value times its scale is
    the state, within half a step of the format. The largest of every 128 states becomes the format's largest number.
    """
    rows, hidden_size = index.shape[0], hidden.shape[1]
    assert hidden.stride(1) == 1, "a row's values lie side by side"
    num_groups = triton.cdiv(hidden_size, SCALED)
    values = torch.empty(rows, hidden_size, dtype=torch.float8_e4m3fn, device=hidden.device)
    scales = torch.empty(rows, num_groups, dtype=torch.float32, device=hidden.device)
    if rows:
        groups = min(_GROUPS, triton.next_power_of_2(num_groups))
        with torch.cuda.device_of(hidden):
            quantize_kernel[(rows, triton.cdiv(num_groups, groups))](
                hidden,
                index,
                values,
                scales,
                hidden_size,
                hidden.stride(0),
                num_groups,
                LARGEST=LARGEST,
                SMALLEST_SCALE=_SMALLEST_SCALE,
                SCALED=SCALED,
                GROUPS=groups,
                ROUND=INTERPRETED,
            )
    return values, scales


def dequantized_rows(values: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the states [rows, hidden] of FP8 rows [rows, hidden] and their scales, in `dtype`."""
    spread = scales.repeat_interleave(SCALED, dim=1)[:, : values.shape[1]]
    return (values.float() * spread).to(dtype)
