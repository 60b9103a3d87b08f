"""The expert kernels as machine code: sums of float64 within the format's rounding, and the same bits in any order."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu import wrong_codes, wrong_sums
from moiety.runtime.block_scaled import cut, quantised
from moiety.runtime.expansion import whole

GPU = torch.device("cuda", 0)
SIZES = ((512, 256), (328, 104), (130, 40))
"""Hidden size and width: tiles divide them, lines of 16 bytes do, nothing does."""


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sums_are_right(dtype: torch.dtype, sizes: tuple[int, int]) -> None:
    assert wrong_sums(GPU, 0, dtype, sizes) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_turned", [False, True])
def test_weights_held_in_fp8_are_the_numbers_of_the_host(dtype: torch.dtype, *, is_turned: bool) -> None:
    values = torch.randn(700, 1100, generator=torch.Generator().manual_seed(0))
    held = cut(quantised(values, dtype), range(70, 700), range(30, 1100))
    held = held.mT if is_turned else held
    found = whole(held.to(GPU))
    assert found.stride() == whole(held).stride()
    assert torch.equal(found.cpu(), whole(held))


def test_rows_in_fp8_have_the_codes_of_the_host() -> None:
    assert wrong_codes(GPU) == []
