"""The products of a slot's few rows: the same numbers as the plain product, whatever the shape and the layout."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moiety.runtime.experts.by_slot import multiply_few


@given(
    rows=st.integers(1, 9),
    inner=st.sampled_from((1, 3, 64, 1024, 1025)),
    outer=st.sampled_from((1, 5, 32)),
    seed=st.integers(0, 99),
    is_transposed=st.booleans(),
)
def test_few_rows_times_weights_is_the_product(
    rows: int, inner: int, outer: int, seed: int, is_transposed: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, inner, generator=generator)
    weights = torch.randn(inner, outer, generator=generator)
    given_weights = weights.t().contiguous().t() if is_transposed else weights
    out = torch.full((rows + 2, outer), torch.nan)
    multiply_few(hidden, given_weights, out[1:-1])
    assert out[[0, -1]].isnan().all(), "it writes its rows and no others"
    torch.testing.assert_close(out[1:-1].double(), hidden.double() @ weights.double(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rows_bits_do_not_depend_on_what_stands_beside_it(dtype: torch.dtype) -> None:
    hidden = torch.randn(2, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    weights = torch.randn(32, 64, generator=torch.Generator().manual_seed(2)).to(dtype).t()
    alone, beside = torch.empty(1, 32, dtype=dtype), torch.empty(2, 32, dtype=dtype)
    multiply_few(hidden[:1], weights, alone)
    multiply_few(torch.cat([hidden[:1], hidden[1:] * 7]), weights, beside)
    if dtype == torch.float32:  # one row is computed as two
        assert torch.equal(alone[0], beside[0])
    else:
        torch.testing.assert_close(alone[0], beside[0])
