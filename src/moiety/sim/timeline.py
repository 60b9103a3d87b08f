"""Timeline: when every op of a step runs, and what of the communication nothing hides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.sim.engine import run, tails_s, uncollected
from moiety.sim.step import RankClass, StepBuilder

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from moiety.sim.step_tasks import StepTasks


@dataclass(frozen=True, slots=True)
class Timeline:
    """One simulated step."""

    steps: StepTasks
    start_s: tuple[float, ...]
    makespan_s: float
    critical_path_s: float
    work_s: float
    """Sum of all tasks' durations."""
    compute_busy_s: tuple[float, ...]
    """Per lane (stage x rank class): time in which the compute stream works."""
    communication_s: tuple[float, ...]
    """Per lane: time in which at least one link carries something."""
    exposed_s: tuple[float, ...]
    """Per lane: communication time in which nothing computes."""
    lane_weights: tuple[int, ...]
    """Per lane: ranks it stands for (per stage)."""
    occupied_s: float
    """Longest time from a lane's first task to its last: how long the slowest stage is taken up by a step."""

    @property
    def exposed_fraction(self) -> float:
        """Share of the step in which a GPU communicates and does not compute, averaged over the GPUs."""
        return self._mean(self.exposed_s) / self.makespan_s if self.makespan_s else 0.0

    @property
    def overlap_fraction(self) -> float:
        """Share of the communication time that computation hides, averaged over the GPUs; 1 where there is none."""
        total = self._mean(self.communication_s)
        return 1 - self._mean(self.exposed_s) / total if total else 1.0

    def _mean(self, per_lane: Sequence[float]) -> float:
        weighted = sum(value * weight for value, weight in zip(per_lane, self.lane_weights, strict=True))
        return weighted / sum(self.lane_weights)


def simulate_step(classes: Sequence[RankClass], checkpointed: frozenset[int] = frozenset()) -> Timeline:
    """Return the timeline of one step of a pool whose ranks fall into `classes`, under the best launch order.

    With priority scheduling, inference launches in a fixed order and training by the longest chain of work; without it,
    everything goes in the order of its arrival.
    """
    with uncollected():
        return _simulated(classes, StepBuilder(classes, checkpointed).build())


def _simulated(classes: Sequence[RankClass], steps: StepTasks) -> Timeline:
    tails = tails_s(steps.tasks)
    layout = classes[0].prices[0].graph.layout
    if not layout.options.priority_scheduling:
        start = run(steps.tasks, steps.num_resources)
    elif layout.training:
        start = run(steps.tasks, steps.num_resources, tails)
    else:
        orders = steps.launch_orders()
        start = min((run(steps.tasks, steps.num_resources, launch=each) for each in orders), key=steps.makespan_s)
    lanes = steps.num_stages * steps.num_classes
    compute: list[list[tuple[float, float]]] = [[] for _ in range(lanes)]
    transfer: list[list[tuple[float, float]]] = [[] for _ in range(lanes)]
    stride = 1 + steps.num_tiers
    ends = [begin + task.duration_s for begin, task in zip(start, steps.tasks, strict=True)]
    for begin, end, task in zip(start, ends, steps.tasks, strict=True):
        for resource in task.resources:
            kind = compute if resource % stride == 0 else transfer
            kind[resource // stride].append((begin, end))
    busy = [merge(each) for each in compute]
    moving = [merge(each) for each in transfer]
    return Timeline(
        steps=steps,
        start_s=tuple(start),
        makespan_s=max(ends, default=0.0),
        critical_path_s=max(tails, default=0.0),
        work_s=sum(task.duration_s for task in steps.tasks),
        compute_busy_s=tuple(length(each) for each in busy),
        communication_s=tuple(length(each) for each in moving),
        exposed_s=tuple(max(length(m) - common(m, b), 0.0) for m, b in zip(moving, busy, strict=True)),
        lane_weights=tuple(each.num_ranks for _ in range(steps.num_stages) for each in classes),
        occupied_s=max((b[-1][1] - b[0][0] for b in busy if b), default=0.0),
    )


def merge(intervals: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the union of intervals as disjoint ones in order."""
    merged: list[tuple[float, float]] = []
    for low, high in sorted(intervals):
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return merged


def length(intervals: Sequence[tuple[float, float]]) -> float:
    """Return the sum of the lengths of intervals."""
    return sum(high - low for low, high in intervals)


def common(first: Sequence[tuple[float, float]], second: Sequence[tuple[float, float]]) -> float:
    """Return the length of the intersection of two lists of disjoint intervals in order."""
    total, i, j = 0.0, 0, 0
    while i < len(first) and j < len(second):
        low, high = max(first[i][0], second[j][0]), min(first[i][1], second[j][1])
        total += max(high - low, 0.0)
        if first[i][1] <= second[j][1]:
            i += 1
        else:
            j += 1
    return total
