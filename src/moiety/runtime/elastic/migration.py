"""Live migration: experts move in the background while steps go on, until all ranks switch to the new map at once."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING

from moiety.runtime.comm.peer_lost import PeerLost
from moiety.runtime.elastic.schedule import moved_placement
from moiety.runtime.elastic.slots import Arrival, empty_like, overwrite, send
from moiety.runtime.experts.build import rank_choosers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moiety.placement.placement import Placement
    from moiety.runtime.comm.bulk import BulkGroup
    from moiety.runtime.comm.pending import Pending
    from moiety.runtime.dispatch.serving import SlotChooser
    from moiety.runtime.elastic.declaration import Batch, Order
    from moiety.runtime.elastic.holdings import Holdings
    from moiety.runtime.elastic.slots import Place
    from moiety.runtime.model.rank_model import RankModel


@dataclass(frozen=True, slots=True)
class _Staged:
    """What a rank has ready to switch to."""

    batch: Batch
    placement: Placement
    choosers: Mapping[int, SlotChooser]
    moved: Sequence[tuple[int, int, Place]]
    """Layer, slot of the rank, and where the expert lies that belongs there."""


class Mover:
    """A rank's part in live migrations: a thread that stages one batch of moves after the other.

    Nothing that serves changes until `switch`: experts that come wait beside the slots, so that only as many as one
    batch has moves take memory twice.
    """

    def __init__(self, model: RankModel, holdings: Holdings, group: BulkGroup) -> None:
        placement = model.seat.pool.placement
        assert placement is not None, "experts have a placement"
        self._model, self._holdings, self._group = model, holdings, group
        self._placement = placement
        self._batches: SimpleQueue[Batch | None] = SimpleQueue()
        self._staged: _Staged | None = None
        self._error: BaseException | None = None
        self._switched = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mover of experts", daemon=True)
        self._thread.start()

    def take(self, batch: Batch) -> None:
        """Begin with a batch, after those before it."""
        self._batches.put(batch)

    @property
    def staged(self) -> int:
        """Number of the batch that this rank is ready to switch to, 0 without one."""
        if self._error is not None:
            raise self._error
        staged = self._staged
        return 0 if staged is None else staged.batch.number

    @property
    def placement(self) -> Placement:
        """The map in force."""
        return self._placement

    def switch(self) -> int:
        """Serve by the staged map from now on; return the number of its batch. Every rank does before the same step."""
        staged = self._staged
        assert staged is not None, "all ranks have staged it"
        for layer, slot, place in staged.moved:
            held = self._holdings.layers[layer]
            overwrite(held.weights, slot, place)
            experts = list(held.experts)
            experts[slot] = self._expert_of(staged.placement, layer, slot)
            held.experts = tuple(experts)
        self._model.serve_by(staged.choosers)
        self._placement, self._staged = staged.placement, None
        self._switched.set()
        return staged.batch.number

    def _expert_of(self, placement: Placement, layer: int, slot: int) -> int:
        """Return the expert of one of this rank's slots under a placement."""
        row = placement.layers.index(layer)
        return placement.experts_of_rank(row, self._model.seat.coordinates["ep"])[slot]

    def close(self) -> None:
        """End the thread; transfers must have ended, or been told to."""
        self._batches.put(None)
        self._switched.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while (batch := self._batches.get()) is not None:
                self._switched.clear()
                self._staged = self._stage(batch)
                self._switched.wait()
        except PeerLost:  # the thread that steps meets with it as well
            return
        except BaseException as error:  # noqa: BLE001 - raised in the thread that steps
            self._error = error

    def _stage(self, batch: Batch) -> _Staged:
        placement = moved_placement(self._placement, batch.moves)
        moved: list[tuple[int, int, Place]] = []
        sent: list[Pending] = []
        arrivals: list[Arrival] = []
        for order in batch.moves:
            if order.layer in self._model.expert_layers:
                self._begin(order, moved, sent, arrivals)
        for each in (*arrivals, *sent):
            each.wait()
        choosers = rank_choosers(self._model.seat, placement, self._model.device)
        return _Staged(batch, placement, choosers, moved)

    def _begin(
        self,
        order: Order,
        moved: list[tuple[int, int, Place]],
        sent: list[Pending],
        arrivals: list[Arrival],
    ) -> None:
        """Begin this rank's part in a move."""
        seat, width = self._model.seat, self._placement.slots_per_rank
        me, part, etp = seat.coordinates["stage"], seat.coordinates["etp"], seat.strategy.etp
        source, target = (slot // width * etp + part for slot in (order.source, order.slot))
        weights = self._holdings.layers[order.layer].weights
        ranks = seat.groups["stage"]
        here = (weights, order.source % width)
        if source == me != target:
            sent += send(self._group, ranks[target], here)
        if target != me:
            return
        room = empty_like(weights, 1)
        if source == me:
            overwrite(room, 0, here)
        else:
            arrivals.append(Arrival(self._group, ranks[source], (room, 0)))
        moved.append((order.layer, order.slot % width, (room, 0)))
