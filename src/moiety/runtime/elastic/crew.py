"""Crew: the launcher's half of ranks that outlive each other, as its driver and whoever leads it see it."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from moiety.errors import InputError
from moiety.runtime.elastic.limits import Limits
from moiety.runtime.elastic.listener import Listener
from moiety.runtime.elastic.roster import PERIOD_S, Roster
from moiety.runtime.elastic.succession import Succession
from moiety.runtime.elastic.watchman import Watchman
from moiety.runtime.failure import RankFailedError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from moiety.placement.migration.order import Move
    from moiety.placement.problem import SlotMap
    from moiety.plan import Plan
    from moiety.runtime.elastic.beacon import Beat
    from moiety.runtime.elastic.events import Event
    from moiety.runtime.elastic.hand import Sign
    from moiety.runtime.job import Job


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
        obey: Callable[[], None] = lambda: None,
    ) -> None:
        """Raise InputError for a job that ranks cannot go on with when they are fewer.

        `obey` is called while the processes are being started; what it raises ends them.
        """
        _check(job)
        self._obey = obey
        limits = limits or Limits()
        self._roster = Roster(job, limits, output_folder, environ)
        self._now = Succession(job.plan, self._roster)
        watchman = None if is_led else Watchman(limits)
        self._listener = Listener(self._roster, self._now, limits, watchman, first_generation)
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        """Start all processes; the first generation is declared when all have shown a sign of life."""
        self._roster.open(self._obey)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """End all processes: those that can take leave do."""
        with self._lock:
            self._now.ranks = ()
            self._roster.close()

    # For the driver -------------------------------------------------------------------------------------------------

    @property
    def generation(self) -> int:
        """Number of the generation in force; 0 before the first."""
        return self._now.generation

    @property
    def plan(self) -> Plan:
        """Of the generation in force, with the map of the experts that serves now."""
        return self._now.plan

    def poll(self, timeout_s: float) -> list[Event]:
        """Return what has happened, after at most `timeout_s` without anything.

        Raises CoverageLostError where those who are left cannot hold the model, RankFailedError where a rank finds its
        input wrong, or fails before the first generation was ready.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            ready = self._roster.wait(min(PERIOD_S, max(deadline_s - time.monotonic(), 0.0)))
            with self._lock:
                self._listener.hear(ready)
                if self._now.events or time.monotonic() >= deadline_s:
                    events, self._now.events = self._now.events, []
                    return events

    def wait_ready(self, timeout_s: float = 600.0) -> list[Event]:
        """Return what has happened until the generation in force is ready; raises as `poll`, and when time is up."""
        deadline_s = time.monotonic() + timeout_s
        events: list[Event] = []
        while not self._now.is_ready:
            if time.monotonic() > deadline_s:
                raise RankFailedError(f"generation {self.generation} is not ready after {timeout_s:.0f} s")
            events += self.poll(PERIOD_S)
        return events

    def ranks(self) -> tuple[RankStatus, ...]:
        """Return the ranks of the generation in force."""
        with self._lock:
            return tuple(
                RankStatus(rank, each.number, each.process.pid, each.home, each.ready == self.generation, each.beat)
                for rank, each in enumerate(self._now.ranks)
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
            self._now.ranks[rank].process.tell({"say": {"generation": self.generation, "payload": payload}})
            return True

    @property
    def is_moving(self) -> bool:
        """Whether a live migration is under way."""
        return self._now.is_moving

    def migrate(self, moves: Sequence[Move], *, most_at_once: int = 8) -> None:
        """Have the ranks move experts in the background, in this order, and switch to them batch by batch.

        A batch is whole steps of the order, of at most `most_at_once` moves where one step is not more; so many experts
        take memory twice. Moves that are left are dropped when the generation ends. Raises InputError for moves that
        are none of the map in force, or while others are under way.
        """
        with self._lock:
            self._now.migrate(moves, most_at_once)

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
            return self._now.prepare(home, slot_map)

    # For who leads it -----------------------------------------------------------------------------------------------

    def fence(self, home: int, message: str) -> None:
        """Give up the process of a home, if it has one: it is killed, and what it may still say is not read."""
        with self._lock:
            for each in self._roster.here():
                if each.home == home:
                    self._listener.lose(each, "fenced", f"{each} {message}")

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
            alive = {home: held for home, held in self._now.alive().items() if home in homes}
            self._now.declare(generation, alive, slot_map)


def _check(job: Job) -> None:
    """Raise InputError for a job that ranks cannot go on with when they are fewer."""
    if len(job.plan.pools) > 1:
        raise InputError("only plans of one pool survive their ranks", field="pools", value=len(job.plan.pools))
    if job.transport == "deep_ep":
        remedy = "leave --transport out, or have it gloo"
        raise InputError("DeepEP's groups cannot be made anew", field="transport", value="deep_ep", remedy=remedy)
