"""Exchange: how the tokens of a rank reach the slots that serve them, and how the results come back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from moiety.runtime.dispatch.wire import Rows


class Round(Protocol):
    """One dispatch and its combine; several may be under way at a time, begun in the same order on every rank."""

    def arrive(self) -> Rows:
        """Wait for the rows that this rank's slots serve; their slots count from the rank's first."""
        ...

    def give_back(self, partial: torch.Tensor) -> None:
        """Begin to send back `partial` [rows, hidden] float32: the weighted sum over the row's slots on this rank."""
        ...

    def finish(self) -> torch.Tensor:
        """Wait for the sums of this rank's own tokens, [tokens, hidden] float32."""
        ...


class Exchange(Protocol):
    """A way to send: flat, dedup, hierarchical, or a library's."""

    def begin(self, hidden: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor) -> Round:
        """Begin to send this rank's tokens.

        `hidden` [tokens, hidden] are their states, `slots` [tokens, k] int64 the slots that serve them, counted
        over the stage, `weights` [tokens, k] float32 the router's. Every rank takes part, with or without
        tokens.
        """
        ...


@dataclass(frozen=True, slots=True)
class StageShape:
    """The GPUs of a stage as an exchange sees them."""

    index: int
    """Place of this rank in the stage."""
    num_gpus: int
    gpus_per_node: int
    """GPUs of the stage that share an innermost domain of links."""
    expert_tp: int
    slots_per_rank: int
    """Physical slots of each expert rank, that is of each group of `expert_tp` GPUs."""

    @property
    def num_nodes(self) -> int:
        """Innermost domains that the stage covers."""
        return self.num_gpus // self.gpus_per_node

    @property
    def first_slot(self) -> int:
        """First physical slot of the rank."""
        return self.index // self.expert_tp * self.slots_per_rank
