"""Weights as a rank holds them in FP8 and MXFP4: codes, and a scale for every block of rows and columns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch.nn.functional import pad

from moiety.runtime.fp8 import BLOCK, FP8
from moiety.runtime.mxfp4 import FP4_PAIRS, NO_SCALE

if TYPE_CHECKING:
    from collections.abc import Sequence

CodeFormat: TypeAlias = Literal["fp8", "mxfp4"]
"""Formats of plans (`dtypes.experts`) that weights are held in as codes and scales."""
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
    """A matrix, or a stack of them, as codes; blocks at the edges may be cut. `expansion.py` says what it stands for.

    The formats of codes and scales are theirs in torch: E4M3 or E5M2 with float32, or pairs of E2M1 with E8M0 (MXFP4).
    """

    codes: torch.Tensor
    """[..., rows, columns]; pairs lie along columns, [..., rows, ceil(columns / 2)]."""
    scales: torch.Tensor
    """[..., blocks of rows, blocks of columns]."""
    row_bounds: Bounds
    column_bounds: Bounds
    dtype: torch.dtype
    """What products take the numbers in."""
    is_turned: bool = False
    """Whether rows and columns are exchanged against how all this lies in memory, pairs included."""

    @property
    def shape(self) -> torch.Size:
        """[..., rows, columns]."""
        return torch.Size((*self.codes.shape[:-2], self.row_bounds[-1], self.column_bounds[-1]))

    @property
    def has_pairs(self) -> bool:
        """Whether a byte has two codes: MXFP4."""
        return self.codes.dtype == FP4_PAIRS

    @property
    def stored(self) -> BlockScaled:
        """The same as it lies in memory, codes of a row side by side."""
        return self.mT if self.is_turned else self

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
        codes, scales = self.codes.mT, self.scales.mT
        return BlockScaled(codes, scales, self.column_bounds, self.row_bounds, self.dtype, not self.is_turned)

    def __getitem__(self, place: int | tuple[int, ...]) -> BlockScaled:
        """Return one of a stack."""
        return replace(self, codes=self.codes[place], scales=self.scales[place])

    def to(self, device: torch.device) -> BlockScaled:
        """Return it on a device."""
        return replace(self, codes=self.codes.to(device), scales=self.scales.to(device))

    def has_nan(self) -> bool:
        """Whether a code of E4M3, or a scale of E8M0, stands for no number."""
        if self.has_pairs:
            return bool((self.scales.view(torch.uint8) == NO_SCALE).any())
        return self.codes.dtype == FP8 and bool(((self.codes.view(torch.uint8) & _NO_NUMBER) == _NO_NUMBER).any())


Weight: TypeAlias = "torch.Tensor | BlockScaled"
"""Numbers in the format that products take, or codes and scales."""


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
    parts = [each.stored for each in weights]
    some = parts[0]
    assert all(
        (each.row_bounds, each.column_bounds, each.codes.dtype)
        == (some.row_bounds, some.column_bounds, some.codes.dtype)
        for each in parts
    ), "they are alike"
    codes, scales = ([_bytes(getattr(each, kind)) for each in parts] for kind in ("codes", "scales"))
    found = _with_bytes(some, torch.stack(codes), torch.stack(scales))
    return found.mT if weights[0].is_turned else found


def joined(weights: Sequence[BlockScaled], axis: int) -> BlockScaled:
    """Return weights one after the other along rows (axis -2) or columns (-1); none of their blocks grow together.

    Of pairs, all but the last have even numbers of columns as they lie in memory, where they are joined along those.
    """
    if weights[0].is_turned:
        return joined([each.mT for each in weights], -3 - axis).mT
    some, of_rows = weights[0], axis == _ROWS
    halves = not of_rows and some.has_pairs
    assert not (halves and any(each.shape[-1] % 2 for each in weights[:-1])), "a byte belongs to one of them"
    codes, scales = ([_bytes(getattr(each, kind)) for each in weights] for kind in ("codes", "scales"))
    bounds: list[int] = [0]
    for each in weights:
        bounds += [bounds[-1] + bound for bound in (each.row_bounds if of_rows else each.column_bounds)[1:]]
    rows, columns = (tuple(bounds), some.column_bounds) if of_rows else (some.row_bounds, tuple(bounds))
    found = _with_bytes(some, torch.cat(codes, dim=axis), torch.cat(scales, dim=axis))
    return replace(found, row_bounds=rows, column_bounds=columns)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return codes or scales as torch can join them: of one byte, as bytes."""
    return tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor


def in_memory(weight: Weight) -> tuple[torch.Tensor, ...]:
    """Return the tensors that a weight lies in, in one piece each; those of one byte as bytes."""
    if isinstance(weight, torch.Tensor):
        return (weight,)
    return _bytes(weight.stored.codes), _bytes(weight.stored.scales)


def laid_in(like: BlockScaled, codes: torch.Tensor, scales: torch.Tensor) -> BlockScaled:
    """Return a weight like another that lies in these tensors, as `in_memory` gives them."""
    found = _with_bytes(like.stored, codes, scales)
    return found.mT if like.is_turned else found


def _with_bytes(like: BlockScaled, codes: torch.Tensor, scales: torch.Tensor) -> BlockScaled:
    return replace(like, codes=codes.view(like.codes.dtype), scales=scales.view(like.scales.dtype))
