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
from moiety.runtime.elastic.replan import CoverageLostError
from moiety.runtime.failure import RankFailedError
from moiety.runtime.seat import seat_of
from moiety.runtime.serving.order import StepAnswer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from moiety.plan import Plan
    from moiety.runtime.elastic.events import Event
    from moiety.runtime.job import Job
    from moiety.runtime.seat import Seat
    from moiety.runtime.serving.lead import Lead
    from moiety.runtime.serving.order import StepOrder
    from moiety.runtime.serving.restart_budget import RestartBudget

Arguments = TypeVarTuple("Arguments")

_POLL_S = 0.05


class RanksLostError(MoietyError):
    """The generation has ended, and a step with it; what is in flight has to go on in the next one."""

    def __init__(self, message: str, *, is_loss: bool) -> None:
        self.is_loss = is_loss
        """Whether a rank was lost, and not only another one joined, or the step given up."""
        super().__init__(message)


class _OverError(Exception):
    """The server ends."""


@dataclass(frozen=True, slots=True)
class RankState:
    """One rank, as `GET /ranks` shows it."""

    rank: int
    pid: int
    node: int
    state: Literal["starting", "ready"]
    experts: tuple[int, ...]
    """Experts of which it holds a copy in some layer."""
    own_step_s: float | None
    """Seconds that it works by itself in a step, without waits for other ranks; None where that is not known yet."""


class Ranks:
    """All ranks of a job on this machine, through losses and returns; a context, at whose end every rank is gone.

    `lead` decides who goes on when a rank is lost, and who is taken back. A process is started in place of each that
    is gone. When those that are left cannot hold the model, all are started anew. `budget` counts processes and
    restarts; when it is spent the server goes on with the ranks that are left, as long as there are enough.
    """

    def __init__(self, job: Job, budget: RestartBudget, lead: Lead, *, output_folder: Path | None = None) -> None:
        self._job, self._budget, self._lead, self._output_folder = job, budget, lead, output_folder
        self._crew: Crew | None = None
        self._missing: set[int] = set()
        """Homes whose processes were lost."""
        self._plan: Plan | None = None
        """Of the generation that is ready; None between two."""
        self._generation = 0
        """The one that is ready, or was last."""
        self._served_generation: int | None = None
        """The one that `ready` has returned last; another may be ready before anybody has looked."""
        self._groups: tuple[tuple[int, ...], ...] = ()
        """The processes of each of its attention groups."""
        self._has_caches: tuple[bool, ...] = ()
        """Whether they all kept their caches since the generation that `ready` has returned last."""
        self._served_groups: tuple[tuple[int, ...], ...] = ()
        """The groups that `ready` has returned last."""
        self._loss, self._is_loss = "the ranks are being started", False
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
    def refusal(self) -> str | None:
        """Why nothing can be served for now; None where all can be."""
        return self._lead.refusal

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
                self._lead.own_step_s(each.home),
            )
            for each in crew.ranks()
        )

    async def ready(self) -> tuple[int | None, ...]:
        """Return the attention groups when the next generation takes steps.

        For each the number that it had in the generation whose groups were returned last, where its ranks still have
        the caches of that one; None where they are empty. Raises RankFailedError where there will be none.
        """
        await self._until(lambda: self._plan is not None)
        self._is_loss = False
        kept, self._served_groups = self._kept(), self._groups
        self._served_generation = self._generation
        return kept

    async def step(self, order: StepOrder) -> tuple[tuple[int | None, ...], ...]:
        """Return the tokens that a step's rows emit, by attention group; raise RanksLostError where a rank is lost.

        None stands for the token of a row whose logits were not finite.
        """
        self._check()
        plan, crew = self._plan, self._crew
        assert plan is not None, "a step follows a generation that is ready"
        assert crew is not None, "its crew is there"
        self._answers.clear()
        payload = order.model_copy(update={"asks_counts": self._lead.asks_counts()}).model_dump(mode="json")
        for rank in range(plan.num_gpus):
            crew.send(rank, payload, generation=self._generation)
        await self._until(lambda: self._plan is not plan or len(self._answers) == plan.num_gpus)
        self._check()
        first_ranks = {seat.attention_group: seat.rank for seat in reversed(_seats(plan))}
        return tuple(self._answers[first_ranks[group]].tokens for group in range(len(first_ranks)))

    async def lost(self) -> None:
        """Wait for the end of the generation; raise RanksLostError then. Returns never."""
        await self._until(lambda: not self._serves)
        self._check()

    @property
    def _serves(self) -> bool:
        """Whether the generation that `ready` has returned last is still the one that is ready."""
        return self._plan is not None and self._generation == self._served_generation

    def _check(self) -> None:
        if not self._serves:
            raise RanksLostError(self._loss, is_loss=self._is_loss)

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
            if event.rank is not None:
                self._plan, self._is_loss = None, True
        elif isinstance(event, Declared):
            self._plan = None
            self._loss = self._loss if self._is_loss else "the ranks meet anew"
        elif isinstance(event, Ready):
            self._begin(event)
        elif isinstance(event, Said) and self._plan is not None and event.generation == self._generation:
            self._answers[event.rank] = StepAnswer.model_validate(event.payload)
        self._changed.set()

    def _begin(self, event: Ready) -> None:
        """Take note of a generation that is ready, and of whose caches are what they were."""
        groups: dict[int, list[int]] = {}
        for seat in _seats(event.plan):
            groups.setdefault(seat.attention_group, []).append(seat.rank)
        ordered = [groups[number] for number in range(len(groups))]
        is_one_stage = event.plan.pools[0].strategy.pp == 1  # else layers may have changed hands in between
        before = dict(zip(self._groups, self._has_caches, strict=True))
        is_served = self._generation == self._served_generation
        self._groups = tuple(tuple(event.members[rank] for rank in each) for each in ordered)
        self._has_caches = tuple(
            is_one_stage and all(event.kept[rank] for rank in each) and (is_served or before.get(members, False))
            for each, members in zip(ordered, self._groups, strict=True)
        )
        self._plan, self._generation = event.plan, event.generation

    def _kept(self) -> tuple[int | None, ...]:
        """Return which of the groups that were returned last each group is; None without its caches."""
        before = {each: number for number, each in enumerate(self._served_groups)}
        return tuple(
            before.get(each) if has_caches else None
            for each, has_caches in zip(self._groups, self._has_caches, strict=True)
        )

    def _end(self, failure: BaseException | None, loss: str) -> None:
        """Take note of a crew's end: for good, or because all ranks are started anew."""
        self._failure, self._loss, self._is_loss = failure, loss, True
        self._plan, self._served_groups = None, ()  # processes are numbered anew
        self._changed.set()

    # The crew's thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._is_over.is_set():
                self._follow_a_crew()
        except _OverError:
            return
        except BaseException as error:  # noqa: BLE001 - raised in the event loop, where somebody waits
            self._tell(self._end, error, str(error))

    def _follow_a_crew(self) -> None:
        """Start all ranks and follow them until the server ends, or they cannot go on and may start anew."""
        lead, first = self._lead, self._lead.begin()
        try:
            with Crew(
                self._job,
                output_folder=self._output_folder,
                is_led=True,
                first_generation=first,
                obey=self._leave_if_over,
            ) as crew:
                self._crew = crew
                self._missing.clear()
                while not self._is_over.is_set():
                    events = crew.poll(_POLL_S)
                    for event in events:
                        self._tell(self._take, event)
                    lead.turn(crew, events)
                    self._replace(crew, events)
        except CoverageLostError as error:
            self._crew = None
            if not self._budget.takes(time.monotonic()):
                raise RankFailedError(f"{error}; {self._budget.sentence}") from None
            self._tell(self._end, None, str(error))

    def _leave_if_over(self) -> None:
        """Raise where the server ends, so that ranks that are being started are not waited for."""
        if self._is_over.is_set():
            raise _OverError

    def _replace(self, crew: Crew, events: Sequence[Event]) -> None:
        """Start processes in place of those that are gone, when the others have regrouped, or cannot without them."""
        self._missing |= {event.home for event in events if isinstance(event, Lost)}
        refusal = self._lead.refusal
        for home in sorted(self._missing) if self._plan is not None or refusal else ():
            if not self._budget.takes(time.monotonic()):
                break
            crew.rejoin(self._lead.slot_map_with(home), home)
            self._missing.remove(home)
        if refusal and self._missing and not crew.is_waiting:
            raise RankFailedError(f"{refusal}; {self._budget.sentence}")

    def _tell(self, what: Callable[[*Arguments], None], *arguments: *Arguments) -> None:
        """Have the event loop do something; it may be closed already where the server ends in a hurry."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(what, *arguments)


def _seats(plan: Plan) -> list[Seat]:
    """Return the seats of all ranks, in their order."""
    return [seat_of(plan, rank) for rank in range(plan.num_gpus)]


def experts_of(plan: Plan, rank: int) -> tuple[int, ...]:
    """Return the logical experts of which a rank holds a copy in some layer of its stage."""
    seat = seat_of(plan, rank)
    placement = seat.pool.placement
    if placement is None:
        return ()
    rows = [row for row, layer in enumerate(placement.layers) if layer in seat.layers]
    return tuple(sorted({each for row in rows for each in placement.experts_of_rank(row, seat.coordinates["ep"])}))
