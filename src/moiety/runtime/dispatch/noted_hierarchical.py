"""Hierarchical exchange in a noted step: tensors for as many rows as can come, and the numbers of those that do."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from moiety.runtime.arena.trace import called
from moiety.runtime.dispatch.exchange import local_rows
from moiety.runtime.dispatch.leg import Leg, agreed
from moiety.runtime.dispatch.routes import Additions, inside_route, labels_of, node_route
from moiety.runtime.dispatch.wire import WireFormat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.runtime.dispatch.exchange import HierarchicalGroups, StageShape
    from moiety.runtime.dispatch.routes import Route
    from moiety.runtime.dispatch.wire import Rows

Transfer = tuple[torch.Tensor, torch.Tensor]
"""Rows that go, and room for those that come."""


def chunk_bounds(num_tokens: int, num_chunks: int) -> list[int]:
    """Return where each chunk of the tokens begins, and where the last one ends."""
    return [num_tokens * index // num_chunks for index in range(num_chunks + 1)]


def most_of_chunks(most_tokens: int, num_chunks: int) -> list[int]:
    """Return how many tokens each chunk has at most, on ranks of up to `most_tokens`."""
    bounds = [chunk_bounds(tokens, num_chunks) for tokens in range(most_tokens + 1)]
    return [max(each[chunk + 1] - each[chunk] for each in bounds) for chunk in range(num_chunks)]


class NotedHierarchicalRound:
    """A dispatch and its combine, step after step; see `Round`. Bytes and sums are those of `HierarchicalRound`."""

    def __init__(
        self,
        stage: StageShape,
        groups: HierarchicalGroups,
        formats: tuple[torch.dtype, torch.dtype],
        tokens: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        most_tokens: Sequence[int],
    ) -> None:
        """Begin; `tokens` and `formats` as for `HierarchicalExchange`, `most_tokens` of each chunk on any rank."""
        hidden, slots, weights = tokens
        self._stage, self._groups, self._combine_dtype = stage, groups, formats[1]
        self._wire = WireFormat(hidden.shape[1], slots.shape[1], formats[0], hidden.dtype)
        self._sums = torch.empty_like(hidden, dtype=torch.float32)
        self._room_sizes = [each * stage.num_gpus for each in most_tokens]
        self._arrived = _bytes(hidden, sum(self._room_sizes), self._wire)
        rooms = torch.split(self._arrived, self._room_sizes)
        self._bounds = chunk_bounds(slots.shape[0], len(most_tokens))
        sums = [self._sums[low:high] for low, high in pairwise(self._bounds)]
        self._chunks = [_Chunk(stage, groups, self._wire, *each) for each in zip(sums, rooms, strict=True)]
        called(self._send, self._wire.encoded(hidden), slots, weights, [each.under_way for each in self._chunks])

    def _send(
        self, encoded: Transfer, slots: torch.Tensor, weights: torch.Tensor, transfers: Sequence[Transfer]
    ) -> None:
        given, stage = labels_of(slots, weights, self._stage), self._stage
        routes = [node_route(given.at(np.arange(low, high)), stage) for low, high in pairwise(self._bounds)]
        sent = np.stack([route.sent(stage.num_nodes) for route in routes], axis=1)
        received = agreed(self._groups.rail_counts, sent)
        for index, (chunk, route, transfer) in enumerate(zip(self._chunks, routes, transfers, strict=True)):
            low, high = self._bounds[index : index + 2]
            chunk.rail.agree(sent[:, index], received[:, index])
            chunk.send(route, (encoded[0][low:high], encoded[1][low:high]), transfer)

    def arrive(self) -> Rows:
        """Pass rows on inside the node, and wait for those of others; what has not come goes to no slot."""
        for chunk in self._chunks:
            chunk.pass_on()
        for chunk in self._chunks:
            called(chunk.node.wait, *chunk.under_way)
        return local_rows(self._wire.unpack(self._arrived), self._stage)

    def give_back(self, partial: torch.Tensor) -> None:
        """Begin to return rows inside the node, sum them there and send the sums over the rails; see `Round`."""
        rows = torch.split(partial.to(self._combine_dtype), self._room_sizes)
        for chunk, each in zip(self._chunks, rows, strict=True):
            chunk.return_inside(each)
        for chunk in self._chunks:
            chunk.return_sums(self._combine_dtype)

    def finish(self) -> torch.Tensor:
        """Wait for the nodes' sums and add them; see `Round`."""
        for chunk in self._chunks:
            chunk.finish()
        return self._sums


class _Chunk:
    """Some of the tokens on their way: over the rail, inside the node, and back, step after step."""

    def __init__(
        self, stage: StageShape, groups: HierarchicalGroups, wire: WireFormat, sums: torch.Tensor, arrived: torch.Tensor
    ) -> None:
        """Of tokens with these `sums` [tokens, hidden]; `arrived` is room for all that this rank serves."""
        self._stage, self._counts, self._wire = stage, groups.node_counts, wire
        self.rail, self.node = Leg(groups.rail), Leg(groups.node)
        self._sums, self._arrived = sums, arrived
        most_gpus = wire.width * stage.expert_tp
        self._num_sent = sums.shape[0] * min(stage.num_nodes, most_gpus)
        self._num_received = arrived.shape[0] // stage.gpus_per_node
        self._num_passed_on = self._num_received * min(stage.gpus_per_node, most_gpus)
        self._nodes_sums: Additions | None = None
        """Of the step that is under way: sums of what comes back over the rail, and ..."""
        self._ranks_sums: Additions | None = None
        """... of what comes back inside the node."""
        self.under_way: Transfer = (_bytes(sums, self._num_sent, wire), _bytes(sums, self._num_received, wire))
        """What was begun last."""

    def send(self, route: Route, encoded: Transfer, transfer: Transfer) -> None:
        """Send this rank's tokens over the rail, in a step that is noted already."""
        self._nodes_sums = Additions(route.source)
        self._wire.fill(transfer[0][: self.rail.num_sent], encoded, route.source, route.labels)
        self.rail.go(*transfer)

    def pass_on(self) -> None:
        """Send on inside the node what comes over the rail."""
        came, self.under_way = self.under_way, (_bytes(self._sums, self._num_passed_on, self._wire), self._arrived)
        called(self._pass_on, came, self.under_way)

    def _pass_on(self, came: Transfer, onward: Transfer) -> None:
        self.rail.wait()
        (_, rows), (passed, room) = came, onward
        route = inside_route(self._wire.labels(rows[: self.rail.num_received]), self._stage)
        self._ranks_sums = Additions(route.source)
        sent = route.sent(self._stage.gpus_per_node)
        self.node.agree(sent, agreed(self._counts, sent))
        self._wire.copy(passed[: self.node.num_sent], rows, route.source, route.labels)
        self._wire.blank(room[self.node.num_received :])
        self.node.go(passed, room)

    def return_inside(self, rows: torch.Tensor) -> None:
        """Begin to return rows to the ranks of the node that they were passed on by."""
        self.under_way = rows, rows.new_empty(self._num_passed_on, rows.shape[1])
        called(self.node.come_back, *self.under_way)

    def return_sums(self, dtype: torch.dtype) -> None:
        """Add what the ranks of the node return, and begin to send the sums to the nodes that their rows came from."""
        sums = torch.empty(self._num_received, self._sums.shape[1], dtype=torch.float32)
        rows = self._waited(self.node)
        called(self._add_ranks, rows, _half(rows), sums)
        self.under_way = sums.to(dtype), torch.empty(self._num_sent, sums.shape[1], dtype=dtype)
        called(self.rail.come_back, *self.under_way)

    def finish(self) -> None:
        """Add what comes back over the rail."""
        rows = self._waited(self.rail)
        called(self._add_nodes, rows, _half(rows), self._sums)

    def _waited(self, leg: Leg) -> torch.Tensor:
        """Return what has come on a leg, for sums."""
        called(leg.wait, *self.under_way)
        return self.under_way[1].float()

    def _add_ranks(self, rows: torch.Tensor, room: torch.Tensor, sums: torch.Tensor) -> None:
        assert self._ranks_sums is not None, "rows come back that were passed on"
        self._ranks_sums.take(rows, room, sums)

    def _add_nodes(self, rows: torch.Tensor, room: torch.Tensor, sums: torch.Tensor) -> None:
        assert self._nodes_sums is not None, "rows come back that were sent"
        self._nodes_sums.take(rows, room, sums)


def _bytes(like: torch.Tensor, num_rows: int, wire: WireFormat) -> torch.Tensor:
    return like.new_empty(num_rows, wire.row_bytes, dtype=torch.uint8)


def _half(rows: torch.Tensor) -> torch.Tensor:
    """Return the room that adding these rows takes."""
    return rows.new_empty(rows.shape[0] // 2, rows.shape[1])
