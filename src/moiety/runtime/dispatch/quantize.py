"""FP8 rows: E4M3 codes, with a power of two as the scale of every 128 values.

With it what was quantised once stays as it is. Any other scale would round again where a row is passed on inside a
node, and the exchanges would differ in bits.
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad

FP8 = torch.float8_e4m3fn
BLOCK = 128
"""Values that share a scale."""
_LARGEST = 448.0
"""Of E4M3's finite values (OCP 8-bit floating point, 2023)."""
_HALF = 0.5


def num_scales(size: int) -> int:
    """Return the scales of a row of `size` values."""
    return -(-size // BLOCK)


def quantized(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the codes [n, size] and the scales [n, ceil(size / 128)] float32 of rows [n, size].

    A scale is the least power of two with which the largest value of its block has a code.
    """
    blocks = _blocks(rows.float())
    largest = blocks.abs().amax(dim=-1)
    mantissa, exponent = torch.frexp(largest / _LARGEST)
    exponent = torch.where(mantissa > _HALF, exponent, exponent - 1)
    scales = torch.ldexp(torch.ones_like(largest), torch.where(largest > 0, exponent, 0))
    codes = (blocks / scales[..., None]).to(FP8)
    return codes.flatten(1)[:, : rows.shape[1]], scales


def dequantized(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the rows [n, size] that codes and scales stand for; exact in float32 and BF16."""
    values = _blocks(codes.float()) * scales[..., None]
    return values.flatten(1)[:, : codes.shape[1]].to(dtype)


def _blocks(rows: torch.Tensor) -> torch.Tensor:
    """Return rows [n, size] as [n, blocks, 128], filled up with zeros."""
    missing = -rows.shape[1] % BLOCK
    whole = pad(rows, (0, missing)) if missing else rows
    return whole.view(rows.shape[0], num_scales(rows.shape[1]), BLOCK)
