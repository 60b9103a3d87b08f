"""Ranks: those of a served plan, as one event loop sees them: their generations, their steps, their loss."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVarTuple

from moiety.errors import MoietyError
from moiety.runtime.elastic.crew import Crew
from moiety.runtime.elastic.events import Declared, Lost, Ready, Said
from moiety.runtime.elastic.limits import Limits
from moiety.runtime.elastic.replan import CoverageLostError
from moiety.runtime.failure import RankFailedError
from moiety.runtime.seat import seat_of
from moiety.runtime.serving.order import StepAnswer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from moiety.plan import Plan
    from moiety.runtime.elastic.events import Event
    from moiety.runtime.job import Job
    from moiety.runtime.serving.order import StepOrder
    from moiety.runtime.serving.restart_budget import RestartBudget

Arguments = TypeVarTuple("Arguments")

_POLL_S = 0.05
_LIMITS = Limits(silent_s=2.5)
"""A server's machine may be busy with more than its ranks: a little more patience than the crew's own."""


class RanksLostError(MoietyError):
    """The generation has ended, and a step with it; what is in flight has to be computed again by the next one."""


@dataclass(frozen=True, slots=True)
class RankState:
    """One rank, as `GET /ranks` shows it."""

    rank: int
    pid: int
    node: int
    state: Literal["starting", "ready"]
    experts: tuple[int, ...]
    """Experts of which it holds a copy in some layer."""


class Ranks:
    """All ranks of a job on this machine, through losses and returns; a context, at whose end every rank is gone.

    When a rank is lost the others go on without it, and a process is started in its place that joins them once it has
    its weights. When those that are left cannot hold the model, all are started anew. `budget` counts processes and
    restarts; when it is spent the server goes on with the ranks that are left, as long as there are enough.
    """

    def __init__(self, job: Job, budget: RestartBudget, *, output_folder: Path | None = None) -> None:
        self._job, self._budget, self._output_folder = job, budget, output_folder
        self._crew: Crew | None = None
        self._before = 0
        """Generations of the crews before this one."""
        self._missing = 0
        """Homes that have no process."""
        self._plan: Plan | None = None
        """Of the generation that is ready; None between two."""
        self._generation = 0
        """The one that is ready, or was last, in its crew."""
        self._loss = "the ranks are being started"
        self._answers: dict[int, StepAnswer] = {}
        self._failure: BaseException | None = None
        self._changed = asyncio.Event()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="crew of the server", daemon=True)

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        await asyncio.to_thread(self._thread.join)

    @property
    def epoch(self) -> int:
        """Number of the generation in force, over all crews; it grows with every loss and every return."""
        return self._before + (0 if self._crew is None else self._crew.generation)

    def states(self) -> tuple[RankState, ...]:
        """Return what is known of each rank."""
        crew = self._crew
        if crew is None:
            return ()
        return tuple(
            RankState(
                each.rank,
                each.pid,
                each.home // self._job.plan.cluster.gpus_per_node,
                "ready" if each.is_ready else "starting",
                experts_of(crew.plan, each.rank),
            )
            for each in crew.ranks()
        )

    async def ready(self) -> int:
        """Return the number of attention groups when the next generation takes steps, its caches empty.

        Raises RankFailedError where there will be none.
        """
        await self._until(lambda: self._plan is not None)
        assert self._plan is not None, "that was waited for"
        return seat_of(self._plan, 0).num_attention_groups

    async def step(self, order: StepOrder) -> tuple[tuple[int, ...], ...]:
        """Return the tokens that a step's rows emit, by attention group; raise RanksLostError where a rank is lost."""
        self._check()
        plan, crew = self._plan, self._crew
        assert plan is not None, "a step follows a generation that is ready"
        assert crew is not None, "its crew is there"
        self._answers.clear()
        payload = order.model_dump(mode="json")
        for rank in range(plan.num_gpus):
            crew.send(rank, payload, generation=self._generation)
        await self._until(lambda: self._plan is not plan or len(self._answers) == plan.num_gpus)
        self._check()
        groups = {seat.attention_group: seat.rank for seat in (seat_of(plan, rank) for rank in range(plan.num_gpus))}
        return tuple(self._answers[groups[group]].tokens for group in range(len(groups)))

    async def lost(self) -> None:
        """Wait for the end of the generation; raise RanksLostError then. Returns never."""
        await self._until(lambda: self._plan is None)
        self._check()

    def _check(self) -> None:
        if self._plan is None:
            raise RanksLostError(self._loss)

    async def _until(self, holds: Callable[[], bool]) -> None:
        """Return when the condition holds; raise where the ranks have failed for good."""
        while not holds():
            if self._failure is not None:
                raise self._failure
            self._changed.clear()
            await self._changed.wait()

    def _take(self, event: Event) -> None:
        """Take note of what has become of the ranks, in the event loop."""
        if isinstance(event, Lost):
            self._loss = event.message
        elif isinstance(event, Declared):
            self._plan = None
        elif isinstance(event, Ready):
            self._plan, self._generation = event.plan, event.generation
        elif isinstance(event, Said) and self._plan is not None and event.generation == self._generation:
            self._answers[event.rank] = StepAnswer.model_validate(event.payload)
        self._changed.set()

    def _end(self, failure: BaseException | None, loss: str) -> None:
        """Take note of a crew's end: for good, or because all ranks are started anew."""
        self._failure, self._loss, self._plan = failure, loss, None
        self._changed.set()

    # The crew's thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._is_over.is_set():
                self._follow_a_crew()
        except BaseException as error:  # noqa: BLE001 - raised in the event loop, where somebody waits
            self._tell(self._end, error, str(error))

    def _follow_a_crew(self) -> None:
        """Start all ranks and follow them until the server ends, or they cannot go on and may start anew."""
        try:
            with Crew(self._job, limits=_LIMITS, output_folder=self._output_folder) as crew:
                self._crew, self._missing = crew, 0
                while not self._is_over.is_set():
                    for event in crew.poll(_POLL_S):
                        self._missing += isinstance(event, Lost)
                        self._tell(self._take, event)
                    while self._plan is not None and self._missing and self._budget.takes(time.monotonic()):
                        self._missing -= crew.rejoin() is not None
        except CoverageLostError as error:
            self._before = self.epoch
            self._crew = None
            if not self._budget.takes(time.monotonic()):
                raise RankFailedError(f"{error}; {self._budget.sentence}") from None
            self._tell(self._end, None, str(error))

    def _tell(self, what: Callable[[*Arguments], None], *arguments: *Arguments) -> None:
        """Have the event loop do something; it may be closed already where the server ends in a hurry."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(what, *arguments)


def experts_of(plan: Plan, rank: int) -> tuple[int, ...]:
    """Return the logical experts of which a rank holds a copy in some layer of its stage."""
    seat = seat_of(plan, rank)
    placement = seat.pool.placement
    if placement is None:
        return ()
    rows = [row for row, layer in enumerate(placement.layers) if layer in seat.layers]
    return tuple(sorted({each for row in rows for each in placement.experts_of_rank(row, seat.coordinates["ep"])}))
