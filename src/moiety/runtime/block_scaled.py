"""Weights in FP8 as a rank holds them: codes, and a scale for every block of rows and columns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch.nn.functional import pad

from moiety.runtime.fp8 import BLOCK, FP8

if TYPE_CHECKING:
    from collections.abc import Sequence

Bounds: TypeAlias = tuple[int, ...]
"""Where the blocks along an axis begin, and where the last one ends."""

_ROWS = -2
"""Their axis."""
_NO_NUMBER = 0x7F
"""E4M3's only NaN, but for the sign."""
_LARGEST = 448.0
"""Of E4M3 (OCP 8-bit floating point, 2023)."""
_LEAST_SCALE = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, slots=True, eq=False)
class BlockScaled:
    """A matrix, or a stack of them, in FP8; blocks at the edges may be cut. `expansion.py` says what it stands for."""

    codes: torch.Tensor
    """[..., rows, columns], E4M3 or E5M2."""
    scales: torch.Tensor
    """[..., blocks of rows, blocks of columns], float32."""
    row_bounds: Bounds
    column_bounds: Bounds
    dtype: torch.dtype
    """What products take the numbers in."""

    @property
    def shape(self) -> torch.Size:
        """[..., rows, columns]."""
        return self.codes.shape

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.codes.device

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.codes.nbytes + self.scales.nbytes

    @property
    def mT(self) -> BlockScaled:  # noqa: N802 - as torch calls it
        """The same memory with rows and columns exchanged."""
        return BlockScaled(self.codes.mT, self.scales.mT, self.column_bounds, self.row_bounds, self.dtype)

    def __getitem__(self, place: int) -> BlockScaled:
        """Return one of a stack."""
        return replace(self, codes=self.codes[place], scales=self.scales[place])

    def to(self, device: torch.device) -> BlockScaled:
        """Return it on a device."""
        return replace(self, codes=self.codes.to(device), scales=self.scales.to(device))

    def has_nan(self) -> bool:
        """Whether a code of E4M3 stands for no number."""
        return self.codes.dtype == FP8 and bool(((self.codes.view(torch.uint8) & _NO_NUMBER) == _NO_NUMBER).any())


Weight: TypeAlias = "torch.Tensor | BlockScaled"
"""Numbers in the format that products take, or in FP8."""


def quantised(values: torch.Tensor, dtype: torch.dtype) -> BlockScaled:
    """Return values [..., rows, columns] as E4M3 with a scale for every 128 x 128, the least that no value overflows.

    That is DeepSeek-V3's rule: the largest magnitude of a block becomes 448. Blocks of zeros have the scale 1.
    """
    rows, columns = values.shape[-2:]
    padded = pad(values.float(), (0, -columns % BLOCK, 0, -rows % BLOCK))
    grid = (-(-rows // BLOCK), BLOCK, -(-columns // BLOCK), BLOCK)
    blocks = padded.reshape(*values.shape[:-2], *grid)
    scales = blocks.abs().amax(dim=(-3, -1)) / _LARGEST
    scales = torch.where(scales == 0, torch.ones_like(scales), scales.clamp(min=_LEAST_SCALE))
    codes = (blocks / scales[..., :, None, :, None]).flatten(-4, -3).flatten(-2).to(FP8)
    bounds = [block_bounds(range(size), BLOCK) for size in (rows, columns)]
    return BlockScaled(codes[..., :rows, :columns], scales, bounds[0], bounds[1], dtype)


def cut(weight: BlockScaled, rows: range, columns: range) -> BlockScaled:
    """Return a part, in one piece, of what consists of whole blocks of 128 from its first row and column on."""
    inside = tuple(slice(each.start, each.stop) for each in (rows, columns))
    of_blocks = tuple(slice(each.start // BLOCK, -(-each.stop // BLOCK)) for each in (rows, columns))
    return BlockScaled(
        weight.codes[..., *inside].contiguous(),
        weight.scales[..., *of_blocks].contiguous(),
        block_bounds(rows, BLOCK),
        block_bounds(columns, BLOCK),
        weight.dtype,
    )


def block_bounds(indices: range, block: int) -> Bounds:
    """Return where blocks of `block` begin among indices that are a part of an axis, counted from the first of them."""
    if not indices:
        return (0,)
    begins = range((indices.start // block + 1) * block, indices.stop, block)
    return (0, *(each - indices.start for each in begins), len(indices))


@cache
def block_index(bounds: Bounds, device: torch.device) -> torch.Tensor:
    """Return the block that each index along an axis lies in, int32."""
    sizes = torch.tensor([high - low for low, high in pairwise(bounds)], dtype=torch.int64)
    return torch.arange(len(sizes), dtype=torch.int32).repeat_interleave(sizes).to(device)


def even_blocks(bounds: Bounds) -> tuple[int, int] | None:
    """Return the place of the first index in its block, and the size of blocks; None if that differs or is below 128.

    Only the first and the last may be cut; where there are no others, the size is that of blocks they may be cut from.
    """
    sizes = [high - low for low, high in pairwise(bounds)]
    inner = set(sizes[1:-1])
    size = inner.pop() if inner else 1 << (max(BLOCK, *sizes) - 1).bit_length()
    if inner or size < BLOCK or max(sizes[0], sizes[-1]) > size:
        return None
    return (size - sizes[0] if len(sizes) > 1 else 0), size


def stacked(weights: Sequence[BlockScaled]) -> BlockScaled:
    """Return matrices that are divided into the same blocks as one stack."""
    some = weights[0]
    assert all(
        (each.row_bounds, each.column_bounds, each.codes.dtype)
        == (some.row_bounds, some.column_bounds, some.codes.dtype)
        for each in weights
    ), "they are alike"
    codes = torch.stack([each.codes.view(torch.uint8) for each in weights]).view(some.codes.dtype)
    return replace(some, codes=codes, scales=torch.stack([each.scales for each in weights]))


def joined(weights: Sequence[BlockScaled], axis: int) -> BlockScaled:
    """Return weights one after the other along rows (axis -2) or columns (-1); none of their blocks grow together."""
    some = weights[0]
    codes = torch.cat([each.codes.view(torch.uint8) for each in weights], dim=axis).view(some.codes.dtype)
    scales = torch.cat([each.scales for each in weights], dim=axis)
    of_rows = axis == _ROWS
    bounds: list[int] = [0]
    for each in weights:
        bounds += [bounds[-1] + bound for bound in (each.row_bounds if of_rows else each.column_bounds)[1:]]
    rows, columns = (tuple(bounds), some.column_bounds) if of_rows else (some.row_bounds, tuple(bounds))
    return BlockScaled(codes, scales, rows, columns, some.dtype)
