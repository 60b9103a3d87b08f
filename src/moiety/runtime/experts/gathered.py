"""Experts that every rank holds a part of: the tokens of all attention groups are gathered, the sums scattered."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from moiety.runtime.arena.trace import called, is_noting, noted_most_tokens
from moiety.runtime.comm.adjoint import all_gather, reduce_scatter
from moiety.runtime.dispatch.leg import agreed
from moiety.runtime.dispatch.wire import NO_SLOT

if TYPE_CHECKING:
    from moiety.runtime.comm.group import Group
    from moiety.runtime.experts.layer import HeldLayer
    from moiety.runtime.experts.local import LocalExperts
    from moiety.runtime.telemetry import Recorder


class GatheredExperts:
    """Every rank holds a part of every expert: the tokens of all attention groups are gathered, the sums scattered."""

    def __init__(self, inner: LocalExperts, group: Group, counts: Group, recorder: Recorder) -> None:
        self._inner, self._group, self._counts, self._recorder = inner, group, counts, recorder

    def most_pairs(self, num_tokens: int, top_k: int, most_tokens: int) -> int:
        """Return those of all groups; see `RoutedExperts`."""
        del num_tokens
        return self._group.size * most_tokens * top_k

    def __call__(
        self, hidden: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor, layer: HeldLayer
    ) -> torch.Tensor:
        """Return this rank's share of its group's sums; see `RoutedExperts`."""
        if is_noting():
            gathering = _Gathering(self._inner, self._group, self._counts, noted_most_tokens())
            return gathering.sums(hidden, experts, weights, layer, self._recorder)
        tokens = hidden.shape[0]
        everyone = self._counts.exchange_counts(torch.full((self._group.size, 1), tokens))[:, 0]
        most = int(everyone.max())
        whole = self._gathered(hidden, most).flatten(0, 1)
        chosen = self._gathered(experts, most).flatten(0, 1)
        given = self._gathered(weights.float(), most).flatten(0, 1)
        self._recorder.mark("token_all_gather", layer.index)
        partial = self._inner(whole, chosen, given, layer)
        sums = reduce_scatter(partial, self._group)[:tokens]
        self._recorder.mark("token_reduce_scatter", layer.index)
        return sums

    def _gathered(self, part: torch.Tensor, most: int) -> torch.Tensor:
        """Return the groups' tensors side by side, [groups, most, ...], filled up with zeros."""
        padded = part.new_zeros(most, *part.shape[1:])
        padded[: part.shape[0]] = part
        return all_gather(padded, self._group)


class _Gathering:
    """What `GatheredExperts` does in a step that is noted: tensors for as many tokens as all groups may have."""

    def __init__(self, inner: LocalExperts, group: Group, counts: Group, most_tokens: int) -> None:
        self._inner, self._group, self._counts = inner, group, counts
        self._num_rows = group.size * most_tokens
        self._most = 0
        """Of a group in the step that is under way."""

    def sums(
        self,
        hidden: torch.Tensor,
        experts: torch.Tensor,
        weights: torch.Tensor,
        layer: HeldLayer,
        recorder: Recorder,
    ) -> torch.Tensor:
        """Return this rank's share of its group's sums; see `RoutedExperts`."""
        whole, chosen, given = (each.new_zeros(self._num_rows, each.shape[1]) for each in (hidden, experts, weights))
        called(self._gather, [hidden, experts, weights], [whole, chosen, given])
        recorder.mark("token_all_gather", layer.index)
        slots = self._inner.slots_here(chosen, layer)
        called(self._blank, slots)
        partial = self._inner.outputs(whole, slots, given, layer, all_here=False)
        sums = partial.new_empty(self._num_rows // self._group.size, partial.shape[1])
        called(self._scatter, partial, sums)
        recorder.mark("token_reduce_scatter", layer.index)
        return sums[: hidden.shape[0]]

    def _gather(self, own: list[torch.Tensor], rooms: list[torch.Tensor]) -> None:
        numbers = np.full((self._group.size, 1), own[0].shape[0], dtype=np.int64)
        self._most = int(agreed(self._counts, numbers).max())
        for part, room in zip(own, rooms, strict=True):
            everyone = room[: self._group.size * self._most].view(self._group.size, self._most, -1)
            mine = everyone[self._group.index]
            mine[: part.shape[0]].copy_(part)
            mine[part.shape[0] :].zero_()
            self._group.all_gather(mine, everyone)

    def _blank(self, slots: torch.Tensor) -> None:
        slots[self._group.size * self._most :].fill_(NO_SLOT)

    def _scatter(self, partial: torch.Tensor, sums: torch.Tensor) -> None:
        self._group.reduce_scatter(partial[: self._group.size * self._most], sums[: self._most])
