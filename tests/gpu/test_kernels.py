"""The expert kernels as machine code: sums of float64 within the format's rounding, and the same bits in any order."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu import wrong_codes, wrong_sums

GPU = torch.device("cuda", 0)
SIZES = ((512, 256), (328, 104), (130, 40))
"""Hidden size and width: tiles divide them, lines of 16 bytes do, nothing does."""


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sums_are_right(dtype: torch.dtype, sizes: tuple[int, int]) -> None:
    assert wrong_sums(GPU, 0, dtype, sizes) == []


def test_rows_in_fp8_have_the_codes_of_the_host() -> None:
    assert wrong_codes(GPU) == []
