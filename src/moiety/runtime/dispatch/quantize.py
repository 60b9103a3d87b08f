"""FP8 rows: E4M3 codes, with a power of two as the scale of every 128 values.

With it what was quantised once stays as it is. Any other scale would round again where a row is passed on inside a
node, and the exchanges would differ in bits.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch

from moiety.runtime.fp8 import BIAS, BLOCK, FP8, LARGEST_EXPONENT, LARGEST_FRACTION, MANTISSA_BITS, num_scales

_HAS_TRITON = find_spec("triton") is not None
_LEAST_EXPONENT = -126
"""The smallest normal scale."""


def quantize_into(codes: torch.Tensor, scales: torch.Tensor, rows: torch.Tensor, index: torch.Tensor) -> None:
    """Fill `codes` [n, size] and `scales` [n, num_scales] float32 with those of `rows` [..., size] at `index` [n]."""
    if rows.device.type == "cuda" and _HAS_TRITON:
        from moiety.runtime.kernels.quantized_rows import quantize_into as quantize  # noqa: PLC0415 - where there is one

        quantize(codes, scales, rows, index)
        return
    if index.shape[0] < rows.shape[0]:  # as of one chunk of the tokens: nothing is quantized that is not sent
        rows, index = rows.index_select(0, index), torch.arange(index.shape[0], device=index.device)
    given_codes, given_scales = quantized(rows)
    # as bytes: torch gathers no FP8
    codes.view(torch.uint8).copy_(given_codes.view(torch.uint8).index_select(0, index))
    scales.copy_(given_scales.index_select(0, index))


def quantized(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the codes [n, size] and the scales [n, num_scales] float32 of rows [n, size].

    A scale is the least power of two with which the largest value of its block has a code, found from its bits, so
    that every device finds the same.
    """
    blocks = _blocks(rows.float())
    bits = blocks.abs().amax(dim=-1).view(torch.int32)
    exponent = (bits >> MANTISSA_BITS) - BIAS - LARGEST_EXPONENT
    exponent += ((bits & ((1 << MANTISSA_BITS) - 1)) > LARGEST_FRACTION).int()
    exponent.clamp_(min=_LEAST_EXPONENT)
    codes = (blocks * _power_of_two(-exponent)[..., None]).to(FP8)
    return codes.flatten(1)[:, : rows.shape[1]], _power_of_two(exponent)


def dequantized(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the rows [n, size] that codes and scales stand for; exact in float32 and BF16."""
    values = _blocks(codes.float()) * scales[..., None]
    return values.flatten(1)[:, : codes.shape[1]].to(dtype)


def _power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """Return 2 ** exponent in float32, of int32 exponents from -126 to 127."""
    return ((exponent + BIAS) << MANTISSA_BITS).view(torch.float32)


def _blocks(rows: torch.Tensor) -> torch.Tensor:
    """Return rows [n, size] as [n, blocks, 128], filled up with zeros."""
    count, size = rows.shape
    whole = rows
    if size % BLOCK:
        whole = rows.new_zeros(count, num_scales(size) * BLOCK)
        whole[:, :size] = rows
    return whole.view(count, num_scales(size), BLOCK)
