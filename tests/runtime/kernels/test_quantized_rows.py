"""Rows in FP8: the kernel gathers them and gives what torch's ops give, wherever they are to lie."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="the kernels are Triton's")

from moiety.runtime.dispatch.quantize import quantized
from moiety.runtime.fp8 import FP8, num_scales
from moiety.runtime.kernels.quantized_rows import quantize_into

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@given(
    tokens=st.integers(1, 5),
    rows=st.integers(0, 9),
    hidden=st.sampled_from((1, 127, 128, 130, 512, 1100)),
    magnitude=st.sampled_from((-140, -30, -3, 0, 4, 15)),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_codes_and_scales_are_those_of_torchs_ops(
    tokens: int, rows: int, hidden: int, magnitude: int, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    padded = (torch.randn(tokens, hidden + 5, generator=generator) * 2.0**magnitude).to(dtype).clamp(-60000, 60000)
    states, index = padded[:, :hidden], torch.randint(0, tokens, (rows,), generator=generator)
    codes = torch.zeros(rows, hidden + 3, dtype=torch.uint8).view(FP8)[:, :hidden]
    scales = torch.zeros(rows, num_scales(hidden) + 1)[:, :-1]
    quantize_into(codes, scales, states, index)
    expected_codes, expected_scales = quantized(states)
    assert torch.equal(scales, expected_scales[index])
    assert torch.equal(codes.float(), expected_codes.float()[index])
