"""The expert kernels as machine code: sums of float64 within the format's rounding, and the same bits in any order."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.gpu import KINDS, MANY_ROUTED, SIZES, of_single_rows, wrong_codes, wrong_sums
from moiety.runtime.block_scaled import cut, quantised
from moiety.runtime.expansion import whole
from tests.runtime.kernels.routed_rows import DTYPES, wrong_numbers

GPU = torch.device("cuda", 0)


@pytest.mark.parametrize("of", KINDS)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_are_right(dtype: torch.dtype, sizes: tuple[int, int], of: str) -> None:
    assert wrong_sums(GPU, 0, dtype, sizes, of) == []


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_of_many_rows_are_right(dtype: torch.dtype, sizes: tuple[int, int]) -> None:
    assert wrong_sums(GPU, 0, dtype, sizes, routed=MANY_ROUTED) == []


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("arguments", of_single_rows(GPU), ids=str)
def test_the_kernels_take_weights_in_fp8_for_the_numbers_of_the_host(
    arguments: tuple[Any, ...], *, is_transposed: bool
) -> None:
    assert wrong_numbers(*arguments, is_transposed=is_transposed) == []


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
