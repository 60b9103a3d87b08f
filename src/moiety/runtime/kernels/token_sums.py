# pyright: basic, reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# Triton is untyped: what a kernel computes with has the types of its call.
"""The sums of tokens' experts: each row's outputs added in the router's order, in FP32, whenever they were made."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 1024


@triton.jit
def row_sums_kernel(
    outputs_ptr,
    first_ptr,
    sums_ptr,
    hidden_size,
    MOST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add the outputs of one row, BLOCK columns of them."""
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < hidden_size
    start = tl.load(first_ptr + row)
    end = tl.load(first_ptr + row + 1)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for each in tl.static_range(MOST):  # unrolled, so that all are read at once and added one after the other
        pair = start + each
        limit = tl.where(pair < end, hidden_size, 0)  # nothing is read past the row's last
        held = tl.load(outputs_ptr + pair * hidden_size + column, mask=column < limit, other=0.0)
        total += held.to(tl.float32)
    tl.store(sums_ptr + row.to(tl.int64) * hidden_size + column, total, mask=inside)


def row_sums(outputs: torch.Tensor, first: torch.Tensor, most: int) -> torch.Tensor:
    """Return the sums [rows, hidden] float32 of `outputs` [pairs, hidden], added from each row's first to its last.

    `first` [rows + 1] int64 says which pair is each row's first; a row has at most `most` of them, or none.
    """
    rows, hidden_size = first.shape[0] - 1, outputs.shape[1]
    sums = torch.empty(rows, hidden_size, dtype=torch.float32, device=outputs.device)
    if rows:
        block = min(_BLOCK, triton.next_power_of_2(hidden_size))
        with torch.cuda.device_of(outputs):
            row_sums_kernel[(rows, triton.cdiv(hidden_size, block))](
                outputs, first, sums, hidden_size, MOST=most, BLOCK=block
            )
    return sums
