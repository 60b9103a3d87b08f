"""The products of a slot's few rows: the same numbers as the plain product, whatever the shape and the layout."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moiety.cost.few_rows import are_few, room_items
from moiety.cost.few_rows import is_turned as turns
from moiety.runtime.experts.by_slot import multiply_by_slot, multiply_few, room_for_few


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


@given(
    counts=st.lists(st.integers(0, 7), min_size=1, max_size=4),
    inner=st.sampled_from((3, 64, 1024, 1025)),
    outer=st.sampled_from((1, 5, 32)),
    all_here=st.booleans(),
)
def test_the_room_for_few_rows_is_what_their_products_take(
    counts: list[int], inner: int, outer: int, all_here: bool
) -> None:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(sum(counts), inner, generator=generator)
    weights = torch.randn(len(counts), outer, inner, generator=generator).mT
    room = room_for_few(len(hidden), weights, all_here=all_here)
    out, expected = torch.empty(len(hidden), outer), torch.empty(len(hidden), outer)
    bounds = [0, *accumulate(counts)]
    multiply_by_slot(hidden, weights, bounds, out, room)
    multiply_by_slot(hidden, weights, bounds, expected)
    assert torch.equal(out, expected)
    is_turned = are_few(len(hidden), len(counts)) and any(turns(count, inner) for count in counts if count)
    assert room is not None or not is_turned, "no product has to ask for memory"
    assert room is None or room.numel() == room_items(len(hidden), inner, outer)
