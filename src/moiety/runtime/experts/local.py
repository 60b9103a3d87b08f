"""Experts whose tokens are there already: each rank computes what its slots serve."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moiety.runtime.dispatch.wire import NO_SLOT, Rows

if TYPE_CHECKING:
    from moiety.runtime.experts.layer import HeldLayer
    from moiety.runtime.telemetry import Recorder


class LocalExperts:
    """All ranks that share the experts hold the same tokens: each computes what its slots serve."""

    def __init__(self, *, first_slot: int, num_slots: int, holds_all: bool, recorder: Recorder) -> None:
        """`holds_all`: whether these are all slots that there are."""
        self._first_slot, self._num_slots, self._recorder = first_slot, num_slots, recorder
        self._holds_all = holds_all

    def most_pairs(self, num_tokens: int, top_k: int, most_tokens: int) -> int:
        """Return those of this rank's own tokens; see `RoutedExperts`."""
        del most_tokens
        return num_tokens * top_k

    def __call__(
        self, hidden: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor, layer: HeldLayer
    ) -> torch.Tensor:
        """Return the sum over this rank's slots; see `RoutedExperts`."""
        slots = self.slots_here(experts, layer)
        return self.outputs(hidden, slots, weights, layer, all_here=self._holds_all)

    def slots_here(self, experts: torch.Tensor, layer: HeldLayer) -> torch.Tensor:
        """Return which of this rank's slots serves each of `experts` [tokens, k], as numbers from its first."""
        slots = layer.chooser.choose(experts) - self._first_slot
        if self._holds_all:
            return slots
        return torch.where((slots >= 0) & (slots < self._num_slots), slots, NO_SLOT)

    def outputs(
        self, hidden: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor, layer: HeldLayer, *, all_here: bool
    ) -> torch.Tensor:
        """Return the sum over these `slots` [tokens, k] of this rank; `all_here`: none of them is `NO_SLOT`."""
        keys = torch.arange(hidden.shape[0], device=hidden.device)
        return layer.outputs(Rows(hidden, keys, slots, weights, all_here), self._recorder)
