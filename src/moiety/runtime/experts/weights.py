"""The stacked weights of a rank's experts in one layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.runtime.block_scaled import BlockScaled

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from moiety.runtime.block_scaled import Weight


@dataclass(frozen=True, slots=True, eq=False)
class ExpertWeights:
    """The stacked weights of a rank's slots in one layer, and the gate between the two products."""

    gate_up: Weight
    """[slots, hidden, 2 x width] as the product takes it (a view where the checkpoint stores it transposed)."""
    down: Weight
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
    def is_in_codes(self) -> bool:
        """Whether a projection is held as codes and scales, in FP8 or MXFP4."""
        return isinstance(self.gate_up, BlockScaled) or isinstance(self.down, BlockScaled)

    @property
    def plain(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`gate_up` and `down` of weights that are not held as codes."""
        assert not isinstance(self.gate_up, BlockScaled), "it is held as products take it"
        assert not isinstance(self.down, BlockScaled), "it is held as products take it"
        return self.gate_up, self.down

    @property
    def size_bytes(self) -> int:
        """Bytes of the rank's expert weights in this layer."""
        held = (self.gate_up, self.down, self.gate_up_bias, self.down_bias)
        return sum(each.nbytes for each in held if each is not None)
