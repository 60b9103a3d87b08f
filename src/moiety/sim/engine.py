"""A discrete-event engine: tasks on resources, in `(time, priority, sequence)` order; it knows no language model."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


_Entry = tuple[int, float, int]


@dataclass(frozen=True, slots=True)
class Task:
    """Work that holds all of `resources` for `duration_s` once all tasks in `after` (indices) are done."""

    name: str
    duration_s: float
    resources: tuple[int, ...]
    after: tuple[int, ...]
    priority: int = 0
    """Lower goes first among the tasks that wait."""


def tails_s(tasks: Sequence[Task]) -> list[float]:
    """Return for every task the length of the longest chain of tasks that it begins; their maximum is the critical path.

    Every task stands behind the tasks it waits for. No schedule is shorter than the critical path.
    """
    tails = [task.duration_s for task in tasks]
    for index in range(len(tasks) - 1, -1, -1):
        for before in tasks[index].after:
            assert before < index, "a task stands behind the tasks it waits for"
            tails[before] = max(tails[before], tasks[before].duration_s + tails[index])
    return tails


def run(tasks: Sequence[Task], num_resources: int, tails: Sequence[float] | None = None) -> list[float]:
    """Return the start time of every task.

    A task starts when the tasks before it are done and its resources are free. Among those that could start, with
    `tails` the lowest priority goes first, then the one that begins the longest chain (critical-path scheduling,
    Graham 1969); without, the one that became ready first, whatever its priority. The same tasks give the same times to
    the bit. Raises AssertionError when tasks wait for each other in a circle.
    """
    waiting = [len(task.after) for task in tasks]
    users: list[list[int]] = [[] for _ in tasks]
    for index, task in enumerate(tasks):
        for before in task.after:
            users[before].append(index)
    start = [0.0] * len(tasks)
    busy = [False] * num_resources
    queues: list[list[_Entry]] = [[] for _ in range(num_resources)]
    events: list[tuple[float, int]] = []
    started = [False] * len(tasks)
    done = 0

    def enqueue(index: int, now: float) -> None:
        task = tasks[index]
        entry = (0, now, index) if tails is None else (task.priority, -tails[index], index)
        for resource in task.resources:
            heapq.heappush(queues[resource], entry)
        if not task.resources:
            started[index] = True
            start[index] = now
            heapq.heappush(events, (now + task.duration_s, index))

    def start_ready(resource: int, now: float) -> None:
        """Start the first task in the resource's queue whose resources are all free."""
        queue = queues[resource]
        blocked: list[_Entry] = []
        while queue and not busy[resource]:
            entry = heapq.heappop(queue)
            index = entry[2]
            if started[index]:
                continue
            task = tasks[index]
            if any(busy[each] for each in task.resources):
                blocked.append(entry)
                continue
            started[index] = True
            start[index] = now
            for each in task.resources:
                busy[each] = True
            heapq.heappush(events, (now + task.duration_s, index))
        for entry in blocked:
            heapq.heappush(queue, entry)

    for index, count in enumerate(waiting):
        if count == 0:
            enqueue(index, 0.0)
    for resource in range(num_resources):
        start_ready(resource, 0.0)
    while events:
        now, finished = heapq.heappop(events)
        batch = [finished]
        while events and events[0][0] == now:
            batch.append(heapq.heappop(events)[1])
        touched: set[int] = set()
        for index in batch:
            done += 1
            for resource in tasks[index].resources:
                busy[resource] = False
                touched.add(resource)
            for user in users[index]:
                waiting[user] -= 1
                if waiting[user] == 0:
                    enqueue(user, now)
                    touched.update(tasks[user].resources)
        for resource in sorted(touched):
            start_ready(resource, now)
    assert done == len(tasks), "tasks wait for each other in a circle"
    return start
