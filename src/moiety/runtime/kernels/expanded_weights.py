# pyright: basic, reportArgumentType=false, reportAttributeAccessIssue=false
# Triton is untyped: what a kernel computes with has the types of its call.
"""Weights held in FP8, made into the numbers that a product takes: one launch a matrix."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moiety.runtime.kernels.configs import INTERPRETED
from moiety.runtime.kernels.scaled_tiles import rounded_to_bfloat16

_ROWS, _COLUMNS = 16, 256
"""Of a matrix, that a program makes."""


@triton.jit
def expand_kernel(
    codes_ptr,
    scales_ptr,
    row_block_ptr,
    column_block_ptr,
    out_ptr,
    rows,
    columns,
    row_stride,
    scale_row_stride,
    scale_column_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROUND: tl.constexpr,
):
    """Multiply the codes of a tile by the scales of the blocks that they lie in, in FP32, and round once.

    `ROUND`: to BF16 before it is stored, as the interpreter cuts off what it stores so.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    row_block = tl.load(row_block_ptr + row, mask=row < rows, other=0)
    column_block = tl.load(column_block_ptr + column, mask=column < columns, other=0)
    at = row.to(tl.int64)[:, None]
    codes = tl.load(codes_ptr + at * row_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(
        scales_ptr + row_block[:, None] * scale_row_stride + column_block[None, :] * scale_column_stride, mask=inside
    )
    numbers = codes * scale
    if ROUND:
        numbers = rounded_to_bfloat16(numbers)
    tl.store(out_ptr + at * columns + column[None, :], numbers.to(out_ptr.dtype.element_ty), mask=inside)


def expand_into(
    out: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    row_block: torch.Tensor,
    column_block: torch.Tensor,
) -> None:
    """Fill `out` [rows, columns], contiguous, with each of `codes`, FP8 in rows, times the scale of its block in FP32.

    `scales` [blocks of rows, blocks of columns] float32; `row_block` [rows] and `column_block` [columns] int32 say in
    which block each lies. The bits are those of `expansion.py` on CPUs.
    """
    rows, columns = codes.shape
    assert codes.stride(1) == 1, "a row's codes lie side by side"
    assert out.is_contiguous(), "and so do all numbers"
    if rows == 0 or columns == 0:
        return
    with torch.cuda.device_of(out):
        expand_kernel[(triton.cdiv(rows, _ROWS), triton.cdiv(columns, _COLUMNS))](
            codes,
            scales,
            row_block,
            column_block,
            out,
            rows,
            columns,
            codes.stride(0),
            *scales.stride(),
            ROWS=_ROWS,
            COLUMNS=_COLUMNS,
            ROUND=INTERPRETED and out.dtype == torch.bfloat16,
        )
