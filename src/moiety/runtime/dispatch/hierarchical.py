"""Hierarchical exchange: one row per token and node over the network, passed on inside the node, in chunks.

A row goes first to the GPU with its sender's place in each node that the token must reach (its rail), from there to the
GPUs of that node. Results are summed in the node before they go back, so that the network carries one row per token and
node either way. While one chunk of tokens crosses the network, the one before it is passed on inside the nodes.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from moiety.runtime.conversion import integers
from moiety.runtime.dispatch.direct import dedup_rows
from moiety.runtime.dispatch.exchange import local_rows
from moiety.runtime.dispatch.noted_hierarchical import NotedHierarchicalRound, chunk_bounds, most_of_chunks
from moiety.runtime.dispatch.reduction import segment_sum
from moiety.runtime.dispatch.wire import NO_SLOT, Rows, WireFormat

if TYPE_CHECKING:
    from moiety.runtime.comm.group import Pending
    from moiety.runtime.dispatch.exchange import HierarchicalGroups, StageShape


NUM_CHUNKS = 4
"""Parts of the tokens that follow each other over the network and inside the nodes."""


class HierarchicalExchange:
    """One row per (token, node) between nodes, one per (token, GPU) inside; `num_chunks` are pipelined."""

    def __init__(
        self,
        stage: StageShape,
        groups: HierarchicalGroups,
        formats: tuple[torch.dtype, torch.dtype],
        *,
        num_chunks: int = NUM_CHUNKS,
    ) -> None:
        """Exchange over `groups`; `formats` of dispatch and combine."""
        self.stage, self.groups, self.num_chunks = stage, groups, num_chunks
        self.dispatch_dtype, self.combine_dtype = formats

    def begin(self, hidden: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor) -> HierarchicalRound:
        """Begin to send; see `Exchange`."""
        return HierarchicalRound(self, hidden, slots, weights)

    def most_pairs(self, most_tokens: int, top_k: int) -> int:
        """Return how many pairs of a row and a slot come at most; see `NotedExchange`."""
        return self.stage.num_gpus * sum(most_of_chunks(most_tokens, self.num_chunks)) * top_k

    def noted(
        self, hidden: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor, most_tokens: int
    ) -> NotedHierarchicalRound:
        """Begin to send in a step that is noted; see `NotedExchange`."""
        formats, rooms = (self.dispatch_dtype, self.combine_dtype), most_of_chunks(most_tokens, self.num_chunks)
        return NotedHierarchicalRound(self.stage, self.groups, formats, (hidden, slots, weights), rooms)


@dataclass(slots=True)
class _Chunk:
    """Some of the tokens on their way: over the rail, inside the node, and back."""

    token: torch.Tensor
    """[rail rows]: token of each row sent over the rail."""
    rail_sent: list[int]
    rail_received: list[int]
    pending: Pending
    passed: torch.Tensor | None = None
    """[node rows]: which row of the rail each row sent inside the node is."""
    node_sent: list[int] | None = None
    node_received: list[int] | None = None


class HierarchicalRound:
    """A dispatch and its combine; see `Round`."""

    def __init__(
        self, exchange: HierarchicalExchange, hidden: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor
    ) -> None:
        self._exchange, self._hidden = exchange, hidden
        self._wire = WireFormat(hidden.shape[1], slots.shape[1], exchange.dispatch_dtype, hidden.dtype)
        self._chunks = self._over_rails(slots, weights)
        self._back: list[Pending] = []
        self._rows_of_chunk: list[int] = []

    def _over_rails(self, slots: torch.Tensor, weights: torch.Tensor) -> list[_Chunk]:
        """Begin to send every chunk over the network."""
        stage, groups, chunks = self._exchange.stage, self._exchange.groups, self._exchange.num_chunks
        tokens = slots.shape[0]
        node = slots // stage.slots_per_rank * stage.expert_tp // stage.gpus_per_node
        reached = torch.zeros(tokens, stage.num_nodes, dtype=torch.bool, device=slots.device)
        for share in range(0, stage.expert_tp, min(stage.gpus_per_node, stage.expert_tp)):
            reached.scatter_(1, node + share // stage.gpus_per_node, value=True)
        bounds = chunk_bounds(tokens, chunks)
        parts = [reached[low:high].t().nonzero(as_tuple=True) for low, high in itertools.pairwise(bounds)]
        sent = torch.stack([torch.bincount(target, minlength=stage.num_nodes) for target, _ in parts], dim=1)
        received = groups.rail_counts.exchange_counts(sent)
        found: list[_Chunk] = []
        for index, ((_, token), low) in enumerate(zip(parts, bounds, strict=False)):
            named = token + low
            rows = Rows(self._hidden, named + (stage.index << 32), slots[named], weights[named])
            counts = integers(sent[:, index]), integers(received[:, index])
            pending = groups.rail.all_to_all(self._wire.pack(rows, named), *counts)
            found.append(_Chunk(named, *counts, pending))
        return found

    def arrive(self) -> Rows:
        """Pass on inside the node what comes over the rails, and wait for what others pass on; see `Round`."""
        stage, groups = self._exchange.stage, self._exchange.groups
        for chunk in self._chunks:
            rows = self._wire.unpack(chunk.pending.wait())
            gpu, passed, slots, weights = _inside(rows, stage)
            sent = torch.bincount(gpu, minlength=stage.gpus_per_node)
            received = groups.node_counts.exchange_counts(sent[:, None])[:, 0]
            chunk.passed, chunk.node_sent, chunk.node_received = passed, integers(sent), integers(received)
            packed = self._wire.pack(Rows(rows.hidden, rows.keys[passed], slots, weights), passed)
            chunk.pending = groups.node.all_to_all(packed, chunk.node_sent, chunk.node_received)
        arrived = [chunk.pending.wait() for chunk in self._chunks]
        self._rows_of_chunk = [each.shape[0] for each in arrived]
        return local_rows(self._wire.unpack(torch.cat(arrived)), stage)

    def give_back(self, partial: torch.Tensor) -> None:
        """Begin to return rows inside the node, sum them there and send the sums over the rails; see `Round`."""
        groups, dtype = self._exchange.groups, self._exchange.combine_dtype
        inside: list[Pending] = []
        for chunk, rows in zip(self._chunks, torch.split(partial, self._rows_of_chunk), strict=True):
            assert chunk.node_sent is not None, "rows are passed on before they come back"
            assert chunk.node_received is not None, "rows are passed on before they come back"
            inside.append(groups.node.all_to_all(rows.to(dtype), chunk.node_received, chunk.node_sent))
        for chunk, pending in zip(self._chunks, inside, strict=True):
            assert chunk.passed is not None, "rows are passed on before they come back"
            rows = pending.wait().float()
            order = torch.argsort(chunk.passed, stable=True)  # by row of the rail; they come by GPU
            sums, _ = segment_sum(rows.index_select(0, order), chunk.passed[order])
            self._back.append(groups.rail.all_to_all(sums.to(dtype), chunk.rail_received, chunk.rail_sent))

    def finish(self) -> torch.Tensor:
        """Wait for the nodes' sums and add them; see `Round`."""
        out = torch.zeros(self._hidden.shape, dtype=torch.float32, device=self._hidden.device)
        for chunk, pending in zip(self._chunks, self._back, strict=True):
            rows = pending.wait().float()
            order = torch.argsort(chunk.token, stable=True)  # by token; they come by node
            sums, token = segment_sum(rows.index_select(0, order), chunk.token[order])
            out.index_copy_(0, token, sums)
        return out


def _inside(rows: Rows, stage: StageShape) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (GPU of the node, row, slots, weights) of what goes on inside this rank's node, by GPU, then by row."""
    first = stage.index // stage.gpus_per_node * stage.gpus_per_node
    slots = rows.slots.long()
    rank = torch.where(slots >= 0, slots // stage.slots_per_rank, NO_SLOT)
    gpu, passed, named, weights = dedup_rows(rank, slots, rows.weights, stage)
    here = ((gpu >= first) & (gpu < first + stage.gpus_per_node)).nonzero()[:, 0]
    return gpu[here] - first, passed[here], named[here], weights[here]
