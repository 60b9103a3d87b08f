"""A projection whose weights are held in FP8."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import linear

from moiety.runtime.expansion import whole

if TYPE_CHECKING:
    from moiety.runtime.block_scaled import BlockScaled


class ScaledLinear(torch.nn.Module):
    """What stands where transformers' projection stood: the same product, of the numbers that the codes stand for."""

    def __init__(self, weight: BlockScaled, bias: torch.nn.Parameter | None) -> None:
        """`weight` is [out, in], `bias` [out]."""
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return [..., out] of [..., in]."""
        return linear(rows, whole(self.weight), self.bias)
