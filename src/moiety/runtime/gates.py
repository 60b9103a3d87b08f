"""The gates between an expert's two products that our kernels know, and how a model's is recognized among them."""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

CLAMPED_TO, SHARPNESS = 7.0, 1.702
"""gpt-oss's `swiglu_limit` and `alpha` (OpenAI's reference implementation, 2025)."""
_PROBED = 128
"""Values of the gate's input that a gate is recognized by, and ..."""
_PROBED_TO = 8.0
"""... the inverse sinh of the largest, 1,490: dense about zero, and far beyond the clamps of models that have one."""
_REMEMBERED = 512
"""Gates: every layer has its own."""


class Gate(IntEnum):
    """Two products of a row, gate and up, into one."""

    SILU = 0
    """silu(gate) * up; all gates lie before all ups."""
    GPT_OSS = 1
    """gate * sigmoid(1.702 gate) * (up + 1), both clamped before; gates and ups lie by turns."""

    @property
    def is_by_turns(self) -> bool:
        """Whether each gate lies before its up."""
        return self is Gate.GPT_OSS

    def __call__(self, middle: torch.Tensor) -> torch.Tensor:
        """Return [rows, width] of [rows, 2 x width]."""
        if self is Gate.SILU:
            gate, up = middle.chunk(2, dim=-1)
            return torch.nn.functional.silu(gate) * up
        gate = middle[..., ::2].clamp(max=CLAMPED_TO)
        up = middle[..., 1::2].clamp(-CLAMPED_TO, CLAMPED_TO)
        return (up + 1) * gate * torch.sigmoid(SHARPNESS * gate)


def gated(gate: Callable[[torch.Tensor], torch.Tensor], middle: torch.Tensor) -> torch.Tensor:
    """Return what `gate` makes of [rows, 2 x width], on CPUs in that memory where no gradients are wanted.

    As in a fused kernel, and as planned, the halves and what becomes of them are not there side by side. A gate that is
    not among the known ones takes memory of its own.
    """
    known = None if torch.is_grad_enabled() or middle.device.type != "cpu" else known_gate(gate)
    if known is None:
        return gate(middle)
    if known is Gate.SILU:
        values, up = middle.chunk(2, dim=-1)
        return torch.nn.functional.silu(values, inplace=True).mul_(up)
    values = middle[..., ::2].clamp_(max=CLAMPED_TO)
    up = middle[..., 1::2].clamp_(-CLAMPED_TO, CLAMPED_TO).add_(1)
    return (SHARPNESS * values).sigmoid_().mul_(values).mul_(up)


@lru_cache(maxsize=_REMEMBERED)
def known_gate(gate: Callable[[torch.Tensor], torch.Tensor]) -> Gate | None:
    """Return which of the known gates this is, tried on values that tell them from others; None: none of them.

    Whether gates and ups lie one after the other or by turns shows too.
    """
    values = torch.linspace(-_PROBED_TO, _PROBED_TO, _PROBED).sinh()
    sample = torch.stack([values, values.flip(0), values.roll(_PROBED // 4)])
    found = gate(sample)
    return next((each for each in Gate if torch.allclose(found, each(sample), rtol=1e-5, atol=1e-6)), None)
