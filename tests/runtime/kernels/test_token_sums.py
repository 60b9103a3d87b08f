"""Sums of a row's outputs: in FP32, one after the other, bit for bit what the plain reduction gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="the kernels are Triton's")

from moiety.runtime.dispatch.reduction import segment_sum
from moiety.runtime.kernels.token_sums import row_sums


@given(
    counts=st.lists(st.integers(0, 5), max_size=9),
    hidden=st.sampled_from((1, 5, 64, 1100)),
    dtype=st.sampled_from((torch.float32, torch.float16)),
    seed=st.integers(0, 99),
)
@settings(max_examples=25)
def test_bits_are_those_of_adding_one_after_the_other(
    counts: list[int], hidden: int, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    first = torch.tensor([0, *counts]).cumsum(0)
    row = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
    outputs = torch.randn(sum(counts), hidden, generator=generator).to(dtype)
    expected = torch.zeros(len(counts), hidden)
    sums, which = segment_sum(outputs.float(), row)
    expected[which] = sums
    assert torch.equal(row_sums(outputs, first, 5), expected)


def test_of_each_row_once_comes_back_what_was_scattered() -> None:
    outputs = torch.randn(12, 40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(row_sums(outputs, torch.arange(13), 1), outputs)
