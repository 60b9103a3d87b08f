"""Differentiable exchange: a row for each (token, GPU), as `dedup` sends, and gradients back the same way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch.autograd import Function

from moiety.runtime.comm.adjoint import all_to_all
from moiety.runtime.comm.priority import Priority
from moiety.runtime.conversion import integers
from moiety.runtime.dispatch.direct import dedup_rows
from moiety.runtime.dispatch.exchange import local_rows
from moiety.runtime.dispatch.reduction import token_sums
from moiety.runtime.dispatch.wire import Rows

if TYPE_CHECKING:
    from moiety.runtime.comm.group import Group
    from moiety.runtime.comm.network import Network
    from moiety.runtime.dispatch.exchange import StageShape


class DifferentiableExchange:
    """Rows are sent and summed as by `DirectExchange`, in the same order, so that forward gives the same bits.

    Hidden states, the router's weights and the experts' sums travel as tensors that autograd follows; each transfer is
    waited for, as the backward pass has to take place in one order on all ranks.
    """

    def __init__(
        self, stage: StageShape, group: Group, counts: Group, formats: tuple[torch.dtype, torch.dtype]
    ) -> None:
        """Exchange over `group`, with numbers of rows agreed on over `counts`; `formats` of dispatch and combine."""
        self.stage, self.group, self.counts = stage, group, counts
        self.dispatch_dtype, self.combine_dtype = formats

    def begin(self, hidden: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor) -> DifferentiableRound:
        """Send; see `Exchange`."""
        return DifferentiableRound(self, hidden, slots, weights)


class DifferentiableRound:
    """A dispatch and its combine; see `Round`."""

    def __init__(
        self, exchange: DifferentiableExchange, hidden: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor
    ) -> None:
        self._exchange, self._shape = exchange, hidden.shape
        stage, group = exchange.stage, exchange.group
        self._gpu, self._token, named, given = dedup_rows(slots // stage.slots_per_rank, slots, weights, stage)
        sent = torch.bincount(self._gpu, minlength=stage.num_gpus)
        received = exchange.counts.exchange_counts(sent[:, None])[:, 0]
        self._sent, self._received = integers(sent), integers(received)
        keys = self._token + (stage.index << 32)
        words = torch.cat([keys[:, None], named], dim=1)
        words = group.all_to_all(words, self._sent, self._received).wait()
        states = hidden.index_select(0, self._token).to(exchange.dispatch_dtype)
        states = all_to_all(states, group, self._sent, self._received).to(hidden.dtype)
        given = all_to_all(given, group, self._sent, self._received)
        self._arrived = Rows(states, words[:, 0].contiguous(), words[:, 1:], given)
        self._returned: torch.Tensor | None = None

    def arrive(self) -> Rows:
        """Return the rows that have come; see `Round`."""
        return local_rows(self._arrived, self._exchange.stage)

    def give_back(self, partial: torch.Tensor) -> None:
        """Return rows to those that they came from; see `Round`."""
        exchange = self._exchange
        rows = partial.to(exchange.combine_dtype)
        self._returned = all_to_all(rows, exchange.group, self._received, self._sent)

    def finish(self) -> torch.Tensor:
        """Return the sums; see `Round`."""
        assert self._returned is not None, "rows are given back before they are summed"
        apply = cast("Any", _TokenSums).apply
        return apply(self._returned.float(), self._token, self._gpu, self._exchange.stage.gpus_per_node, self._shape)


class _TokenSums(Function):
    """The sums of every token's rows, [tokens, hidden]; all that is kept is which token a row is of."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context
        rows: torch.Tensor,
        token: torch.Tensor,
        gpu: torch.Tensor,
        gpus_per_node: int,
        shape: torch.Size,
    ) -> torch.Tensor:
        ctx.save_for_backward(token)
        sums, summed = token_sums(rows, token, gpu, gpus_per_node)
        return rows.new_zeros(shape).index_copy_(0, summed, sums)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:  # noqa: ANN401
        (token,) = ctx.saved_tensors
        return gradients[0].index_select(0, token), None, None, None, None


def differentiable_exchange(
    stage: StageShape, network: Network, ranks: tuple[int, ...], formats: tuple[torch.dtype, torch.dtype]
) -> DifferentiableExchange:
    """Return the exchange over the stage's `ranks`, in order; all of them call it alike."""
    group = network.group(ranks, "stage", Priority.EXCHANGE)
    return DifferentiableExchange(stage, group, network.group(ranks, "counts", Priority.EXCHANGE), formats)
