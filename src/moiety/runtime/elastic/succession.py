"""Generations of ranks, one after the other: who is in the one in force, under which plan, and how experts move in it.

It is the part of a crew that declares; whom, and when, says who listens to the ranks (`listener.py`), or who leads.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from moiety.errors import InputError
from moiety.runtime.elastic.declaration import Declaration
from moiety.runtime.elastic.events import Declared, Lost, Ready, Switched
from moiety.runtime.elastic.replan import CoverageLostError, held_by, layout_of
from moiety.runtime.elastic.schedule import Schedule, moved_placement

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moiety.placement.migration.order import Move
    from moiety.placement.problem import SlotMap
    from moiety.plan import Plan
    from moiety.runtime.elastic.events import Event
    from moiety.runtime.elastic.hand import Hand
    from moiety.runtime.elastic.replan import Held
    from moiety.runtime.elastic.roster import Roster


class Succession:
    """The generation in force of a plan's processes, and how it becomes another."""

    def __init__(self, plan: Plan, roster: Roster) -> None:
        self.generation = 0
        """Number of the generation in force; 0 before the first."""
        self.plan = plan
        """Of the generation in force, with the map of the experts that serves now."""
        self.ranks: tuple[Hand, ...] = ()
        """Of the generation in force, by rank."""
        self.events: list[Event] = []
        """What has happened since somebody asked."""
        self.is_ready = self.was_ready = False
        """Whether all ranks of the generation in force are ready, and those of any ever were."""
        self._whole_plan, self._roster = plan, roster
        self._ended_s = time.monotonic()
        """When the generation before ended."""
        self._schedule = Schedule(0)

    # Declaring ------------------------------------------------------------------------------------------------------

    def alive(self) -> dict[int, Held]:
        """Return what those hold that may be declared, by home."""
        return {each.home: each.held for each in self._roster.here() if each.is_in}

    def is_of(self, homes: Mapping[int, Held]) -> bool:
        """Return whether a declaration of those alive at these homes would have the same ranks as are in force."""
        return layout_of(self._whole_plan, homes).homes == tuple(each.home for each in self.ranks)

    def mark_end(self) -> None:
        """Remember when the generation in force ended."""
        if self.is_ready:
            self._ended_s, self.is_ready = time.monotonic(), False

    def declare(self, generation: int, alive: Mapping[int, Held], slot_map: SlotMap | None = None) -> None:
        """Say who is in the next generation, and under which plan; see `layout_of`; raises CoverageLostError."""
        try:
            layout = layout_of(self._whole_plan, alive, slot_map)
        except CoverageLostError as error:
            lost = [each.message for each in self.events if isinstance(each, Lost)]
            raise CoverageLostError("; ".join((str(error), *lost))) from None
        self.mark_end()
        assert generation > self.generation, "generations are numbered in order"
        self.generation, self.plan = generation, layout.plan
        self.ranks = tuple(self._roster.at(home) for home in layout.homes)
        self._schedule = Schedule(generation)
        members = tuple(each.number for each in self.ranks)
        declaration = Declaration(generation=generation, members=members, plan=layout.plan)
        for rank, hand in enumerate(self.ranks):
            hand.held, hand.switched = held_by(layout.plan, rank), 0
            hand.moved_s = time.monotonic()  # who has waited for the lost is not stuck for that
        for hand in self._roster.here():
            if hand.is_in:
                hand.process.tell({"declare": declaration.model_dump(mode="json")})
        self.events.append(Declared(generation, self.plan))

    def prepare(self, home: int, slot_map: SlotMap | None) -> int:
        """Start a process for a vacant home, to read what it would hold in the next generation; return its number."""
        hand = self._roster.start(home, is_in=False)
        layout = layout_of(self._whole_plan, {**self.alive(), home: {}}, slot_map)
        members = tuple(self._roster.at(each).number for each in layout.homes)
        wanted = Declaration(generation=self.generation + 1, members=members, plan=layout.plan)
        if hand.number in members:
            hand.held = held_by(layout.plan, members.index(hand.number))
        hand.process.tell({"prepare": wanted.model_dump(mode="json")})
        return hand.number

    def begin_if_ready(self, now_s: float) -> None:
        """Take note that the generation takes what is sent, as soon as every rank is ready."""
        if self.is_ready or any(each.ready != self.generation for each in self.ranks):
            return
        self.is_ready = self.was_ready = True
        members, kept = zip(*((each.number, each.kept_cache) for each in self.ranks), strict=True)
        self.events.append(Ready(self.generation, self.plan, now_s - self._ended_s, members, kept))
        self._move_on()

    # Moving ---------------------------------------------------------------------------------------------------------

    @property
    def is_moving(self) -> bool:
        """Whether a live migration is under way."""
        return self._schedule.is_busy

    def migrate(self, moves: Sequence[Move], most_at_once: int) -> None:
        """Begin a migration; raises InputError for moves that are none of the map in force, or while others go on."""
        placement = self.plan.pools[0].placement
        if placement is None or self._schedule.is_busy:
            what = "the model has no experts" if placement is None else "another migration is under way"
            raise InputError(what, field="moves")
        self._schedule.begin(placement, moves, most_at_once)
        if self.is_ready:
            self._move_on()

    def switch_if_all(self) -> None:
        """Take note of a new map when every rank serves by it."""
        batch, pool = self._schedule.under_way, self.plan.pools[0]
        if batch is None or any(each.switched != batch.number for each in self.ranks):
            return
        assert pool.placement is not None, "experts have a placement"
        placement = moved_placement(pool.placement, batch.moves)
        pools = (pool.model_copy(update={"placement": placement}),)
        self.plan = self.plan.model_copy(update={"pools": pools})
        for rank, hand in enumerate(self.ranks):
            hand.held = held_by(self.plan, rank)
        self.events.append(Switched(self.generation, self.plan, self._schedule.num_left))
        self._move_on()

    def _move_on(self) -> None:
        """Have the ranks make the next moves."""
        placement = self.plan.pools[0].placement
        batch = None if placement is None else self._schedule.next(placement)
        if batch is not None:
            for each in self.ranks:
                each.process.tell({"move": batch.model_dump(mode="json")})
