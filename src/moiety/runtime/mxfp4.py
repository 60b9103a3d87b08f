"""MXFP4 as weights have it: pairs of E2M1 in bytes, low bits first, with an E8M0 scale for every 32 numbers of a row.

OCP Microscaling Formats 1.0. torch has formats for both, `float4_e2m1fn_x2` and `float8_e8m0fnu`, and no ops on pairs.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch

FP4_PAIRS = torch.float4_e2m1fn_x2
E8M0 = torch.float8_e8m0fnu
GROUP = 32
"""Numbers of a row that share a scale."""
NO_SCALE = 0xFF
"""E8M0's only NaN."""
_NIBBLE = 4
_TO_SIGN = 28
"""From the first of four bits to the first of FP32's 32 but three."""
_SHIFT = 6
"""From there, copying the sign, to where the exponent's two bits and the fraction's one lie in FP32."""
_SIGN_AND_REST = 0x81C00000 - (1 << 32)
_BIAS = 2.0**126
"""2 ** (127 - 1), by the exponents' biases."""


class _Operands(NamedTuple):
    """What the ops below take beside the numbers, as tensors: a plain number would be made one at every call."""

    of_low: torch.Tensor
    of_high: torch.Tensor
    shift: torch.Tensor
    sign_and_rest: torch.Tensor
    bias: torch.Tensor


@cache
def _operands(device: torch.device) -> _Operands:
    """Return them on a device, to which they are copied once."""
    low, high, shift, mask = (
        torch.tensor(each, dtype=torch.int32, device=device)
        for each in (_TO_SIGN, _TO_SIGN - _NIBBLE, _SHIFT, _SIGN_AND_REST)
    )
    return _Operands(low, high, shift, mask, torch.tensor(_BIAS, device=device))


def unpack_into(out: torch.Tensor, codes: torch.Tensor) -> None:
    """Fill `out` [rows, columns] float32 with the numbers of `codes` [rows, ceil(columns / 2)], without their scales.

    The bits are moved to where FP32 has them, in the memory of `out`.
    """
    pairs, bits = codes.view(torch.uint8), out.view(torch.int32)
    low, high = bits[:, 0::2], bits[:, 1::2]
    low.copy_(pairs)
    high.copy_(pairs[:, : high.shape[1]])
    given = _operands(out.device)
    low.bitwise_left_shift_(given.of_low)
    high.bitwise_left_shift_(given.of_high)
    torch.bitwise_right_shift(bits, given.shift, out=bits)
    torch.bitwise_and(bits, given.sign_and_rest, out=bits)
    out.mul_(given.bias)


def from_number(pairs: torch.Tensor, first: int, count: int) -> torch.Tensor:
    """Return `count` numbers of rows of pairs, uint8 [..., bytes], from number `first` on, in bytes of their own."""
    begin, size = first // 2, -(-count // 2)
    if first % 2 == 0:
        return pairs[..., begin : begin + size].contiguous()
    found = pairs[..., begin : begin + size] >> _NIBBLE
    after = pairs[..., begin + 1 : begin + 1 + size]
    found[..., : after.shape[-1]] |= after << _NIBBLE
    return found
