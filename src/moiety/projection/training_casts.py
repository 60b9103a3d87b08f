"""What it takes to make rows narrow before a product: how often they are read, how many narrow copies are written.

From NVIDIA/TransformerEngine (Apache-2.0), `pytorch/csrc/quantizer.cpp`. A scale for a whole tensor
(`Float8CurrentScalingQuantizer`, and above those of blocks `NVFP4Quantizer`) is known once all of it was read. One copy
has a product's rows along its sum, another those of the weights' gradient; FP8 with a scale a tensor needs the second
only where products take no other layout (Hopper: `nvte_is_non_tn_fp8_gemm_supported`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moiety.dtypes import Dtype


@dataclass(frozen=True, slots=True)
class Cast:
    """Passes over rows while they become narrow."""

    reads: int = 1
    copies: int = 2

    def bytes(self, elements: float, wide: float, narrow: float) -> float:
        """Return the bytes moved for `elements` of `wide` bytes each that become `narrow` ones."""
        return elements * (self.reads * wide + self.copies * narrow)


BLOCK_CAST = Cast()
"""A scale for each block of a row and of a column (MXFP8): one pass makes both."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What passes over memory go by."""

    bytes_per_s: float
    casts: Mapping[Dtype, Cast] = field(default_factory=dict["Dtype", Cast])
    """How rows become narrow; `BLOCK_CAST` where it is not said."""

    def cast(self, dtype: Dtype) -> Cast:
        """Return how rows of a format are made."""
        return self.casts.get(dtype, BLOCK_CAST)


def tensor_cast(architecture: str) -> Cast:
    """Return how rows in FP8 with one scale a tensor are made on an architecture of GPUs."""
    return Cast(reads=2, copies=2 if architecture == "hopper" else 1)


def four_bit_cast(*, fused: bool) -> Cast:
    """Return how rows in NVFP4 are made: read for the scale of the tensor, then for the copies.

    The copy along columns is rotated first (random Hadamard transform). Before that was `fused` with the copy along
    rows (commit 523801df7, March 2026) each of the two read the rows.
    """
    return Cast(reads=2 if fused else 3)
