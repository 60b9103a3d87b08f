"""The engine loop: step after step of the ranks; when they are lost, on with others from the journal."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Literal

from moiety.errors import MoietyError
from moiety.runtime.serving.ranks import RanksLostError
from moiety.serve.journal import MOST_LOSSES
from moiety.serve.scheduler import QueueFullError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from moiety.runtime.serving.ranks import Ranks, RankState
    from moiety.serve.journal import Entry
    from moiety.serve.metrics import Metrics
    from moiety.serve.scheduler import Scheduler
    from moiety.serve.traffic import Users

State = Literal["starting", "ready", "recovering", "refusing", "draining", "failed"]


class NotServingError(Exception):
    """No new requests are taken; the message says why."""


class EngineLoop:
    """Sequences in, tokens out, as long as there are ranks; everything in one event loop."""

    def __init__(
        self,
        ranks: Ranks,
        scheduler: Scheduler,
        metrics: Metrics,
        users: Users,
        note: Callable[[str], None],
    ) -> None:
        self._ranks, self._scheduler, self._metrics, self._note = ranks, scheduler, metrics, note
        self._users = users
        self._state: State = "starting"
        self._is_draining = False
        self._woken = asyncio.Event()
        metrics.watch(lambda: scheduler.num_running, lambda: scheduler.num_waiting, lambda: scheduler.cache_usage)

    @property
    def state(self) -> State:
        """What the server is doing."""
        if self._is_draining and self._state != "failed":
            return "draining"
        return "refusing" if self._state == "recovering" and self._ranks.refusal else self._state

    def ranks(self) -> tuple[RankState, ...]:
        """Return what is known of each rank."""
        return self._ranks.states()

    def submit(self, entries: Sequence[Entry]) -> None:
        """Take in sequences, all or none.

        Raises NotServingError where none are taken, QueueFullError where too many would wait.
        """
        if self.state not in {"ready", "recovering"}:
            raise NotServingError(self._ranks.refusal or f"the server is {self.state}")
        try:
            self._scheduler.admit(entries)
        except QueueFullError:
            self._users.refused(entries)
            raise
        self._users.waits(self._scheduler.without_room())
        self._metrics.submitted(entries)
        self._woken.set()

    def withdraw(self, entries: Sequence[Entry]) -> None:
        """Forget those of the sequences that are not over: nobody waits for them any more."""
        for each in entries:
            if not each.is_over:
                self._scheduler.withdraw(each)
                each.fail("nobody waits for it")
                self._metrics.ended("cancelled")
        self._woken.set()

    def drain(self) -> None:
        """Take no new sequences, and come to an end with the last one."""
        self._is_draining = True
        self._woken.set()

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until drained; call `ready` when the first sequences can be taken.

        Raises RankFailedError where there are no ranks to go on with; every sequence in flight is then told why.
        """
        try:
            await self._begin()
            ready()
            while True:
                try:
                    await self._step_until_drained()
                except RanksLostError as lost:
                    await self._regrouped(lost)
                else:
                    return
        except BaseException as error:
            self._state = "failed"
            reason = str(error) if isinstance(error, MoietyError) else "the server failed"
            for entry in self._scheduler.clear():
                entry.fail(reason)
                self._metrics.ended("failed")
            raise

    async def _begin(self) -> None:
        """Wait for the ranks' next generation, and go on with it."""
        self._scheduler.begin(await self._ranks.ready())
        self._users.ready(time.monotonic())
        self._state = "ready"

    async def _step_until_drained(self) -> None:
        while True:
            step = self._scheduler.next_step()
            if step is None:
                if self._is_draining:
                    return
                await self._idle()
                continue
            began_s = time.monotonic()
            tokens = await self._ranks.step(step.order)
            now_s = time.monotonic()
            self._metrics.stepped(now_s - began_s)
            self._take(self._scheduler.accept(step, tokens, now_s), now_s)

    def _take(self, entries: Sequence[Entry], now_s: float) -> None:
        """Take note of sequences that have got a token or have failed, and of who still waits for a place."""
        served = [each for each in entries if each.error is None]
        self._metrics.accepted(served)
        for each in served:
            self._users.got(each, now_s)
        for _ in range(len(entries) - len(served)):
            self._metrics.ended("failed")
        self._users.waits(self._scheduler.without_room())

    async def _idle(self) -> None:
        """Wait until there may be something to do; raise RanksLostError where the generation ends meanwhile."""
        self._woken.clear()
        waits = [asyncio.create_task(self._woken.wait()), asyncio.create_task(self._ranks.lost())]
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                each.result()
        finally:
            for each in waits:
                each.cancel()

    async def _regrouped(self, lost: RanksLostError) -> None:
        """Wait for the ranks' next generation, with everything in flight waiting for it."""
        began_s = time.monotonic()
        self._state = "recovering"
        if lost.is_loss:
            self._blame(self._scheduler.suspects())
        self._note(f"{lost}; {self._scheduler.num_running} sequences go on with the ranks' next generation")
        await self._begin()
        self._metrics.recovered(time.monotonic() - began_s)

    def _blame(self, entries: Sequence[Entry]) -> None:
        """Count a loss of ranks for what they were computing; who was alone with it for the last time is given up."""
        for each in entries:
            each.num_losses += 1
            if each.num_losses >= MOST_LOSSES and not each.is_over:
                self._scheduler.withdraw(each)
                each.fail(f"ranks were lost {MOST_LOSSES} times in steps of this request; it is not tried again")
                self._metrics.ended("failed")
