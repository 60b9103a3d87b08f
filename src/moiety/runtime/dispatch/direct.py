"""Direct exchange: every row goes straight to the GPU that serves it; one per (token, expert), or one per GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moiety.runtime.conversion import integers
from moiety.runtime.dispatch.exchange import local_rows
from moiety.runtime.dispatch.noted_direct import NotedDirectRound
from moiety.runtime.dispatch.reduction import token_sums
from moiety.runtime.dispatch.wire import NO_SLOT, Rows, WireFormat

if TYPE_CHECKING:
    from moiety.runtime.comm.group import Group, Pending
    from moiety.runtime.dispatch.exchange import StageShape


class DirectExchange:
    """`flat` sends a row for each (token, expert), `dedup` one for each (token, GPU).

    An expert that several GPUs share (expert tensor parallelism) gets a row on each of them.
    """

    def __init__(
        self, stage: StageShape, group: Group, counts: Group, formats: tuple[torch.dtype, torch.dtype], *, dedup: bool
    ) -> None:
        """Exchange over `group`, with numbers of rows agreed on over `counts`; `formats` of dispatch and combine."""
        self._stage, self._group, self._counts, self._dedup = stage, group, counts, dedup
        self._dispatch_dtype, self._combine_dtype = formats

    def begin(self, hidden: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor) -> DirectRound:
        """Begin to send; see `Exchange`."""
        stage = self._stage
        rank = slots // stage.slots_per_rank
        if self._dedup:
            gpu, token, named, given = dedup_rows(rank, slots, weights, stage)
        else:
            gpu, token, named, given = _flat_rows(rank, slots, weights, stage)
        sent = torch.bincount(gpu, minlength=stage.num_gpus)
        received = self._counts.exchange_counts(sent[:, None])[:, 0]
        wire = WireFormat(hidden.shape[1], named.shape[1], self._dispatch_dtype, hidden.dtype)
        keys = token + (stage.index << 32)
        packed = wire.pack(Rows(hidden, keys, named, given), token)
        counts = integers(sent), integers(received)
        return DirectRound(self, wire, hidden, (gpu, token), counts, self._group.all_to_all(packed, *counts))

    def most_pairs(self, most_tokens: int, top_k: int) -> int:
        """Return how many pairs of a row and a slot come at most; see `NotedExchange`."""
        return self._most_rows(most_tokens, top_k) * (top_k if self._dedup else 1)

    def noted(
        self, hidden: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor, most_tokens: int
    ) -> NotedDirectRound:
        """Begin to send in a step that is noted; see `NotedExchange`."""
        tokens, top_k = slots.shape
        most_gpus = min(top_k, self._stage.num_gpus // self._stage.expert_tp) if self._dedup else top_k
        room = tokens * most_gpus * self._stage.expert_tp, self._most_rows(most_tokens, top_k)
        formats = self._dispatch_dtype, self._combine_dtype
        groups, given = (self._group, self._counts), (hidden, slots, weights)
        return NotedDirectRound(self._stage, groups, formats, given, room, dedup=self._dedup)

    def _most_rows(self, most_tokens: int, top_k: int) -> int:
        each = 1 if self._dedup else min(top_k, self._stage.slots_per_rank)
        return self._stage.num_gpus * most_tokens * each

    def send_back(self, partial: torch.Tensor, received: list[int], sent: list[int]) -> Pending:
        """Begin to return rows to those that they came from."""
        return self._group.all_to_all(partial.to(self._combine_dtype), received, sent)

    @property
    def stage(self) -> StageShape:
        """The GPUs that take part."""
        return self._stage


class DirectRound:
    """A dispatch and its combine; see `Round`."""

    def __init__(
        self,
        exchange: DirectExchange,
        wire: WireFormat,
        hidden: torch.Tensor,
        sent_rows: tuple[torch.Tensor, torch.Tensor],
        counts: tuple[list[int], list[int]],
        pending: Pending,
    ) -> None:
        self._exchange, self._wire, self._hidden, self._pending = exchange, wire, hidden, pending
        self._gpu, self._token = sent_rows
        self._sent, self._received = counts

    def arrive(self) -> Rows:
        """Wait for rows; see `Round`."""
        rows = self._wire.unpack(self._pending.wait())
        return local_rows(rows, self._exchange.stage)

    def give_back(self, partial: torch.Tensor) -> None:
        """Begin to return them; see `Round`."""
        self._pending = self._exchange.send_back(partial, self._received, self._sent)

    def finish(self) -> torch.Tensor:
        """Wait for the sums; see `Round`."""
        rows = self._pending.wait().float()
        sums, token = token_sums(rows, self._token, self._gpu, self._exchange.stage.gpus_per_node)
        out = torch.zeros(self._hidden.shape, dtype=torch.float32, device=self._hidden.device)
        return out.index_copy_(0, token, sums)


def _flat_rows(
    rank: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor, stage: StageShape
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (GPU, token, slot, weight) of a row for every (token, expert, GPU of the expert), by GPU."""
    tokens, k = slots.shape
    shares = torch.arange(stage.expert_tp, device=slots.device)
    gpu = (rank[:, :, None] * stage.expert_tp + shares).reshape(-1)
    order = torch.argsort(gpu, stable=True)
    pair = order // stage.expert_tp
    token = pair // k if tokens else pair
    return gpu[order], token, slots.reshape(-1)[pair][:, None], weights.reshape(-1)[pair][:, None]


def dedup_rows(
    rank: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor, stage: StageShape
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (GPU, token, slots, weights) of a row for every GPU that a token must reach, by GPU, then by token."""
    ranks = stage.num_gpus // stage.expert_tp
    reached = torch.zeros(slots.shape[0], ranks + 1, dtype=torch.bool, device=slots.device)
    reached.scatter_(1, torch.where(slots >= 0, rank, ranks), value=True)
    target, token = reached[:, :ranks].t().nonzero(as_tuple=True)
    if stage.expert_tp > 1:
        shares = torch.arange(stage.expert_tp, device=slots.device)
        gpu = (target[:, None] * stage.expert_tp + shares).reshape(-1)
        token = token[:, None].expand(-1, stage.expert_tp).reshape(-1)
        order = torch.argsort(gpu, stable=True)
        gpu, token = gpu[order], token[order]
    else:
        gpu = target
    mine = rank[token] == (gpu // stage.expert_tp)[:, None]
    return gpu, token, torch.where(mine, slots[token], NO_SLOT), weights[token]
