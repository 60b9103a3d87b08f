"""FP8 as rows and kernels have it: E4M3 codes with a scale for every 128 values."""

from __future__ import annotations

from functools import cache

import torch

FP8 = torch.float8_e4m3fn
BLOCK = 128
"""Values that share a scale."""
MANTISSA_BITS, BIAS = 23, 127
"""Of float32."""
LARGEST_EXPONENT, LARGEST_FRACTION = 8, 0x600000
"""Of 448, the largest of E4M3 (OCP 8-bit floating point, 2023): 1.75 * 2**8. The fraction as float32 has it."""
_FIRST_CAPABILITY = 8, 9
"""Of GPUs that Triton's kernels read E4M3 on."""


def num_scales(size: int) -> int:
    """Return the scales of a row of `size` values."""
    return -(-size // BLOCK)


@cache
def triton_reads(device: torch.device) -> bool:
    """Return whether Triton's kernels read E4M3 on a GPU."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _FIRST_CAPABILITY
