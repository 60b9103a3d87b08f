# pyright: basic, reportArgumentType=false, reportAttributeAccessIssue=false
# Triton is untyped: what a kernel computes with has the types of its call.
"""Which rows a program computes: ragged groups of rows cut into tiles, without padding and without asking the host.

Rows are sorted by slot. Slot s begins at row `offsets[s]`, and `ranks[s]` of the slots before it have rows. Its tiles
are numbered from `offsets[s] // BLOCK_M + ranks[s]`: that leaves each slot with rows at least as many numbers as it has
tiles, so numbers never collide, and `rows // BLOCK_M + min(slots, rows)` programs are enough for any division of the
rows. A program whose number is not needed ends at once. Programs that stay for many tiles count those that are needed
instead, once, from the rows of all slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

_LEAST_SLOTS = 512


@triton.jit
def _first_row(keys_ptr, slot, rows, steps, KEY_BITS: tl.constexpr):
    """Return the first of the sorted rows whose slot is not below `slot`, by halving `steps` times."""
    low = tl.zeros_like(slot)
    high = low + rows
    for _ in range(steps):
        middle = (low + high) // 2
        is_open = low < high
        held = tl.load(keys_ptr + middle, mask=is_open, other=0) >> KEY_BITS
        low = tl.where(is_open & (held < slot), middle + 1, low)
        high = tl.where(is_open & (held >= slot), middle, high)
    return low


@triton.jit(do_not_specialize=["num_rows", "steps"])
def group_rows_kernel(
    keys_ptr, offsets_ptr, ranks_ptr, num_rows, steps, num_slots, KEY_BITS: tl.constexpr, SLOTS: tl.constexpr
):
    """Write where each slot's rows begin, and how many slots before it have rows; one program."""
    slot = tl.arange(0, SLOTS)
    first = _first_row(keys_ptr, slot, num_rows, steps, KEY_BITS)
    following = _first_row(keys_ptr, slot + 1, num_rows, steps, KEY_BITS)
    has_rows = ((slot < num_slots) & (following > first)).to(tl.int32)
    is_kept = slot <= num_slots
    tl.store(offsets_ptr + slot, first, mask=is_kept)
    tl.store(ranks_ptr + slot, tl.cumsum(has_rows, axis=0) - has_rows, mask=is_kept)


@triton.jit
def tile_of(tile, offsets_ptr, ranks_ptr, num_slots, BLOCK_M: tl.constexpr, SLOTS: tl.constexpr):
    """Return (slot, first row, row past the slot's last) of a tile; no rows where the number is not needed."""
    each = tl.arange(0, SLOTS)
    inside = each < num_slots
    ends = tl.load(offsets_ptr + each + 1, mask=inside, other=0)
    ranks = tl.load(ranks_ptr + each + 1, mask=inside, other=0)
    slot = tl.sum((inside & (ends // BLOCK_M + ranks <= tile)).to(tl.int32), axis=0)
    slot = tl.minimum(slot, num_slots - 1)
    start = tl.load(offsets_ptr + slot)
    end = tl.load(offsets_ptr + slot + 1)
    first = start + (tile - start // BLOCK_M - tl.load(ranks_ptr + slot)) * BLOCK_M
    return slot, first, end


@triton.jit
def needed_tiles(offsets_ptr, num_slots, BLOCK_M: tl.constexpr, SLOTS: tl.constexpr):
    """Return how many tiles the rows of each slot need [SLOTS], and how many those of all slots up to it do."""
    each = tl.arange(0, SLOTS)
    inside = each < num_slots
    starts = tl.load(offsets_ptr + each, mask=inside, other=0)
    ends = tl.load(offsets_ptr + each + 1, mask=inside, other=0)
    needed = tl.cdiv(ends - starts, BLOCK_M)
    return needed, tl.cumsum(needed, axis=0)


@triton.jit
def needed_tile_of(tile, needed, so_far, offsets_ptr, BLOCK_M: tl.constexpr):
    """Return (slot, first row, row past the slot's last) of one of the needed tiles."""
    is_before = so_far <= tile
    slot = tl.sum(is_before.to(tl.int32), axis=0)
    before = tl.sum(tl.where(is_before, needed, 0), axis=0)
    start = tl.load(offsets_ptr + slot)
    end = tl.load(offsets_ptr + slot + 1)
    return slot, start + (tile - before) * BLOCK_M, end


@triton.jit
def place_of(program, num_m, num_n, GROUP_M: tl.constexpr):
    """Return (row tile, column tile) of a program: GROUP_M row tiles share the weights that are in the cache."""
    per_group = GROUP_M * num_n
    first = program // per_group * GROUP_M
    height = tl.minimum(num_m - first, GROUP_M)
    return first + program % per_group % height, program % per_group // height


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """Rows sorted by slot, and where each slot's begin; all of it stays on the device."""

    offsets: torch.Tensor
    """[slots + 1], int32."""
    ranks: torch.Tensor
    """[slots + 1], int32: slots with rows before this one."""
    num_rows: int

    @property
    def num_slots(self) -> int:
        """Groups of rows, empty ones too."""
        return self.offsets.shape[0] - 1

    @property
    def padded_slots(self) -> int:
        """Length of the vector in which a program looks for its slot: for most models the same, so the same kernels."""
        return max(_LEAST_SLOTS, triton.next_power_of_2(self.num_slots + 1))

    def num_tiles(self, block_m: int) -> int:
        """Return how many row tiles are enough, whatever the division of the rows."""
        return self.num_rows // block_m + min(self.num_slots, self.num_rows)


def group_rows(keys: torch.Tensor, num_slots: int, key_bits: int) -> Groups:
    """Return where the rows of each slot begin, from sorted keys [rows] int64 with the slot above `key_bits`."""
    table = torch.empty(2, num_slots + 1, dtype=torch.int32, device=keys.device)
    groups = Groups(table[0], table[1], keys.shape[0])
    with torch.cuda.device_of(keys):
        group_rows_kernel[(1,)](
            keys,
            groups.offsets,
            groups.ranks,
            groups.num_rows,
            groups.num_rows.bit_length(),
            num_slots,
            KEY_BITS=key_bits,
            SLOTS=groups.padded_slots,
        )
    return groups
