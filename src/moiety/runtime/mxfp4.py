"""MXFP4 as weights have it: pairs of E2M1 in bytes, low bits first, with an E8M0 scale for every 32 numbers of a row.

OCP Microscaling Formats 1.0. torch has formats for both, `float4_e2m1fn_x2` and `float8_e8m0fnu`, and no ops on pairs.
"""

from __future__ import annotations

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
_SHIFT = torch.tensor(6, dtype=torch.int32)
"""From there, copying the sign, to where the exponent's two bits and the fraction's one lie in FP32."""
_SIGN_AND_REST = torch.tensor(0x81C00000 - (1 << 32), dtype=torch.int32)
_BIAS = torch.tensor(2.0**126)
"""2 ** (127 - 1), by the exponents' biases."""
_OF_LOW = torch.tensor(_TO_SIGN, dtype=torch.int32)
_OF_HIGH = torch.tensor(_TO_SIGN - _NIBBLE, dtype=torch.int32)


def unpack_into(out: torch.Tensor, codes: torch.Tensor) -> None:
    """Fill `out` [rows, columns] float32 with the numbers of `codes` [rows, ceil(columns / 2)], without their scales.

    The bits are moved to where FP32 has them, in the memory of `out`.
    """
    pairs, bits = codes.view(torch.uint8), out.view(torch.int32)
    low, high = bits[:, 0::2], bits[:, 1::2]
    low.copy_(pairs)
    high.copy_(pairs[:, : high.shape[1]])
    low.bitwise_left_shift_(_OF_LOW.to(out.device))
    high.bitwise_left_shift_(_OF_HIGH.to(out.device))
    torch.bitwise_right_shift(bits, _SHIFT.to(out.device), out=bits)
    torch.bitwise_and(bits, _SIGN_AND_REST.to(out.device), out=bits)
    out.mul_(_BIAS.to(out.device))


def from_number(pairs: torch.Tensor, first: int, count: int) -> torch.Tensor:
    """Return `count` numbers of rows of pairs, uint8 [..., bytes], from number `first` on, in bytes of their own."""
    begin, size = first // 2, -(-count // 2)
    if first % 2 == 0:
        return pairs[..., begin : begin + size].contiguous()
    found = pairs[..., begin : begin + size] >> _NIBBLE
    after = pairs[..., begin + 1 : begin + 1 + size]
    found[..., : after.shape[-1]] |= after << _NIBBLE
    return found
