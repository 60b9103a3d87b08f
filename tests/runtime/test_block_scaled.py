"""Weights in FP8 as ranks hold them: the numbers that codes and scales stand for, however they were cut and joined."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moiety.runtime.allocations import allocations_of
from moiety.runtime.block_scaled import BlockScaled, block_bounds, cut, joined, quantised, stacked
from moiety.runtime.expansion import expand, matrix_of, room_bytes, room_for, whole
from moiety.runtime.mxfp4 import E8M0, FP4_PAIRS, from_number
from tests.runtime.mxfp4_checkpoints import GROUP, numbers_of, quantised_by_group

SIZES = st.sampled_from((1, 5, 127, 128, 129, 300))
FORMATS = st.sampled_from((torch.float32, torch.bfloat16, torch.float16))


def values_of(rows: int, columns: int, seed: int = 0, kind: torch.dtype = torch.float32) -> torch.Tensor:
    """Return weights of very different magnitudes."""
    generator = torch.Generator().manual_seed(seed)
    magnitude = torch.randn(rows, columns, generator=generator).mul(2).exp()
    return (torch.randn(rows, columns, generator=generator) * magnitude).to(kind)


def by_element(held: BlockScaled) -> torch.Tensor:
    """Return the numbers of a matrix: each code times the scale of the block that it lies in, in FP32, rounded once."""
    row_block, column_block = (
        torch.tensor([sum(bound <= each for bound in bounds[1:]) for each in range(bounds[-1])])
        for bounds in (held.row_bounds, held.column_bounds)
    )
    return (held.codes.float() * held.scales[row_block][:, column_block]).to(held.dtype)


def pairs_of(values: torch.Tensor) -> BlockScaled:
    """Return values [rows, columns], a multiple of 32, in MXFP4 for products in their format."""
    codes, scales = quantised_by_group(values)
    codes = codes.flatten(-2)
    pairs = (codes[:, 0::2] + (codes[:, 1::2] << 4)).view(FP4_PAIRS)
    rows, columns = values.shape
    bounds = tuple(range(rows + 1)), block_bounds(range(columns), GROUP)
    return BlockScaled(pairs, scales.view(E8M0), *bounds, values.dtype)


@given(rows=SIZES, groups=st.integers(1, 5), dtype=FORMATS, is_turned=st.booleans(), first=st.integers(0, 31))
@settings(max_examples=30)
def test_a_matrix_in_mxfp4_is_each_number_times_the_scale_of_its_group(
    rows: int, groups: int, dtype: torch.dtype, is_turned: bool, first: int
) -> None:
    values = values_of(rows, groups * GROUP, kind=dtype)
    expected = numbers_of(*quantised_by_group(values))[:, first:].to(dtype)
    held = pairs_of(values)
    codes = from_number(held.codes.view(torch.uint8), first, values.shape[1] - first).view(FP4_PAIRS)
    held = replace(held, codes=codes, column_bounds=block_bounds(range(first, values.shape[1]), GROUP))
    assert held.shape == expected.shape
    found = whole(held.mT if is_turned else held)
    assert torch.equal(found.mT if is_turned else found, expected)
    assert (found.mT if is_turned else found).is_contiguous(), "it lies as its codes do"
    assert torch.equal(whole(stacked([held.mT, held.mT])[1]), expected.mT)
    both = joined([held.mT, held.mT], -1)
    assert torch.equal(whole(both), torch.cat([expected, expected]).mT), "rows as they lie in memory"


@given(rows=SIZES, columns=SIZES, dtype=FORMATS, is_turned=st.booleans())
@settings(max_examples=30)
def test_a_matrix_is_each_code_times_the_scale_of_its_block(
    rows: int, columns: int, dtype: torch.dtype, is_turned: bool
) -> None:
    held = quantised(values_of(rows, columns), dtype)
    expected = by_element(held)
    found = whole(held.mT if is_turned else held)
    assert found.dtype == dtype
    assert torch.equal(found.mT if is_turned else found, expected)
    assert (found.mT if is_turned else found).is_contiguous(), "it lies as its codes do"


@given(rows=SIZES, columns=SIZES, kind=FORMATS)
@settings(max_examples=30)
def test_quantising_keeps_every_weight_to_half_a_step_of_e4m3(rows: int, columns: int, kind: torch.dtype) -> None:
    values = values_of(rows, columns, kind=kind).float()
    held = quantised(values, torch.float32)
    assert held.scales.shape == (-(-rows // 128), -(-columns // 128))
    scale = held.scales.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    # the last of three bits of fraction; below 2 ** -6 steps are 2 ** -9
    assert ((whole(held) - values).abs() <= torch.maximum(values.abs() / 16, scale / 1024) * (1 + 1e-6)).all()
    codes = held.codes.float().abs()
    for low in range(0, rows, 128):
        for left in range(0, columns, 128):
            assert codes[low : low + 128, left : left + 128].max() == 448, "a block's largest has the largest code"


@pytest.mark.parametrize(("kind", "num_numbers"), [(torch.float8_e4m3fn, 0x7F), (torch.float8_e5m2, 0x7C)])
def test_all_codes_are_the_numbers_that_torch_takes_them_for(kind: torch.dtype, num_numbers: int) -> None:
    numbers = torch.tensor([each for each in range(256) if each & 0x7F < num_numbers], dtype=torch.uint8)
    codes = numbers.view(kind)[None]
    held = BlockScaled(codes, torch.full((1, 1), 0.5), (0, 1), (0, codes.shape[1]), torch.float32)
    assert torch.equal(whole(held), codes.float() / 2)


def test_zeros_tiny_weights_and_nan() -> None:
    for value in (0.0, 1e-42):
        held = quantised(torch.full((3, 130), value), torch.float32)
        assert held.scales.isfinite().all()
        assert whole(held).sub(value).abs().max() <= 2.0**-126 / 1024
    assert not held.has_nan()
    assert quantised(torch.tensor([[1.0, torch.nan]]), torch.float32).has_nan()


@given(
    rows=SIZES,
    columns=SIZES,
    dtype=FORMATS,
    data=st.data(),
)
@settings(max_examples=30)
def test_parts_and_joins_are_those_of_the_numbers(
    rows: int, columns: int, dtype: torch.dtype, data: st.DataObject
) -> None:
    held = quantised(values_of(rows, columns), dtype)
    parts = []
    for _ in range(2):
        low, high = sorted(
            data.draw(st.tuples(st.integers(0, rows), st.integers(0, rows)).filter(lambda at: at[0] != at[1]))
        )
        parts.append((low, high))
    pieces = [cut(held, range(*part), range(columns)) for part in parts]
    for piece, (low, high) in zip(pieces, parts, strict=True):
        assert torch.equal(whole(piece), whole(held)[low:high])
    expected = torch.cat([whole(each) for each in pieces])
    assert torch.equal(whole(joined(pieces, -2)), expected)
    assert torch.equal(whole(joined([each.mT for each in pieces], -1)), expected.mT)


def test_experts_of_a_stack_are_expanded_one_at_a_time_into_the_same_room() -> None:
    parts = [quantised(values_of(200, 96, seed), torch.bfloat16) for seed in range(3)]
    stack = stacked(parts)
    assert stack.nbytes == 3 * (200 * 96 + 4 * 2)
    room = room_for(stack)
    for place, part in enumerate(parts):
        assert torch.equal(matrix_of(stack, place, room), whole(part))
        turned = matrix_of(stack.mT, place, room)
        assert torch.equal(turned, whole(part).mT)
        assert turned.stride(0) == 1, "products see how weights lie"
    assert room_bytes(stack) == 2 * 200 * 96 + 4 * max(128 * 96, 96 * 200), "a row or a column of blocks in FP32"
    assert room_bytes(torch.zeros(2, 2)) == 0
    assert room_for(torch.zeros(2, 2)) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_pairs", [False, True])
def test_expanding_asks_the_allocator_for_nothing(dtype: torch.dtype, has_pairs: bool) -> None:
    held = cut(quantised(values_of(300, 400), dtype), range(50, 300), range(100, 400))
    held = pairs_of(values_of(300, 416, kind=dtype)) if has_pairs else held
    room = room_for(held)
    assert room is not None
    expand(held, room)
    _, found = allocations_of(lambda: expand(held, room), held_bytes=0, device=held.device)
    assert found.count == 0


@given(start=st.integers(0, 300), length=st.integers(1, 300), block=st.sampled_from((1, 16, 128)))
def test_bounds_are_where_blocks_begin(start: int, length: int, block: int) -> None:
    found = block_bounds(range(start, start + length), block)
    begins = [each for each in range(length) if each == 0 or (start + each) % block == 0]
    assert found == (*begins, length)
