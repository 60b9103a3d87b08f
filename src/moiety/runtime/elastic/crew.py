"""Crew: the launcher's half of ranks that outlive each other: it starts them, watches them, and says who goes on."""

from __future__ import annotations

import os
import selectors
import signal
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, cast

from moiety.errors import InputError
from moiety.runtime.elastic.beacon import Beat
from moiety.runtime.elastic.declaration import Declaration
from moiety.runtime.elastic.events import Declared, Joined, Lost, Ready, Said, Slow, Switched
from moiety.runtime.elastic.hand import Hand
from moiety.runtime.elastic.health import frozen, hung, is_deadlocked, most_blamed, slow
from moiety.runtime.elastic.limits import Limits
from moiety.runtime.elastic.replan import CoverageLostError, held_by, layout_of
from moiety.runtime.elastic.schedule import Schedule, moved_placement
from moiety.runtime.failure import Cause, RankFailedError
from moiety.runtime.launch import LOOPBACK, end_all, rank_environment
from moiety.runtime.rank_process import start
from moiety.runtime.world import World, asked_port, hosted_store, listening

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage] - torch's own way to export it

    from moiety.placement.migration.order import Move
    from moiety.plan import Plan
    from moiety.runtime.channel import Message
    from moiety.runtime.elastic.events import Event, Reason
    from moiety.runtime.elastic.health import Sign
    from moiety.runtime.elastic.replan import Layout
    from moiety.runtime.job import Job

_PERIOD_S = 0.02
"""How often signs of life are judged."""
_BLAME_S = 30.0
"""For how long it is remembered who could not reach whom, and ..."""
_MOST_BLAMED = 2
"""... in how many generations of that time, until one is cut off."""
_GONE_S = 5.0
"""How long ranks may take to leave when the crew is closed."""


@dataclass(frozen=True, slots=True)
class RankStatus:
    """One rank of the generation in force."""

    rank: int
    member: int
    pid: int
    home: int
    """Its rank in the whole plan."""
    is_ready: bool
    beat: Beat | None
    """Its last sign of life."""


class Crew:
    """The processes of a job's plan, on this machine.

    Use it as a context: its end ends them all. One thread enters it, calls `poll`, `wait_ready` and `rejoin`, and lives
    as long as the crew, as the processes end with the thread that has started them; any thread may call the others.
    """

    def __init__(
        self,
        job: Job,
        *,
        limits: Limits | None = None,
        output_folder: Path | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """Raise InputError for a job that ranks cannot go on with when they are fewer."""
        _check(job)
        self.generation = 0
        """Number of the generation in force; 0 before the first."""
        self.plan: Plan = job.plan
        """Of the generation in force, with the map of the experts that serves now."""
        self._job, self._limits, self._environ, self._output = job, limits or Limits(), environ, output_folder
        self._lock = threading.RLock()
        self._stack = ExitStack()
        self._selector = selectors.DefaultSelector()
        self._hands: list[Hand] = []
        """Of all processes so far, by their numbers."""
        self._ranks: tuple[Hand, ...] = ()
        """Of the generation in force, by rank."""
        self._events: list[Event] = []
        self._declare_at_s: float | None = None
        self._ended_s = time.monotonic()
        """When the generation before ended."""
        self._blamed: list[tuple[float, int, int, int]] = []
        """When, in which generation, which member could not reach which."""
        self._is_ready = False
        self._was_ready = False
        self._must_meet = True
        """Whether the ranks must meet anew even if they are the same."""
        self._schedule = Schedule(0)

    def __enter__(self) -> Self:
        """Start all processes; the first generation is declared when all have shown a sign of life."""
        listener = self._stack.enter_context(listening(LOOPBACK, asked_port(self._environ)))
        self._port = int(listener.getsockname()[1])
        self._job_file = self._stack.enter_context(tempfile.TemporaryFile())
        self._job_file.write(self._job.model_dump_json().encode())
        self._job_file.flush()
        self._environment = rank_environment(self._environ, self._job.num_ranks)
        try:
            for home in range(self._job.num_ranks):
                self._start(home, is_in=True)
            self._store: Store | None = hosted_store(listener)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    # For the driver -------------------------------------------------------------------------------------------------

    def poll(self, timeout_s: float) -> list[Event]:
        """Return what has happened, after at most `timeout_s` without anything.

        Raises CoverageLostError where those who are left cannot hold the model, RankFailedError where a rank finds its
        input wrong, or fails before the first generation was ready.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            self._turn(min(_PERIOD_S, max(deadline_s - time.monotonic(), 0.0)))
            with self._lock:
                if self._events or time.monotonic() >= deadline_s:
                    events, self._events = self._events, []
                    return events

    def wait_ready(self, timeout_s: float = 600.0) -> list[Event]:
        """Return what has happened until the generation in force is ready; raises as `poll`, and when time is up."""
        deadline_s = time.monotonic() + timeout_s
        events: list[Event] = []
        while not self._is_ready:
            if time.monotonic() > deadline_s:
                raise RankFailedError(f"generation {self.generation} is not ready after {timeout_s:.0f} s")
            events += self.poll(_PERIOD_S)
        return events

    def ranks(self) -> tuple[RankStatus, ...]:
        """Return the ranks of the generation in force."""
        with self._lock:
            return tuple(
                RankStatus(rank, each.number, each.process.pid, each.home, each.ready == self.generation, each.beat)
                for rank, each in enumerate(self._ranks)
            )

    def send(self, rank: int, payload: object, *, generation: int | None = None) -> bool:
        """Send a rank some JSON; return False, and send nothing, where `generation` is not in force any more."""
        with self._lock:
            if generation not in {None, self.generation}:
                return False
            self._ranks[rank].process.tell({"say": {"generation": self.generation, "payload": payload}})
            return True

    def migrate(self, moves: Sequence[Move], *, most_at_once: int = 8) -> None:
        """Have the ranks move experts in the background, in this order, and switch to them batch by batch.

        A batch is whole steps of the order, of at most `most_at_once` moves where one step is not more; so many experts
        take memory twice. Moves that are left are dropped when the generation ends. Raises InputError for moves that
        are none of the map in force, or while others are under way.
        """
        with self._lock:
            placement = self.plan.pools[0].placement
            if placement is None or self._schedule.is_busy:
                what = "the model has no experts" if placement is None else "another migration is under way"
                raise InputError(what, field="moves")
            self._schedule.begin(placement, moves, most_at_once)
            if self._is_ready:
                self._move_on()

    def rejoin(self) -> int | None:
        """Start a process for the first home that is vacant; return its number, None where all are taken.

        It reads its weights while the others go on, and is a rank from the next generation on.
        """
        with self._lock:
            taken = {each.home for each in self._here()}
            home = next((each for each in range(self._job.num_ranks) if each not in taken), None)
            if home is None:
                return None
            hand = self._start(home, is_in=False)
            alive = {each.home: each.held for each in self._here() if each.is_in}
            layout = layout_of(self._job.plan, {**alive, home: {}})
            members = tuple(self._at(each).number for each in layout.homes)
            wanted = Declaration(generation=self.generation + 1, members=members, plan=layout.plan)
            if hand.number in members:
                hand.held = held_by(layout.plan, members.index(hand.number))
            hand.process.tell({"prepare": wanted.model_dump(mode="json")})
            return hand.number

    def close(self) -> None:
        """End all processes: those that can take leave do."""
        with self._lock:
            here = [each.process for each in self._hands if not each.is_gone]
            for each in here:
                each.tell({"end": "closed"})
            deadline_s = time.monotonic() + _GONE_S
            while any(each.is_running for each in here) and time.monotonic() < deadline_s:
                for each in here:
                    each.push()
                time.sleep(_PERIOD_S)
            end_all([each.process for each in self._hands])
            self._hands.clear()
            self._ranks = ()
            self._selector.close()
            self._store = None
            self._stack.close()

    # Watching -------------------------------------------------------------------------------------------------------

    def _turn(self, timeout_s: float) -> None:
        """Take in what the ranks say and what becomes of them; declare the next generation where it is due."""
        ready = self._selector.select(timeout_s)
        with self._lock:
            now_s = time.monotonic()
            for key, _ in ready:
                self._read(cast("Hand", key.data), now_s)
            for hand in self._here():
                hand.process.push()
            self._judge(time.monotonic())
            if not self.generation and all(each.heard_s is not None for each in self._hands):
                self._declare()
            if self._declare_at_s is not None and time.monotonic() >= self._declare_at_s:
                self._declare()

    def _read(self, hand: Hand, now_s: float) -> None:
        if hand.is_gone:
            return
        is_open = hand.process.read()
        hand.heard_s = now_s
        messages, hand.process.others = hand.process.others, []
        for message in messages:
            self._take(hand, message, now_s)
        failure = hand.process.failure
        if failure is not None and failure.cause is Cause.INPUT and hand.is_in:
            raise RankFailedError(failure.message)
        if not is_open or failure is not None:
            hand.process.wait(_GONE_S)
            hand.process.notice_end()
            failure = hand.process.failure
            self._lose(hand, "dead", failure.message if failure else f"{_name(hand)} has ended its work")

    def _take(self, hand: Hand, message: Message, now_s: float) -> None:
        """Take in what a rank says; what belongs to an older generation is refused."""
        if "beat" in message:
            hand.take(Beat.model_validate(message["beat"]), now_s)
            return
        kind, said = next((kind, cast("dict[str, object]", said)) for kind, said in message.items())
        if kind == "prepared":
            hand.is_in = True
            self._events.append(Joined(hand.number, hand.process.pid))
            self._declare_soon(now_s, must_meet=False)
        elif said["generation"] != self.generation or hand not in self._ranks:
            return
        elif kind == "say":
            self._events.append(Said(self.generation, self._ranks.index(hand), said["payload"]))
        elif kind == "ready":
            hand.ready = self.generation
            self._begin_if_ready(now_s)
        elif kind == "switched":
            hand.switched = cast("int", said["batch"])
            self._switch_if_all()
        elif kind == "lost":
            rank = cast("int | None", said["rank"])
            if rank is not None:
                self._blame(hand, rank)
            self._declare_soon(now_s + self._limits.settle_s)

    def _judge(self, now_s: float) -> None:
        """Find who is lost by the signs of life."""
        limits = self._limits
        for hand in self._here():
            if hand.heard_s is None and now_s - hand.started_s > limits.start_s:
                self._lose(hand, "frozen", f"{_name(hand)} has shown no sign of life for {limits.start_s:.0f} s")
        signs = {each.number: each.sign(self.generation, now_s) for each in self._here() if each.heard_s is not None}
        for number in frozen(signs, limits):
            words = f"{_name(self._hands[number])} has been silent for {signs[number].silent_s:.1f} s"
            self._lose(self._hands[number], "frozen", words)
        ranks = {rank: each for rank, each in enumerate(self._ranks) if not each.is_gone}
        self._judge_progress({rank: each.sign(self.generation, now_s) for rank, each in ranks.items()})

    def _judge_progress(self, signs: dict[int, Sign]) -> None:
        """Find who gets nowhere, or slowly, of the ranks that live."""
        limits = self._limits
        for rank in hung(signs, limits):
            beat = self._ranks[rank].beat
            where = f"{beat.op} of layer {beat.layer}, step {beat.step}" if beat is not None else "the start"
            words = f"{_name(self._ranks[rank])} gets no further than {where} while others wait for it"
            self._lose(self._ranks[rank], "hung", words)
        if self._declare_at_s is None and is_deadlocked(signs, limits):
            for rank, sign in signs.items():
                if sign.waits_for is not None:
                    self._blame(self._ranks[rank], sign.waits_for)
            self._declare_soon(time.monotonic())
        slow_ones = slow(signs, limits)
        for rank, hand in enumerate(self._ranks):
            if rank in slow_ones and not hand.is_slow:
                self._events.append(Slow(self.generation, rank, slow_ones[rank]))
            hand.is_slow = rank in slow_ones

    def _blame(self, hand: Hand, rank: int) -> None:
        """Remember that one could not reach another."""
        self._blamed.append((time.monotonic(), self.generation, hand.number, self._ranks[rank].number))

    def _lose(self, hand: Hand, reason: Reason, message: str) -> None:
        """Give a process up: it is fenced, and what it may still say is not read any more."""
        if hand.is_gone:
            return
        hand.is_gone = True
        hand.process.send(signal.SIGKILL)
        self._selector.unregister(hand.process.channel)
        hand.process.close()  # who still lives there, on whatever machine, finds that it is alone, and leaves
        if not self._was_ready:
            raise RankFailedError(message)
        rank = self._ranks.index(hand) if hand in self._ranks else None
        self._events.append(Lost(self.generation, rank, hand.number, hand.process.pid, reason, message))
        self._blamed = [each for each in self._blamed if each[1] != self.generation]
        if rank is not None:
            self._declare_soon(time.monotonic())

    # Declaring ------------------------------------------------------------------------------------------------------

    def _declare_soon(self, at_s: float, *, must_meet: bool = True) -> None:
        """See to it that a generation is declared, now or a moment later."""
        self._must_meet = self._must_meet or must_meet
        if self._declare_at_s is None and self._is_ready:
            self._ended_s = time.monotonic()
        self._declare_at_s = at_s if self._declare_at_s is None else min(self._declare_at_s, at_s)

    def _declare(self) -> None:
        """Say who is in the next generation, and under which plan."""
        self._cut_off_the_most_blamed()
        self._declare_at_s = None
        layout = self._layout()
        ranks = tuple(self._at(home) for home in layout.homes)
        if ranks == self._ranks and not self._must_meet:
            return  # who has joined stands by
        self._is_ready = self._must_meet = False
        self.generation += 1
        self.plan, self._ranks, self._schedule = layout.plan, ranks, Schedule(self.generation)
        members = tuple(each.number for each in ranks)
        declaration = Declaration(generation=self.generation, members=members, plan=layout.plan)
        for rank, hand in enumerate(ranks):
            hand.held, hand.switched = held_by(layout.plan, rank), 0
            hand.moved_s = time.monotonic()  # who has waited for the lost is not stuck for that
        for hand in self._here():
            if hand.is_in:
                hand.process.tell({"declare": declaration.model_dump(mode="json")})
        self._events.append(Declared(self.generation, self.plan))

    def _layout(self) -> Layout:
        try:
            return layout_of(self._job.plan, {each.home: each.held for each in self._here() if each.is_in})
        except CoverageLostError as error:
            lost = [each.message for each in self._events if isinstance(each, Lost)]
            raise CoverageLostError("; ".join((str(error), *lost))) from None

    def _cut_off_the_most_blamed(self) -> None:
        """Give up who could not be reached in two generations of late."""
        now_s = time.monotonic()
        here = {each.number for each in self._here()}
        self._blamed = [each for each in self._blamed if now_s - each[0] < _BLAME_S and {*each[2:]} <= here]
        if len({generation for _, generation, _, _ in self._blamed}) < _MOST_BLAMED:
            return
        number = most_blamed([(blamer, blamed) for _, _, blamer, blamed in self._blamed])
        if number is not None:
            self._blamed.clear()
            self._lose(self._hands[number], "cut off", f"{_name(self._hands[number])} cannot be reached by the others")

    def _begin_if_ready(self, now_s: float) -> None:
        if self._is_ready or any(each.ready != self.generation for each in self._ranks):
            return
        self._is_ready = self._was_ready = True
        self._events.append(Ready(self.generation, self.plan, now_s - self._ended_s))
        self._move_on()

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

    # Processes ------------------------------------------------------------------------------------------------------

    def _start(self, home: int, *, is_in: bool) -> Hand:
        """Start the process of a home."""
        size = self._job.num_ranks
        world = World(home, size, home, size, LOOPBACK, self._port, is_hosted=True)
        process = start(world, self._job_file.fileno(), self._environment, self._output)
        hand = Hand(len(self._hands), home, process, time.monotonic(), held_by(self._job.plan, home), is_in)
        self._hands.append(hand)
        self._selector.register(process.channel, selectors.EVENT_READ, hand)
        process.tell({"welcome": {"member": hand.number, "connect_s": self._limits.connect_s}})
        return hand

    def _here(self) -> list[Hand]:
        return [each for each in self._hands if not each.is_gone]

    def _at(self, home: int) -> Hand:
        return next(each for each in self._here() if each.home == home)


def _check(job: Job) -> None:
    """Raise InputError for a job that ranks cannot go on with when they are fewer."""
    if len(job.plan.pools) > 1:
        raise InputError("only plans of one pool survive their ranks", field="pools", value=len(job.plan.pools))
    if job.transport == "deep_ep":
        remedy = "leave --transport out, or have it gloo"
        raise InputError("DeepEP's groups cannot be made anew", field="transport", value="deep_ep", remedy=remedy)


def _name(hand: Hand) -> str:
    return f"rank {hand.home} (pid {hand.process.pid})"
