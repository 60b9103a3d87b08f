"""Crew: the launcher's half of ranks that outlive each other: it starts them, listens to them, and fences the lost."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, cast

from moiety.errors import InputError
from moiety.runtime.elastic.beacon import Beat
from moiety.runtime.elastic.declaration import Declaration
from moiety.runtime.elastic.events import Joined, Lost, Parted, Said, Slow
from moiety.runtime.elastic.limits import Limits
from moiety.runtime.elastic.replan import held_by, layout_of
from moiety.runtime.elastic.roster import PERIOD_S, Roster
from moiety.runtime.elastic.succession import Succession
from moiety.runtime.elastic.watchman import Watchman
from moiety.runtime.failure import Cause, RankFailedError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from moiety.placement.migration.order import Move
    from moiety.placement.problem import SlotMap
    from moiety.runtime.channel import Message
    from moiety.runtime.elastic.events import Event, Reason
    from moiety.runtime.elastic.hand import Hand, Sign
    from moiety.runtime.job import Job

_LAST_WORDS_S = 5.0
"""How long a process whose channel has ended may take to end."""


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


class Crew(Succession):
    """The processes of a job's plan, on this machine.

    Use it as a context: its end ends them all. One thread enters it, calls `poll`, `wait_ready` and `rejoin`, and lives
    as long as the crew, as the processes end with the thread that has started them; any thread may call the others.

    By itself it fences whom its `Watchman` finds lost, and declares the next generation. One that `is_led` does not:
    its leader looks at its events and `signs`, and calls `fence` and `regroup`.
    """

    def __init__(
        self,
        job: Job,
        *,
        limits: Limits | None = None,
        output_folder: Path | None = None,
        environ: Mapping[str, str] = os.environ,
        is_led: bool = False,
        first_generation: int = 1,
    ) -> None:
        """Raise InputError for a job that ranks cannot go on with when they are fewer."""
        _check(job)
        self._limits, self._first = limits or Limits(), first_generation
        super().__init__(job, Roster(job, self._limits, output_folder, environ))
        self._watchman = None if is_led else Watchman(self._limits)
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        """Start all processes; the first generation is declared when all have shown a sign of life."""
        self._roster.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """End all processes: those that can take leave do."""
        with self._lock:
            self._ranks = ()
            self._roster.close()

    # For the driver -------------------------------------------------------------------------------------------------

    def poll(self, timeout_s: float) -> list[Event]:
        """Return what has happened, after at most `timeout_s` without anything.

        Raises CoverageLostError where those who are left cannot hold the model, RankFailedError where a rank finds its
        input wrong, or fails before the first generation was ready.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            self._turn(min(PERIOD_S, max(deadline_s - time.monotonic(), 0.0)))
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
            events += self.poll(PERIOD_S)
        return events

    def ranks(self) -> tuple[RankStatus, ...]:
        """Return the ranks of the generation in force."""
        with self._lock:
            return tuple(
                RankStatus(rank, each.number, each.process.pid, each.home, each.ready == self.generation, each.beat)
                for rank, each in enumerate(self._ranks)
            )

    def signs(self) -> tuple[Sign, ...]:
        """Return what each process has shown of itself that has been heard and is not given up."""
        with self._lock:
            found = (each.sign(self.generation) for each in self._roster.here())
            return tuple(each for each in found if each is not None)

    def send(self, rank: int, payload: object, *, generation: int | None = None) -> bool:
        """Send a rank some JSON; return False, and send nothing, where `generation` is not in force any more."""
        with self._lock:
            if generation not in {None, self.generation}:
                return False
            self._ranks[rank].process.tell({"say": {"generation": self.generation, "payload": payload}})
            return True

    @property
    def is_moving(self) -> bool:
        """Whether a live migration is under way."""
        return self._schedule.is_busy

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

    def is_vacant(self, home: int) -> bool:
        """Return whether a home has no process."""
        with self._lock:
            return all(each.home != home for each in self._roster.here())

    @property
    def is_waiting(self) -> bool:
        """Whether processes have been started that do not have their weights yet."""
        with self._lock:
            return any(not each.is_in and each.dismissed_s is None for each in self._roster.here())

    def rejoin(self, slot_map: SlotMap | None = None, home: int | None = None) -> int | None:
        """Start a process for a home, or the first that is vacant; return its number, None where it is taken.

        It reads its weights while the others go on, those of `slot_map` (see `layout_of`) where one is given, and can
        be a rank from the next generation on.
        """
        with self._lock:
            home = self._roster.vacant() if home is None else home
            if home is None or not self.is_vacant(home):
                return None
            hand = self._roster.start(home, is_in=False)
            layout = layout_of(self._job.plan, {**self._alive(), home: {}}, slot_map)
            members = tuple(self._roster.at(each).number for each in layout.homes)
            wanted = Declaration(generation=self.generation + 1, members=members, plan=layout.plan)
            if hand.number in members:
                hand.held = held_by(layout.plan, members.index(hand.number))
            hand.process.tell({"prepare": wanted.model_dump(mode="json")})
            return hand.number

    # For who leads it -----------------------------------------------------------------------------------------------

    def fence(self, home: int, message: str) -> None:
        """Give up the process of a home, if it has one: it is killed, and what it may still say is not read."""
        with self._lock:
            for each in self._roster.here():
                if each.home == home:
                    self._lose(each, "fenced", f"{each} {message}")

    def dismiss(self, home: int) -> None:
        """Have the process of a home, which is no rank of the generation in force, end; it is not lost by that."""
        with self._lock:
            for each in self._roster.here():
                if each.home == home:
                    each.is_in, each.dismissed_s = False, time.monotonic()
                    each.process.tell({"end": "dismissed"})

    def regroup(self, generation: int, homes: Collection[int], slot_map: SlotMap | None = None) -> None:
        """Have the processes of these homes meet in a later generation, with experts as in `slot_map`.

        Others stand by. See `layout_of`; raises CoverageLostError.
        """
        with self._lock:
            self._declare(generation, {home: held for home, held in self._alive().items() if home in homes}, slot_map)

    # Listening ------------------------------------------------------------------------------------------------------

    def _turn(self, timeout_s: float) -> None:
        """Take in what the ranks say and what becomes of them."""
        ready = self._roster.wait(timeout_s)
        with self._lock:
            for hand in ready:
                self._read(hand, time.monotonic())
            self._roster.push()
            now_s, limits = time.monotonic(), self._limits
            for hand in self._roster.here():
                if hand.heard_s is None and now_s - hand.started_s > limits.start_s:
                    self._lose(hand, "frozen", f"{hand} has shown no sign of life for {limits.start_s:.0f} s")
                if hand.dismissed_s is not None and now_s - hand.dismissed_s > limits.leave_s:
                    self._roster.give_up(hand)
            if self._watchman is not None:
                self._lead(self._watchman)
            if not self.generation and all(each.heard_s is not None for each in self._roster.hands):
                self._declare(self._first, self._alive())

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
        if hand.dismissed_s is not None:
            if not is_open:
                self._roster.give_up(hand)
        elif not is_open or failure is not None:
            hand.process.wait(_LAST_WORDS_S)
            hand.process.notice_end()
            failure = hand.process.failure
            self._lose(hand, "dead", failure.message if failure else f"{hand} has ended its work")

    def _take(self, hand: Hand, message: Message, now_s: float) -> None:
        """Take in what a rank says; what belongs to an older generation is refused."""
        if "beat" in message:
            hand.take(Beat.model_validate(message["beat"]), now_s)
            return
        kind, said = next((kind, cast("dict[str, object]", said)) for kind, said in message.items())
        if kind == "prepared":
            hand.is_in = True
            self._events.append(Joined(hand.home, hand.number, hand.process.pid))
            if self._watchman is not None:
                self._watchman.soon(now_s, must_meet=False)
        elif said["generation"] != self.generation or hand not in self._ranks:
            return
        elif kind == "say":
            self._events.append(Said(self.generation, self._ranks.index(hand), said["payload"]))
        elif kind == "ready":
            hand.ready, hand.kept_cache = self.generation, bool(said["kept"])
            self._begin_if_ready(now_s)
        elif kind == "switched":
            hand.switched = cast("int", said["batch"])
            self._switch_if_all()
        elif kind == "lost":
            self._parted(hand, cast("int | None", said["rank"]), now_s)

    def _parted(self, hand: Hand, peer: int | None, now_s: float) -> None:
        self._events.append(Parted(self.generation, self._ranks.index(hand), peer))
        if self._watchman is not None:
            self._watchman.parted(hand, None if peer is None else self._ranks[peer], self.generation, now_s)

    def _lose(self, hand: Hand, reason: Reason, message: str) -> None:
        """Give a process up."""
        if hand.is_gone:
            return
        self._roster.give_up(hand)
        if hand.dismissed_s is not None:
            return
        if not self._was_ready:
            raise RankFailedError(message)
        rank = self._ranks.index(hand) if hand in self._ranks else None
        self._events.append(Lost(self.generation, rank, hand.home, hand.number, hand.process.pid, reason, message))
        if rank is not None:
            self._mark_end()
        if self._watchman is not None:
            self._watchman.lost(hand, self.generation)
            if rank is not None:
                self._watchman.soon(time.monotonic())

    # Leading itself -------------------------------------------------------------------------------------------------

    def _lead(self, watchman: Watchman) -> None:
        """Fence whom the watchman finds lost, and declare the next generation where it is due."""
        now_s = time.monotonic()
        for hand, reason, message in watchman.judge(self._roster.here(), self._ranks, self.generation, now_s):
            self._lose(hand, reason, message)
        self._events += [Slow(self.generation, rank, ratio) for rank, ratio in watchman.slow(self._ranks).items()]
        if not watchman.is_due(time.monotonic()):
            return
        gone = watchman.cut_off(self._roster.here(), time.monotonic())
        if gone is not None:
            self._lose(*gone)
        alive = self._alive()
        must_meet = watchman.must_meet
        watchman.begun()
        if must_meet or self._homes(alive) != tuple(each.home for each in self._ranks):  # who has joined may stand by
            self._mark_end()
            self._declare(self.generation + 1, alive)


def _check(job: Job) -> None:
    """Raise InputError for a job that ranks cannot go on with when they are fewer."""
    if len(job.plan.pools) > 1:
        raise InputError("only plans of one pool survive their ranks", field="pools", value=len(job.plan.pools))
    if job.transport == "deep_ep":
        remedy = "leave --transport out, or have it gloo"
        raise InputError("DeepEP's groups cannot be made anew", field="transport", value="deep_ep", remedy=remedy)
