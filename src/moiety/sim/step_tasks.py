"""The tasks of a step, what the timeline needs to know of each, and the orders in which they may be launched."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from moiety.sim.engine import Task

if TYPE_CHECKING:
    from collections.abc import Sequence


class Place(NamedTuple):
    """Where a task stands among those of its stage."""

    pair: int
    """Number of the pair of units that overlap (of the unit, where none do)."""
    member: int
    """Which of the two units."""
    transfers: int
    """Foreground transfers of the unit that it comes behind, one after the other."""
    exchanges: int
    """Those of them that move tokens between attention groups: dispatch, combine and their kin."""
    position: int
    """Number of the op in its unit."""


@dataclass(slots=True)
class StepTasks:
    """Tasks with what the timeline needs to know of each: parallel lists."""

    num_stages: int
    num_classes: int
    num_tiers: int
    tasks: list[Task] = field(default_factory=list[Task])
    lanes: list[int] = field(default_factory=list[int])
    """Stage x class that the task belongs to."""
    layers: list[int] = field(default_factory=list[int])
    """Layer of the model; -1 outside the layers."""
    microbatches: list[int] = field(default_factory=list[int])
    places: list[Place] = field(default_factory=list[Place])
    overlaps: bool = False
    """Whether two units of a stage run at a time."""

    def launch_orders(self) -> list[list[int]]:
        """Return the orders in which streams and links may be fed: for each, every task's number.

        A stream does what it was given in the order it was given, so a faster machine is never slower under one order,
        nor under the best of several that do not depend on the machine. Two units that overlap take turns at every
        transfer, at exchanges only, or not at all.
        """
        keys = [[(place.pair, 0, place.member, place.position) for place in self.places]]
        if self.overlaps:
            keys.append([(place.pair, place.transfers, place.member, place.position) for place in self.places])
            keys.append([(place.pair, place.exchanges, place.member, place.position) for place in self.places])
        orders: list[list[int]] = []
        for key in keys:
            order = [0] * len(key)
            for number, index in enumerate(sorted(range(len(key)), key=key.__getitem__)):
                order[index] = number
            orders.append(order)
        return orders

    def add(self, task: Task, lane: int, layer: int, microbatch: int, place: Place) -> int:
        """Append a task and return its number."""
        self.tasks.append(task)
        self.lanes.append(lane)
        self.layers.append(layer)
        self.microbatches.append(microbatch)
        self.places.append(place)
        return len(self.tasks) - 1

    def makespan_s(self, start_s: Sequence[float]) -> float:
        """Return when the last task ends that starts at these times."""
        return max((start + task.duration_s for start, task in zip(start_s, self.tasks, strict=True)), default=0.0)

    def resource(self, lane: int, stream: int) -> int:
        """Return the number of a lane's compute stream (0) or of its link on tier `stream - 1`."""
        return lane * (1 + self.num_tiers) + stream

    @property
    def num_resources(self) -> int:
        """Resources of all lanes."""
        return self.num_stages * self.num_classes * (1 + self.num_tiers)
