"""Ragged groups cut into tiles: every row is in one tile of its slot, and the programs are enough."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="the kernels are Triton's")

import triton
import triton.language as tl

from moiety.runtime.kernels.tiles import group_rows, needed_tile_of, needed_tiles, place_of, tile_of

KEY_BITS = 48


@triton.jit
def _covered(covered_ptr, slot_ptr, offsets_ptr, ranks_ptr, num_slots, BLOCK_M: tl.constexpr, SLOTS: tl.constexpr):  # noqa: ANN001, ANN202, N803 - a kernel
    slot, first, end = tile_of(tl.program_id(0), offsets_ptr, ranks_ptr, num_slots, BLOCK_M, SLOTS)
    at = first + tl.arange(0, BLOCK_M)
    tl.atomic_add(covered_ptr + at, 1, mask=at < end)
    tl.store(slot_ptr + at, slot + tl.zeros_like(at), mask=at < end)


@triton.jit
def _covered_by_some(covered_ptr, slot_ptr, offsets_ptr, num_slots, BLOCK_M: tl.constexpr, SLOTS: tl.constexpr):  # noqa: ANN001, ANN202, N803 - a kernel
    needed, so_far = needed_tiles(offsets_ptr, num_slots, BLOCK_M, SLOTS)
    for tile in range(tl.program_id(0), tl.sum(needed, axis=0), tl.num_programs(0)):
        slot, first, end = needed_tile_of(tile, needed, so_far, offsets_ptr, BLOCK_M)
        at = first + tl.arange(0, BLOCK_M)
        tl.atomic_add(covered_ptr + at, 1, mask=at < end)
        tl.store(slot_ptr + at, slot + tl.zeros_like(at), mask=at < end)


@triton.jit
def _places(places_ptr, num_m, num_n, GROUP_M: tl.constexpr):  # noqa: ANN001, ANN202, N803 - a kernel
    row, column = place_of(tl.program_id(0), num_m, num_n, GROUP_M)
    tl.atomic_add(places_ptr + row * num_n + column, 1)


def sorted_keys(counts: list[int]) -> torch.Tensor:
    slots = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return (slots << KEY_BITS) + torch.arange(slots.shape[0])


@given(counts=st.lists(st.sampled_from((0, 0, 1, 2, 7, 16, 17, 33)), min_size=1, max_size=20))
@settings(max_examples=40)
def test_groups_begin_where_their_keys_do(counts: list[int]) -> None:
    groups = group_rows(sorted_keys(counts), len(counts), KEY_BITS)
    expected = [sum(counts[:slot]) for slot in range(len(counts) + 1)]
    assert groups.offsets.tolist() == expected
    assert groups.ranks.tolist() == [sum(count > 0 for count in counts[:slot]) for slot in range(len(counts) + 1)]


@given(
    counts=st.lists(st.sampled_from((0, 0, 1, 2, 7, 16, 17, 33)), min_size=1, max_size=8).filter(any),
    block=st.sampled_from((4, 16)),
)
@settings(max_examples=25)
def test_every_row_is_in_one_tile_of_its_slot(counts: list[int], block: int) -> None:
    keys = sorted_keys(counts)
    groups = group_rows(keys, len(counts), KEY_BITS)
    covered, slots = torch.zeros(2, sum(counts), dtype=torch.int32)
    _covered[(groups.num_tiles(block),)](
        covered, slots, groups.offsets, groups.ranks, len(counts), BLOCK_M=block, SLOTS=groups.padded_slots
    )
    assert covered.tolist() == [1] * sum(counts)
    assert torch.equal(slots.long(), keys >> KEY_BITS)
    covered, slots = torch.zeros(2, sum(counts), dtype=torch.int32)
    _covered_by_some[(3,)](covered, slots, groups.offsets, len(counts), BLOCK_M=block, SLOTS=groups.padded_slots)
    assert covered.tolist() == [1] * sum(counts)
    assert torch.equal(slots.long(), keys >> KEY_BITS)


@pytest.mark.parametrize(("num_m", "num_n", "group"), [(1, 1, 8), (5, 3, 2), (8, 2, 8), (7, 4, 3), (3, 5, 1)])
def test_every_place_has_one_program(num_m: int, num_n: int, group: int) -> None:
    places = torch.zeros(num_m, num_n, dtype=torch.int32)
    _places[(num_m * num_n,)](places, num_m, num_n, GROUP_M=group)
    assert (places == 1).all()
