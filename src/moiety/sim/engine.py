"""A discrete-event engine: tasks on resources, in `(time, priority, sequence)` order; it knows no language model."""

from __future__ import annotations

import gc
import heapq
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence


_Entry = tuple[int, float, int]


class Task(NamedTuple):
    """Work that holds all of `resources` for `duration_s` once all tasks in `after` (indices) are done."""

    name: str
    duration_s: float
    resources: tuple[int, ...]
    after: tuple[int, ...]
    priority: int = 0
    """Lower goes first among the tasks that wait."""


def tails_s(tasks: Sequence[Task]) -> list[float]:
    """Return for every task the length of the longest chain that it begins; their maximum is the critical path.

    Every task stands behind the tasks it waits for. No schedule is shorter than the critical path.
    """
    tails = [task.duration_s for task in tasks]
    for index in range(len(tasks) - 1, -1, -1):
        tail = tails[index]
        for before in tasks[index].after:
            assert before < index, "a task stands behind the tasks it waits for"
            chain = tasks[before].duration_s + tail
            tails[before] = max(tails[before], chain)
    return tails


@contextmanager
def uncollected() -> Generator[None]:
    """Keep the collector of cycles from going through tasks, of which there are a million and none in a cycle.

    It would take a fifth of a large step's time. Memory is freed as ever where nothing refers to it any more.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def run(
    tasks: Sequence[Task],
    num_resources: int,
    tails: Sequence[float] | None = None,
    launch: Sequence[int] | None = None,
) -> list[float]:
    """Return the start time of every task.

    A task starts when the tasks before it are done and its resources are free. Among those that could start:

    - with `launch`, each resource takes its tasks of priority 0 strictly in the order of these numbers, waiting for the
      next one where it is not ready, and others while it waits;
    - with `tails`, the lowest priority goes first, then the one that begins the longest chain (critical-path
      scheduling, Graham 1969);
    - with neither, the one that became ready first, whatever its priority.

    The same tasks give the same times to the bit. Raises AssertionError when tasks wait for each other in a circle.
    """
    return _Run(tasks, num_resources, tails, launch).start_times()


class _Run:
    """One run: what waits, what is busy, what ends when."""

    __slots__ = (
        "_busy",
        "_events",
        "_launch",
        "_lines",
        "_queues",
        "_start",
        "_started",
        "_tails",
        "_tasks",
        "_users",
        "_waiting",
    )

    def __init__(
        self,
        tasks: Sequence[Task],
        num_resources: int,
        tails: Sequence[float] | None,
        launch: Sequence[int] | None,
    ) -> None:
        self._tasks, self._tails, self._launch = tasks, tails, launch
        self._waiting = [len(task.after) for task in tasks]
        self._users: list[list[int]] = [[] for _ in tasks]
        for index, task in enumerate(tasks):
            for before in task.after:
                self._users[before].append(index)
        self._start = [0.0] * len(tasks)
        self._started = [False] * len(tasks)
        self._busy = [False] * num_resources
        self._queues: list[list[_Entry]] = [[] for _ in range(num_resources)]
        self._events: list[tuple[float, int]] = []
        # what each resource still has to take in order, the next one last
        self._lines: list[list[int]] = [[] for _ in range(num_resources)]
        if launch is not None:
            for index in sorted(range(len(tasks)), key=launch.__getitem__, reverse=True):
                for resource in tasks[index].resources if tasks[index].priority == 0 else ():
                    self._lines[resource].append(index)

    def start_times(self) -> list[float]:
        """Run to the end and return when each task started."""
        touched: set[int] = set()
        for index, count in enumerate(self._waiting):
            if count == 0:
                self._enqueue(index, 0.0, touched)
        self._start_ready(touched, 0.0)
        done, events = 0, self._events
        while events:
            now, finished = heapq.heappop(events)
            batch = [finished]
            while events and events[0][0] == now:
                batch.append(heapq.heappop(events)[1])
            done += len(batch)
            self._start_ready(self._finish(batch, now), now)
        assert done == len(self._tasks), "tasks wait for each other in a circle"
        return self._start

    def _finish(self, batch: list[int], now: float) -> set[int]:
        """Free what the tasks that end now held, queue those that waited for them, return the resources touched."""
        touched: set[int] = set()
        tasks, users, waiting, busy = self._tasks, self._users, self._waiting, self._busy
        for index in batch:
            for resource in tasks[index].resources:
                busy[resource] = False
                touched.add(resource)
            for user in users[index]:
                left = waiting[user] = waiting[user] - 1
                if not left:
                    self._enqueue(user, now, touched)
        return touched

    def _enqueue(self, index: int, now: float, touched: set[int]) -> None:
        task = self._tasks[index]
        if not task.resources:
            self._begin(index, now)
            return
        entry = (0, now, index)
        if self._launch is not None:
            entry = (task.priority, self._launch[index], index)
        elif self._tails is not None:
            entry = (task.priority, -self._tails[index], index)
        for resource in task.resources:
            heapq.heappush(self._queues[resource], entry)
            touched.add(resource)

    def _begin(self, index: int, now: float) -> None:
        task = self._tasks[index]
        self._started[index] = True
        self._start[index] = now
        for resource in task.resources:
            self._busy[resource] = True
            if self._launch is not None and task.priority == 0:
                self._lines[resource].pop()
        heapq.heappush(self._events, (now + task.duration_s, index))

    def _start_ready(self, resources: set[int], now: float) -> None:
        """Start the first task in each resource's queue whose resources are all free."""
        queues, busy, started = self._queues, self._busy, self._started
        for resource in sorted(resources):
            queue = queues[resource]
            if not queue or busy[resource]:
                continue
            blocked: list[_Entry] = []
            while queue and not busy[resource]:
                entry = heapq.heappop(queue)
                if started[entry[2]]:
                    continue
                if not self._may_start(entry[2], resource):
                    blocked.append(entry)
                else:
                    self._begin(entry[2], now)
            for entry in blocked:
                heapq.heappush(queue, entry)

    def _may_start(self, index: int, free: int) -> bool:
        """Say whether a task's resources are free, as `free` is, and, where they keep an order, wait for it next."""
        task = self._tasks[index]
        if len(task.resources) > 1 and any(self._busy[each] for each in task.resources):
            return False
        if self._launch is None or task.priority:
            return True
        if len(task.resources) > 1:
            return all(self._lines[each][-1] == index for each in task.resources)
        return self._lines[free][-1] == index
