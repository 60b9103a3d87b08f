"""The stacked weights of a rank's experts in one layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


@dataclass(frozen=True, slots=True, eq=False)
class ExpertWeights:
    """The stacked weights of a rank's slots in one layer, and the gate between the two products."""

    gate_up: torch.Tensor
    """[slots, hidden, 2 x width] as the product takes it (a view where the checkpoint stores it transposed)."""
    down: torch.Tensor
    """[slots, width, hidden]."""
    gate_up_bias: torch.Tensor | None
    """[slots, 2 x width]."""
    down_bias: torch.Tensor | None
    """[slots, hidden]; None too where another rank of the expert adds it."""
    gate: Callable[[torch.Tensor], torch.Tensor]
    """[rows, 2 x width] -> [rows, width]."""
    is_stored_so: bool = True
    """Whether transformers stores gate_up and down as the products take them; else it stores them transposed."""

    @property
    def num_slots(self) -> int:
        """Physical slots of the rank."""
        return self.gate_up.shape[0]

    @property
    def size_bytes(self) -> int:
        """Bytes of the rank's expert weights in this layer."""
        held = (self.gate_up, self.down, self.gate_up_bias, self.down_bias)
        return sum(each.nbytes for each in held if each is not None)
