"""Direct exchange in a step that is noted: tensors for as many rows as can come, and the numbers of those that do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moiety.runtime.arena.trace import called
from moiety.runtime.dispatch.exchange import local_rows
from moiety.runtime.dispatch.leg import Leg, agreed
from moiety.runtime.dispatch.routes import Additions, dedup_route, direct_additions, flat_route, labels_of
from moiety.runtime.dispatch.wire import WireFormat

if TYPE_CHECKING:
    from moiety.runtime.comm.group import Group
    from moiety.runtime.dispatch.exchange import StageShape
    from moiety.runtime.dispatch.wire import Rows


class NotedDirectRound:
    """A dispatch and its combine, step after step; see `Round`. Bytes and sums are those of `DirectRound`."""

    def __init__(
        self,
        stage: StageShape,
        groups: tuple[Group, Group],
        formats: tuple[torch.dtype, torch.dtype],
        tokens: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        room: tuple[int, int],
        *,
        dedup: bool,
    ) -> None:
        """Begin; `tokens` and `formats` as for `DirectExchange`, `groups` of rows and counts, `room` in rows."""
        hidden, slots, weights = tokens
        self._stage, self._dedup = stage, dedup
        self._counts, self._leg = groups[1], Leg(groups[0])
        self._wire = WireFormat(hidden.shape[1], slots.shape[1] if dedup else 1, formats[0], hidden.dtype)
        self._combine_dtype = formats[1]
        self._additions: Additions | None = None
        """Of the step that is under way."""
        self._sums = torch.empty_like(hidden, dtype=torch.float32)
        self._out, self._in = (hidden.new_empty(rows, self._wire.row_bytes, dtype=torch.uint8) for rows in room)
        called(self._send, self._wire.encoded(hidden), slots, weights, self._out, self._in)

    def _send(
        self,
        encoded: tuple[torch.Tensor, torch.Tensor],
        slots: torch.Tensor,
        weights: torch.Tensor,
        rows: torch.Tensor,
        room: torch.Tensor,
    ) -> None:
        given = labels_of(slots, weights, self._stage)
        route = (dedup_route if self._dedup else flat_route)(given, self._stage)
        self._additions = direct_additions(route, self._stage)
        sent = route.sent(self._stage.num_gpus)
        self._leg.agree(sent, agreed(self._counts, sent))
        self._wire.fill(rows[: self._leg.num_sent], encoded, route.source, route.labels)
        self._wire.blank(room[self._leg.num_received :])
        self._leg.go(rows, room)

    def arrive(self) -> Rows:
        """Wait for rows, of which those that have not come go to no slot; see `Round`."""
        called(self._leg.wait, self._out, self._in)
        return local_rows(self._wire.unpack(self._in), self._stage)

    def give_back(self, partial: torch.Tensor) -> None:
        """Begin to return them; see `Round`."""
        self._in = partial.to(self._combine_dtype)
        self._out = torch.empty(self._out.shape[0], partial.shape[1], dtype=self._combine_dtype)
        called(self._leg.come_back, self._in, self._out)

    def finish(self) -> torch.Tensor:
        """Wait for the sums; see `Round`."""
        called(self._leg.wait, self._in, self._out)
        rows = self._out.float()
        called(self._add, rows, rows.new_empty(rows.shape[0] // 2, rows.shape[1]), self._sums)
        return self._sums

    def _add(self, rows: torch.Tensor, room: torch.Tensor, sums: torch.Tensor) -> None:
        assert self._additions is not None, "rows come back that were sent"
        self._additions.take(rows, room, sums)
