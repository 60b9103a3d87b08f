"""Generations of ranks, one after the other: who is in the one in force, under which plan, and how experts move in it.

It is the part of a crew that declares; whom, and when, says who listens to the ranks (`crew.py`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from moiety.runtime.elastic.declaration import Declaration
from moiety.runtime.elastic.events import Declared, Lost, Ready, Switched
from moiety.runtime.elastic.replan import CoverageLostError, held_by, layout_of
from moiety.runtime.elastic.schedule import Schedule, moved_placement

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moiety.placement.problem import SlotMap
    from moiety.plan import Plan
    from moiety.runtime.elastic.events import Event
    from moiety.runtime.elastic.hand import Hand
    from moiety.runtime.elastic.replan import Held
    from moiety.runtime.elastic.roster import Roster
    from moiety.runtime.job import Job


class Succession:
    """The generation in force of a job's processes, and how it becomes another."""

    def __init__(self, job: Job, roster: Roster) -> None:
        self.generation = 0
        """Number of the generation in force; 0 before the first."""
        self.plan: Plan = job.plan
        """Of the generation in force, with the map of the experts that serves now."""
        self._job, self._roster = job, roster
        self._ranks: tuple[Hand, ...] = ()
        """Of the generation in force, by rank."""
        self._events: list[Event] = []
        """What has happened since somebody asked."""
        self._ended_s = time.monotonic()
        """When the generation before ended."""
        self._is_ready = self._was_ready = False
        self._schedule = Schedule(0)

    # Declaring ------------------------------------------------------------------------------------------------------

    def _alive(self) -> dict[int, Held]:
        """Return what those hold that may be declared, by home."""
        return {each.home: each.held for each in self._roster.here() if each.is_in}

    def _mark_end(self) -> None:
        """Remember when the generation in force ended."""
        if self._is_ready:
            self._ended_s, self._is_ready = time.monotonic(), False

    def _declare(self, generation: int, alive: Mapping[int, Held], slot_map: SlotMap | None = None) -> None:
        """Say who is in the next generation, and under which plan."""
        try:
            layout = layout_of(self._job.plan, alive, slot_map)
        except CoverageLostError as error:
            lost = [each.message for each in self._events if isinstance(each, Lost)]
            raise CoverageLostError("; ".join((str(error), *lost))) from None
        self._mark_end()
        assert generation > self.generation, "generations are numbered in order"
        self.generation, self.plan = generation, layout.plan
        self._ranks = tuple(self._roster.at(home) for home in layout.homes)
        self._schedule = Schedule(generation)
        members = tuple(each.number for each in self._ranks)
        declaration = Declaration(generation=generation, members=members, plan=layout.plan)
        for rank, hand in enumerate(self._ranks):
            hand.held, hand.switched = held_by(layout.plan, rank), 0
            hand.moved_s = time.monotonic()  # who has waited for the lost is not stuck for that
        for hand in self._roster.here():
            if hand.is_in:
                hand.process.tell({"declare": declaration.model_dump(mode="json")})
        self._events.append(Declared(generation, self.plan))

    def _begin_if_ready(self, now_s: float) -> None:
        if self._is_ready or any(each.ready != self.generation for each in self._ranks):
            return
        self._is_ready = self._was_ready = True
        members, kept = zip(*((each.number, each.kept_cache) for each in self._ranks), strict=True)
        self._events.append(Ready(self.generation, self.plan, now_s - self._ended_s, members, kept))
        self._move_on()

    def _homes(self, alive: Mapping[int, Held]) -> tuple[int, ...]:
        return layout_of(self._job.plan, alive).homes

    # Moving ---------------------------------------------------------------------------------------------------------

    def _move_on(self) -> None:
        """Have the ranks make the next moves."""
        placement = self.plan.pools[0].placement
        batch = None if placement is None else self._schedule.next(placement)
        if batch is not None:
            for each in self._ranks:
                each.process.tell({"move": batch.model_dump(mode="json")})

    def _switch_if_all(self) -> None:
        """Take note of a new map when every rank serves by it."""
        batch, pool = self._schedule.under_way, self.plan.pools[0]
        if batch is None or any(each.switched != batch.number for each in self._ranks):
            return
        assert pool.placement is not None, "experts have a placement"
        placement = moved_placement(pool.placement, batch.moves)
        pools = (pool.model_copy(update={"placement": placement}),)
        self.plan = self.plan.model_copy(update={"pools": pools})
        for rank, hand in enumerate(self._ranks):
            hand.held = held_by(self.plan, rank)
        self._events.append(Switched(self.generation, self.plan, self._schedule.num_left))
        self._move_on()
