"""Experts that are divided over attention groups: tokens are sent to them, and their sums come back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.runtime.arena.trace import called, is_noting, noted_most_tokens
from moiety.runtime.dispatch.exchange import NotedExchange

if TYPE_CHECKING:
    import torch

    from moiety.runtime.dispatch.exchange import Exchange, Round
    from moiety.runtime.experts.layer import HeldLayer
    from moiety.runtime.overlap import Turns
    from moiety.runtime.telemetry import Recorder


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
