"""Crew: the processes of all ranks between one start and their end: when they are ready, their steps, their loss."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from moiety.errors import MoietyError
from moiety.runtime.failure import Cause, Failure, first_cause
from moiety.runtime.launch import end_all
from moiety.runtime.seat import seat_of
from moiety.runtime.serving.order import StepAnswer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from moiety.plan import Plan
    from moiety.runtime.rank_process import RankProcess
    from moiety.runtime.serving.order import StepOrder

_PERIOD_S = 0.1
"""How often it is looked whether the ranks live."""
_SETTLE_S = 0.1
"""How long others with the same trouble have to show it, so that the cause is named."""
_SETTLE_CONSEQUENCE_S = 1.0
"""How long the cause has to show itself where ranks only lost a peer."""
_LEAVE_S = 5.0
"""How long ranks that get no more orders may take to leave."""


class RanksLostError(MoietyError):
    """A rank died, froze or failed, and a step with it; the crew is of no more use."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        super().__init__(failure.message)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a crew is waited for, in seconds."""

    start_s: float = 600.0
    """Until every rank has loaded its part."""
    loading_silence_s: float = 30.0
    """Without a heartbeat while a rank loads: libraries may hold the interpreter for so long."""
    silence_s: float = 3.0
    """Without a heartbeat later on: then the process is frozen."""
    step_s: float = 120.0
    """For one step, though all hearts beat: then an exchange hangs."""


@dataclass(frozen=True, slots=True)
class RankState:
    """One rank, as `GET /ranks` shows it."""

    rank: int
    pid: int
    node: int
    state: Literal["starting", "ready", "silent", "lost"]
    experts: tuple[int, ...]
    """Experts of which it holds a copy in some layer."""


class Crew:
    """All ranks of a plan; made inside a running event loop from processes that take orders."""

    def __init__(self, epoch: int, plan: Plan, ranks: Sequence[RankProcess], patience: Patience) -> None:
        self.epoch = epoch
        """How often the ranks have been started or regrouped before."""
        seats = [seat_of(plan, each.rank) for each in ranks]
        self.num_groups = seats[0].num_attention_groups
        """Attention groups, each with sequences of its own."""
        self._plan, self._ranks, self._patience = plan, ranks, patience
        self._speakers = [
            next(seat.rank for seat in seats if seat.attention_group == group) for group in range(self.num_groups)
        ]
        self._ready: set[int] = set()
        self._answers: dict[int, StepAnswer] = {}
        self._silence_s = [0.0] * len(ranks)
        self._failure: Failure | None = None
        self._changed = asyncio.Event()
        self._orders: list[asyncio.WriteTransport] = []
        self._watch: asyncio.Task[None] | None = None
        self._has_ended = False

    async def ready(self) -> None:
        """Return when every rank can step; raise RanksLostError where one cannot."""
        loop = asyncio.get_running_loop()
        for each in self._ranks:
            transport, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, each.process.stdin)
            self._orders.append(transport)
            loop.add_reader(each.reports_fd, self._hear, each)
        self._watch = asyncio.create_task(self._watched(), name=f"watch of epoch {self.epoch}")
        await self._until(lambda: len(self._ready) == len(self._ranks), self._patience.start_s, "loaded their parts")

    async def step(self, order: StepOrder) -> tuple[tuple[int, ...], ...]:
        """Return the tokens that a step's rows emit, by attention group; raise RanksLostError where a rank is lost."""
        self._answers.clear()
        line = order.model_dump_json().encode() + b"\n"
        for transport in self._orders:
            transport.write(line)
        await self._until(lambda: len(self._answers) == len(self._ranks), self._patience.step_s, "finished a step")
        return tuple(self._answers[rank].tokens for rank in self._speakers)

    async def lost(self) -> None:
        """Wait for the loss of a rank; raise RanksLostError then. Returns never."""
        await self._until(lambda: False, None, "")

    def states(self) -> tuple[RankState, ...]:
        """Return what is known of each rank."""
        return tuple(
            RankState(
                each.rank,
                each.pid,
                each.rank // self._plan.cluster.gpus_per_node,
                self._state(each),
                experts_of(self._plan, each.rank),
            )
            for each in self._ranks
        )

    async def leave(self) -> None:
        """Have the ranks leave, as there is nothing more to do; end those that do not."""
        for transport in self._orders:
            transport.close()
        deadline_s = time.monotonic() + _LEAVE_S
        for each in self._ranks:
            await asyncio.to_thread(each.wait, deadline_s - time.monotonic())
        await self.end()

    async def end(self) -> None:
        """End every rank at once, frozen ones too; when it returns none of them can do anything any more."""
        if self._has_ended:
            return
        self._has_ended = True
        if self._watch is not None:
            self._watch.cancel()
        loop = asyncio.get_running_loop()
        for each in self._ranks:
            loop.remove_reader(each.reports_fd)
        for transport in self._orders:
            if not transport.is_closing():
                transport.abort()
        await asyncio.to_thread(end_all, self._ranks, politely=False)

    async def _until(self, condition: Callable[[], bool], within_s: float | None, what: str) -> None:
        """Return when the condition holds; raise RanksLostError where a rank is lost or time is up."""
        try:
            async with asyncio.timeout(within_s):
                while not condition():
                    if self._failure is not None:
                        raise RanksLostError(self._failure)
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            message = f"the ranks have not {what} within {within_s:.0f} s: one hangs, or the machine is too slow"
            raise RanksLostError(Failure(rank=0, cause=Cause.FAULT, message=message)) from None

    def _hear(self, rank: RankProcess) -> None:
        """Take in what a rank has said."""
        if not rank.read():
            asyncio.get_running_loop().remove_reader(rank.reports_fd)
        while rank.messages:
            message = rank.messages.popleft()
            if "ready" in message:
                self._ready.add(rank.rank)
            elif "answer" in message:
                self._answers[rank.rank] = StepAnswer.model_validate(message["answer"])
        self._changed.set()

    async def _watched(self) -> None:
        """Look at the ranks until one is lost, then say what is the cause."""
        heard = [each.num_reads for each in self._ranks]
        looked_s = time.monotonic()
        while not self._failures():
            await asyncio.sleep(_PERIOD_S)
            # Time in which this process itself did not run is nobody's silence.
            looked_s, passed_s = time.monotonic(), min(time.monotonic() - looked_s, 2 * _PERIOD_S)
            for index, each in enumerate(self._ranks):
                is_silent = each.num_reads == heard[index]
                self._silence_s[index] = self._silence_s[index] + passed_s if is_silent else 0.0
                heard[index] = each.num_reads
        since_s = time.monotonic()
        settle_s = 0.0
        while time.monotonic() < since_s + settle_s or settle_s == 0.0:
            await asyncio.sleep(_PERIOD_S / 4)
            consequence = first_cause(self._failures()).cause is Cause.CONSEQUENCE
            settle_s = _SETTLE_CONSEQUENCE_S if consequence else _SETTLE_S
        self._failure = first_cause(self._failures())
        self._changed.set()

    def _failures(self) -> list[Failure]:
        """Return what is known to be wrong with the ranks."""
        for each in self._ranks:
            each.notice_end()
        found = [each.failure for each in self._ranks if each.failure is not None]
        for each, silence_s in zip(self._ranks, self._silence_s, strict=True):
            if each.failure is None and silence_s > self._allowed_silence_s(each):
                message = f"rank {each.rank} (pid {each.pid}) has given no sign of life for {silence_s:.1f} s: frozen"
                found.append(Failure(rank=each.rank, cause=Cause.DEATH, message=message))
        return found

    def _allowed_silence_s(self, rank: RankProcess) -> float:
        patience = self._patience
        return patience.silence_s if rank.rank in self._ready else patience.loading_silence_s

    def _state(self, rank: RankProcess) -> Literal["starting", "ready", "silent", "lost"]:
        if rank.failure is not None or not rank.is_running:
            return "lost"
        if rank.rank not in self._ready:
            return "starting"
        return "silent" if self._silence_s[rank.rank] > self._patience.silence_s / 2 else "ready"


def experts_of(plan: Plan, rank: int) -> tuple[int, ...]:
    """Return the logical experts of which a rank holds a copy in some layer of its stage."""
    seat = seat_of(plan, rank)
    placement = seat.pool.placement
    if placement is None:
        return ()
    rows = [row for row, layer in enumerate(placement.layers) if layer in seat.layers]
    return tuple(sorted({each for row in rows for each in placement.experts_of_rank(row, seat.coordinates["ep"])}))
