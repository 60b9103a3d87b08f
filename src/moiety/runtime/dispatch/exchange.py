"""Exchange: how the tokens of a rank reach the slots that serve them, and how the results come back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch

from moiety.runtime.dispatch.wire import NO_SLOT, Rows

if TYPE_CHECKING:
    from moiety.runtime.comm.group import Group


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


@runtime_checkable
class NotedExchange(Exchange, Protocol):
    """One whose rounds can be part of a step that is noted: `arena/`."""

    def most_pairs(self, most_tokens: int, top_k: int) -> int:
        """Return how many pairs of a row and a slot come at most, where no rank has more than `most_tokens`."""
        ...

    def noted(self, hidden: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor, most_tokens: int) -> Round:
        """Begin to send as `begin` does, with the same bytes and sums, in tensors of shapes that do not change.

        Their shapes follow from those of the arguments and from `most_tokens`, which no rank has more of.
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


@dataclass(frozen=True, slots=True)
class HierarchicalGroups:
    """The groups that a hierarchical exchange sends over."""

    rail: Group
    """The GPUs with this rank's place in each node, by node."""
    node: Group
    """The GPUs of this rank's node."""
    rail_counts: Group
    node_counts: Group


def local_rows(rows: Rows, stage: StageShape) -> Rows:
    """Return rows whose slots count from this rank's first; slots elsewhere become `NO_SLOT`."""
    slots = rows.slots.long() - stage.first_slot
    here = (slots >= 0) & (slots < stage.slots_per_rank) & (rows.slots >= 0)
    return Rows(rows.hidden, rows.keys, torch.where(here, slots, NO_SLOT), rows.weights)
