"""Weights held in FP8, expanded by the kernel: bit for bit the numbers that CPUs make of codes and scales."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="the kernels are Triton's")

from moiety.runtime.block_scaled import BlockScaled, block_index, cut, quantised
from moiety.runtime.expansion import whole
from moiety.runtime.kernels.expanded_weights import expand_into


def expanded(held: BlockScaled) -> torch.Tensor:
    """Return the kernel's numbers, in memory that was full of others."""
    out = torch.full(held.shape, torch.nan, dtype=held.dtype)
    index = (block_index(bounds, held.device) for bounds in (held.row_bounds, held.column_bounds))
    expand_into(out, held.codes, held.scales, *index)
    return out


@given(
    rows=st.sampled_from((1, 15, 129, 300)),
    columns=st.sampled_from((1, 257, 300)),
    first=st.integers(0, 200),
    dtype=st.sampled_from((torch.float32, torch.bfloat16, torch.float16)),
    is_turned=st.booleans(),
)
@settings(max_examples=25)
def test_bits_are_those_of_cpus_wherever_blocks_are_cut(
    rows: int, columns: int, first: int, dtype: torch.dtype, is_turned: bool
) -> None:
    values = torch.randn(first + rows, columns, generator=torch.Generator().manual_seed(rows))
    held = cut(quantised(values, dtype), range(first, first + rows), range(columns))
    if is_turned:  # only the scales' order in memory
        held = BlockScaled(held.codes, held.scales.mT.contiguous().mT, held.row_bounds, held.column_bounds, dtype)
    assert torch.equal(expanded(held), whole(held))


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_every_code_is_read(kind: torch.dtype) -> None:
    limit = 0x7F if kind == torch.float8_e4m3fn else 0x7C
    codes = torch.tensor([[each for each in range(256) if each & 0x7F < limit]], dtype=torch.uint8).view(kind)
    held = BlockScaled(codes, torch.full((1, 1), 3.0), (0, 1), (0, codes.shape[1]), torch.float32)
    assert torch.equal(expanded(held), codes.float() * 3)
