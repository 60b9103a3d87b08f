"""The expert layer of a rank, in place of transformers' experts: routed tokens in, their experts' sum out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from moiety.runtime.arena.trace import called, is_noting, noted_most_tokens
from moiety.runtime.comm.adjoint import all_gather, reduce_scatter
from moiety.runtime.dispatch.exchange import NotedExchange
from moiety.runtime.dispatch.leg import agreed
from moiety.runtime.dispatch.wire import NO_SLOT, Rows

if TYPE_CHECKING:
    from moiety.runtime.comm.group import Group
    from moiety.runtime.dispatch.exchange import Exchange, Round
    from moiety.runtime.dispatch.serving import SlotChooser
    from moiety.runtime.experts.backends import Backend
    from moiety.runtime.experts.weights import ExpertWeights
    from moiety.runtime.overlap import Turns
    from moiety.runtime.telemetry import Recorder


@dataclass(frozen=True, slots=True, eq=False)
class HeldLayer:
    """One layer's experts as a rank holds them."""

    index: int
    """Of the layer in the model."""
    chooser: SlotChooser
    weights: ExpertWeights
    backend: Backend

    def outputs(self, rows: Rows, recorder: Recorder) -> torch.Tensor:
        """Return for each row the weighted sum of the outputs of its slots here, [rows, hidden] float32."""
        return self.backend.outputs(rows, self.weights, recorder, self.index)


class RoutedExperts(Protocol):
    """How the routed tokens of a layer meet its experts."""

    def most_pairs(self, num_tokens: int, top_k: int, most_tokens: int) -> int | None:
        """Return how many pairs of a row and a slot a noted step has room for; None: it cannot be noted.

        `num_tokens` are those of this rank's attention group, `most_tokens` those that any group has at most.
        """
        ...

    def __call__(
        self, hidden: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor, layer: HeldLayer
    ) -> torch.Tensor:
        """Return what this rank adds to the layer's output, [tokens, hidden] float32.

        Summed over the ranks of the tensor-parallel group it is the whole: the weighted sum of the tokens' experts.
        """
        ...


class ExchangedExperts:
    """Experts are divided over attention groups: each rank sends its part of its group's tokens, and gets them back."""

    def __init__(self, exchange: Exchange, *, tp: int, tp_index: int, turns: Turns, recorder: Recorder) -> None:
        self._exchange, self._tp, self._tp_index = exchange, tp, tp_index
        self._turns, self._recorder = turns, recorder

    def most_pairs(self, num_tokens: int, top_k: int, most_tokens: int) -> int | None:
        """Return what comes of all ranks together at most; see `RoutedExperts`."""
        del num_tokens
        exchange = self._exchange
        return exchange.most_pairs(self._most(most_tokens), top_k) if isinstance(exchange, NotedExchange) else None

    def __call__(
        self, hidden: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor, layer: HeldLayer
    ) -> torch.Tensor:
        """Return the sums of this rank's part of the tokens, zeros for the others; see `RoutedExperts`."""
        tokens = hidden.shape[0]
        low, high = (tokens * part // self._tp for part in (self._tp_index, self._tp_index + 1))
        mine = slice(low, high)
        under_way = self._begin(hidden[mine], layer.chooser.choose(experts[mine]), weights[mine])
        called(self._pass_on, "dispatch", layer.index)
        arrived = under_way.arrive()
        self._recorder.mark("dispatch", layer.index)
        under_way.give_back(layer.outputs(arrived, self._recorder))
        called(self._pass_on, "combine", layer.index)
        sums = under_way.finish()
        self._recorder.mark("combine", layer.index)
        if self._tp == 1:
            return sums
        out = sums.new_zeros(hidden.shape)
        out[mine] = sums
        return out

    def _begin(self, hidden: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor) -> Round:
        exchange = self._exchange
        if is_noting() and isinstance(exchange, NotedExchange):
            return exchange.noted(hidden, slots, weights, self._most(noted_most_tokens()))
        return exchange.begin(hidden, slots, weights)

    def _most(self, most_tokens: int) -> int:
        """Return how many of a group's tokens a rank sends at most."""
        return -(-most_tokens // self._tp)

    def _pass_on(self, exchange: str, layer: int) -> None:
        """Let the other micro-batch compute while the exchange is on its way."""
        if self._turns.is_shared:
            self._recorder.mark(exchange, layer)
            self._turns.pass_on()


class LocalExperts:
    """All ranks that share the experts hold the same tokens: each computes what its slots serve."""

    def __init__(self, *, first_slot: int, num_slots: int, recorder: Recorder) -> None:
        self._first_slot, self._num_slots, self._recorder = first_slot, num_slots, recorder

    def most_pairs(self, num_tokens: int, top_k: int, most_tokens: int) -> int:
        """Return those of this rank's own tokens; see `RoutedExperts`."""
        del most_tokens
        return num_tokens * top_k

    def __call__(
        self, hidden: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor, layer: HeldLayer
    ) -> torch.Tensor:
        """Return the sum over this rank's slots; see `RoutedExperts`."""
        return self.outputs(hidden, self.slots_here(experts, layer), weights, layer)

    def slots_here(self, experts: torch.Tensor, layer: HeldLayer) -> torch.Tensor:
        """Return which of this rank's slots serves each of `experts` [tokens, k], as numbers from its first."""
        slots = layer.chooser.choose(experts) - self._first_slot
        return torch.where((slots >= 0) & (slots < self._num_slots), slots, NO_SLOT)

    def outputs(
        self, hidden: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor, layer: HeldLayer
    ) -> torch.Tensor:
        """Return the sum over these `slots` [tokens, k] of this rank."""
        keys = torch.arange(hidden.shape[0], device=hidden.device)
        return layer.outputs(Rows(hidden, keys, slots, weights), self._recorder)


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
            gathering = Gathering(self._inner, self._group, self._counts, noted_most_tokens())
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


class Gathering:
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
        partial = self._inner.outputs(whole, slots, given, layer)
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


class ExpertLayer(torch.nn.Module):
    """What stands where transformers' experts module stood: same arguments, same meaning."""

    def __init__(self, held: HeldLayer, routed: RoutedExperts, *, partial: bool) -> None:
        """`partial`: the block's output is summed over the tensor-parallel group afterwards, so FP32 is kept."""
        super().__init__()
        self.held = held
        self._routed, self._partial = routed, partial
        experts = held.chooser.table.held.shape[0]
        self.counts = torch.zeros(experts, dtype=torch.int64, device=held.weights.gate_up.device)
        """[experts]: how often the router chose each for this attention group's tokens since the last reset."""
        self._one = torch.ones_like(self.counts[:1])

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Return [tokens, hidden] from states [tokens, hidden], experts and weights [tokens, k]."""
        called(self._count, top_k_index)
        given = top_k_weights.float()
        if is_noting() and not self.is_fixed(*top_k_index.shape, noted_most_tokens()):
            out = torch.empty_like(hidden_states, dtype=torch.float32)
            called(self._fill, out, hidden_states, top_k_index, given)
        else:
            out = self._routed(hidden_states, top_k_index, given, self.held)
        return out if self._partial else out.to(hidden_states.dtype)

    def is_fixed(self, num_tokens: int, top_k: int, most_tokens: int) -> bool:
        """Return whether a step can be noted tensor by tensor: their shapes follow from these numbers.

        `num_tokens` are those of this rank's attention group, `most_tokens` those that any group has at most.
        """
        num_pairs = self._routed.most_pairs(num_tokens, top_k, most_tokens)
        return num_pairs is not None and num_pairs <= self.held.backend.most_fixed

    def _fill(self, out: torch.Tensor, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> None:
        out.copy_(self._routed(hidden, chosen, weights, self.held))

    def _count(self, chosen: torch.Tensor) -> None:
        self.counts.scatter_add_(0, chosen.reshape(-1), self._one.expand(chosen.numel()))
