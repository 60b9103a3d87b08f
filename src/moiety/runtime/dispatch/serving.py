"""Which physical slot serves each (token, expert) of a rank: the placement's serving rule, looked up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from moiety.placement.serving.rule import serve_columns, serving_table
from moiety.runtime.arena.trace import called
from moiety.runtime.conversion import from_array

if TYPE_CHECKING:
    from moiety.placement.placement import Placement
    from moiety.placement.serving.rule import ServingTable


@dataclass(frozen=True, slots=True, eq=False)
class SlotChooser:
    """The slots of one layer's experts. Without copies it is a table; with them the rule runs on the host."""

    only: torch.Tensor | None
    """[experts], int64: the slot of each expert where every expert has one; None where some have copies."""
    table: ServingTable
    home: int
    """Node that this rank's tokens start from."""
    first_token: int
    """Number of this rank's first token among those that start from the node, and ..."""
    token_step: int
    """... the step from one of its tokens to the next."""

    def choose(self, experts: torch.Tensor) -> torch.Tensor:
        """Return the slot that serves each of the tokens' `experts` [tokens, k], int64 of the same shape."""
        if self.only is not None:
            return self.only.index_select(0, experts.reshape(-1)).view(experts.shape)
        slots = torch.empty_like(experts)
        called(self._serve, experts, slots)
        return slots

    def _serve(self, experts: torch.Tensor, slots: torch.Tensor) -> None:
        """Fill `slots` by the rule, which looks at what routers have chosen."""
        columns = np.ascontiguousarray(experts.t().cpu().numpy())
        tokens = self.first_token + self.token_step * np.arange(columns.shape[1], dtype=np.int64)
        home = np.full(columns.shape[1], self.home, dtype=np.int64)
        slots.copy_(from_array(serve_columns(self.table, columns, home, tokens).T))


def slot_choosers(
    placement: Placement, *, home: int, num_nodes: int, first_token: int, token_step: int, device: torch.device
) -> dict[int, SlotChooser]:
    """Return the chooser of every MoE layer, by its index in the model.

    `num_nodes` are the innermost domains of links that the expert ranks lie in, `home` the one that this rank's tokens
    start from.
    """
    found: dict[tuple[int, ...], SlotChooser] = {}
    for row in dict.fromkeys(placement.physical_to_logical_map):
        slots = np.asarray(row, dtype=np.int64)
        table = serving_table(
            slots,
            num_experts=placement.num_logical_experts,
            num_gpus=placement.num_expert_ranks,
            num_nodes=num_nodes,
        )
        only = None
        if not placement.has_copies:
            only = from_array(np.argsort(slots, kind="stable")).to(device)
        found[row] = SlotChooser(only, table, home, first_token, token_step)
    return {layer: found[row] for layer, row in zip(placement.layers, placement.physical_to_logical_map, strict=True)}
